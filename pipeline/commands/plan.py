"""``latentkiln plan``: what a run would build, and why."""

from __future__ import annotations

import json as json_module
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.core.errors import EXIT_OK, EXIT_ROWS_FAILED
from pipeline.manifest import Manifest, load_manifest
from pipeline.plan import PlanItem, leftovers, plan
from pipeline.prior.identity import prior_identity

# In the order in which they are listed and counted.
_WORDS = {
    "build": "to build",
    "keep": "up to date",
    "blocked": "blocked",
    "wrong": "wrong",
    "gone": "not in the manifest",
}


def show_plan(
    manifest: Path,
    *,
    out: Path = Path("outputs"),
    prior: str = "embedded",
    only: Sequence[str] = (),
    overrides: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    json: bool = False,
) -> int:
    """Prints each row with what would be done and why, then what stands in ``out`` but not in the manifest.

    A table on a terminal, else ``id TAB action TAB reason`` lines. Builds and writes nothing. Returns 0, or 1 where
    rows are wrong or blocked. Raises ManifestError, UsageError or PriorError.
    """
    loaded = load_manifest(manifest, overrides=overrides, only=only, allow_outside=allow_outside)
    items = plan(loaded.jobs, out, prior_identity=prior_identity(prior).identity)
    gone = leftovers(out, loaded.ids)
    lines = _lines(loaded, items, gone)
    counts = Counter(action for _, action, _ in lines)
    if json:
        print(json_module.dumps(_as_json(loaded, out, items, gone, counts), indent=1))
    else:
        _print_lines(lines)
        print(", ".join(f"{counts[action]} {word}" for action, word in _WORDS.items() if counts[action]))
    return EXIT_ROWS_FAILED if counts["wrong"] or counts["blocked"] else EXIT_OK


def _lines(manifest: Manifest, items: Sequence[PlanItem], gone: Sequence[str]) -> list[tuple[str, str, str]]:
    """(id, action, reason) of each row in the manifest's order, then of what is no longer in it."""
    rows: list[tuple[int, str, str, str]] = [
        (item.job.source.row, item.job.id, item.action, item.reason) for item in items
    ]
    wrong: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    for problem in manifest.problems:
        wrong.setdefault(problem.row, []).append(f"{problem.field}: {problem.message}")
        names[problem.row] = problem.row_id or f"row {problem.row}"
    rows += [(row, names[row], "wrong", "; ".join(messages)) for row, messages in wrong.items()]
    kept = [(name, "gone", "not in the manifest; kept") for name in gone]
    return [(name, action, reason) for _, name, action, reason in sorted(rows, key=lambda row: row[0])] + kept


def _print_lines(lines: Sequence[tuple[str, str, str]]) -> None:
    if not sys.stdout.isatty():
        for line in lines:
            print("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("id", "action", "why"):
        table.add_column(title, overflow="fold", no_wrap=title == "action")
    colours = {"build": "yellow", "keep": "green", "blocked": "red", "wrong": "red", "gone": "dim"}
    for name, action, reason in lines:
        # Text, not markup: a prompt may hold square brackets.
        table.add_row(Text(name), Text(action, style=colours[action]), Text(reason))
    Console().print(table)


def _as_json(
    manifest: Manifest, out: Path, items: Sequence[PlanItem], gone: Sequence[str], counts: Mapping[str, int]
) -> dict[str, object]:
    return {
        "manifest": str(manifest.path),
        "out": str(out),
        "rows": [
            {
                "id": item.job.id,
                "row": item.job.source.row,
                "action": item.action,
                "reason": item.reason,
                "fingerprint": item.fingerprint or None,
            }
            for item in items
        ],
        "wrong": [
            {"id": problem.row_id, "row": problem.row, "field": problem.field, "message": problem.message}
            for problem in manifest.problems
        ],
        "not_in_manifest": list(gone),
        "counts": {action: counts.get(action, 0) for action in _WORDS},
    }
