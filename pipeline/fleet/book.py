"""The driver's book: which rows wait, which run, what became of each; it tells the ledger and the display."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_ROWS_FAILED, LatentkilnError
from pipeline.core.job import Job
from pipeline.fleet.depot import Depot
from pipeline.fleet.fit import DEFAULT_LOCKSTEP
from pipeline.fleet.group import record_failure
from pipeline.fleet.ledger import Ledger
from pipeline.fleet.progress import Progress
from pipeline.fleet.rows import FAILURES, Row, RowResult, State
from pipeline.fleet.waiting import WINDOW, Waiting
from pipeline.storage.errors import StorageError
from pipeline.storage.secrets import scrub
from pipeline.storage.store import deadline

if TYPE_CHECKING:
    from pipeline.plan import PlanItem

_STAGE_INTERVAL = 0.25
# A row is quarantined when its worker died this often with it.
MAX_ATTEMPTS = 2
# A row that was taken back this often without coming any further is quarantined: nothing says that it is to blame, but
# each time its machine went. From the half of it on it goes alone, so that it takes no neighbour with it.
MAX_SETBACKS = 20
# A lock that a lost worker of ours may still hold is looked at again after this long, so often.
_LOCKED_SECONDS = 5.0
_LETTING_GO_SECONDS = 3.0
_MAX_FAILURES = 1000
# How long a store may take for a failure's record: the driver has other things to do.
_PATIENCE_SECONDS = 5.0


@dataclass
class RunSummary:
    """What a run came to. ``counts`` by state over the rows that were to be built; ``kept`` were up to date.

    ``failed`` holds the first thousand failures (quarantined rows among them); the counts are whole. ``problem`` says
    why the plan could not be read to its end. ``refused`` holds the first thousand rows that the manifest does not let
    be built, which ``counts`` leaves out. ``run_id`` is what the run's logs carry.
    """

    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[RowResult] = field(default_factory=list)
    refused: list[RowResult] = field(default_factory=list)
    warnings: int = 0
    interrupted: bool = False
    seconds: float = 0.0
    problem: str = ""
    run_id: str = ""

    @property
    def built(self) -> int:
        """Rows built in this run."""
        return self.counts["done"]

    @property
    def failures(self) -> int:
        """Rows that failed, quarantined ones included."""
        return sum(self.counts[state] for state in FAILURES)

    @property
    def exit_code(self) -> int:
        """As ``core.errors``: rows left to another run, or not begun, are worth running again (3)."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if self.failures or self.refused:
            return EXIT_ROWS_FAILED
        return EXIT_INTERRUPTED if self.counts["elsewhere"] or self.counts["waiting"] or self.problem else EXIT_OK


