"""Run a plan in workers on Ray, or in this process, until it is done or the user stops it."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.core.asset_layout import RUNS_FOLDER
from pipeline.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_ROWS_FAILED, UsageError, exit_code_of
from pipeline.core.job import Job
from pipeline.core.json_types import Json
from pipeline.core.location import Location, RemotePath
from pipeline.core.outcome import TaskResult
from pipeline.scheduler import gpu_capacity, resources
from pipeline.scheduler.batch import BatchContext, build_batch
from pipeline.scheduler.output_root import (
    OutputRoot,
    clean_scratch,
    local_root,
    open_output_root,
    publish_run,
    refuse_links_in,
)
from pipeline.scheduler.progress import Progress
from pipeline.scheduler.run_log import PUBLISHED, RunLog
from pipeline.scheduler.signals import StopSignals
from pipeline.scheduler.task_tracker import RunSummary, TaskTracker
from pipeline.scheduler.tasks import Hooks, Task

if TYPE_CHECKING:
    from pipeline.plan import PlanItem

# A run gives up after so many local clusters in a row that died without finishing a row.
_MAX_CLUSTERS = 4
# How long the plan is read before the first row starts.
_READ_SECONDS = 0.5
# With --serial: how long an overdue row may take to save its work before it is aborted.
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class RunSettings:
    """How a run is distributed, and its limits.

    lockstep: rows that one worker builds together; None: as many as fit into its device's memory.
    workers: None for ``resources.default_workers()``, or in a joined cluster for as many as it can hold at any time.
    gpus_per_worker: None: measured by the first worker if ``lockstep`` is given, else 1.
    address: the Ray cluster to join; None starts one on this machine.
    serial: build everything in this process, without Ray.
    threads: torch threads of each worker; None for ``resources.threads_per_worker()``.
    max_seconds: wall time of a row whose settings name no limit.
    max_memory: bytes that one worker may hold; has no effect with ``serial``.
    """

    lockstep: int | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    address: str | None = None
    serial: bool = False
    fail_fast: bool = False
    threads: int | None = None
    checkpoint_seconds: float = 30.0
    max_seconds: float | None = None
    max_memory: int | None = None


@dataclass(frozen=True)
class RunContext:
    """What the parts of one run share.

    ``out`` is the output root as the user named it, made absolute. ``output_root`` claims and publishes rows there.
    """

    out: Location
    output_root: OutputRoot
    prior_spec: str
    settings: RunSettings
    hooks: Hooks
    progress: Progress
    run_log: RunLog

    @property
    def threads(self) -> int:
        """Torch threads of each worker."""
        return self.settings.threads or resources.threads_per_worker()

    def note(self, text: str) -> None:
        """Write ``text`` to the run's log and show it."""
        self.run_log.note(text)
        self.progress.note(text)


def run(
    plan_items: Iterable[PlanItem],
    out: Location,
    *,
    prior_spec: str,
    settings: RunSettings | None = None,
    progress: Progress | None = None,
    hooks: Hooks | None = None,
    header: Json | None = None,
    reproduce: Callable[[Job], str] = lambda job: "",
    total: int | None = None,
    listen: Callable[[Callable[[TaskResult, str], None]], None] = lambda refused: None,
    conclude: Callable[[RunSummary], int] = lambda summary: summary.exit_code,
) -> RunSummary:
    """Build every ``build`` item of the plan into ``out``. Never raises for a row.

    The plan is read as far as needed and never held as a whole; ``total`` is the number of items it will have.
    ``header`` goes into the run's record. ``reproduce`` returns the command that builds one job alone. ``listen``
    receives the function to call, while the plan is read, with each row that the manifest refuses and its source.
    ``conclude`` reports the summary to the user after the display has closed, and returns the exit code for the record.
    Ray is not imported when there is nothing to build. Raises LatentkilnError when no worker can be started, the prior
    cannot be loaded or the plan cannot be read at all, and UsageError when ``out`` cannot be made.
    """
    start_time = time.monotonic()
    progress, settings, hooks = progress or Progress(), settings or RunSettings(), hooks or Hooks()
    out = out if isinstance(out, RemotePath) else out.resolve()
    root = local_root(out)
    refuse_links_in(out)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: the folder cannot be made: {error.strerror or error}") from None
    clean_scratch(out)
    run_log = RunLog(root, header or {})
    progress.run_id = run_log.run_id
    output_root = open_output_root(out, run_id=run_log.run_id)
    context = RunContext(out, output_root, prior_spec, settings, hooks, progress, run_log)
    tracker = TaskTracker(
        plan_items,
        output_root,
        lockstep=settings.lockstep,
        fail_fast=settings.fail_fast,
        run_log=run_log,
        progress=progress,
        reproduce=reproduce,
        total=total,
        max_seconds=settings.max_seconds,
    )
    listen(tracker.refused)
    run_log.open()
    code, problem = EXIT_ROWS_FAILED, ""
    with publish_run(root, out, PUBLISHED, (RUNS_FOLDER,)):
        try:
            interrupted = _run(tracker, context)
            summary = tracker.close(interrupted=interrupted, seconds=time.monotonic() - start_time)
            summary.run_id = run_log.run_id
            progress.close()
            if problem := run_log.problem:
                progress.note(problem)
            code = conclude(summary)
            return summary
        except BaseException as error:
            code = exit_code_of(error)
            progress.close()
            raise
        finally:
            run_log.close({EXIT_OK: "done", EXIT_INTERRUPTED: "interrupted"}.get(code, "failed"), code)
            if run_log.problem not in ("", problem):
                progress.note(run_log.problem)


