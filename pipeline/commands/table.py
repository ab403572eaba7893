"""Tables: on a terminal, and for spreadsheets (CSV), whose cells must not be taken for formulas."""

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

# What a spreadsheet takes for the beginning of a formula, also after white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# Where lists are parted by semicolons, a spreadsheet begins a new cell behind one, also inside ours.
_INSIDE = re.compile('(;["\\s]*)(?=[=+\\-@\uff1d\uff0b\uff0d\uff20])')


def cell(value: object) -> object:
    """``value`` as it goes into a cell: text that would be a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    value = _INSIDE.sub(r"\1'", value)
    return f"'{value}" if value.startswith(_FORMULA) or value.lstrip().startswith(_FORMULA) else value


def print_csv(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a header and the rows, as they come; what a terminal would act on is escaped. Raises OutputLost."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    for row in itertools.chain([titles], rows):
        writer.writerow([item if isinstance(item, (int, float)) else escape(str(cell(str(item)))) for item in row])
        write(line.getvalue())
        line.seek(0)
        line.truncate()


def print_table(table: Table) -> None:
    """Prints a table of texts that are escaped already, with the terminal's colours. Raises OutputLost."""
    from rich.console import Console

    console = Console()
    with console.capture() as capture:
        console.print(table)
    write(capture.get())
