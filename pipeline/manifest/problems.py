"""What can be wrong with a manifest, and how it is put into words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_MAX_QUOTED = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; ``str`` gives ``file:row: field: what is wrong, what is allowed``.

    ``row`` is 0 and ``field`` empty where there is none. ``row_id`` is the row's id where it has a usable one.
    ``whole`` says that it makes the whole manifest unusable, not this row alone.
    """

    file: str
    row: int
    field: str
    message: str
    row_id: str | None = None
    whole: bool = False

    def __str__(self) -> str:
        row = f":{self.row}" if self.row else ""
        field = f" {self.field}:" if self.field else ""
        return f"{self.file}{row}:{field} {self.message}"


def quoted(value: Any) -> str:
    """``value`` as it is quoted in a message: short, on one line, nothing in it that a terminal obeys."""
    if isinstance(value, str):
        cut = value if len(value) <= _MAX_QUOTED else value[: _MAX_QUOTED - 3] + "..."
        return "'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut) + "'"
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
    """``; did you mean 'x'?`` for the known name nearest to ``name``, or nothing."""
    if len(name) > _MAX_QUOTED:
        return ""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    nearest = difflib.get_close_matches(plain, list(known), 1, 0.6)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""
