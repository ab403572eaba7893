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
from pipeline.fleet.book import Book
from pipeline.fleet.deaths import Death, judge
from pipeline.fleet.fit import gpu_options
from pipeline.fleet.group import one_line
from pipeline.fleet.interrupts import Interrupts
from pipeline.fleet.rows import Row, RowResult
from pipeline.fleet.worker import Built, Loaded, Pulse, Worker, WorkerSettings

_PULSE_SECONDS = 0.25
_PATIENCE_SECONDS = 30.0
# How long a group has to save its work when one of its rows has had its time.
_GRACE_SECONDS = 10.0
# How long the plan is read at a time while workers are busy, and while none is.
_READ_SECONDS, _IDLE_READ_SECONDS = 0.05, 0.25
_LOOK_SECONDS = 2.0
# Workers that die while loading the prior, one after another, before the run gives up; and that are lost with
# their machines.
_MAX_LOAD_DEATHS, _MAX_LOAD_LOSSES = 2, 20
# How long a worker without work is kept in a cluster that may shrink.
_SPARE_SECONDS = 60.0
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
class _Slot:
    """One worker: ``loading``, ``idle``, ``building`` (``rows``), or ``gone``. ``cut_at``: when it was asked to let
    go of a row that has had its time. ``since``: when it became idle."""

    name: str
    handle: Any
    ref: Any
    state: str = "loading"
    rows: list[Row] = field(default_factory=list)
    pulse: Any = None
    ticket: int = 0
    node: str = ""
    node_id: str = ""
    asked: bool = False
    cut_at: float | None = None
    lockstep: int | None = None
    since: float = 0.0


