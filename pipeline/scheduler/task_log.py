"""A row's own log, ``OUT/<id>/log.jsonl``: a line when it begins, changes its stage and ends, whoever builds it."""

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

# A row that is tried for ever must not fill the disk: beyond this its log starts anew.
_MAX_BYTES = 1 << 20


class TaskLog:
    """Appends to the log of one row. Every line carries ``run``, the id that the run's own log has, too.

    A disk that refuses the log stops no row.
    """

    def __init__(self, folder: Path, row: Task, run_id: str):
        self._path = folder / LOG
        self._begun = time.monotonic()
        self._stage = ""
        self._common = {"run": run_id, "id": row.job.id, "attempt": row.attempt}
        with contextlib.suppress(OSError):
            if self._path.stat().st_size > _MAX_BYTES:
                self._path.unlink()
        self._write("began", fingerprint=row.fingerprint, node=platform.node(), pid=os.getpid())

    def stage(self, stage: str, done: int, total: int) -> None:
        """Where the row stands; written when the stage changes."""
        if stage != self._stage:
            self._stage = stage
            self._write("stage", stage=stage, done=done, total=total)

    def finished(self, result: TaskResult) -> None:
        """How this attempt came out."""
        values = {name: value for name in ("stage", "error", "message") if (value := getattr(result, name))}
        if "message" in values:
            values["message"] = scrub(values["message"])
        self._write("ended", state=result.state, warnings=[scrub(text) for text in result.warnings], **values)

    def _write(self, event: str, **values: object) -> None:
        moment = {"time": round(time.time(), 3), "seconds": round(time.monotonic() - self._begun, 3)}
        line = escape_json(json.dumps({"event": event} | self._common | moment | values, ensure_ascii=False))
        with contextlib.suppress(OSError):
            # One write of a whole line, appended: nothing else is ever between two halves of it.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o644)
            try:
                os.write(descriptor, line.encode(errors="replace") + b"\n")
            finally:
                os.close(descriptor)
