"""The run's record: ``OUT/run.json`` (the run as it stands) and ``OUT/run.events.jsonl`` (a line per change).

Both are a cache for readers, also while the run goes on. What was built is told by the records beside the
assets, so losing these two files, or a line of them, loses nothing. ``run.json`` is replaced atomically and
holds counts, running rows and failures, not every row: its size does not grow with the manifest.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pipeline.core.atomic import replacing, write_json
from pipeline.fleet.rows import RowResult

RUN_FILE = "run.json"
EVENTS_FILE = "run.events.jsonl"
SCHEMA = 1
_MAX_FAILURES = 1000
_MIN_INTERVAL = 1.0
# A write may take at most this share of the run's time, however slow the disk.
_WRITE_SHARE = 0.02


class Ledger:
    """Keeps the two files up to date. A disk that refuses them stops no run: ``problem`` then says why."""

    def __init__(self, out: Path, header: dict[str, Any], *, clock: Callable[[], float] = time.time):
        self._out, self._clock = out, clock
        self._header = dict(header)
        self._counts: Counter[str] = Counter()
        self._running: dict[str, dict[str, Any]] = {}
        self._failures: list[dict[str, Any]] = []
        self._events: TextIO | None = None
        self._next_write = 0.0
        self._started = clock()
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(self._started))}-{os.getpid()}"
        self.problem = ""

    def open(self, planned: Iterable[str], kept: Iterable[str]) -> None:
        """Starts the record: ``planned`` rows are to be built, ``kept`` ones are up to date."""
        with self._forgiving():
            path = self._out / EVENTS_FILE
            with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
                self._line(stream, {"event": "run", "run": self.run_id, "schema": SCHEMA})
                for state, ids in (("kept", kept), ("waiting", planned)):
                    for job_id in ids:
                        self._counts[state] += 1
                        self._line(stream, {"id": job_id, "state": state})
            self._events = path.open("a", encoding="utf-8")
        self._write("running", force=True)

    def began(self, job_id: str, attempt: int, worker: str) -> None:
        """A worker took the row."""
        now = self._clock()
        if attempt == 1:
            self._counts["waiting"] -= 1
        self._running[job_id] = {"stage": "", "done": 0, "total": 0, "since": now, "worker": worker}
        self._event({"id": job_id, "state": "running", "attempt": attempt, "worker": worker, "time": now})
        self._write("running")

    def stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        """Where a running row stands; kept in ``run.json`` only."""
        if job_id in self._running:
            self._running[job_id] |= {"stage": stage, "done": done, "total": total}
            self._write("running")

    def retried(self, job_id: str, reason: str) -> None:
        """The row's worker died; the row waits for its next attempt."""
        self._running.pop(job_id, None)
        self._event({"id": job_id, "state": "waiting", "retry": reason, "time": self._clock()})
        self._write("running")

    def ended(self, result: RowResult) -> None:
        """The row's end."""
        if self._running.pop(result.job_id, None) is None:
            self._counts["waiting"] -= 1
        self._counts[result.state] += 1
        event = {"id": result.job_id, "state": result.state, "seconds": round(result.seconds, 3)}
        for name in ("stage", "error", "message", "reproduce", "warnings"):
            if value := getattr(result, name):
                event[name] = value
        self._event(event | {"attempts": result.attempts, "time": self._clock()})
        if result.state == "failed" and len(self._failures) < _MAX_FAILURES:
            self._failures.append(event)
        self._write("running")

    def close(self, state: str, exit_code: int) -> None:
        """The run's end: ``state`` is ``done``, ``failed`` or ``interrupted``."""
        self._running.clear()
        self._header |= {"finished": self._clock(), "exit_code": exit_code}
        self._event({"event": "end", "state": state, "exit_code": exit_code, "time": self._clock()})
        self._write(state, force=True)
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def _event(self, event: dict[str, Any]) -> None:
        if self._events is not None:
            with self._forgiving():
                self._line(self._events, event)
                self._events.flush()

    @staticmethod
    def _line(stream: TextIO, event: dict[str, Any]) -> None:
        stream.write(json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n")

    def _write(self, state: str, *, force: bool = False) -> None:
        begun = time.monotonic()
        if not force and begun < self._next_write:
            return
        with self._forgiving():
            write_json(
                self._out / RUN_FILE,
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
    def _forgiving(self) -> Any:
        try:
            yield
        except OSError as error:
            self.problem = f"{self._out / RUN_FILE}: cannot be written ({error.strerror or error})"


@dataclass
class RunView:
    """What a reader sees: ``header`` is ``run.json`` ({} where missing), ``rows`` the last event of each
    row."""

    header: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """``running``, ``done``, ``failed``, ``interrupted``, ``killed`` (died without a word) or
        ``unknown``."""
        state = str(self.header.get("state", "unknown"))
        if state == "running" and self.header.get("node") == platform.node():
            return "running" if _alive(self.header.get("pid")) else "killed"
        return state


def read_run(out: Path) -> RunView:
    """The last run on the output root ``out``. Never raises: what cannot be read is left out."""
    header = _json_object(out / RUN_FILE)
    rows: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError), (out / EVENTS_FILE).open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line cut short by a crash
            if not isinstance(event, dict):
                continue
            if number == 0 and event.get("run") != header.get("run", event.get("run")):
                break  # of another run than run.json
            if isinstance(event.get("id"), str):
                rows[event["id"]] = event
    running = header.get("running")
    for job_id, where in running.items() if isinstance(running, dict) else ():
        if rows.get(job_id, {}).get("state") == "running" and isinstance(where, dict):
            rows[job_id] = rows[job_id] | where
    return RunView(header, rows)


def _json_object(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    return {}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
