"""The loop over Ray actors: one group in flight per worker, deaths survived, late rows cut.

Actors, not Ray Data: the driver has to know which rows a worker held when it died, to try each of them alone, to cut
one that is late, and to let every row's end be final the moment it comes. ``benchmarks/scheduling.py`` runs the same
rows through both: docs/operations.md has the figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.errors import PriorError
from pipeline.scheduler.batch import one_line
from pipeline.scheduler.gpu_capacity import gpu_options
from pipeline.scheduler.signals import StopSignals
from pipeline.scheduler.task_tracker import TaskTracker
from pipeline.scheduler.tasks import Task, TaskResult
from pipeline.scheduler.worker import BatchResult, Heartbeat, LoadReport, Worker, WorkerSettings
from pipeline.scheduler.worker_failure import WorkerFailure, classify

_HEARTBEAT_SECONDS = 0.25
DEADLINE_SECONDS = 30.0
# How long a group has to save its work when one of its rows has had its time.
GRACE_SECONDS = 10.0
# How long the plan is read at a time while workers are busy, and while none is.
_READ_SECONDS, _IDLE_READ_SECONDS = 0.05, 0.25
_CHECK_SECONDS = 2.0
# Workers that die while loading the prior, one after another, before the run gives up; and that are lost with
# their machines.
_MAX_LOAD_DEATHS, _MAX_LOAD_LOSSES = 2, 20
# How long a worker without work is kept in a cluster that may shrink.
SPARE_SECONDS = 60.0
# Rows that a worker will take at a time, as long as none has said so.
_LIKELY_LOCKSTEP = 4


@dataclass(frozen=True)
class ActorSettings:
    """``options`` are those of the Ray actor. ``workers`` says how many there may be now, given how many share a GPU:
    clusters grow and shrink. ``probe``: how many share a GPU is to be found out by the first worker, which has one to
    itself; until then it is the only one.

    ``memory`` is what one worker may hold, in bytes; None for no limit of ours. ``draining`` names the nodes that are
    about to go. ``alive`` turns false when the cluster's own servers are dead. ``growing``: the cluster may get more
    machines where more workers are asked for than it can hold, and fewer where some are given back. ``cpus`` says for
    how many CPUs a worker asks by now, given whether it is early to expect one; None: for those of ``options``.
    """

    worker: WorkerSettings
    options: dict[str, Any]
    workers: Callable[[int], int]
    memory: int | None = None
    draining: Callable[[], frozenset[str]] = frozenset
    alive: Callable[[], bool] = lambda: True
    probe: bool = False
    growing: bool = False
    cpus: Callable[[bool], int] | None = None


@dataclass
class WorkerHandle:
    """One worker: ``loading``, ``idle``, ``building`` (``rows``), or ``gone``. ``cancelled_at``: when it was asked to
    let go of a row that has had its time. ``since``: when it became idle."""

    name: str
    actor: Any
    ref: Any
    state: str = "loading"
    rows: list[Task] = field(default_factory=list)
    heartbeat: Any = None
    ticket: int = 0
    node: str = ""
    node_id: str = ""
    stop_requested: bool = False
    cancelled_at: float | None = None
    lockstep: int | None = None
    since: float = 0.0


class ActorPool:
    """Builds what a Book has with Ray actors. ``note`` takes lines worth showing."""

    def __init__(
        self, tracker: TaskTracker, note: Callable[[str], None], signals: StopSignals, settings: ActorSettings
    ):
        import ray

        self._ray: Any = ray
        self._tracker, self._note, self._signals, self._settings = tracker, note, signals, settings
        self._options = settings.options
        # Two groups of threads in the worker: one builds, the other answers while it does. No restarts by
        # Ray: a new worker is made here, where it is known what the old one was doing.
        self._actor: Any = self._ray.remote(
            concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0, **settings.options
        )(Worker)
        self._workers: list[WorkerHandle] = []
        self._created = self._tickets = self._load_deaths = self._load_losses = 0
        self._target = self._per_gpu = 1
        self._probing = settings.probe
        self._going: frozenset[str] = frozenset()
        self._noted: set[str] = set()  # of which machines it has been said that they go
        self._asked_to_stop = False
        self._begun = time.monotonic()
        self._next_check = self._next_heartbeat = 0.0
        self._patient = True
        self._worker_loaded = False

    def run(self) -> None:
        """Until nothing is left to do, or to wait for.

        Raises ClusterLost, SchedulerError or what loading the prior raised.
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
        """Ends the workers. In a joined cluster nothing else would, before this process ends."""
        for worker in self._workers:
            self._kill(worker)

    # -- workers ----------------------------------------------------------------------------------------------

    def _busy(self) -> list[WorkerHandle]:
        """Workers that will have something to say. One that is on its way is not waited for when it is not
        needed (any more)."""
        needed = ("loading", "building") if self._tracker.rows_left else ("building",)
        return [worker for worker in self._workers if worker.state in needed]

    def _watch_cluster(self) -> None:
        """How many workers there may be now, and which of them sit on machines that are going away."""
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
                # Said of idle workers, too: one may be between two groups just now, and is let go without a word.
                self._noted.add(worker.node_id)
                then = "its work is being saved" if building else "it gets no more rows"
                self._note(f"{worker.name}: its machine {worker.node} is going away; {then}")
            if building and not worker.stop_requested:
                self._request_stop(worker)

    def _follow_nodes(self) -> None:
        """Until the first worker is there, all ask for what the nodes have by now: those of a cluster that starts
        from nothing may be smaller than the machine of the driver, or larger than what was asked for at last."""
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
        """Raises ClusterLost, having taken all rows back, when the cluster's servers are dead."""
        if self._settings.alive():
            return
        slots, self._workers = self._workers, []
        for worker in slots:
            self._tracker.worker_lost(worker.rows, "Ray's servers on this machine died", blame=False)
        from pipeline.scheduler.cluster import ClusterLost

        raise ClusterLost("Ray's servers on this machine died, again and again; is there enough memory?")

    def _new_worker(self) -> WorkerHandle:
        options = self._options
        if self._per_gpu > 1:
            options = options | gpu_options(self._per_gpu, options.get("num_cpus", 0))
        handle = self._actor.options(**options).remote(self._settings.worker)
        self._created += 1
        return WorkerHandle(f"worker {self._created}", handle, handle.load.remote())

    def _assign_tasks(self) -> None:
        target = self._target_workers()
        for worker in self._workers:
            if worker.state == "idle" and (worker.node_id in self._going or self._is_spare(worker)):
                self._kill(worker)
                worker.state = "gone"
        if self._settings.growing and self._tracker.exhausted:
            # Those that still wait for a machine, when there is nothing left for them, would bring one in vain.
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
        """How many workers to have: as many as there is room for, and rows.

        In a cluster that may grow, up to as many again, should there be groups of rows for them: workers that wait for
        a machine are what tells such a cluster that it is too small.
        """
        occupied, left = sum(worker.state == "building" for worker in self._workers), self._tracker.rows_left
        target = min(self._target, occupied + left)
        if not self._settings.growing or self._probing:
            return target
        batch_size = self._settings.worker.lockstep or max((s.lockstep or 0 for s in self._workers), default=0)
        return max(target, min(2 * self._target, occupied + math.ceil(left / (batch_size or _LIKELY_LOCKSTEP))))

    def _is_spare(self, worker: WorkerHandle) -> bool:
        """Nothing has come for the idle worker for a while: its machine may go."""
        return self._settings.growing and time.monotonic() - worker.since > SPARE_SECONDS

    def _wait(self, busy: list[WorkerHandle]) -> None:
        timeout = max(0.01, self._next_heartbeat - time.monotonic())
        if not busy:
            # Rows that wait for their time, or a plan that is being read.
            if not self._tracker.rows_left:
                return
            time.sleep(min(timeout, 0.05))
            return
        # Without those that were given up since: what their refs say is known.
        by_ref = {worker.ref: worker for worker in busy if worker.state != "gone"}
        # One at a time: what is ready stays ready, and signals are looked at in between.
        ready, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=timeout) if by_ref else ([], [])
        for ref in ready:
            self._settle(by_ref[ref])

    def _settle(self, worker: WorkerHandle) -> None:
        """Takes what a worker has to say, or learns that it is dead."""
        errors = self._ray.exceptions
        try:
            reply = self._ray.get(worker.ref)
        except errors.RayTaskError as error:
            self._broken(worker, error)
        except errors.RayError as error:
            self._check_cluster()
            self._lost(worker, classify(errors, error, node_alive=self._node_alive(worker.node_id)))
        else:
            if worker.state == "loading":
                self._loaded(worker, reply)
            else:
                self._built(worker, reply)

    def _loaded(self, worker: WorkerHandle, report: LoadReport) -> None:
        if report.error:
            raise _prior_error(report)
        limit = self._settings.memory
        if limit is not None and report.memory > limit:
            raise _fleet_error(
                f"a worker holds {_gigabytes(report.memory)} when it has loaded the prior, and --max-memory allows "
                f"{_gigabytes(limit)}; allow more"
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
        """The first worker has measured: where a GPU carries several of its kind, it makes room for them."""
        self._probing, self._per_gpu = False, per_gpu
        self._target = max(1, self._settings.workers(per_gpu))
        if per_gpu > 1 and self._tracker.rows_left > 1 and self._target > 1:
            self._note(f"{per_gpu} workers share a GPU: that much memory was measured")
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
            self._note(f"{worker.name} was told to go; its work is saved")
            self._kill(worker)
            worker.state = "gone"

    def _lost(self, worker: WorkerHandle, failure: WorkerFailure) -> None:
        # An actor that is merely out of reach may still be at work: it must not be, beside its successor.
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
        """Our own code in the worker raised: those rows fail, the worker goes on."""
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
        self._ray.kill(worker.actor, no_restart=True)

    def _node_alive(self, node_id: str) -> bool:
        return not node_id or any(node["NodeID"] == node_id and node["Alive"] for node in self._ray.nodes())

    # -- what is late or too large ----------------------------------------------------------------------------

    def _collect_heartbeats(self) -> None:
        """Asks each builder where it stands, and reads the answers to the last question. Never waits."""
        for worker in self._workers:
            if worker.state != "building":
                continue
            if worker.heartbeat is not None:
                ready, _ = self._ray.wait([worker.heartbeat], timeout=0)
                if not ready:
                    continue
                try:
                    pulse: Heartbeat = self._ray.get(worker.heartbeat)
                except self._ray.exceptions.RayError:
                    worker.heartbeat = None
                    continue  # its build will say so, too
                mine = {row.job.id for row in worker.rows}
                for job_id, (stage, done, total) in pulse.stages.items():
                    if job_id in mine:
                        self._tracker.update_stage(job_id, stage, done, total)
                if self._settings.memory is not None and pulse.memory > self._settings.memory:
                    self._too_large(worker, pulse.memory)
                    continue
            worker.heartbeat = worker.actor.heartbeat.options(concurrency_group="control").remote()

    def _too_large(self, worker: WorkerHandle, memory: int) -> None:
        limit = _gigabytes(self._settings.memory or 0)
        self._lost(worker, WorkerFailure(f"it held {_gigabytes(memory)}, and --max-memory allows {limit}", blame=True))

    def _cancel_overdue(self) -> None:
        """Asks a group for an early end when one of its rows has had its time; kills a worker that does not answer."""
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
                self._note(f"{worker.name} did not let go of a late row and was ended")
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
        """Stops at once: kills the workers; what they last saved is what remains."""
        for worker in self._workers:
            self._kill(worker)
            self._tracker.worker_lost(worker.rows, "stopped")
            worker.rows, worker.state = [], "gone"

    def _check_patience(self) -> None:
        """Says so when no worker comes up: a joined cluster may have no room."""
        if self._patient and time.monotonic() - self._begun > DEADLINE_SECONDS:
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
