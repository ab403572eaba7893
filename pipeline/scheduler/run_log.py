"""The run's record: ``OUT/run.json`` (the run as it stands) and ``OUT/run.events.jsonl`` (its log, a line per change).

Both are a cache for readers, also while the run goes on. What was built is told by the records beside the
assets, so losing these two files, or a line of them, loses nothing. ``run.json`` is replaced atomically and
holds counts, running rows and failures, not every row: its size does not grow with the manifest. Every line of
the log carries the run's id, as do the lines that workers write into ``OUT/<id>/log.jsonl``.

A second run on the same root, while the first goes on, keeps its two files under ``OUT/.runs/``; logs of earlier
runs are moved there, too.
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
from typing import Any, TextIO

from pipeline.core.asset_layout import EVENTS_FILE, LOCK_FILE, RUN_FILE, RUNS_FOLDER
from pipeline.core.atomic import atomic_write, write_json
from pipeline.core.errors import describe_os_error
from pipeline.core.plain import is_plain, open_plain
from pipeline.core.process.liveness import is_alive
from pipeline.core.terminal import escape_json
from pipeline.scheduler.file_lock import lock
from pipeline.scheduler.tasks import FAILURES, TaskResult
from pipeline.storage.secrets import scrub

PUBLISHED = (RUN_FILE, EVENTS_FILE)
SCHEMA = 1
_MAX_FAILURES = 1000
# Rows that a reader of the log holds at most, twice.
MOST_ROWS = 10_000
_MIN_INTERVAL = 1.0
_RUN_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
# Logs of earlier runs that are kept.
_MAX_ARCHIVED_LOGS = 20
# A write may take at most this share of the run's time, however slow the disk.
_WRITE_SHARE = 0.02


class RunLog:
    """Keeps the two files up to date. A disk that refuses them stops no run: ``problem`` then says why."""

    def __init__(self, out: Path, header: dict[str, Any], *, clock: Callable[[], float] = time.time):
        self._out, self._clock = out, clock
        self._header = dict(header)
        self._counts: Counter[str] = Counter()
        self._running: dict[str, dict[str, Any]] = {}
        self._failures: list[dict[str, Any]] = []
        self._events: TextIO | None = None
        self._lock: int | None = None
        self._file, self._log = out / RUN_FILE, out / EVENTS_FILE
        self._next_write = 0.0
        self._started = clock()
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(self._started))}-{uuid.uuid4().hex[:8]}"
        self.problem = ""

    def open(self) -> None:
        """Starts the record."""
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
        """The plan says of a row: it is to be built (``planned``), or up to date (``kept``)."""
        self._counts[state] += 1
        # Not flushed each: a million of these come at once.
        self._event({"id": job_id, "state": state}, flush=False)
        self._write("running")

    def started(self, job_id: str, attempt: int, worker: str, node: str = "") -> None:
        """A worker took the row."""
        now = self._clock()
        self._counts["planned"] -= 1
        worker_info = {"worker": worker} | ({"node": node} if node else {})
        self._running[job_id] = {"stage": "", "done": 0, "total": 0, "since": now} | worker_info
        self._event({"id": job_id, "state": "running", "attempt": attempt} | worker_info | {"time": now})
        self._write("running")

    def stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        """Where a running row stands; kept in ``run.json`` only."""
        if job_id in self._running:
            self._running[job_id] |= {"stage": stage, "done": done, "total": total}
            self._write("running")

    def retried(self, job_id: str, reason: str) -> None:
        """The row's worker died; the row waits for its next attempt."""
        if self._running.pop(job_id, None) is not None:
            self._counts["planned"] += 1
        self._event({"id": job_id, "state": "planned", "retry": scrub(reason), "time": self._clock()})
        self._write("running")

    def finished(self, result: TaskResult) -> None:
        """The row's end."""
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
        """A row that the manifest does not let be built: it was never planned, and another row may have its id."""
        self._counts[result.state] += 1
        event = {"id": result.job_id, "state": result.state, "refused": True, "source": source, "stage": result.stage}
        event |= {"error": result.error, "message": scrub(result.message), "time": self._clock()}
        self._event(event, flush=False)
        if len(self._failures) < _MAX_FAILURES:
            self._failures.append(event)
        self._write("running")

    def close(self, state: str, exit_code: int) -> None:
        """The run's end: ``state`` is ``done``, ``failed`` or ``interrupted``; for the last one the log says how to go
        on, too."""
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

    def note(self, text: str, **values: Any) -> None:
        """Something about the run, for its log: a worker that came, went or died."""
        self._event({"event": "note", "text": scrub(text)} | values | {"time": self._clock()})

    def _event(self, event: dict[str, Any], *, flush: bool = True) -> None:
        if self._events is not None:
            with self._forgiving(self._log):
                self._line(self._events, event)
                if flush:
                    self._events.flush()

    def _line(self, stream: TextIO, event: dict[str, Any]) -> None:
        text = json.dumps({"run": self.run_id} | event, ensure_ascii=False, separators=(",", ":"))
        stream.write(escape_json(text) + "\n")

    def _write(self, state: str, *, force: bool = False) -> None:
        begun = time.monotonic()
        if not force and begun < self._next_write:
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
        self._next_write = ended + max(_MIN_INTERVAL, (ended - begun) / _WRITE_SHARE)

    @contextlib.contextmanager
    def _forgiving(self, path: Path | None = None) -> Any:
        try:
            yield
        except OSError as error:
            path = path or self._file
            # The name is said once.
            reason = describe_os_error(error).removeprefix(f"{path}: ")
            self.problem = f"{path}: cannot be written ({reason})"


