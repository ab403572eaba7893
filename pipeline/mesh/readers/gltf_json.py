"""A stranger's glTF JSON, asked with the type that is expected: every surprise is a MeshError that says where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.core.files import plain

Object = dict[str, Any]


class GltfJson:
    """The document of the file ``name``."""

    def __init__(self, document: Object, name: str):
        self.document, self.name = document, name

    def error(self, text: str) -> MeshError:
        """A MeshError that begins with the file's name."""
        return MeshError(f"{self.name}: {text}")

    def item(self, key: str, index: Any, what: str) -> Object:
        """Entry ``index`` of the document's list ``key``. Raises MeshError where there is none."""
        items = self.array(self.document, key, "its JSON")
        if not _is_integer(index) or not 0 <= index < len(items):
            raise self.error(f"its JSON names {what} {_quoted(index)}, but there are {len(items)}")
        if not isinstance(items[index], dict):
            raise self.error(f"{what} {index} of its JSON is not an object")
        entry: Object = items[index]
        return entry

    def array(self, parent: Object, key: str, where: str) -> list[Any]:
        """The list ``key`` of an object; empty where it is missing. Raises MeshError for anything else."""
        value = parent.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(f"its JSON is not valid glTF: {key} of {where} is not a list")
        return value

    def object(self, parent: Object, key: str, where: str) -> Object:
        """The object ``key`` of an object; empty where it is missing. Raises MeshError for anything else."""
        value = parent.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(f"its JSON is not valid glTF: {key} of {where} is not an object")
        return value

    def integer(self, parent: Object, key: str, default: int | None = None) -> int:
        """The count ``key`` of an object. Raises MeshError where it is none, or missing without a ``default``."""
        value: Any = parent.get(key, default)
        if not _is_integer(value) or value < 0:
            raise self.error(f"its JSON has {key} {_quoted(value)}, which is no count")
        return int(value)

    def numbers(self, parent: Object, key: str, default: Sequence[float], where: str) -> NDArray[np.float64]:
        """As many finite numbers as ``default`` has. Raises MeshError for anything else."""
        value = parent.get(key)
        if value is None:
            return np.array(default, np.float64)
        if not isinstance(value, list) or len(value) != len(default):
            raise self.error(f"its JSON is not valid glTF: {key} of {where} is not a list of {len(default)} numbers")
        return np.array([self.number(entry, key, where) for entry in value], np.float64)

    def number(self, value: Any, key: str, where: str) -> float:
        """``value`` as a finite float. Raises MeshError where it is none."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(f"its JSON is not valid glTF: {key} of {where} holds {_quoted(value)}, which is no number")
        try:
            number = float(value)
        except OverflowError:
            number = np.inf
        if not np.isfinite(number):
            raise self.error(f"{key} of {where} is not finite")
        return number


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _quoted(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if _is_integer(value) and abs(value) > 10**20:
        return "a number of more than 20 digits"
    return f"'{plain(value)}'" if isinstance(value, str) else plain(value)