def _run(tracker: TaskTracker, context: RunContext) -> bool:
    """Build what ``tracker`` hands out. Return True when the run was interrupted."""
    progress, serial = context.progress, context.settings.serial
    with StopSignals(raising=serial, lost=lambda: progress.lost) as signals:
        # Read up to the first row to build. Usually that is the whole plan.
        while tracker.has_more and not tracker.rows_left and not signals.stopping:
            tracker.load_more(_READ_SECONDS)
        if not signals.stopping:
            tracker.load_more(_READ_SECONDS)
        progress.begin(**tracker.expected())
        if not tracker.has_more or signals.stopping:
            return signals.stopping
        return (_run_serial if serial else _run_ray)(tracker, context, signals)


def _run_serial(tracker: TaskTracker, context: RunContext, signals: StopSignals) -> bool:
    """Build everything in this process. Return True when the run was interrupted."""
    group: list[Task] = []
    settings, hooks = context.settings, context.hooks
    try:
        prior = hooks.load_prior(context.prior_spec, context.threads)
        batch_size = hooks.measure(prior, settings.lockstep).lockstep
        batch_context = BatchContext(
            context.output_root, prior, batch_size, hooks, settings.checkpoint_seconds, context.run_log.run_id
        )
        while not signals.stopping and tracker.has_more:
            tracker.load_more()
            group = tracker.next_batch(lockstep=batch_size)
            if not group:
                time.sleep(0.05)  # all tasks are delayed
                continue
            _build_here(tracker, group, batch_context, signals)
            group = []
    except KeyboardInterrupt:
        tracker.halting = True
        tracker.worker_lost(group, "stopped")
    return signals.stopping


def _build_here(tracker: TaskTracker, group: list[Task], context: BatchContext, signals: StopSignals) -> None:
    tracker.mark_started(group, "serial")
    end = tracker.deadline(group)

    def stop() -> bool:
        return signals.stopping or (end is not None and time.monotonic() >= end)

    try:
        with _raise_when_overdue(end):
            results = build_batch(group, context, tracker.update_stage, stop)
    except _Overdue:
        tracker.timed_out(group)
        return
    tracker.halting = tracker.halting or signals.stopping
    for row, result in zip(group, results, strict=True):
        tracker.complete(row, result)


def _per_gpu(settings: RunSettings, gpus: int) -> int:
    """Return how many workers share a GPU in a cluster of ``gpus`` GPUs, or 0 if the settings leave it open."""
    if settings.gpus_per_worker:
        return max(1, int(1 / settings.gpus_per_worker + 1e-3))
    return math.ceil(settings.workers / gpus) if settings.workers else 0


class _Overdue(BaseException):
    """Aborts work that does not stop when asked. Not an Exception, so that no handler catches it by mistake."""


