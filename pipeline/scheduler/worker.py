"""The Ray actor: loads the prior once, then builds group after group. Plain Python; ``actor_pool`` makes it an
actor."""

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

# A worker whose driver has not asked for its pulse for so long saves its work and hands it back: the driver is
# suspended, or the network between them is cut and another worker has its rows by now.
ORPHANED_SECONDS = 60.0


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker of a run is made with; ``out`` is the output root, a folder on its machine or a URL.
    ``lockstep`` None: as many rows at a time as the worker's device is found to have memory for."""

    hooks: Hooks
    prior_spec: str
    threads: int
    out: Location
    lockstep: int | None
    checkpoint_seconds: float
    run_id: str = ""


@dataclass(frozen=True)
class LoadReport:
    """A worker that is ready, or why it is not (``error`` is the class name, ``stage`` as in LatentkilnError).

    ``memory`` is what the process holds, in bytes; ``node_id`` is Ray's; ``capacity`` what its device was found to
    carry.
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
    """Where each row of the running group stands, (stage, done, total) by id, and the worker's memory in bytes."""

    stages: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    memory: int = 0


@dataclass(frozen=True)
class BatchResult:
    """One result for each row of a group, in order. ``leaving``: the worker was told to go and takes no more."""

    results: list[TaskResult]
    leaving: bool = False


class Worker:
    """One process with one prior. ``heartbeat`` and ``stop`` are called while ``build`` runs, in another thread."""

    def __init__(self, settings: WorkerSettings):
        settle()
        self._settings = settings
        self._context: BatchContext | None = None
        self._stages: dict[str, tuple[str, int, int]] = {}
        self._stopped_up_to = 0
        self._last_heartbeat = time.monotonic()
        self._leaving = threading.Event()
        self._process = psutil.Process()
        # Where this is the main thread: a machine that is being taken away sends SIGTERM first.
        self._building = False
        self._previous_handler: Handler = None
        with contextlib.suppress(ValueError):
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def load(self) -> LoadReport:
        """Loads the prior. An error is a value, so that it keeps its one line on the way."""
        begun, chosen = time.monotonic(), self._settings
        try:
            prior = chosen.hooks.load_prior(chosen.prior_spec, chosen.threads)
            capacity = chosen.hooks.measure(prior, chosen.lockstep)
        except Exception as error:
            stage = error.stage if isinstance(error, LatentkilnError) else "prior"
            seconds = time.monotonic() - begun
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
            time.monotonic() - begun,
            node=platform.node(),
            node_id=_node_id(),
            memory=self._memory(),
            capacity=capacity,
        )

    def build(self, rows: Sequence[Task], ticket: int) -> BatchResult:
        """Builds one group, as ``build_batch`` says. ``ticket`` grows from group to group and names it in
        ``stop``."""
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
        """Where each row of the running group stands."""
        self._last_heartbeat = time.monotonic()
        return Heartbeat(dict(self._stages), self._memory())

    def stop(self, ticket: int) -> None:
        """Asks the group with ``ticket`` (and any before it) for a checkpoint and an early end."""
        self._stopped_up_to = max(self._stopped_up_to, ticket)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        again = self._leaving.is_set()
        self._leaving.set()
        if (again or not self._building) and callable(self._previous_handler):
            self._previous_handler(number, frame)

    def _memory(self) -> int:
        """Resident bytes of this process and those it started."""
        total = 0
        with contextlib.suppress(psutil.Error):
            total = self._process.memory_info().rss
            for child in self._process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    total += child.memory_info().rss
        return total

    def _report(self, job_id: str, stage: str, done: int, total: int) -> None:
        # One assignment: nothing is sent from here, the driver asks when it wants to know.
        self._stages[job_id] = (stage, done, total)


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""
