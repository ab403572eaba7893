"""The Ray actor: loads the prior once, then builds group after group. Plain Python; ``driver`` makes it an
actor."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import LatentkilnError
from pipeline.fleet.group import Bench, build_group, one_line
from pipeline.fleet.rows import Row, RowResult, Toolbox

Pulse = dict[str, tuple[str, int, int]]


@dataclass(frozen=True)
class Loaded:
    """A worker that is ready, or why it is not (``error`` is the class name, ``stage`` as in
    LatentkilnError)."""

    pid: int
    seconds: float
    error: str = ""
    message: str = ""
    stage: str = ""


class Worker:
    """One process with one prior. ``pulse`` and ``stop`` are called while ``build`` runs, in another
    thread."""

    def __init__(
        self,
        toolbox: Toolbox,
        prior_spec: str,
        threads: int,
        out: str,
        lockstep: int,
        checkpoint_seconds: float,
    ):
        self._toolbox, self._prior_spec, self._threads = toolbox, prior_spec, threads
        self._out, self._lockstep, self._checkpoint_seconds = Path(out), lockstep, checkpoint_seconds
        self._bench: Bench | None = None
        self._pulse: Pulse = {}
        self._stop = threading.Event()

    def load(self) -> Loaded:
        """Loads the prior. An error is a value, so that it keeps its one line on the way."""
        begun = time.monotonic()
        try:
            prior = self._toolbox.load_prior(self._prior_spec, self._threads)
        except Exception as error:
            stage = error.stage if isinstance(error, LatentkilnError) else "prior"
            seconds = time.monotonic() - begun
            return Loaded(os.getpid(), seconds, type(error).__name__, one_line(str(error)), stage)
        self._bench = Bench(self._out, prior, self._lockstep, self._toolbox, self._checkpoint_seconds)
        return Loaded(os.getpid(), time.monotonic() - begun)

    def build(self, rows: Sequence[Row]) -> list[RowResult]:
        """Builds one group, as ``build_group`` says."""
        if self._bench is None:
            raise RuntimeError("build before load")
        self._pulse = {}
        return build_group(rows, self._bench, self._report, self._stop.is_set)

    def pulse(self) -> Pulse:
        """Where each row of the running group stands: (stage, done, total) by id."""
        return dict(self._pulse)

    def stop(self) -> None:
        """Asks the running group for a checkpoint and an early end."""
        self._stop.set()

    def _report(self, job_id: str, stage: str, done: int, total: int) -> None:
        # One assignment: nothing is sent from here, the driver asks when it wants to know.
        self._pulse[job_id] = (stage, done, total)
