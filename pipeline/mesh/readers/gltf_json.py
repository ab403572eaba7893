"""Typed access to untrusted glTF JSON. Every unexpected value raises a MeshError that names its location."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.core.terminal import excerpt
from pipeline.mesh.readers.gltf_file import Object


class GltfJson:
    """The document of the file ``name``."""

    def __init__(self, document: Object, name: str):
        self.document, self.name = document, name

    def error(self, text: str) -> MeshError:
        """A MeshError that begins with the file's name."""
        return MeshError(f"{self.name}: {text}")

    def item(self, key: str, index: object, what: str) -> Object:
        """Returns entry ``index`` of the document's list ``key``. Raises MeshError if there is none."""
        items = self.array(self.document, key, "its JSON")
        if not _is_integer(index) or not 0 <= index < len(items):
            raise self.error(f"its JSON names {what} {_quoted(index)}, but there are {len(items)}")
        if not isinstance(items[index], dict):
            raise self.error(f"{what} {index} of its JSON is not an object")
        entry: Object = items[index]
        return entry

    def array(self, parent: Object, key: str, where: str) -> list[Any]:
        """Returns the list ``key`` of an object; empty if it is missing. Raises MeshError for other types."""
        value = parent.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(f"its JSON is not valid glTF: {key} of {where} is not a list")
        return value

    def object(self, parent: Object, key: str, where: str) -> Object:
        """Returns the object ``key`` of an object; empty if it is missing. Raises MeshError for other types."""
        value = parent.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(f"its JSON is not valid glTF: {key} of {where} is not an object")
        return value

    def integer(self, parent: Object, key: str, default: int | None = None) -> int:
        """Returns the count ``key`` of an object. Raises MeshError if it is invalid, or missing without ``default``."""
        value: object = parent.get(key, default)
        if not _is_integer(value) or value < 0:
            raise self.error(f"its JSON has {key} {_quoted(value)}, which is not a count")
        return int(value)

    def numbers(self, parent: Object, key: str, default: Sequence[float], where: str) -> NDArray[np.float64]:
        """Returns a list of finite numbers of the length of ``default``. Raises MeshError for other values."""
        value = parent.get(key)
        if value is None:
            return np.array(default, np.float64)
        if not isinstance(value, list) or len(value) != len(default):
            raise self.error(f"its JSON is not valid glTF: {key} of {where} is not a list of {len(default)} numbers")
        return np.array([self.number(entry, key, where) for entry in value], np.float64)

    def number(self, value: Any, key: str, where: str) -> float:
        """Converts ``value`` to a finite float. Raises MeshError for other values."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(
                f"its JSON is not valid glTF: {key} of {where} contains {_quoted(value)}, which is not a number"
            )
        try:
            number = float(value)
        except OverflowError:
            number = np.inf
        if not np.isfinite(number):
            raise self.error(f"{key} of {where} is not finite")
        return number


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _quoted(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if _is_integer(value) and abs(value) > 10**20:
        return "a number of more than 20 digits"
    return f"'{excerpt(value)}'" if isinstance(value, str) else excerpt(value)
