"""The loop over Ray actors: one batch in flight per worker. It survives dead workers and cancels overdue rows.

The pool uses actors instead of Ray Data because the driver must know which rows a worker held when it died, retry each
of them alone, cancel a row that is overdue, and make the result of each row final at once. ``benchmarks/scheduling.py``
runs the same rows through both; docs/operations.md has the figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.core.errors import PriorError
from pipeline.core.outcome import TaskResult
from pipeline.scheduler import ray_api
from pipeline.scheduler.batch import one_line
from pipeline.scheduler.gpu_capacity import gpu_options
from pipeline.scheduler.ray_api import ActorOptions, ObjectRef, WorkerActor
from pipeline.scheduler.signals import StopSignals
from pipeline.scheduler.task_tracker import TaskTracker
from pipeline.scheduler.tasks import Task
from pipeline.scheduler.worker import BatchResult, Heartbeat, LoadReport, WorkerSettings
from pipeline.scheduler.worker_failure import WorkerFailure, classify

_HEARTBEAT_SECONDS = 0.25
DEADLINE_SECONDS = 30.0
# How long a batch has to save its work when one of its rows is overdue.
GRACE_SECONDS = 10.0
# How long the plan is read at a time: while workers are busy, and while none is.
_READ_SECONDS, _IDLE_READ_SECONDS = 0.05, 0.25
_CHECK_SECONDS = 2.0
# The run gives up after so many workers in a row that died while loading the prior, or that were lost with their
# machines meanwhile.
_MAX_LOAD_DEATHS, _MAX_LOAD_LOSSES = 2, 20
# How long an idle worker is kept in a cluster that may shrink.
SPARE_SECONDS = 60.0
# Assumed number of rows per batch until the first worker has measured it.
_LIKELY_LOCKSTEP = 4


@dataclass(frozen=True)
class ActorSettings:
    """Settings of the pool.

    ``options`` are the resources that each actor asks for. ``workers(per_gpu)`` returns how many workers there may be
    now, because clusters grow and shrink. With ``probe`` the first worker gets a GPU to itself and measures how many
    workers can share one; until then it is the only worker.

    ``memory`` limits the bytes that one worker may hold; None for no limit. ``draining`` returns the ids of nodes that
    are about to go. ``alive`` turns false when the cluster's own servers are dead. ``growing`` says that the cluster
    adds machines for workers that do not fit, and removes idle ones. ``cpus(early)`` returns how many CPUs a worker
    asks for now; ``early`` says that no worker is expected yet. None: the CPUs in ``options``.
    """

    worker: WorkerSettings
    options: ActorOptions
    workers: Callable[[int], int]
    memory: int | None = None
    draining: Callable[[], frozenset[str]] = frozenset
    alive: Callable[[], bool] = lambda: True
    probe: bool = False
    growing: bool = False
    cpus: Callable[[bool], int] | None = None


@dataclass
class WorkerHandle:
    """One worker. ``state`` is ``loading``, ``idle``, ``building`` (``rows``) or ``gone``.

    ``cancelled_at`` is when the worker was asked to stop because a row was overdue, ``since`` when it became idle,
    both in seconds of the monotonic clock. ``lockstep`` is the size of batch that the worker measured.
    """

    name: str
    actor: WorkerActor
    ref: ObjectRef[LoadReport | BatchResult]
    state: str = "loading"
    rows: list[Task] = field(default_factory=list)
    heartbeat: ObjectRef[Heartbeat] | None = None
    ticket: int = 0
    node: str = ""
    node_id: str = ""
    stop_requested: bool = False
    cancelled_at: float | None = None
    lockstep: int | None = None
    since: float = 0.0


class ActorPool:
    """Builds the tasks of ``tracker`` with Ray actors. ``note`` shows a line to the user."""

    def __init__(
        self, tracker: TaskTracker, note: Callable[[str], None], signals: StopSignals, settings: ActorSettings
    ):
        self._tracker, self._note, self._signals, self._settings = tracker, note, signals, settings
        self._options: dict[str, float] = dict(settings.options)
        self._worker_class = ray_api.worker_class(settings.options)
        self._workers: list[WorkerHandle] = []
        self._created = self._tickets = self._load_deaths = self._load_losses = 0
        self._target = self._per_gpu = 1
        self._probing = settings.probe
        self._going: frozenset[str] = frozenset()
        self._noted: set[str] = set()  # ids of draining nodes that the user was told of
        self._asked_to_stop = False
        self._start_time = time.monotonic()
        self._next_check = self._next_heartbeat = 0.0
        self._patient = True
        self._worker_loaded = False

    def run(self) -> None:
        """Build until no task is left, or until the user stops the run.

        Raises ClusterLost, SchedulerError, or PriorError when the prior cannot be loaded.
        """
        while True:
            if self._signals.stopping and not self._asked_to_stop:
                self._ask_to_stop()
            if self._signals.stop_at_once:
                self._abandon()
                return
            self._tracker.load_more(_READ_SECONDS if self._busy() else _IDLE_READ_SECONDS)
            self._watch_cluster()
            self._assign_tasks()
            busy = self._busy()
            if not busy and not self._tracker.has_more:
                return
            now = time.monotonic()
            if now >= self._next_heartbeat:
                self._collect_heartbeats()
                self._next_heartbeat = now + _HEARTBEAT_SECONDS
            self._cancel_overdue()
            self._wait(busy)
            self._check_patience()

    def close(self) -> None:
        """End all workers. In a joined cluster they would otherwise live as long as this process."""
        for worker in self._workers:
            self._kill(worker)

    # -- workers ----------------------------------------------------------------------------------------------

    def _busy(self) -> list[WorkerHandle]:
        """Return the workers that the loop waits for. A worker that is loading counts only while tasks wait."""
        needed = ("loading", "building") if self._tracker.rows_left else ("building",)
        return [worker for worker in self._workers if worker.state in needed]

    def _watch_cluster(self) -> None:
        """Update the number of workers there may be, and which machines are going away."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_SECONDS
        self._check_cluster()
        self._follow_nodes()
        self._target = 1 if self._probing else max(1, self._settings.workers(self._per_gpu))
        self._going = self._settings.draining()
        for worker in self._workers:
            if worker.node_id not in self._going or worker.state not in ("idle", "building"):
                continue
            building = worker.state == "building"
            if worker.node_id not in self._noted:
                # Also for an idle worker: it may be between two batches, and then ends without another note.
                self._noted.add(worker.node_id)
                then = "its work is being saved" if building else "it gets no more rows"
                self._note(f"{worker.name}: its machine {worker.node} is going away; {then}")
            if building and not worker.stop_requested:
                self._request_stop(worker)

    def _follow_nodes(self) -> None:
        """Adapt the CPUs that workers ask for to the nodes that exist, until the first worker has loaded.

        A cluster that starts empty may get machines that are smaller or larger than assumed.
        """
        if self._settings.cpus is None or self._worker_loaded:
            return
        cpus = self._settings.cpus(self._patient)
        if cpus == self._options.get("num_cpus"):
            return
        self._options = self._options | {"num_cpus": cpus}
        for worker in self._workers:
            if worker.state == "loading":
                self._kill(worker)
                worker.state = "gone"

    def _check_cluster(self) -> None:
        """Take all rows back and raise ClusterLost if the cluster's servers are dead."""
        if self._settings.alive():
            return
        slots, self._workers = self._workers, []
        for worker in slots:
            self._tracker.worker_lost(worker.rows, "Ray's servers on this machine died", blame=False)
        from pipeline.scheduler.cluster import ClusterLost

        raise ClusterLost("Ray's servers on this machine died repeatedly; is there enough memory?")

    def _new_worker(self) -> WorkerHandle:
        options = self._options
        if self._per_gpu > 1:
            options = options | gpu_options(self._per_gpu, int(options.get("num_cpus", 0)))
        actor = self._worker_class.options(**options).remote(self._settings.worker)
        self._created += 1
        return WorkerHandle(f"worker {self._created}", actor, actor.load.remote())

    def _assign_tasks(self) -> None:
        target = self._target_workers()
        for worker in self._workers:
            if worker.state == "idle" and (worker.node_id in self._going or self._is_spare(worker)):
                self._kill(worker)
                worker.state = "gone"
        if self._settings.growing and self._tracker.exhausted:
            # A worker that waits for a machine would make the cluster start one for which no task is left.
            loading = [worker for worker in reversed(self._workers) if worker.state == "loading"]
            for worker in loading[: max(0, len(self._workers) - target)]:
                self._kill(worker)
                worker.state = "gone"
        self._workers = [worker for worker in self._workers if worker.state != "gone"]
        while len(self._workers) < target:
            self._workers.append(self._new_worker())
        for worker in self._workers:
            if worker.state == "idle" and (group := self._tracker.next_batch(self._target, worker.lockstep)):
                self._tickets += 1
                worker.rows, worker.state, worker.ticket = group, "building", self._tickets
                worker.stop_requested, worker.cancelled_at = False, None
                worker.ref = worker.actor.build.remote(group, worker.ticket)
                self._tracker.mark_started(group, worker.name, worker.node)

    def _target_workers(self) -> int:
        """Return the number of workers to have: at most as many as fit, and as there are rows.

        In a cluster that may grow, return up to twice as many if there are batches for them. Workers that wait for a
        machine tell such a cluster that it is too small.
        """
        occupied, left = sum(worker.state == "building" for worker in self._workers), self._tracker.rows_left
        target = min(self._target, occupied + left)
        if not self._settings.growing or self._probing:
            return target
        batch_size = self._settings.worker.lockstep or max((s.lockstep or 0 for s in self._workers), default=0)
        return max(target, min(2 * self._target, occupied + math.ceil(left / (batch_size or _LIKELY_LOCKSTEP))))

    def _is_spare(self, worker: WorkerHandle) -> bool:
        """Return whether the worker has been idle so long that its machine may go."""
        return self._settings.growing and time.monotonic() - worker.since > SPARE_SECONDS

    def _wait(self, busy: list[WorkerHandle]) -> None:
        timeout = max(0.01, self._next_heartbeat - time.monotonic())
        if not busy:
            # Tasks wait for their delay, or the plan is being read.
            if not self._tracker.rows_left:
                return
            time.sleep(min(timeout, 0.05))
            return
        # Leave out workers that were given up meanwhile: their results are known.
        by_ref = {worker.ref: worker for worker in busy if worker.state != "gone"}
        # One result at a time: the others stay ready, and signals are handled in between.
        for ref in ray_api.wait(list(by_ref), timeout=timeout) if by_ref else ():
            self._settle(by_ref[ref])

    def _settle(self, worker: WorkerHandle) -> None:
        """Take the result of a worker's call, or handle its death."""
        errors = ray_api.errors()
        try:
            reply = ray_api.get(worker.ref)
        except errors.RayTaskError as error:
            self._broken(worker, error)
        except errors.RayError as error:
            self._check_cluster()
            self._lost(worker, classify(errors, error, node_alive=self._node_alive(worker.node_id)))
        else:
            if isinstance(reply, LoadReport):
                self._loaded(worker, reply)
            else:
                self._built(worker, reply)

    def _loaded(self, worker: WorkerHandle, report: LoadReport) -> None:
        if report.error:
            raise _prior_error(report)
        limit = self._settings.memory
        if limit is not None and report.memory > limit:
            raise _fleet_error(
                f"a worker uses {_gigabytes(report.memory)} after loading the prior, but --max-memory allows only "
                f"{_gigabytes(limit)}; raise it"
            )
        self._load_deaths, self._load_losses, self._worker_loaded = 0, 0, True
        worker.state, worker.node, worker.node_id, worker.lockstep = (
            "idle",
            report.node,
            report.node_id,
            report.capacity.lockstep,
        )
        worker.since = time.monotonic()
        if self._probing:
            self._probed(worker, report.capacity.per_gpu)

    def _probed(self, worker: WorkerHandle, per_gpu: int) -> None:
        """Handle the measurement of the first worker. If a GPU can hold several workers, restart it with a share."""
        self._probing, self._per_gpu = False, per_gpu
        self._target = max(1, self._settings.workers(per_gpu))
        if per_gpu > 1 and self._tracker.rows_left > 1 and self._target > 1:
            self._note(f"{per_gpu} workers share a GPU: as many as fit by the memory measured")
            self._kill(worker)
            worker.state = "gone"
        else:
            self._per_gpu = 1
            self._target = max(1, self._settings.workers(1))

    def _built(self, worker: WorkerHandle, reply: BatchResult) -> None:
        rows, worker.rows, worker.state, worker.heartbeat = worker.rows, [], "idle", None
        worker.since = time.monotonic()
        for row, result in zip(rows, reply.results, strict=True):
            self._tracker.complete(row, result)
        if reply.leaving:
            self._note(f"{worker.name} received SIGTERM; its work is saved")
            self._kill(worker)
            worker.state = "gone"

    def _lost(self, worker: WorkerHandle, failure: WorkerFailure) -> None:
        # An actor that is only out of reach may still work. It must not work beside its successor.
        self._kill(worker)
        was_loading, rows = worker.state == "loading", worker.rows
        worker.state, worker.rows, worker.heartbeat = "gone", [], None
        if was_loading:
            self._load_deaths += failure.blame
            self._load_losses += not failure.blame
            if self._load_deaths >= _MAX_LOAD_DEATHS or self._load_losses >= _MAX_LOAD_LOSSES:
                count = self._load_deaths + self._load_losses
                raise _fleet_error(
                    f"{count} workers died while loading the prior ({failure.reason}); is there enough memory?"
                )
        if not self._tracker.halting:
            self._note(f"{worker.name} died ({failure.reason}); {len(rows)} rows are tried again")
        self._tracker.worker_lost(rows, failure.reason, blame=failure.blame)

    def _broken(self, worker: WorkerHandle, error: Exception) -> None:
        """Fail the rows of a batch for which the worker's own code raised. The worker goes on."""
        rows, worker.rows, worker.heartbeat = worker.rows, [], None
        cause = getattr(error, "cause", None) or error
        if worker.state == "loading":
            raise error
        worker.state, worker.since = "idle", time.monotonic()
        for row in rows:
            message = one_line(f"{row.job.id}: {cause}")
            name = type(cause).__name__
            self._tracker.finish(row, TaskResult(row.job.id, "failed", "fleet", name, message, reproduce=row.reproduce))

    def _kill(self, worker: WorkerHandle) -> None:
        ray_api.kill(worker.actor)

    def _node_alive(self, node_id: str) -> bool:
        return not node_id or any(node.id == node_id and node.alive for node in ray_api.nodes())

    # -- overdue and too large ----------------------------------------------------------------------------

    def _collect_heartbeats(self) -> None:
        """Read the answers to the last heartbeat requests and send new ones. Never waits."""
        for worker in self._workers:
            if worker.state != "building":
                continue
            if worker.heartbeat is not None:
                if not ray_api.wait([worker.heartbeat], timeout=0):
                    continue
                try:
                    beat = ray_api.get(worker.heartbeat)
                except ray_api.errors().RayError:
                    worker.heartbeat = None
                    continue  # the result of its build reports the same error
                job_ids = {row.job.id for row in worker.rows}
                for job_id, (stage, done, total) in beat.stages.items():
                    if job_id in job_ids:
                        self._tracker.update_stage(job_id, stage, done, total)
                if self._settings.memory is not None and beat.memory > self._settings.memory:
                    self._too_large(worker, beat.memory)
                    continue
            worker.heartbeat = worker.actor.heartbeat.options(concurrency_group="control").remote()

    def _too_large(self, worker: WorkerHandle, memory: int) -> None:
        limit = _gigabytes(self._settings.memory or 0)
        self._lost(worker, WorkerFailure(f"it used {_gigabytes(memory)}, but --max-memory allows {limit}", blame=True))

    def _cancel_overdue(self) -> None:
        """Ask a batch with an overdue row to end early, and kill a worker that does not do so in time."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.state != "building":
                continue
            if worker.cancelled_at is None:
                end = self._tracker.deadline(worker.rows)
                if end is not None and now >= end:
                    worker.cancelled_at = now
                    self._request_stop(worker)
            elif now - worker.cancelled_at >= GRACE_SECONDS:
                rows, worker.rows, worker.state, worker.heartbeat = worker.rows, [], "gone", None
                self._kill(worker)
                self._note(f"{worker.name} did not stop an overdue row and was killed")
                self._tracker.timed_out(rows)

    # -- the end ----------------------------------------------------------------------------------------------

    def _request_stop(self, worker: WorkerHandle) -> None:
        worker.stop_requested = True
        worker.actor.stop.options(concurrency_group="control").remote(worker.ticket)

    def _ask_to_stop(self) -> None:
        self._note("stopping: work so far is being saved (Ctrl-C again stops at once)")
        self._asked_to_stop = self._tracker.halting = True
        for worker in self._workers:
            if worker.state == "building":
                self._request_stop(worker)

    def _abandon(self) -> None:
        """Stop at once: kill the workers. Their last checkpoints remain."""
        for worker in self._workers:
            self._kill(worker)
            self._tracker.worker_lost(worker.rows, "stopped")
            worker.rows, worker.state = [], "gone"

    def _check_patience(self) -> None:
        """Tell the user when no worker starts, because a joined cluster may have no room."""
        if self._patient and time.monotonic() - self._start_time > DEADLINE_SECONDS:
            self._patient = False
            if self._workers and all(worker.state == "loading" for worker in self._workers):
                self._note("still waiting for a worker: is there room in the cluster?")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _fleet_error(message: str) -> Exception:
    from pipeline.scheduler.cluster import SchedulerError

    return SchedulerError(message)


def _prior_error(loaded: LoadReport) -> Exception:
    known = loaded.error == PriorError.__name__
    text = loaded.message if known else f"the prior cannot be loaded: {loaded.error}: {loaded.message}"
    return PriorError(text, stage=loaded.stage)