class Fleet:
    """Builds what a Book has with Ray actors. ``note`` takes lines worth showing."""

    def __init__(self, book: Book, note: Callable[[str], None], interrupts: Interrupts, settings: ActorSettings):
        import ray

        self._ray: Any = ray
        self._book, self._note, self._interrupts, self._settings = book, note, interrupts, settings
        self._options = settings.options
        # Two groups of threads in the worker: one builds, the other answers while it does. No restarts by
        # Ray: a new worker is made here, where it is known what the old one was doing.
        self._actor: Any = self._ray.remote(
            concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0, **settings.options
        )(Worker)
        self._slots: list[_Slot] = []
        self._made = self._tickets = self._load_deaths = self._load_losses = 0
        self._target = self._per_gpu = 1
        self._probing = settings.probe
        self._going: frozenset[str] = frozenset()
        self._told: set[str] = set()  # of which machines it has been said that they go
        self._asked_to_stop = False
        self._begun = time.monotonic()
        self._next_look = self._next_pulse = 0.0
        self._patient = True
        self._met_one = False

    def run(self) -> None:
        """Until nothing is left to do, or to wait for.

        Raises ClusterLost, FleetError or what loading the prior raised.
        """
        while True:
            if self._interrupts.stopping and not self._asked_to_stop:
                self._ask_to_stop()
            if self._interrupts.now:
                self._abandon()
                return
            self._book.read_on(_READ_SECONDS if self._busy() else _IDLE_READ_SECONDS)
            self._look_around()
            self._hand_out()
            busy = self._busy()
            if not busy and not self._book.more:
                return
            now = time.monotonic()
            if now >= self._next_pulse:
                self._take_pulses()
                self._next_pulse = now + _PULSE_SECONDS
            self._cut_what_is_late()
            self._wait(busy)
            self._grow_impatient()

    def close(self) -> None:
        """Ends the workers. In a joined cluster nothing else would, before this process ends."""
        for slot in self._slots:
            self._kill(slot)

    # -- workers ----------------------------------------------------------------------------------------------

    def _busy(self) -> list[_Slot]:
        """Workers that will have something to say. One that is on its way is not waited for when it is not
        needed (any more)."""
        needed = ("loading", "building") if self._book.rows_left else ("building",)
        return [slot for slot in self._slots if slot.state in needed]

    def _look_around(self) -> None:
        """How many workers there may be now, and which of them sit on machines that are going away."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        self._check_cluster()
        self._follow_nodes()
        self._target = 1 if self._probing else max(1, self._settings.workers(self._per_gpu))
        self._going = self._settings.draining()
        for slot in self._slots:
            if slot.node_id not in self._going or slot.state not in ("idle", "building"):
                continue
            building = slot.state == "building"
            if slot.node_id not in self._told:
                # Said of idle workers, too: one may be between two groups just now, and is let go without a word.
                self._told.add(slot.node_id)
                then = "its work is being saved" if building else "it gets no more rows"
                self._note(f"{slot.name}: its machine {slot.node} is going away; {then}")
            if building and not slot.asked:
                self._ask(slot)

    def _follow_nodes(self) -> None:
        """Until the first worker is there, all ask for what the nodes have by now: those of a cluster that starts
        from nothing may be smaller than the machine of the driver, or larger than what was asked for at last."""
        if self._settings.cpus is None or self._met_one:
            return
        cpus = self._settings.cpus(self._patient)
        if cpus == self._options.get("num_cpus"):
            return
        self._options = self._options | {"num_cpus": cpus}
        for slot in self._slots:
            if slot.state == "loading":
                self._kill(slot)
                slot.state = "gone"

    def _check_cluster(self) -> None:
        """Raises ClusterLost, having taken all rows back, when the cluster's servers are dead."""
        if self._settings.alive():
            return
        slots, self._slots = self._slots, []
        for slot in slots:
            self._book.died(slot.rows, "Ray's servers on this machine died", blame=False)
        from pipeline.fleet.cluster import ClusterLost

        raise ClusterLost("Ray's servers on this machine died, again and again; is there enough memory?")

    def _new_slot(self) -> _Slot:
        options = self._options
        if self._per_gpu > 1:
            options = options | gpu_options(self._per_gpu, options.get("num_cpus", 0))
        handle = self._actor.options(**options).remote(self._settings.worker)
        self._made += 1
        return _Slot(f"worker {self._made}", handle, handle.load.remote())

    def _hand_out(self) -> None:
        wanted = self._wanted()
        for slot in self._slots:
            if slot.state == "idle" and (slot.node_id in self._going or self._is_spare(slot)):
                self._kill(slot)
                slot.state = "gone"
        if self._settings.growing and self._book.exhausted:
            # Those that still wait for a machine, when there is nothing left for them, would bring one in vain.
            loading = [slot for slot in reversed(self._slots) if slot.state == "loading"]
            for slot in loading[: max(0, len(self._slots) - wanted)]:
                self._kill(slot)
                slot.state = "gone"
        self._slots = [slot for slot in self._slots if slot.state != "gone"]
        while len(self._slots) < wanted:
            self._slots.append(self._new_slot())
        for slot in self._slots:
            if slot.state == "idle" and (group := self._book.next_group(self._target, slot.lockstep)):
                self._tickets += 1
                slot.rows, slot.state, slot.ticket = group, "building", self._tickets
                slot.asked, slot.cut_at = False, None
                slot.ref = slot.handle.build.remote(group, slot.ticket)
                self._book.began(group, slot.name, slot.node)

    def _wanted(self) -> int:
        """How many workers to have: as many as there is room for, and rows.

        In a cluster that may grow, up to as many again, should there be groups of rows for them: workers that wait for
        a machine are what tells such a cluster that it is too small.
        """
        occupied, left = sum(slot.state == "building" for slot in self._slots), self._book.rows_left
        wanted = min(self._target, occupied + left)
        if not self._settings.growing or self._probing:
            return wanted
        width = self._settings.worker.lockstep or max((s.lockstep or 0 for s in self._slots), default=0)
        return max(wanted, min(2 * self._target, occupied + math.ceil(left / (width or _LIKELY_LOCKSTEP))))

    def _is_spare(self, slot: _Slot) -> bool:
        """Nothing has come for the idle worker for a while: its machine may go."""
        return self._settings.growing and time.monotonic() - slot.since > _SPARE_SECONDS

    def _wait(self, busy: list[_Slot]) -> None:
        timeout = max(0.01, self._next_pulse - time.monotonic())
        if not busy:
            # Rows that wait for their time, or a plan that is being read.
            if not self._book.rows_left:
                return
            time.sleep(min(timeout, 0.05))
            return
        # Without those that were given up since: what their refs say is known.
        by_ref = {slot.ref: slot for slot in busy if slot.state != "gone"}
        # One at a time: what is ready stays ready, and signals are looked at in between.
        ready, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=timeout) if by_ref else ([], [])
        for ref in ready:
            self._settle(by_ref[ref])

    def _settle(self, slot: _Slot) -> None:
        """Takes what a worker has to say, or learns that it is dead."""
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(slot.ref)
        except errors.RayTaskError as error:
            self._broken(slot, error)
        except errors.RayError as error:
            self._check_cluster()
            self._lost(slot, judge(errors, error, node_alive=self._node_alive(slot.node_id)))
        else:
            if slot.state == "loading":
                self._loaded(slot, answer)
            else:
                self._built(slot, answer)

    def _loaded(self, slot: _Slot, answer: Loaded) -> None:
        if answer.error:
            raise _prior_error(answer)
        limit = self._settings.memory
        if limit is not None and answer.memory > limit:
            raise _fleet_error(
                f"a worker holds {_gigabytes(answer.memory)} when it has loaded the prior, and --max-memory allows "
                f"{_gigabytes(limit)}; allow more"
            )
        self._load_deaths, self._load_losses, self._met_one = 0, 0, True
        slot.state, slot.node, slot.node_id, slot.lockstep = "idle", answer.node, answer.node_id, answer.fit.lockstep
        slot.since = time.monotonic()
        if self._probing:
            self._probed(slot, answer.fit.per_gpu)

    def _probed(self, slot: _Slot, per_gpu: int) -> None:
        """The first worker has measured: where a GPU carries several of its kind, it makes room for them."""
        self._probing, self._per_gpu = False, per_gpu
        self._target = max(1, self._settings.workers(per_gpu))
        if per_gpu > 1 and self._book.rows_left > 1 and self._target > 1:
            self._note(f"{per_gpu} workers share a GPU: that much memory was measured")
            self._kill(slot)
            slot.state = "gone"
        else:
            self._per_gpu = 1
            self._target = max(1, self._settings.workers(1))

    def _built(self, slot: _Slot, answer: Built) -> None:
        rows, slot.rows, slot.state, slot.pulse = slot.rows, [], "idle", None
        slot.since = time.monotonic()
        for row, result in zip(rows, answer.results, strict=True):
            self._book.returned(row, result)
        if answer.leaving:
            self._note(f"{slot.name} was told to go; its work is saved")
            self._kill(slot)
            slot.state = "gone"

    def _lost(self, slot: _Slot, death: Death) -> None:
        # An actor that is merely out of reach may still be at work: it must not be, beside its successor.
        self._kill(slot)
        was_loading, rows = slot.state == "loading", slot.rows
        slot.state, slot.rows, slot.pulse = "gone", [], None
        if was_loading:
            self._load_deaths += death.blame
            self._load_losses += not death.blame
            if self._load_deaths >= _MAX_LOAD_DEATHS or self._load_losses >= _MAX_LOAD_LOSSES:
                count = self._load_deaths + self._load_losses
                raise _fleet_error(
                    f"{count} workers died while loading the prior ({death.reason}); is there enough memory?"
                )
        if not self._book.halting:
            self._note(f"{slot.name} died ({death.reason}); {len(rows)} rows are tried again")
        self._book.died(rows, death.reason, blame=death.blame)

    def _broken(self, slot: _Slot, error: Exception) -> None:
        """Our own code in the worker raised: those rows fail, the worker goes on."""
        rows, slot.rows, slot.pulse = slot.rows, [], None
        cause = getattr(error, "cause", None) or error
        if slot.state == "loading":
            raise error
        slot.state, slot.since = "idle", time.monotonic()
        for row in rows:
            message = one_line(f"{row.job.id}: {cause}")
            name = type(cause).__name__
            self._book.ended(row, RowResult(row.job.id, "failed", "fleet", name, message, reproduce=row.reproduce))

    def _kill(self, slot: _Slot) -> None:
        self._ray.kill(slot.handle, no_restart=True)

    def _node_alive(self, node_id: str) -> bool:
        return not node_id or any(node["NodeID"] == node_id and node["Alive"] for node in self._ray.nodes())

    # -- what is late or too large ----------------------------------------------------------------------------

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
                    pulse: Pulse = self._ray.get(slot.pulse)
                except self._ray.exceptions.RayError:
                    slot.pulse = None
                    continue  # its build will say so, too
                mine = {row.job.id for row in slot.rows}
                for job_id, (stage, done, total) in pulse.where.items():
                    if job_id in mine:
                        self._book.stage(job_id, stage, done, total)
                if self._settings.memory is not None and pulse.memory > self._settings.memory:
                    self._too_large(slot, pulse.memory)
                    continue
            slot.pulse = slot.handle.pulse.options(concurrency_group="control").remote()

    def _too_large(self, slot: _Slot, memory: int) -> None:
        limit = _gigabytes(self._settings.memory or 0)
        self._lost(slot, Death(f"it held {_gigabytes(memory)}, and --max-memory allows {limit}", blame=True))

    def _cut_what_is_late(self) -> None:
        """Asks a group for an early end when one of its rows has had its time; kills a worker that does not answer."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.state != "building":
                continue
            if slot.cut_at is None:
                end = self._book.deadline(slot.rows)
                if end is not None and now >= end:
                    slot.cut_at = now
                    self._ask(slot)
            elif now - slot.cut_at >= _GRACE_SECONDS:
                rows, slot.rows, slot.state, slot.pulse = slot.rows, [], "gone", None
                self._kill(slot)
                self._note(f"{slot.name} did not let go of a late row and was ended")
                self._book.stuck(rows)

    # -- the end ----------------------------------------------------------------------------------------------

    def _ask(self, slot: _Slot) -> None:
        slot.asked = True
        slot.handle.stop.options(concurrency_group="control").remote(slot.ticket)

    def _ask_to_stop(self) -> None:
        self._note("stopping: work so far is being saved (Ctrl-C again stops at once)")
        self._asked_to_stop = self._book.halting = True
        for slot in self._slots:
            if slot.state == "building":
                self._ask(slot)

    def _abandon(self) -> None:
        """Stops at once: kills the workers; what they last saved is what remains."""
        for slot in self._slots:
            self._kill(slot)
            self._book.died(slot.rows, "stopped")
            slot.rows, slot.state = [], "gone"

    def _grow_impatient(self) -> None:
        """Says so when no worker comes up: a joined cluster may have no room."""
        if self._patient and time.monotonic() - self._begun > _PATIENCE_SECONDS:
            self._patient = False
            if self._slots and all(slot.state == "loading" for slot in self._slots):
                self._note("still waiting for a worker: is there room in the cluster?")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _fleet_error(message: str) -> Exception:
    from pipeline.fleet.cluster import FleetError

    return FleetError(message)


def _prior_error(loaded: Loaded) -> Exception:
    known = loaded.error == PriorError.__name__
    text = loaded.message if known else f"the prior cannot be loaded: {loaded.error}: {loaded.message}"
    return PriorError(text, stage=loaded.stage)