class Book:
    """Reads the plan as far as needed, hands out groups and takes results. One thread.

    ``items`` is read lazily: at most a window of rows is held, so that memory does not grow with the manifest.
    ``total`` is how many items there will be, where that is known. ``max_seconds`` limits the wall time of each
    row that sets no limit of its own. ``lockstep`` None leaves the size of groups to whoever asks for them.
    """

    def __init__(
        self,
        items: Iterable[PlanItem],
        depot: Depot,
        *,
        lockstep: int | None,
        fail_fast: bool = False,
        ledger: Ledger,
        progress: Progress,
        reproduce: Callable[[Job], str] = lambda job: "",
        total: int | None = None,
        max_seconds: float | None = None,
        window: int = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._items, self._depot, self._lockstep = iter(items), depot, lockstep
        self._fail_fast, self._ledger, self._clock = fail_fast, ledger, clock
        self._watchers = [progress]
        self._reproduce, self._total, self._max_seconds, self._window = reproduce, total, max_seconds, window
        self._waiting = Waiting(clock)
        self._planned = 0
        self._told: dict[str, float] = {}
        self._where: dict[str, tuple[str, int, int]] = {}
        self._since: dict[str, float] = {}
        # How far rows that were taken back had come, stage by stage.
        self._reached: dict[str, dict[str, int]] = {}
        self.summary = RunSummary()
        self.exhausted = False
        self.halting = False

    # -- the plan ---------------------------------------------------------------------------------------------

    def watch(self, progress: Progress) -> None:
        """Tells ``progress``, too, from now on."""
        self._watchers.append(progress)

    def unwatch(self, progress: Progress) -> None:
        """No longer."""
        self._watchers.remove(progress)

    def read_on(self, seconds: float = float("inf")) -> None:
        """Reads the plan until a window of rows waits, it ends, or ``seconds`` have gone by.

        Where the plan cannot be read on, what is known of it is built all the same, and ``summary.problem`` says so.
        Raises LatentkilnError where that is nothing.
        """
        if self.exhausted or self.halting or len(self._waiting) >= self._window:
            return
        until = self._clock() + seconds
        try:
            for item in self._items:
                self._take_in(item)
                if self.halting or len(self._waiting) >= self._window or self._clock() >= until:
                    return
            self.exhausted = True
        except LatentkilnError as error:
            if not self._planned and not self.summary.kept:
                raise
            self.summary.problem, self.exhausted = scrub(error.message), True
            self._ledger.note(f"the plan cannot be read on: {error.message}")
        finally:
            for watcher in self._watchers:
                watcher.planned(**self.expected())

    def _take_in(self, item: PlanItem) -> None:
        job_id = item.job.id
        if item.action == "keep":
            self._depot.tidy(item.job.id)
            self.summary.kept += 1
            self._ledger.planned(job_id, "kept")
            return
        self._planned += 1
        self._ledger.planned(job_id, "planned")
        row = Row(item.job, item.fingerprint, self._reproduce(item.job), alone=item.alone)
        if item.action == "blocked":
            # It ends here: whoever shows that counts it among those to build.
            for watcher in self._watchers:
                watcher.planned(**self.expected())
            self._fail(row, "failed", "plan", "Blocked", item.reason, record=not item.foreign)
        else:
            self._waiting.add(row)

    def refused(self, result: RowResult, source: str) -> None:
        """The manifest does not let a row be built: it is listed with the failures, and counted apart. ``source`` is
        its file and row."""
        if len(self.summary.refused) < _MAX_FAILURES:
            self.summary.refused.append(result)
        self._ledger.refused(result, source)
        for watcher in self._watchers:
            watcher.row_refused(result)

    def expected(self) -> dict[str, int]:
        """``build``: rows to build, ``kept``: rows up to date, as far as either is known."""
        build = self._planned
        if not self.exhausted and self._total is not None:
            build = max(build, self._total - self.summary.kept)
        return {"build": build, "kept": self.summary.kept}

    @property
    def rows_left(self) -> int:
        """How many known rows wait: the most workers there is work for."""
        return 0 if self.halting else len(self._waiting)

    @property
    def more(self) -> bool:
        """There is something to hand out, now or later."""
        return not self.halting and (bool(self._waiting) or not self.exhausted)

    # -- rows -------------------------------------------------------------------------------------------------

    def next_group(self, workers: int = 1, lockstep: int | None = None) -> list[Row]:
        """The next rows for one worker, at most ``lockstep`` of them where the run names no number; [] when there are
        none (now) or the run is halting."""
        if self.halting:
            return []
        most = self._lockstep or lockstep or DEFAULT_LOCKSTEP
        return self._waiting.take(most, workers, all_known=self.exhausted)

    def began(self, rows: Sequence[Row], worker: str, node: str = "") -> None:
        """``rows`` went to a worker."""
        now = self._clock()
        for row in rows:
            self._since[row.job.id] = now
            self._ledger.began(row.job.id, row.attempt, worker, node)
            for watcher in self._watchers:
                watcher.row_began(row.job.id, row.attempt)

    def stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        """Where a row stands; passed on a few times a second, and whenever the stage changes."""
        now = self._clock()
        before = self._where.get(job_id)
        if before == (stage, done, total):
            return
        self._where[job_id] = (stage, done, total)
        if before and before[0] == stage and now - self._told.get(job_id, -1.0) < _STAGE_INTERVAL and done < total:
            return
        self._told[job_id] = now
        self._ledger.stage(job_id, stage, done, total)
        for watcher in self._watchers:
            watcher.row_stage(job_id, stage, done, total)

    def deadline(self, rows: Sequence[Row]) -> float | None:
        """When (by the clock) the first of the running ``rows`` has had its time; None where none is limited."""
        ends = [
            self._since[row.job.id] + limit - row.spent
            for row in rows
            if (limit := self._limit(row)) is not None and row.job.id in self._since
        ]
        return min(ends, default=None)

    def _limit(self, row: Row) -> float | None:
        own = row.job.settings.get("max_seconds")
        return float(own) if own is not None else self._max_seconds

    def overdue(self, row: Row) -> bool:
        """The running ``row`` has had its time."""
        end = self.deadline([row])
        return end is not None and self._clock() >= end

    def returned(self, row: Row, result: RowResult) -> None:
        """A worker's word on ``row``: its end, unless it is to be tried again."""
        if result.state == "interrupted" and not self.halting:
            if self.overdue(row):
                # It ended before it was asked how far it is.
                self._where.setdefault(row.job.id, (result.stage or "fleet", 0, 0))
                self.cut(row)
            else:
                self.took_back(row, "handed back by its worker")
        elif result.state == "elsewhere" and not row.first and not self.halting:
            # Perhaps a worker of ours holds it still that we gave up for lost; it will notice, or end.
            self.took_back(row, result.message, delay=_LOCKED_SECONDS)
        else:
            self.ended(row, result)

    def ended(self, row: Row, result: RowResult) -> None:
        """The end of ``row`` in this run."""
        if result.state == "kept" and not row.first:
            # Our own earlier attempt finished it and died before it could say so.
            result = dataclasses.replace(result, state="done")
        if result.message or result.warnings:
            words = scrub(result.message), [scrub(text) for text in result.warnings]
            result = dataclasses.replace(result, message=words[0], warnings=words[1])
        for table in (self._where, self._told, self._since, self._reached):
            table.pop(row.job.id, None)  # type: ignore[attr-defined]
        self.summary.counts[result.state] += 1
        self.summary.warnings += len(result.warnings)
        if result.state in FAILURES:
            if len(self.summary.failed) < _MAX_FAILURES:
                self.summary.failed.append(result)
            self.halting = self.halting or self._fail_fast
        self._ledger.ended(result)
        for watcher in self._watchers:
            watcher.row_ended(result)

    def cut(self, row: Row) -> None:
        """``row`` has had its time, and its worker has let go of it: it fails."""
        limit = self._limit(row) or 0.0
        message = (
            f"{row.job.id}: cut after {limit:g} s of wall time (max_seconds){self._place(row)}; its work is kept: "
            "give it more with max_seconds and run again"
        )
        self._fail(row, "failed", self._stage(row), "TimeLimit", message)

    def stuck(self, rows: Sequence[Row]) -> None:
        """``rows`` were torn from a worker that did not let go when one of them had had its time.

        Which of them is stuck cannot be seen: one that was by itself fails, of several each goes on alone and
        with a fresh clock.
        """
        for row in rows:
            if self.halting:
                self.ended(row, RowResult(row.job.id, "interrupted", self._stage(row)))
            elif len(rows) == 1:
                self.cut(row)
            else:
                self._since.pop(row.job.id, None)
                self.took_back(dataclasses.replace(row, alone=True, spent=0.0), "it or a neighbour was stuck")

    def died(self, rows: Sequence[Row], reason: str, *, blame: bool = True) -> None:
        """The worker that had ``rows`` is dead, or as good as that.

        With ``blame`` one of them may be what killed it: each is tried once more, alone, so that it takes no other
        with it, and is quarantined should its worker die again. Without, they just go on elsewhere.
        """
        for row in rows:
            if self.halting:
                self.ended(row, RowResult(row.job.id, "interrupted", self._stage(row)))
            elif not blame:
                self.took_back(row, reason)
            elif row.attempt < MAX_ATTEMPTS:
                self._again(dataclasses.replace(row, attempt=row.attempt + 1, alone=True), reason)
            else:
                message = (
                    f"{row.job.id}: its worker died {row.attempt} times{self._place(row)} ({reason}); quarantined: "
                    "the next run tries it once more, alone"
                )
                self._fail(row, "quarantined", self._stage(row), "WorkerDied", message)

    def took_back(self, row: Row, reason: str, *, delay: float = 0.0) -> None:
        """``row`` goes on later through no fault of its own; too often in the same place, and it is given up."""
        if self._came_further(row):
            row = dataclasses.replace(row, stalled=0)
        if row.stalled < MAX_SETBACKS:
            stalled = row.stalled + 1
            alone = row.alone or (stalled >= MAX_SETBACKS // 2 and not delay)
            again = dataclasses.replace(row, setbacks=row.setbacks + 1, stalled=stalled, alone=alone)
            self._again(again, reason, delay)
        elif delay:
            self.ended(row, RowResult(row.job.id, "elsewhere", message=reason))
        else:
            message = (
                f"{row.job.id}: taken back {row.stalled} times{self._place(row)} without coming any further, at last "
                f"because: {reason}; quarantined: the next run tries it once more, alone"
            )
            self._fail(row, "quarantined", self._stage(row), "WorkerLost", message)

    def _came_further(self, row: Row) -> bool:
        """Whether the running ``row`` is where it has never been before: what a night of lost machines is held to."""
        stage, done, _ = self._where.get(row.job.id, ("", 0, 0))
        reached = self._reached.setdefault(row.job.id, {})
        further = bool(stage) and done > reached.get(stage, -1)
        if further:
            reached[stage] = done
        return further

    def _again(self, row: Row, reason: str, delay: float = 0.0) -> None:
        began = self._since.pop(row.job.id, None)
        self._where.pop(row.job.id, None)
        if began is not None and not delay:
            row = dataclasses.replace(row, spent=row.spent + self._clock() - began)
        self._waiting.add(row, delay=delay)
        self._ledger.retried(row.job.id, reason)

    def _stage(self, row: Row) -> str:
        return self._where.get(row.job.id, ("fleet", 0, 0))[0]

    def _place(self, row: Row) -> str:
        stage, done, total = self._where.get(row.job.id, ("", 0, 0))
        return f" at {stage} {done}/{total}" if total else ""

    def _fail(self, row: Row, state: State, stage: str, error: str, message: str, *, record: bool = True) -> None:
        """A failure that no worker could record; it is recorded here unless the folder is not for us to write in."""
        now = self._clock()
        seconds = row.spent + now - self._since.get(row.job.id, now)
        result = RowResult(
            row.job.id, state, stage, error, message, seconds, reproduce=row.reproduce, attempts=row.attempt
        )
        if record:
            self._record_failure(row, result)
        self.ended(row, result)

    def _record_failure(self, row: Row, result: RowResult) -> None:
        try:
            # A worker that was just killed may hold the lock a moment longer. Its file goes with ours.
            wait = _LETTING_GO_SECONDS if row.job.id in self._since else 0.0
            again = dataclasses.replace(row, attempt=row.attempt + 1)
            with deadline(_PATIENCE_SECONDS), self._depot.claim(again, wait_seconds=wait):
                record_failure(self._depot, row, result)
        except (OSError, StorageError):
            pass  # its line in the summary is what remains

    def close(self, *, interrupted: bool, seconds: float) -> RunSummary:
        """No more will be handed out."""
        self.summary.interrupted = interrupted
        self.summary.counts["waiting"] += len(self._waiting)
        if self._total is not None and (not self.exhausted or self.summary.problem):
            self.summary.counts["waiting"] += max(0, self._total - self.summary.kept - self._planned)
        self.summary.seconds = seconds
        return self.summary
