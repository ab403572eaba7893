"""Problems of a manifest, and the wording of their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.core.terminal import printable

_MAX_QUOTED = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One error; ``str`` gives ``file:row: field: what is wrong, what is allowed``.

    ``row`` 0 and an empty ``field`` mean that there is none. ``row_id`` is the row's id if that is valid. ``unusable``
    means that the error makes the whole manifest unusable, not only this row.
    """

    file: str
    row: int
    field: str
    message: str
    row_id: str | None = None
    unusable: bool = False

    def __str__(self) -> str:
        row = f":{self.row}" if self.row else ""
        field = f" {self.field}:" if self.field else ""
        return f"{self.file}{row}:{field} {self.message}"


def quoted(value: object) -> str:
    """Quotes an untrusted ``value`` for a message: shortened, on one line, escaped for terminals."""
    if isinstance(value, str):
        cut = value if len(value) <= _MAX_QUOTED else value[: _MAX_QUOTED - 3] + "..."
        return f"'{printable(cut)}'"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else type(value).__name__


def join_or(words: Iterable[str]) -> str:
    """``a, b or c``."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean 'x'?`` with the known name nearest to ``name``, or ""."""
    if len(name) > _MAX_QUOTED:
        return ""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    nearest = difflib.get_close_matches(plain, list(known), 1, 0.6)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""
