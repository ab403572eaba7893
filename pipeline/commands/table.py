"""Tables for spreadsheets (CSV), whose cells must not be taken for formulas."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence

# What a spreadsheet takes for the beginning of a formula, also after white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def cell(value: object) -> object:
    """``value`` as it goes into a cell: text that would be a formula gets an apostrophe before it."""
    if isinstance(value, str) and (value.startswith(_FORMULA) or value.lstrip().startswith(_FORMULA)):
        return f"'{value}"
    return value


def print_csv(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a header and the rows, as they come."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(titles)
    for row in rows:
        writer.writerow([cell(value) for value in row])