@contextlib.contextmanager
def _raise_when_overdue(end: float | None) -> Iterator[None]:
    """Raise _Overdue inside the block some seconds after ``end`` (monotonic clock); never if ``end`` is None.

    Python raises it between two bytecode instructions. A call into compiled code that never returns cannot be aborted
    in its own process; a worker can be killed.
    """
    if end is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Overdue

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, end - time.monotonic() + GRACE_SECONDS))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run_ray(tracker: TaskTracker, context: RunContext, signals: StopSignals) -> bool:
    """Build with workers on Ray. Return True when the run was interrupted."""
    from pipeline.scheduler.cluster import ClusterLost

    died = ended = 0
    while True:
        try:
            _run_cluster(tracker, context, signals)
            return signals.stopping
        except ClusterLost:
            if signals.stopping:
                # A signal to the whole group (``timeout``, systemd, a supervisor) ends Ray's servers, too.
                return True
            before, ended = ended, tracker.summary.counts.total()
            died = died + 1 if ended == before else 1
            if died >= _MAX_CLUSTERS:
                raise
            text = "Ray's servers on this machine died; they are started again"
            context.run_log.note(text)
            context.progress.warn(text)


def _run_cluster(tracker: TaskTracker, context: RunContext, signals: StopSignals) -> None:
    """Build with the workers of one cluster. Raises ClusterLost when the cluster dies."""
    from pipeline.scheduler.cluster import ray_cluster, worker_capacity, worker_cpus

    settings, threads, run_id = context.settings, context.threads, context.run_log.run_id
    context.note(f"joining Ray at {settings.address}" if settings.address else "starting workers")
    with contextlib.ExitStack() as stack:
        with signals.held_back():
            cluster = stack.enter_context(ray_cluster(settings.address, threads))
        from pipeline.scheduler.actor_pool import ActorPool, ActorSettings
        from pipeline.scheduler.metrics import Metrics
        from pipeline.scheduler.ray_api import draining_nodes
        from pipeline.scheduler.worker import WorkerSettings

        signals.install()  # Ray took SIGTERM for itself
        metrics = Metrics(run_id)
        tracker.add_listener(metrics)
        # A cluster that starts empty has no GPUs yet; a share per worker says that it will have some.
        on_gpus = bool(cluster.gpus or (settings.gpus_per_worker and not cluster.local))
        cpus = 0 if cluster.local else worker_cpus(threads, early=True, on_gpus=on_gpus)
        options: dict[str, float] = {"num_gpus": 1 if on_gpus else 0, "num_cpus": cpus}
        per_chosen = _per_gpu(settings, cluster.gpus) if on_gpus else 0
        if per_chosen:
            options |= gpu_capacity.gpu_options(per_chosen, cpus)
            if settings.gpus_per_worker:
                options["num_gpus"] = settings.gpus_per_worker
        if settings.max_memory and not cluster.local:
            # Ray then places no more workers on a machine than its memory can hold.
            options["memory"] = settings.max_memory

        def workers(per_gpu: int) -> int:
            if settings.workers:
                return settings.workers
            per_gpu = per_gpu if probe else per_chosen or 1
            if not cluster.local:
                return worker_capacity(cpus, per_gpu if on_gpus else 0)
            return per_gpu * cluster.gpus or resources.default_workers()

        def cpus_by_now(early: bool) -> int:
            nonlocal cpus
            cpus = worker_cpus(threads, early=early, on_gpus=on_gpus)
            return int(gpu_capacity.gpu_options(per_chosen, cpus)["num_cpus"]) if per_chosen else cpus

        # A lockstep that the user chose may leave most of a GPU idle; a measured one fills it.
        probe = bool(cluster.gpus and settings.lockstep and not per_chosen)
        pool = ActorPool(
            tracker,
            context.note,
            signals,
            ActorSettings(
                WorkerSettings(
                    context.hooks,
                    context.prior_spec,
                    threads,
                    context.out,
                    settings.lockstep,
                    settings.checkpoint_seconds,
                    run_id,
                ),
                options,
                workers=workers,
                memory=settings.max_memory,
                draining=frozenset if cluster.local else draining_nodes,
                alive=cluster.alive,
                probe=probe,
                growing=not cluster.local and not settings.workers,
                cpus=None if cluster.local else cpus_by_now,
            ),
        )
        try:
            pool.run()
        finally:
            tracker.remove_listener(metrics)
            pool.close()
            for message in cluster.messages:
                context.run_log.note(f"Ray: {message}")
