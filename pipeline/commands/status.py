"""``latentkiln status``: how far the run into a folder is, or how it ended."""

from __future__ import annotations

import json as json_module
import os
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline.commands.table import print_csv
from pipeline.core.errors import EXIT_OK, UsageError
from pipeline.core.place import Place, Remote
from pipeline.export.record import FAILURE, RECORD, read_failure, read_record
from pipeline.fleet.depot import fetch_run
from pipeline.fleet.ledger import EVENTS_FILE, MOST_ROWS, PUBLISHED, RunView, read_run
from pipeline.fleet.progress import duration
from pipeline.storage import assets
from pipeline.storage.look import Snapshot, look_at_all

_WATCH_SECONDS = 1.0


def show_status(out: Place, *, json: bool = False, csv: bool = False, watch: bool = False) -> int:
    """Prints each row of the last run into ``out`` and how the run stands; without a run's record, what is
    there. Of a very long run the first rows, and those that run or failed: the counts are whole.

    ``watch`` prints again every second until the run has ended. Returns 0. Raises UsageError where there is
    no such folder, or for two formats at once.
    """
    if csv and (json or watch):
        raise UsageError(f"--csv and --{'json' if json else 'watch'} do not go together; give one of them")
    if not isinstance(out, Remote) and not out.is_dir():
        raise UsageError(f"{out}: no such folder; name the --out of a run")
    while True:
        view = _read_remote(out) if isinstance(out, Remote) else read_run(out)
        rows, counts = _rows(out, view)
        if json:
            print(json_module.dumps(_as_json(view, rows, counts)), flush=True)
        elif csv:
            names = ("id", "state", "attempts", "node", "seconds")
            known = ({"attempts": row.get("attempt", "")} | row for row in rows)
            print_csv((*names, "what"), ([*(row.get(name, "") for name in names), _what(row)] for row in known))
        else:
            _print(out, view, rows, counts, clear=watch)
        if not watch or view.state != "running":
            return EXIT_OK
        time.sleep(_WATCH_SECONDS)


def _read_remote(out: Remote) -> RunView:
    """The last run into a URL, as it stood a few seconds ago. Raises StorageError."""
    with tempfile.TemporaryDirectory() as folder:
        fetch_run(out, Path(folder), PUBLISHED)
        return read_run(Path(folder))


def _others(out: Place, known: Collection[str]) -> Iterator[tuple[str, Path | Snapshot]]:
    """Names of folders in ``out`` that are not ``known``, with what stands in them."""
    if isinstance(out, Remote):
        yield from look_at_all(out, (name for name in assets.ids(out) if name not in known))
        return
    with os.scandir(out) as entries:
        for entry in entries:
            name = entry.name
            if name not in known and entry.is_dir() and any((out / name / f).is_file() for f in (RECORD, FAILURE)):
                yield name, out / name


def _rows(out: Place, view: RunView) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The run's rows, then whatever else lies in the folder, as many of both as are listed; all of them by state."""
    rows = [dict(row) for row in view.rows.values()]
    counts = Counter(view.counts)
    # What is beside a run of which not every row is known cannot be told from its rows.
    others = list(_other_rows(out, view, counts)) if view.whole else []
    rows += sorted(others, key=lambda row: str(row["id"]))
    if view.state == "killed":
        for row in rows:
            if row["state"] == "running":
                row["state"] = "killed"
        if running := counts.pop("running", 0):
            counts["killed"] = running
    return rows, counts


def _other_rows(out: Place, view: RunView, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Assets and failures that are no rows of the run: counted all, given as far as they are listed."""
    given = 0
    for name, folder in _others(out, view.rows):
        if record := read_record(folder):
            row: dict[str, Any] = {"id": name, "state": "done", "warnings": record.get("warnings") or []}
        elif failure := read_failure(folder):
            keep = ("stage", "error", "message", "reproduce")
            row = {"id": name, "state": "failed"} | {k: failure[k] for k in keep if failure.get(k)}
        else:
            continue
        counts[row["state"]] += 1
        given += 1
        if given <= MOST_ROWS:
            yield row


def _as_json(view: RunView, rows: list[dict[str, Any]], counts: Counter[str]) -> dict[str, Any]:
    keys = ("run", "manifest", "command", "prior", "lockstep", "started", "updated", "finished", "exit_code")
    header = {key: view.header[key] for key in keys if key in view.header}
    left = sum(counts.values()) - len(rows)
    return {"state": view.state, **header, "counts": dict(counts), "rows": rows} | ({"left_out": left} if left else {})


def _print(out: Place, view: RunView, rows: list[dict[str, Any]], counts: Counter[str], *, clear: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if clear and console.is_terminal:
        console.clear()
    table = Table(box=None, pad_edge=False)
    for title in ("id", "state", "time", "what"):
        table.add_column(title, overflow="fold", no_wrap=title in ("state", "time"))
    colours = {"done": "green", "kept": "green", "failed": "red", "killed": "red", "running": "yellow"}
    for row in rows:
        state = str(row.get("state"))
        seconds = row.get("seconds")
        if state == "running" and isinstance(row.get("since"), (int, float)):
            seconds = time.time() - row["since"]
        spent = duration(seconds) if isinstance(seconds, (int, float)) else ""
        table.add_row(Text(str(row["id"])), Text(state, style=colours.get(state, "")), spent, Text(_what(row)))
    if console.is_terminal:
        console.print(table)
    else:
        for row in rows:
            print(f"{row['id']}\t{row.get('state')}\t{_what(row)}")
    if left := sum(counts.values()) - len(rows):
        print(f"and {left} rows more; see {EVENTS_FILE}")
    total = ", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing here"
    print(f"{out}: {_word(view)}: {total}")
    if view.state in ("killed", "interrupted") and isinstance(view.header.get("command"), str):
        print(f"go on with: {view.header['command']}")


def _word(view: RunView) -> str:
    if view.state == "unknown":
        return "no run on record"
    return {"killed": "run was killed", "running": "running"}.get(view.state, f"run is over ({view.state})")


def _what(row: dict[str, Any]) -> str:
    if row.get("state") in ("failed", "elsewhere"):
        return f"{row.get('stage', '')}: {row.get('message', '')}".strip(": ")
    if row.get("total"):
        return f"{row.get('stage')} {row.get('done')}/{row['total']}"
    if warnings := row.get("warnings"):
        return "; ".join(str(warning) for warning in warnings)
    return str(row.get("stage") or "")
