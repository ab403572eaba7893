"""``latentkiln status``: shows the progress or the end of the run into a folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.commands.quality import quality_figures, quality_text
from pipeline.commands.table import print_csv, print_table
from pipeline.core.asset_layout import EVENTS_FILE, FAILURE, RECORD
from pipeline.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_ROWS_FAILED, UsageError
from pipeline.core.location import Location, RemotePath
from pipeline.core.terminal import escape, is_run_command, say, say_json
from pipeline.export.record import load_record, output_problem, read_failure
from pipeline.scheduler.output_root import fetch_run
from pipeline.scheduler.progress import duration
from pipeline.scheduler.run_log import MOST_ROWS, PUBLISHED, RunView, finished_ids, read_run
from pipeline.storage import publish
from pipeline.storage.snapshot import Snapshot, take_snapshots

_WATCH_SECONDS = 1.0
# A valid name of a row's folder. An untrusted log must not make us read other folders.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FINISHED = ("done", "kept")
_WRONG = ("failed", "quarantined", "missing", "damaged")
_UNFINISHED = ("planned", "running", "interrupted", "killed", "elsewhere", "waiting")


def show_status(
    out: Location, *, json: bool = False, csv: bool = False, watch: bool = False, check: bool = False
) -> int:
    """Prints the rows and the state of the last run into ``out``; without a run's record, the assets in ``out``.

    Of a very long run it prints the first rows and the running and failed ones; the counts cover all.

    Checks built assets: a lost one is ``missing``, one that differs from its record ``damaged``. Compares files older
    than their record by size only, and of a very long run only the printed rows. With ``check`` reads every byte of
    every asset (at a URL: compares the store's tags). ``watch`` prints every second until the run has ended, and checks
    assets then.

    Returns 0. With ``check``, returns 1 if rows failed, are missing or damaged, or if ``out`` is empty; else 3 if rows
    are unfinished. Raises UsageError for a missing folder or for options that exclude each other.
    """
    if csv and (json or watch):
        raise UsageError(f"--csv and --{'json' if json else 'watch'} cannot be combined; give one of them")
    if check and watch:
        raise UsageError("--check and --watch cannot be combined; give one of them")
    if not isinstance(out, RemotePath) and not out.is_dir():
        raise UsageError(f"{out}: no such folder; name the --out of a run")
    while True:
        with _run_files(out) as folder:
            view = read_run(folder)
            rows, counts = _rows(out, view, check)
            if not (watch and view.state == "running"):
                _look_for_assets(out, rows, counts, check)
                if check and not view.complete:
                    rows += _unlisted_problems(out, folder, view, counts)
        if json:
            say_json(_as_json(view, rows, counts), flush=True)
        elif csv:
            names = ("id", "state", "attempts", "node", "seconds")
            known = ({"attempts": row.get("attempt", "")} | row for row in rows)
            print_csv((*names, "what"), ([*(row.get(name, "") for name in names), _row_text(row)] for row in known))
        else:
            _print(out, view, rows, counts, clear=watch)
        if not watch or view.state != "running":
            return _exit_code(view, counts) if check else EXIT_OK
        time.sleep(_WATCH_SECONDS)


def _exit_code(view: RunView, counts: Counter[str]) -> int:
    if not counts.total() or any(counts[state] for state in _WRONG):
        return EXIT_ROWS_FAILED
    unfinished = view.state in ("killed", "interrupted") or any(counts[state] for state in _UNFINISHED)
    return EXIT_INTERRUPTED if unfinished else EXIT_OK


@contextlib.contextmanager
def _run_files(out: Location) -> Iterator[Path]:
    """Returns a folder with the files of the last run into ``out``; for a URL, a copy of a few seconds ago.

    Raises StorageError.
    """
    if not isinstance(out, RemotePath):
        yield out
        return
    with tempfile.TemporaryDirectory() as folder:
        fetch_run(out, Path(folder), PUBLISHED)
        yield Path(folder)


def _look_for_assets(out: Location, rows: list[dict[str, Any]], counts: Counter[str], thorough: bool) -> None:
    """Sets the state of each finished row whose asset is missing or damaged, and corrects ``counts``. Adds the figures
    of quality to the others."""
    finished = {str(row["id"]): row for row in rows if row.get("state") in _FINISHED}
    invalid_ids = ((name, "missing", "this is not a valid id") for name in finished if not _ID.fullmatch(name))

    def take_figures(name: str, record: Mapping[str, object]) -> None:
        if figures := quality_figures(record):
            finished[name]["quality"] = figures

    for name, state, problem in itertools.chain(_problems(out, finished, thorough, take_figures), invalid_ids):
        row = finished[name]
        counts[row["state"]] -= 1
        counts[state] += 1
        row |= {"state": state, "problem": problem}
    for state in [state for state, count in counts.items() if not count]:
        del counts[state]


def _unlisted_problems(out: Location, folder: Path, view: RunView, counts: Counter[str]) -> list[dict[str, Any]]:
    """Returns missing or damaged assets of rows that ``view`` leaves out, and corrects ``counts``."""
    rows: list[dict[str, Any]] = []
    unlisted = (name for name in finished_ids(folder) if name not in view.rows)
    for name, state, problem in _problems(out, unlisted, True):
        counts["done" if counts["done"] else "kept"] -= 1
        counts[state] += 1
        if len(rows) < MOST_ROWS:
            rows.append({"id": name, "state": state, "problem": problem})
    return rows


def _problems(
    out: Location,
    names: Iterable[str],
    thorough: bool,
    on_record: Callable[[str, Mapping[str, object]], None] = lambda name, record: None,
) -> Iterator[tuple[str, str, str]]:
    """Yields (id, ``missing`` or ``damaged``, reason) of each such asset. Passes the record of each intact one to
    ``on_record``. Raises StorageError."""
    good = (name for name in names if _ID.fullmatch(name))
    folders: Iterator[tuple[str, Path | Snapshot]] = (
        take_snapshots(out, good) if isinstance(out, RemotePath) else ((name, out / name) for name in good)
    )
    for name, folder in folders:
        record, reason = load_record(folder)
        state, problem = _state_of(folder, record, reason, thorough)
        if problem:
            yield name, state, problem
        elif record is not None:
            on_record(name, record)


def _state_of(folder: Path | Snapshot, record: dict[str, Any] | None, reason: str, thorough: bool) -> tuple[str, str]:
    """Returns ``missing`` or ``damaged`` and the reason; ("", "") for an intact asset. ``record`` and ``reason`` as
    ``load_record`` returns them."""
    if record is None:
        return ("damaged", reason) if reason else ("missing", f"there is no {RECORD}")
    outputs = record["outputs"]
    if not outputs:
        return "damaged", "the record names no outputs"
    if isinstance(folder, Path) and not thorough:
        problem = _quick_problem(folder, record)
    else:
        problem = output_problem(folder, record)
    return ("missing" if problem.endswith(" is missing") else "damaged", problem) if problem else ("", "")


def _quick_problem(folder: Path, record: dict[str, Any]) -> str:
    """As ``output_problem``, but reads only files newer than the record, which is written last."""
    try:
        written = (folder / RECORD).stat().st_mtime_ns
    except OSError:
        written = 0
    touched = {}
    for name, expected in record["outputs"].items():
        try:
            file_status = (folder / name).lstat()
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        if not stat.S_ISREG(file_status.st_mode):
            return f"{name} is a link, or not a file"
        if file_status.st_size != expected["bytes"]:
            return f"{name} does not have its recorded size"
        if file_status.st_mtime_ns >= written:
            touched[name] = expected
    return output_problem(folder, {"outputs": touched})


def _others(out: Location, known: Collection[str]) -> Iterator[tuple[str, Path | Snapshot]]:
    """Yields the folders in ``out`` that are not ``known``, with their record or failure."""
    if isinstance(out, RemotePath):
        yield from take_snapshots(out, (name for name in publish.asset_ids(out) if name not in known))
        return
    with os.scandir(out) as entries:
        for entry in entries:
            name = entry.name
            if name not in known and entry.is_dir() and any((out / name / f).is_file() for f in (RECORD, FAILURE)):
                yield name, out / name


def _rows(out: Location, view: RunView, check: bool) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Returns the listed rows of the run and other assets in the folder, and the counts of all by state."""
    rows = [dict(row) for row in view.rows.values()]
    counts = Counter(view.counts)
    # If the view lists only some rows of a run, other assets cannot be told from the run's.
    others = list(_other_rows(out, view, counts, check)) if view.complete else []
    rows += sorted(others, key=lambda row: str(row["id"]))
    if view.state == "killed":
        for row in rows:
            if row["state"] == "running":
                row["state"] = "killed"
        if running := counts.pop("running", 0):
            counts["killed"] = running
    return rows, counts


def _other_rows(out: Location, view: RunView, counts: Counter[str], check: bool) -> Iterator[dict[str, Any]]:
    """Yields assets and failures that are not rows of the run, up to the listing limit, and counts all.

    With ``check`` also checks those beyond the limit.
    """
    listed = 0
    for name, folder in _others(out, view.rows):
        record, reason = load_record(folder)
        if record:
            row: dict[str, Any] = {"id": name, "state": "done", "warnings": record.get("warnings") or []}
            if check and listed >= MOST_ROWS and (problem_state := _state_of(folder, record, "", True))[1]:
                row |= {"state": problem_state[0], "problem": problem_state[1]}
        elif failure := read_failure(folder):
            keep = ("stage", "error", "message", "reproduce")
            row = {"id": name, "state": "failed"} | {k: failure[k] for k in keep if failure.get(k)}
        elif reason and _ID.fullmatch(name):
            row = {"id": name, "state": "damaged", "problem": reason}
        else:
            continue
        counts[row["state"]] += 1
        listed += 1
        if listed <= MOST_ROWS:
            yield row


def _as_json(view: RunView, rows: list[dict[str, Any]], counts: Counter[str]) -> dict[str, Any]:
    keys = ("run", "manifest", "command", "prior", "lockstep", "started", "updated", "finished", "exit_code")
    header = {key: view.header[key] for key in keys if key in view.header}
    left = sum(counts.values()) - len(rows)
    return {"state": view.state, **header, "counts": dict(counts), "rows": rows} | ({"left_out": left} if left else {})


def _print(out: Location, view: RunView, rows: list[dict[str, Any]], counts: Counter[str], *, clear: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if clear and console.is_terminal:
        console.clear()
    table = Table(box=None, pad_edge=False)
    for title in ("id", "state", "time", "what"):
        table.add_column(title, overflow="fold", no_wrap=title in ("state", "time"))
    colours = {"done": "green", "kept": "green", "running": "yellow"} | dict.fromkeys((*_WRONG, "killed"), "red")
    for row in rows:
        state = str(row.get("state"))
        seconds = row.get("seconds")
        if state == "running" and isinstance(row.get("since"), (int, float)):
            seconds = time.time() - row["since"]
        spent = duration(seconds) if isinstance(seconds, (int, float)) else ""
        words = Text(escape(state), style=colours.get(state, ""))
        table.add_row(Text(escape(str(row["id"]))), words, spent, Text(escape(_row_text(row))))
    if console.is_terminal:
        print_table(table)
    else:
        for row in rows:
            say(row["id"], row.get("state"), _row_text(row))
    if left := sum(counts.values()) - len(rows):
        say(f"and {left} more rows; see {EVENTS_FILE}")
    total = ", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing here"
    say(f"{out}: {_state_word(view)}: {total}")
    if view.state in ("killed", "interrupted") and isinstance(command := view.header.get("command"), str):
        # The folder may be untrusted, so print only a plain run command.
        plain = is_run_command(command)
        say(
            f"continue with: {command}"
            if plain
            else "repeat the command that started the run; run.json does not contain a plain one"
        )


def _state_word(view: RunView) -> str:
    if view.state == "unknown":
        return "no run recorded"
    return {"killed": "run was killed", "running": "running"}.get(view.state, f"run ended ({view.state})")


def _row_text(row: dict[str, Any]) -> str:
    if problem := row.get("problem"):
        return str(problem)
    if row.get("state") in ("failed", "elsewhere"):
        return f"{row.get('stage', '')}: {row.get('message', '')}".strip(": ")
    if row.get("total"):
        return f"{row.get('stage')} {row.get('done')}/{row['total']}"
    texts = [quality_text(row, short=True)]
    warnings = row.get("warnings")
    if warnings and isinstance(warnings, list):
        texts += [str(warning) for warning in warnings]
    return "; ".join(filter(None, texts)) or str(row.get("stage") or "")
