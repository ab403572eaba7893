"""Runs a plan: hands groups of rows to workers, survives their deaths, stops when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.job import Job
from pipeline.fleet import machine
from pipeline.fleet.book import Book, RunSummary
from pipeline.fleet.group import Bench, build_group, one_line, record_failure
from pipeline.fleet.interrupts import Interrupts
from pipeline.fleet.ledger import Ledger
from pipeline.fleet.locks import asset_lock
from pipeline.fleet.progress import Progress
from pipeline.fleet.rows import Row, RowResult, Toolbox

if TYPE_CHECKING:
    from pipeline.plan import PlanItem

DEFAULT_LOCKSTEP = 4
_PULSE_SECONDS = 0.25
_PATIENCE_SECONDS = 30.0
# Workers that die while loading the prior, one after another, before the run gives up.
_MAX_LOAD_DEATHS = 2


@dataclass(frozen=True)
class FleetSettings:
    """How a run is spread.

    ``lockstep``: rows built together by one worker. ``workers``: None for ``machine.default_workers()``.
    ``address`` of a Ray cluster to join; None starts one. ``serial``: everything in this process, no Ray.
    ``threads`` of each worker: None for ``machine.threads_per_worker()``.
    """

    lockstep: int = DEFAULT_LOCKSTEP
    workers: int | None = None
    address: str | None = None
    serial: bool = False
    fail_fast: bool = False
    threads: int | None = None
    checkpoint_seconds: float = 30.0


def run(
    plan_items: Sequence[PlanItem],
    out: Path,
    *,
    prior_spec: str,
    settings: FleetSettings | None = None,
    progress: Progress | None = None,
    toolbox: Toolbox | None = None,
    header: dict[str, Any] | None = None,
    reproduce: Callable[[Job], str] = lambda job: "",
) -> RunSummary:
    """Builds every ``build`` item of the plan into ``out``; never raises for a row.

    ``header`` goes into the run's record; ``reproduce`` gives the command that builds one job alone. Ray is
    not imported when there is nothing to build. Raises LatentkilnError when no worker can be had or the prior
    cannot be loaded.
    """
    begun = time.monotonic()
    progress, settings, toolbox = progress or Progress(), settings or FleetSettings(), toolbox or Toolbox()
    rows = [Row(i.job, i.fingerprint, reproduce(i.job)) for i in plan_items if i.action == "build"]
    blocked = [i for i in plan_items if i.action == "blocked"]
    kept = [i.job.id for i in plan_items if i.action == "keep"]
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out, header or {})
    book = Book(
        rows,
        out,
        kept=len(kept),
        lockstep=settings.lockstep,
        fail_fast=settings.fail_fast,
        ledger=ledger,
        progress=progress,
    )
    ledger.open([row.job.id for row in rows] + [i.job.id for i in blocked], kept)
    progress.begin(build=len(rows) + len(blocked), kept=len(kept))
    state, code = "failed", 1
    try:
        for item in blocked:
            _block(book, out, item, reproduce(item.job))
        interrupted = False
        if rows and not book.halting:
            one_process = _run_serial if settings.serial else _run_ray
            interrupted = one_process(book, out, prior_spec, settings, toolbox, progress)
        summary = book.close(interrupted=interrupted, seconds=time.monotonic() - begun)
        state = {0: "done", 1: "failed"}.get(summary.exit_code, "interrupted")
        code = summary.exit_code
        return summary
    finally:
        ledger.close(state, code)
        progress.close()
        if ledger.problem:
            progress.note(ledger.problem)


def _block(book: Book, out: Path, item: PlanItem, reproduce: str) -> None:
    """A row that the plan found unbuildable is a failed row."""
    row = Row(item.job, item.fingerprint, reproduce)
    result = RowResult(item.job.id, "failed", "plan", "Blocked", item.reason, reproduce=reproduce)
    folder = out / item.job.id
    try:
        with asset_lock(folder):
            record_failure(folder, row, result)
    except OSError:
        pass  # its line in the summary is what remains
    book.ended(row, result)


def _run_serial(
    book: Book, out: Path, prior_spec: str, settings: FleetSettings, toolbox: Toolbox, progress: Progress
) -> bool:
    """Everything in this process. True when interrupted."""
    with Interrupts(raising=True) as interrupts:
        group: list[Row] = []
        try:
            prior = toolbox.load_prior(prior_spec, settings.threads or machine.threads_per_worker())
            bench = Bench(out, prior, settings.lockstep, toolbox, settings.checkpoint_seconds)
            while not interrupts.stopping and (group := book.next_group()):
                book.began(group, "serial")
                results = build_group(group, bench, book.stage, lambda: interrupts.stopping)
                for row, result in zip(group, results, strict=True):
                    book.ended(row, result)
                group = []
        except KeyboardInterrupt:
            book.halting = True
            book.died(group, "stopped")
        return interrupts.stopping


@dataclass
class _Slot:
    """One worker: ``loading``, ``idle``, ``building`` (``rows``), or ``gone``."""

    name: str
    handle: Any
    ref: Any
    state: str = "loading"
    rows: list[Row] = field(default_factory=list)
    pulse: Any = None


def _run_ray(
    book: Book, out: Path, prior_spec: str, settings: FleetSettings, toolbox: Toolbox, progress: Progress
) -> bool:
    """Workers on Ray. True when interrupted."""
    from pipeline.fleet.cluster import ray_cluster

    threads = settings.threads or machine.threads_per_worker()
    with Interrupts() as interrupts:
        progress.note(f"joining Ray at {settings.address}" if settings.address else "starting workers")
        with ray_cluster(settings.address, threads) as cluster:
            interrupts.install()  # Ray took SIGTERM for itself
            workers = settings.workers or cluster.gpus or (machine.default_workers() if cluster.local else 1)
            options: dict[str, Any] = {"num_gpus": 1 if cluster.gpus else 0}
            if settings.workers and cluster.gpus:
                options["num_gpus"] = min(1.0, cluster.gpus / settings.workers)
            options["num_cpus"] = 0 if cluster.local else min(threads, cluster.node_cpus)
            arguments = (
                toolbox,
                prior_spec,
                threads,
                str(out),
                settings.lockstep,
                settings.checkpoint_seconds,
            )
            fleet = _Fleet(book, progress, interrupts, options, arguments)
            try:
                fleet.run(min(workers, book.rows_left))
            finally:
                fleet.close()
        return interrupts.stopping


class _Fleet:
    """The loop over Ray actors. At most one group is in flight per worker: that is all the back-pressure
    needed."""

    def __init__(
        self,
        book: Book,
        progress: Progress,
        interrupts: Interrupts,
        options: dict[str, Any],
        arguments: tuple[Any, ...],
    ):
        import ray

        from pipeline.fleet.worker import Worker

        self._ray: Any = ray
        self._book, self._progress, self._interrupts = book, progress, interrupts
        # Two groups of threads in the worker: one builds, the other answers while it does. No restarts by
        # Ray: a new worker is made here, where it is known what the old one was doing.
        self._actor: Any = self._ray.remote(
            concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0, **options
        )(Worker)
        self._arguments = arguments
        self._slots: list[_Slot] = []
        self._made = self._load_deaths = 0
        self._asked_to_stop = False
        self._begun = time.monotonic()
        self._patient = True

    def run(self, workers: int) -> None:
        """Until nothing is left to do, or to wait for. Raises FleetError or what loading the prior raised."""
        for _ in range(workers):
            self._slots.append(self._new_slot())
        next_pulse = 0.0
        while True:
            if self._interrupts.stopping and not self._asked_to_stop:
                self._ask_to_stop()
            if self._interrupts.now:
                self._abandon()
                return
            self._hand_out(workers)
            busy = {slot.ref: slot for slot in self._slots if slot.state in ("loading", "building")}
            if self._book.halting or not self._book.rows_left:
                # A worker that is still on its way (or waits for room in the cluster) is not waited for.
                busy = {ref: slot for ref, slot in busy.items() if slot.state == "building"}
            if not busy:
                return
            now = time.monotonic()
            if now >= next_pulse:
                self._take_pulses()
                next_pulse = now + _PULSE_SECONDS
            # One at a time: what is ready stays ready, and signals are looked at in between.
            ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=max(0.01, next_pulse - now))
            for ref in ready:
                self._settle(busy[ref])
            self._grow_impatient()

    def close(self) -> None:
        """Ends the workers. In a joined cluster nothing else would, before this process ends."""
        for slot in self._slots:
            self._ray.kill(slot.handle, no_restart=True)

    def _new_slot(self) -> _Slot:
        handle = self._actor.remote(*self._arguments)
        self._made += 1
        return _Slot(f"worker {self._made}", handle, handle.load.remote())

    def _hand_out(self, workers: int) -> None:
        for index, slot in enumerate(self._slots):
            if slot.state == "gone" and self._book.rows_left and not self._book.halting:
                self._slots[index] = self._new_slot()
            elif slot.state == "idle" and (group := self._book.next_group(workers)):
                slot.rows, slot.state = group, "building"
                slot.ref = slot.handle.build.remote(group)
                self._book.began(group, slot.name)

    def _settle(self, slot: _Slot) -> None:
        """Takes what a worker has to say, or learns that it is dead."""
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(slot.ref)
        except errors.RayTaskError as error:
            self._broken(slot, error)
            return
        except errors.RayError as error:
            self._died(slot, error)
            return
        if slot.state == "loading":
            if answer.error:
                raise _prior_error(answer)
            self._load_deaths = 0
            slot.state = "idle"
            return
        rows, slot.rows, slot.state, slot.pulse = slot.rows, [], "idle", None
        for row, result in zip(rows, answer, strict=True):
            self._book.ended(row, result)

    def _died(self, slot: _Slot, error: Exception) -> None:
        reason = _death_reason(self._ray.exceptions, error)
        # An actor that is merely out of reach may still be at work: it must not be, beside its successor.
        self._ray.kill(slot.handle, no_restart=True)
        was_loading, rows = slot.state == "loading", slot.rows
        slot.state, slot.rows, slot.pulse = "gone", [], None
        if was_loading:
            self._load_deaths += 1
            if self._load_deaths >= _MAX_LOAD_DEATHS:
                from pipeline.fleet.cluster import FleetError

                raise FleetError(
                    f"{self._load_deaths} workers died while loading the prior ({reason}); is there enough memory?"
                )
        if not self._book.halting:
            self._progress.note(f"{slot.name} died ({reason}); {len(rows)} rows are tried again")
        self._book.died(rows, reason)

    def _broken(self, slot: _Slot, error: Exception) -> None:
        """Our own code in the worker raised: those rows fail, the worker goes on."""
        rows, slot.rows, slot.pulse = slot.rows, [], None
        cause = getattr(error, "cause", None) or error
        if slot.state == "loading":
            raise error
        slot.state = "idle"
        for row in rows:
            message = one_line(f"{row.job.id}: {cause}")
            name = type(cause).__name__
            self._book.ended(row, RowResult(row.job.id, "failed", "fleet", name, message, reproduce=row.reproduce))

    def _take_pulses(self) -> None:
        """Asks each builder where it stands, and reads the answers to the last question. Never waits."""
        for slot in self._slots:
            if slot.state != "building":
                continue
            if slot.pulse is not None:
                ready, _ = self._ray.wait([slot.pulse], timeout=0)
                if not ready:
                    continue
                try:
                    pulse = self._ray.get(slot.pulse)
                except self._ray.exceptions.RayError:
                    slot.pulse = None
                    continue  # its build will say so, too
                mine = {row.job.id for row in slot.rows}
                for job_id, (stage, done, total) in pulse.items():
                    if job_id in mine:
                        self._book.stage(job_id, stage, done, total)
            slot.pulse = slot.handle.pulse.options(concurrency_group="control").remote()

    def _ask_to_stop(self) -> None:
        self._progress.note("stopping: work so far is being saved (Ctrl-C again stops at once)")
        self._asked_to_stop = self._book.halting = True
        for slot in self._slots:
            if slot.state == "building":
                slot.handle.stop.options(concurrency_group="control").remote()

    def _abandon(self) -> None:
        """Stops at once: kills the workers; what they last saved is what remains."""
        for slot in self._slots:
            self._ray.kill(slot.handle, no_restart=True)
            self._book.died(slot.rows, "stopped")
            slot.rows, slot.state = [], "gone"

    def _grow_impatient(self) -> None:
        """Says so when no worker comes up: a joined cluster may have no room."""
        if self._patient and time.monotonic() - self._begun > _PATIENCE_SECONDS:
            self._patient = False
            if all(slot.state == "loading" for slot in self._slots):
                self._progress.note("still waiting for a worker: is there room in the cluster?")


def _prior_error(loaded: Any) -> Exception:
    from pipeline.core.errors import PriorError

    known = loaded.error == PriorError.__name__
    text = loaded.message if known else f"the prior cannot be loaded: {loaded.error}: {loaded.message}"
    return PriorError(text, stage=loaded.stage)


def _death_reason(errors: Any, error: Exception) -> str:
    """A few words on why a worker is dead."""
    if isinstance(error, errors.OutOfMemoryError):
        return "killed by Ray: the machine ran out of memory"
    if isinstance(error, errors.ActorUnavailableError):
        return "out of reach"
    text = str(error)
    if isinstance(error, errors.ActorDiedError) and "node" in text and "died" in text and "The actor's node" in text:
        return "its machine is gone"
    return "its process was killed or crashed"
