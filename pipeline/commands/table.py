"""Tables for terminals and for spreadsheets (CSV), with cells that are never read as formulas."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pipeline.core.terminal import escape, write

if TYPE_CHECKING:
    from rich.table import Table

# Characters that begin a formula in a spreadsheet, also after white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# In locales that separate by semicolons, a spreadsheet starts a new cell after one, also inside our cells.
_INSIDE = re.compile('(;["\\s]*)(?=[=+\\-@\uff1d\uff0b\uff0d\uff20])')


def cell(value: object) -> object:
    """Converts ``value`` to a cell. Puts an apostrophe before text that would be a formula."""
    if not isinstance(value, str):
        return value
    value = _INSIDE.sub(r"\1'", value)
    return f"'{value}" if value.startswith(_FORMULA) or value.lstrip().startswith(_FORMULA) else value


def print_csv(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Streams a header and the rows as CSV, escaped for terminals. Raises OutputLost."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    for row in itertools.chain([titles], rows):
        writer.writerow([item if isinstance(item, (int, float)) else escape(str(cell(str(item)))) for item in row])
        write(line.getvalue())
        line.seek(0)
        line.truncate()


def print_table(table: Table) -> None:
    """Prints a table of escaped texts with the terminal's colours. Raises OutputLost."""
    from rich.console import Console

    console = Console()
    with console.capture() as capture:
        console.print(table)
    write(capture.get())