def _archive_log(out: Path) -> None:
    """Moves the log of the last run aside, and drops the oldest ones."""
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
    """What a reader sees: ``header`` is ``run.json`` ({} where missing), ``rows`` the last event of each row.

    Of a long run not every row is held: the first ones, and of the others those that run, failed or were left.
    ``counts`` are those of all rows by state; ``complete`` says that ``rows`` are all of them.
    """

    header: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    complete: bool = True

    @property
    def state(self) -> str:
        """``running``, ``done``, ``failed``, ``interrupted``, ``killed`` (died without a word) or
        ``unknown``."""
        state = str(self.header.get("state", "unknown"))
        if state == "running" and self.header.get("node") == platform.node():
            return "running" if is_alive(self.header.get("pid")) else "killed"
        return state


class _Rows:
    """The last event of each row as far as ``most`` goes, and how many rows are in each state.

    Every event of a row says what it becomes, and what it was follows from that: it was running if it had begun, else
    planned. So states can be counted without remembering each row.
    """

    def __init__(self, most: int):
        self._most = most
        self._rows: dict[str, dict[str, Any]] = {}
        # Beyond the first ones: what a reader looks for.
        self._row_states: dict[str, dict[str, Any]] = {}
        self._running: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.complete = True

    def add(self, event: dict[str, Any]) -> None:
        """The next line of the log, about a row."""
        job_id, state = event["id"], str(event.get("state"))
        if event.get("refused"):
            self._add_refused(event)
            return
        if self._rows.get(job_id, {}).get("refused"):
            # A row that was refused for having this id, too.
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

    def _add_refused(self, event: dict[str, Any], *, counted: bool = False) -> None:
        """A row that was never planned. It gives way to another one of its id."""
        self.counts[str(event.get("state"))] += not counted
        key = event["id"]
        if counted or key in self._rows:
            key = f"{event['id']} ({event.get('source')})"
        if len(self._rows) < self._most:
            self._rows[key] = event
        elif len(self._row_states) < self._most:
            self.complete = False
            self._row_states[key] = event

    def all(self) -> dict[str, dict[str, Any]]:
        """The first rows of the log, and what came beyond."""
        return self._rows | self._row_states


def read_run(out: Path, most: int = MOST_ROWS) -> RunView:
    """The last run on the output root ``out``. Never raises: what cannot be read is left out.

    ``most`` rows are held from the first on, and as many of the others that run, failed or were left.
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
            rows[job_id] = rows[job_id] | worker_info
    return RunView(header, rows, +row_events.counts, row_events.complete)


def finished_ids(out: Path) -> Iterator[str]:
    """Ids of the rows that the last run on ``out`` built or found up to date, from its log, as they come."""
    for event in _events(out / EVENTS_FILE, _json_object(out / RUN_FILE)):
        if event.get("state") in ("done", "kept") and isinstance(event.get("id"), str):
            yield event["id"]


def _events(path: Path, header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of the log at ``path`` that can be read; none where it is of another run than ``header``."""
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


def _json_object(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open_plain(path) as stream:
            value = json.loads(stream.read())
        if isinstance(value, dict):
            return value
    return {}
