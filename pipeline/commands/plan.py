"""``latentkiln plan``: lists what a run would build, and why."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.commands.table import print_csv, print_table
from pipeline.core.errors import EXIT_OK, EXIT_ROWS_FAILED, UsageError
from pipeline.core.job import Job
from pipeline.core.location import Location, require_folder
from pipeline.core.terminal import escape, safe_json, say, write
from pipeline.manifest import Problem, ValidatedManifest
from pipeline.plan import Refuse, iterate, leftovers
from pipeline.prior.identity import prior_identity
from pipeline.prior.job_check import job_checker

# In the order of the summary.
_WORDS = {
    "build": "to build",
    "keep": "up to date",
    "blocked": "blocked",
    "wrong": "wrong",
    "gone": "not in the manifest",
}
# A table is drawn at once, so it is limited to a few screens.
_LONGEST_TABLE = 500


@dataclass(frozen=True)
class _PlanLine:
    """One row of the plan. ``row`` is its number in the manifest (0: not in it); ``details`` is for JSON."""

    id: str
    action: str
    reason: str
    row: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


def show_plan(
    manifest: Location,
    *,
    out: Location = Path("outputs"),
    prior: str = "embedded",
    only: Sequence[str] = (),
    overrides: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    allow_unknown: bool = False,
    json: bool = False,
    csv: bool = False,
) -> int:
    """Prints the action and reason of each row, then the assets in ``out`` that are not in the manifest.

    Prints a table on a terminal, else streams lines ``id TAB action TAB reason`` in constant memory. ``json`` prints
    one object, ``csv`` a table for a spreadsheet. Builds and writes nothing. Returns 0, or 1 if rows are wrong or
    blocked. Raises ManifestError, UsageError or PriorError.
    """
    if csv and json:
        raise UsageError("--csv and --json cannot be combined; give one of them")
    require_folder(out)
    validated = ValidatedManifest(manifest, overrides=overrides, only=only, allow_outside=allow_outside)
    identity = prior_identity(prior).identity
    refuse = job_checker(prior, allow_unknown=allow_unknown).reason
    counts: Counter[str] = Counter()

    def counted() -> Iterator[_PlanLine]:
        for line in _lines(validated, out, identity, refuse):
            counts[line.action] += 1
            yield line

    if json:
        _print_json(manifest, out, counted(), counts)
    elif csv:
        print_csv(("id", "row", "action", "reason"), ((x.id, x.row or "", x.action, x.reason) for x in counted()))
    else:
        table = sys.stdout.isatty() and validated.good + validated.bad <= _LONGEST_TABLE
        (_print_table if table else _print_lines)(counted())
        say(", ".join(f"{counts[action]} {word}" for action, word in _WORDS.items() if counts[action]))
    return EXIT_ROWS_FAILED if counts["wrong"] or counts["blocked"] else EXIT_OK


def _lines(validated: ValidatedManifest, out: Location, identity: str, refuse: Refuse) -> Iterator[_PlanLine]:
    """Yields the rows in the manifest's order, then the assets that are no longer in it."""
    wrong: list[Problem] = []

    def jobs() -> Iterator[Job]:
        for item in validated:
            if isinstance(item, Job):
                yield item
            else:
                wrong.append(item)

    for item in iterate(jobs(), out, prior_identity=identity, refuse=refuse):
        # The plan reads ahead, so it may already know later wrong rows.
        row = item.job.row_location.row
        yield from _wrong_lines([problem for problem in wrong if problem.row < row])
        wrong[:] = [problem for problem in wrong if problem.row > row]
        yield _PlanLine(item.job.id, item.action, item.reason, row, {"fingerprint": item.fingerprint or None})
    yield from _wrong_lines(wrong)
    for name, _ in leftovers(out, validated.knows):
        yield _PlanLine(name, "gone", "not in the manifest; kept until 'latentkiln clean'")


def _wrong_lines(problems: Sequence[Problem]) -> Iterator[_PlanLine]:
    """Returns a line for each row with ``problems``."""
    for row, group in itertools.groupby(problems, key=lambda problem: problem.row):
        row_problems = list(group)
        message = "; ".join(f"{problem.field}: {problem.message}" for problem in row_problems)
        details = [{"field": problem.field, "message": problem.message} for problem in row_problems]
        yield _PlanLine(row_problems[0].row_id or f"row {row}", "wrong", message, row, {"problems": details})


def _print_lines(lines: Iterator[_PlanLine]) -> None:
    for line in lines:
        say(line.id, line.action, line.reason)


def _print_table(lines: Iterator[_PlanLine]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("id", "action", "why"):
        table.add_column(title, overflow="fold", no_wrap=title == "action")
    colours = {"build": "yellow", "keep": "green", "blocked": "red", "wrong": "red", "gone": "dim"}
    for line in lines:
        # Text, not markup: a prompt may contain square brackets.
        action = Text(line.action, style=colours[line.action])
        table.add_row(Text(escape(line.id)), action, Text(escape(line.reason)))
    print_table(table)


def _print_json(manifest: Location, out: Location, lines: Iterator[_PlanLine], counts: Counter[str]) -> None:
    """Streams one JSON object. ``wrong`` has an item for each problem of a row."""
    write(f'{{\n "manifest": {safe_json(str(manifest))},\n "out": {safe_json(str(out))},\n "rows": [')
    wrong: list[dict[str, Any]] = []
    gone: list[str] = []
    comma = ""
    for line in lines:
        if line.action == "gone":
            gone.append(line.id)
        elif line.action == "wrong":
            row_id = None if line.id == f"row {line.row}" else line.id
            wrong += [{"id": row_id, "row": line.row} | problem for problem in line.details["problems"]]
        else:
            value = {"id": line.id, "row": line.row, "action": line.action, "reason": line.reason, **line.details}
            write(f"{comma}\n  {safe_json(value)}")
            comma = ","
    footer = {"wrong": wrong, "not_in_manifest": gone, "counts": {action: counts[action] for action in _WORDS}}
    write("\n ]" + "".join(f",\n {safe_json(key)}: {safe_json(value)}" for key, value in footer.items()) + "\n}\n")
