"""The record of a run: ``OUT/run.json`` (its current state) and ``OUT/run.events.jsonl`` (one line per change).

Both files serve readers, also during the run. The records beside the assets tell what was built, so losing these two
files, or a line of them, loses nothing. ``run.json`` is replaced atomically. It holds counts, running rows and
failures instead of every row, so its size does not grow with the manifest. Every line of the log carries the run's id,
as do the lines that workers write into ``OUT/<id>/log.jsonl``.

A second run on the same root at the same time keeps its two files under ``OUT/.runs/``. Logs of earlier runs are moved
there, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from pipeline.core.asset_layout import EVENTS_FILE, LOCK_FILE, RUN_FILE, RUNS_FOLDER
from pipeline.core.atomic import atomic_write, write_json
from pipeline.core.errors import describe_os_error
from pipeline.core.json_types import Json
from pipeline.core.outcome import FAILURES, TaskResult
from pipeline.core.plain import is_plain, open_plain
from pipeline.core.process.liveness import is_alive
from pipeline.core.terminal import escape_json
from pipeline.scheduler.file_lock import lock
from pipeline.storage.secrets import scrub

PUBLISHED = (RUN_FILE, EVENTS_FILE)
SCHEMA = 1
_MAX_FAILURES = 1000
# A reader of the log holds at most twice as many rows.
MOST_ROWS = 10_000
_MIN_INTERVAL = 1.0
_RUN_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
# How many logs of earlier runs are kept.
_MAX_ARCHIVED_LOGS = 20
# Writing takes at most this share of the run's time, however slow the disk is.
_WRITE_SHARE = 0.02


class RunLog:
    """Keeps the two files up to date. An error of the disk does not stop the run; ``problem`` describes it."""

    def __init__(self, out: Path, header: Json, *, clock: Callable[[], float] = time.time):
        self._out, self._clock = out, clock
        self._header = dict(header)
        self._counts: Counter[str] = Counter()
        self._running: dict[str, dict[str, object]] = {}
        self._failures: list[Json] = []
        self._events: TextIO | None = None
        self._lock: int | None = None
        self._file, self._log = out / RUN_FILE, out / EVENTS_FILE
        self._next_write = 0.0
        self._started = clock()
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(self._started))}-{uuid.uuid4().hex[:8]}"
        self.problem = ""

    def open(self) -> None:
        """Start the record."""
        with self._forgiving():
            self._lock = lock(self._out / LOCK_FILE)
            if self._lock is None:
                self._file = self._out / RUNS_FOLDER / f"{self.run_id}.json"
                self._log = self._out / RUNS_FOLDER / f"{self.run_id}.jsonl"
            else:
                _archive_log(self._out)
            with atomic_write(self._log) as temporary, temporary.open("w", encoding="utf-8") as stream:
                self._line(stream, {"event": "run", "schema": SCHEMA, "time": self._started} | self._header)
            self._events = os.fdopen(
                os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC), "a", encoding="utf-8"
            )
        self._write("running", force=True)

    def planned(self, job_id: str, state: str) -> None:
        """Note what the plan says of a row: ``planned`` to be built, or ``kept`` because it is up to date."""
        self._counts[state] += 1
        # Not flushed, because a long manifest has a million of these lines.
        self._event({"id": job_id, "state": state}, flush=False)
        self._write("running")

    def started(self, job_id: str, attempt: int, worker: str, node: str = "") -> None:
        """Note that a worker took the row."""
        now = self._clock()
        self._counts["planned"] -= 1
        worker_info = {"worker": worker} | ({"node": node} if node else {})
        self._running[job_id] = {"stage": "", "done": 0, "total": 0, "since": now} | worker_info
        self._event({"id": job_id, "state": "running", "attempt": attempt} | worker_info | {"time": now})
        self._write("running")

    def stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        """Note the progress of a running row. Only ``run.json`` has it."""
        if job_id in self._running:
            self._running[job_id] |= {"stage": stage, "done": done, "total": total}
            self._write("running")

    def retried(self, job_id: str, reason: str) -> None:
        """Note that the row was taken back from its worker and waits for its next attempt."""
        if self._running.pop(job_id, None) is not None:
            self._counts["planned"] += 1
        self._event({"id": job_id, "state": "planned", "retry": scrub(reason), "time": self._clock()})
        self._write("running")

    def finished(self, result: TaskResult) -> None:
        """Note the result of a row."""
        worker_info = self._running.pop(result.job_id, None)
        if worker_info is None:
            self._counts["planned"] -= 1
        self._counts[result.state] += 1
        event = {"id": result.job_id, "state": result.state, "seconds": round(result.seconds, 3)}
        event |= {name: worker_info[name] for name in ("worker", "node") if worker_info and name in worker_info}
        for name in ("stage", "error", "message", "reproduce", "warnings"):
            if value := getattr(result, name):
                event[name] = scrub(value) if isinstance(value, str) else [scrub(text) for text in value]
        event["attempts"] = result.attempts
        self._event(event | {"time": self._clock()})
        if result.state in FAILURES and len(self._failures) < _MAX_FAILURES:
            self._failures.append(event)
        self._write("running")

    def refused(self, result: TaskResult, source: str) -> None:
        """Note a row that the manifest refuses. It was never planned, and another row may have the same id."""
        self._counts[result.state] += 1
        event = {"id": result.job_id, "state": result.state, "refused": True, "source": source, "stage": result.stage}
        event |= {"error": result.error, "message": scrub(result.message), "time": self._clock()}
        self._event(event, flush=False)
        if len(self._failures) < _MAX_FAILURES:
            self._failures.append(event)
        self._write("running")

    def close(self, state: str, exit_code: int) -> None:
        """Note the end of the run. ``state`` is ``done``, ``failed`` or ``interrupted``.

        For an interrupted run the log names the command that resumes it.
        """
        self._running.clear()
        self._header |= {"finished": self._clock(), "exit_code": exit_code}
        command = self._header.get("command") if state == "interrupted" else None
        resume = {"resume": command} if command else {}
        self._event({"event": "end", "state": state, "exit_code": exit_code} | resume | {"time": self._clock()})
        self._write(state, force=True)
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def note(self, text: str, **values: object) -> None:
        """Write a line about the run itself, such as a worker that died, into its log."""
        self._event({"event": "note", "text": scrub(text)} | values | {"time": self._clock()})

    def _event(self, event: dict[str, object], *, flush: bool = True) -> None:
        if self._events is not None:
            with self._forgiving(self._log):
                self._line(self._events, event)
                if flush:
                    self._events.flush()

    def _line(self, stream: TextIO, event: dict[str, object]) -> None:
        text = json.dumps({"run": self.run_id} | event, ensure_ascii=False, separators=(",", ":"))
        stream.write(escape_json(text) + "\n")

    def _write(self, state: str, *, force: bool = False) -> None:
        start_time = time.monotonic()
        if not force and start_time < self._next_write:
            return
        with self._forgiving():
            write_json(
                self._file,
                self._header
                | {
                    "schema": SCHEMA,
                    "run": self.run_id,
                    "state": state,
                    "pid": os.getpid(),
                    "node": platform.node(),
                    "started": self._started,
                    "updated": self._clock(),
                    "counts": {name: count for name, count in self._counts.items() if count},
                    "running": self._running,
                    "failures": self._failures,
                },
            )
        ended = time.monotonic()
        self._next_write = ended + max(_MIN_INTERVAL, (ended - start_time) / _WRITE_SHARE)

    @contextlib.contextmanager
    def _forgiving(self, path: Path | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = path or self._file
            # The message names the path once.
            reason = describe_os_error(error).removeprefix(f"{path}: ")
            self.problem = f"{path}: cannot be written ({reason})"


def _archive_log(out: Path) -> None:
    """Move the log of the last run to the archive and remove the oldest ones there."""
    events = out / EVENTS_FILE
    if not is_plain(events):
        return
    with open_plain(events) as stream:
        first = stream.readline(1 << 16).decode(errors="replace")
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        run_id = json.loads(first).get("run")
        if isinstance(run_id, str) and _RUN_ID.fullmatch(run_id):
            (out / RUNS_FOLDER).mkdir(exist_ok=True)
            os.replace(events, out / RUNS_FOLDER / f"{run_id}.jsonl")
    for old in sorted((out / RUNS_FOLDER).glob("*.jsonl"))[:-_MAX_ARCHIVED_LOGS]:
        old.unlink(missing_ok=True)
        old.with_suffix(".json").unlink(missing_ok=True)


@dataclass
class RunView:
    """A run as its two files describe it. ``header`` is ``run.json``, {} if missing; ``rows`` the last event per row.

    For a long run ``rows`` has the first rows, and of the others only those that are running, failed or unfinished.
    ``complete`` says that no row is missing. ``counts`` are those of all rows by state.
    """

    header: Json = field(default_factory=dict)
    rows: dict[str, Json] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    complete: bool = True

    @property
    def state(self) -> str:
        """``running``, ``done``, ``failed``, ``interrupted``, ``killed`` (its process is gone) or ``unknown``."""
        state = str(self.header.get("state", "unknown"))
        if state == "running" and self.header.get("node") == platform.node():
            return "running" if is_alive(self.header.get("pid")) else "killed"
        return state


class _Rows:
    """The last events of up to ``most`` rows, and the number of rows in each state.

    Every event says the new state of its row. The old one is ``running`` if the row had started, else ``planned``. So
    rows are counted by state without holding each of them.
    """

    def __init__(self, most: int):
        self._most = most
        self._rows: dict[str, Json] = {}
        # Rows beyond the first ones that a reader looks for.
        self._row_states: dict[str, Json] = {}
        self._running: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.complete = True

    def add(self, event: Json) -> None:
        """Add the next line of the log, which is about a row."""
        job_id, state = str(event["id"]), str(event.get("state"))
        if event.get("refused"):
            self._add_refused(event)
            return
        if self._rows.get(job_id, {}).get("refused"):
            # An earlier row with this id was refused.
            self._add_refused(self._rows.pop(job_id), counted=True)
        if state != "kept" and not (state == "planned" and "retry" not in event):
            self.counts["running" if job_id in self._running else "planned"] -= 1
        self.counts[state] += 1
        self._running.add(job_id) if state == "running" else self._running.discard(job_id)
        if job_id in self._rows or len(self._rows) < self._most:
            self._rows[job_id] = event
            return
        self.complete = False
        self._row_states.pop(job_id, None)
        if state == "running" or (state not in ("planned", "kept", "done") and len(self._row_states) < self._most):
            self._row_states[job_id] = event

    def _add_refused(self, event: Json, *, counted: bool = False) -> None:
        """Add a row that was refused. A planned row with the same id takes its key."""
        self.counts[str(event.get("state"))] += not counted
        key = str(event["id"])
        if counted or key in self._rows:
            key = f"{event['id']} ({event.get('source')})"
        if len(self._rows) < self._most:
            self._rows[key] = event
        elif len(self._row_states) < self._most:
            self.complete = False
            self._row_states[key] = event

    def all(self) -> dict[str, Json]:
        """Return all rows that are held, by id."""
        return self._rows | self._row_states


def read_run(out: Path, most: int = MOST_ROWS) -> RunView:
    """Read the last run on the output root ``out``. Never raises; leaves out what cannot be read.

    Holds the first ``most`` rows, and as many of the others that are running, failed or unfinished.
    """
    header = _json_object(out / RUN_FILE)
    row_events = _Rows(most)
    for event in _events(out / EVENTS_FILE, header):
        if isinstance(event.get("id"), str) and isinstance(event.get("state"), str):
            row_events.add(event)
    rows = row_events.all()
    running = header.get("running")
    for job_id, worker_info in running.items() if isinstance(running, dict) else ():
        if rows.get(job_id, {}).get("state") == "running" and isinstance(worker_info, dict):
            rows[job_id] = {**rows[job_id], **worker_info}
    return RunView(header, rows, +row_events.counts, row_events.complete)


def finished_ids(out: Path) -> Iterator[str]:
    """Yield the ids of rows that the last run on ``out`` built or found up to date, from its log."""
    for event in _events(out / EVENTS_FILE, _json_object(out / RUN_FILE)):
        job_id = event.get("id")
        if event.get("state") in ("done", "kept") and isinstance(job_id, str):
            yield job_id


def _events(path: Path, header: Json) -> Iterator[Json]:
    """Yield the readable lines of the log at ``path``; none if it belongs to another run than ``header``."""
    with contextlib.suppress(OSError), open_plain(path) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8", errors="replace")):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a line cut short by a crash
            if not isinstance(event, dict):
                continue
            if number == 0 and event.get("run") != header.get("run", event.get("run")):
                break
            yield event


def _json_object(path: Path) -> Json:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open_plain(path) as stream:
            value = json.loads(stream.read())
        if isinstance(value, dict):
            return value
    return {}
