"""The log of one row, ``OUT/<id>/log.jsonl``: one line when the row starts, changes its stage and ends."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from pathlib import Path

from pipeline.core.asset_layout import LOG
from pipeline.core.outcome import TaskResult
from pipeline.core.terminal import escape_json
from pipeline.scheduler.tasks import Task
from pipeline.storage.secrets import scrub

# Beyond this size the log starts again from empty, so that a row which is retried forever does not fill the disk.
_MAX_BYTES = 1 << 20


class TaskLog:
    """Appends to the log of one row. ``run`` in every line is the id that the run's log carries, too.

    An error of the disk does not stop the row.
    """

    def __init__(self, folder: Path, row: Task, run_id: str):
        self._path = folder / LOG
        self._start_time = time.monotonic()
        self._stage = ""
        self._common = {"run": run_id, "id": row.job.id, "attempt": row.attempt}
        with contextlib.suppress(OSError):
            if self._path.stat().st_size > _MAX_BYTES:
                self._path.unlink()
        self._write("began", fingerprint=row.fingerprint, node=platform.node(), pid=os.getpid())

    def stage(self, stage: str, done: int, total: int) -> None:
        """Note the row's progress. Write a line when the stage changes."""
        if stage != self._stage:
            self._stage = stage
            self._write("stage", stage=stage, done=done, total=total)

    def finished(self, result: TaskResult) -> None:
        """Write the result of this attempt."""
        values = {name: value for name in ("stage", "error", "message") if (value := getattr(result, name))}
        if "message" in values:
            values["message"] = scrub(values["message"])
        self._write("ended", state=result.state, warnings=[scrub(text) for text in result.warnings], **values)

    def _write(self, event: str, **values: object) -> None:
        moment = {"time": round(time.time(), 3), "seconds": round(time.monotonic() - self._start_time, 3)}
        line = escape_json(json.dumps({"event": event} | self._common | moment | values, ensure_ascii=False))
        with contextlib.suppress(OSError):
            # A single append of the whole line, so that lines of two processes never mix.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o644)
            try:
                os.write(descriptor, line.encode(errors="replace") + b"\n")
            finally:
                os.close(descriptor)
