"""The Ray actor: it loads the prior once and then builds one batch after another.

The class is plain Python. ``ray_api.worker_class`` makes it an actor class.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

import psutil

from pipeline.core.errors import LatentkilnError
from pipeline.core.home import settle
from pipeline.core.location import Location
from pipeline.core.outcome import TaskResult
from pipeline.scheduler.batch import BatchContext, build_batch, one_line
from pipeline.scheduler.gpu_capacity import Capacity
from pipeline.scheduler.output_root import open_output_root
from pipeline.scheduler.signals import Handler
from pipeline.scheduler.tasks import Hooks, Task

# A worker saves its work and hands it back if the driver has asked for no heartbeat for this long. Either the driver is
# suspended, or the network failed and another worker has the rows by now.
ORPHANED_SECONDS = 60.0


@dataclass(frozen=True)
class WorkerSettings:
    """Settings that all workers of a run share.

    ``out`` is the output root: a folder on the worker's machine, or a URL. ``lockstep`` None means as many rows at a
    time as fit into the memory of the worker's device.
    """

    hooks: Hooks
    prior_spec: str
    threads: int
    out: Location
    lockstep: int | None
    checkpoint_seconds: float
    run_id: str = ""


@dataclass(frozen=True)
class LoadReport:
    """The result of loading the prior: a worker that is ready, or an error.

    ``error`` is the name of the exception's class, empty for a worker that is ready; ``stage`` is that of
    LatentkilnError. ``memory`` is the process's resident memory in bytes, ``node_id`` Ray's id of the machine.
    """

    pid: int
    seconds: float
    error: str = ""
    message: str = ""
    stage: str = ""
    node: str = ""
    node_id: str = ""
    memory: int = 0
    capacity: Capacity = field(default_factory=Capacity)


@dataclass(frozen=True)
class Heartbeat:
    """The progress of each row of the running batch, (stage, done, total) by id, and the worker's memory in bytes."""

    stages: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    memory: int = 0


@dataclass(frozen=True)
class BatchResult:
    """One result per row of a batch, in order. ``leaving``: the worker got SIGTERM and takes no more batches."""

    results: list[TaskResult]
    leaving: bool = False


class Worker:
    """One process with one prior. Another thread calls ``heartbeat`` and ``stop`` while ``build`` runs."""

    def __init__(self, settings: WorkerSettings):
        settle()
        self._settings = settings
        self._context: BatchContext | None = None
        self._stages: dict[str, tuple[str, int, int]] = {}
        self._stopped_up_to = 0
        self._last_heartbeat = time.monotonic()
        self._leaving = threading.Event()
        self._process = psutil.Process()
        # A machine that is being taken away sends SIGTERM first. Only the main thread can handle it.
        self._building = False
        self._previous_handler: Handler = None
        with contextlib.suppress(ValueError):
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def load(self) -> LoadReport:
        """Load the prior. Return an error as a value, so that its message reaches the driver unchanged."""
        start_time, chosen = time.monotonic(), self._settings
        try:
            prior = chosen.hooks.load_prior(chosen.prior_spec, chosen.threads)
            capacity = chosen.hooks.measure(prior, chosen.lockstep)
        except Exception as error:
            stage = error.stage if isinstance(error, LatentkilnError) else "prior"
            seconds = time.monotonic() - start_time
            return LoadReport(os.getpid(), seconds, type(error).__name__, one_line(str(error)), stage)
        self._context = BatchContext(
            open_output_root(chosen.out, run_id=chosen.run_id),
            prior,
            capacity.lockstep,
            chosen.hooks,
            chosen.checkpoint_seconds,
            chosen.run_id,
        )
        return LoadReport(
            os.getpid(),
            time.monotonic() - start_time,
            node=platform.node(),
            node_id=_node_id(),
            memory=self._memory(),
            capacity=capacity,
        )

    def build(self, rows: Sequence[Task], ticket: int) -> BatchResult:
        """Build one batch as ``build_batch`` does. ``ticket`` grows from batch to batch; ``stop`` refers to it."""
        if self._context is None:
            raise RuntimeError("build before load")
        self._stages = {}
        self._last_heartbeat = time.monotonic()

        def stop() -> bool:
            orphaned = time.monotonic() - self._last_heartbeat > ORPHANED_SECONDS
            return self._stopped_up_to >= ticket or orphaned or self._leaving.is_set()

        self._building = True
        try:
            return BatchResult(build_batch(rows, self._context, self._report, stop), self._leaving.is_set())
        finally:
            self._building = False

    def heartbeat(self) -> Heartbeat:
        """Return the progress of each row of the running batch."""
        self._last_heartbeat = time.monotonic()
        return Heartbeat(dict(self._stages), self._memory())

    def stop(self, ticket: int) -> None:
        """Ask the batch with ``ticket``, and all before it, to save a checkpoint and end early."""
        self._stopped_up_to = max(self._stopped_up_to, ticket)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        again = self._leaving.is_set()
        self._leaving.set()
        if (again or not self._building) and callable(self._previous_handler):
            self._previous_handler(number, frame)

    def _memory(self) -> int:
        """Return the resident bytes of this process and its children."""
        total = 0
        with contextlib.suppress(psutil.Error):
            total = self._process.memory_info().rss
            for child in self._process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    total += child.memory_info().rss
        return total

    def _report(self, job_id: str, stage: str, done: int, total: int) -> None:
        # A single assignment, so that ``heartbeat`` needs no lock. The driver polls; nothing is sent from here.
        self._stages[job_id] = (stage, done, total)


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""
