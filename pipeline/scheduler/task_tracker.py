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
from pipeline.core.outcome import FAILURES, State, TaskResult
from pipeline.scheduler.batch import record_failure
from pipeline.scheduler.gpu_capacity import DEFAULT_LOCKSTEP
from pipeline.scheduler.output_root import OutputRoot
from pipeline.scheduler.progress import Progress
from pipeline.scheduler.run_log import RunLog
from pipeline.scheduler.task_queue import WINDOW, TaskQueue
from pipeline.scheduler.tasks import Task
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
_DEADLINE_SECONDS = 5.0


@dataclass
class RunSummary:
    """What a run came to. ``counts`` by state over the rows that were to be built; ``kept`` were up to date.

    ``failed`` holds the first thousand failures (quarantined rows among them); the counts are whole. ``problem`` says
    why the plan could not be read to its end. ``refused`` holds the first thousand rows that the manifest does not let
    be built, which ``counts`` leaves out. ``run_id`` is what the run's logs carry.
    """

    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[TaskResult] = field(default_factory=list)
    refused: list[TaskResult] = field(default_factory=list)
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


class TaskTracker:
    """Reads the plan as far as needed, hands out groups and takes results. One thread.

    ``items`` is read lazily: at most a window of rows is held, so that memory does not grow with the manifest.
    ``total`` is how many items there will be, where that is known. ``max_seconds`` limits the wall time of each
    row that sets no limit of its own. ``lockstep`` None leaves the size of groups to whoever asks for them.
    """

    def __init__(
        self,
        items: Iterable[PlanItem],
        output_root: OutputRoot,
        *,
        lockstep: int | None,
        fail_fast: bool = False,
        run_log: RunLog,
        progress: Progress,
        reproduce: Callable[[Job], str] = lambda job: "",
        total: int | None = None,
        max_seconds: float | None = None,
        window: int = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._items, self._output_root, self._lockstep = iter(items), output_root, lockstep
        self._fail_fast, self._run_log, self._clock = fail_fast, run_log, clock
        self._listeners = [progress]
        self._reproduce, self._total, self._max_seconds, self._window = reproduce, total, max_seconds, window
        self._queue = TaskQueue(clock)
        self._planned = 0
        self._reported_at: dict[str, float] = {}
        self._stages: dict[str, tuple[str, int, int]] = {}
        self._started_at: dict[str, float] = {}
        # How far rows that were taken back had come, stage by stage.
        self._furthest: dict[str, dict[str, int]] = {}
        self.summary = RunSummary()
        self.exhausted = False
        self.halting = False

    # -- the plan ---------------------------------------------------------------------------------------------

    def add_listener(self, progress: Progress) -> None:
        """Tells ``progress``, too, from now on."""
        self._listeners.append(progress)

    def remove_listener(self, progress: Progress) -> None:
        """No longer."""
        self._listeners.remove(progress)

    def load_more(self, seconds: float = float("inf")) -> None:
        """Reads the plan until a window of rows waits, it ends, or ``seconds`` have gone by.

        Where the plan cannot be read on, what is known of it is built all the same, and ``summary.problem`` says so.
        Raises LatentkilnError where that is nothing.
        """
        if self.exhausted or self.halting or len(self._queue) >= self._window:
            return
        until = self._clock() + seconds
        try:
            for item in self._items:
                self._add_item(item)
                if self.halting or len(self._queue) >= self._window or self._clock() >= until:
                    return
            self.exhausted = True
        except LatentkilnError as error:
            if not self._planned and not self.summary.kept:
                raise
            self.summary.problem, self.exhausted = scrub(error.message), True
            self._run_log.note(f"the plan cannot be read on: {error.message}")
        finally:
            for watcher in self._listeners:
                watcher.planned(**self.expected())

    def _add_item(self, item: PlanItem) -> None:
        job_id = item.job.id
        if item.action == "keep":
            self._output_root.clean_up(item.job.id)
            self.summary.kept += 1
            self._run_log.planned(job_id, "kept")
            return
        self._planned += 1
        self._run_log.planned(job_id, "planned")
        row = Task(item.job, item.fingerprint, self._reproduce(item.job), alone=item.alone)
        if item.action == "blocked":
            # It ends here: whoever shows that counts it among those to build.
            for watcher in self._listeners:
                watcher.planned(**self.expected())
            self._fail(row, "failed", "plan", "Blocked", item.reason, record=not item.foreign)
        else:
            self._queue.add(row)

    def refused(self, result: TaskResult, source: str) -> None:
        """The manifest does not let a row be built: it is listed with the failures, and counted apart. ``source`` is
        its file and row."""
        if len(self.summary.refused) < _MAX_FAILURES:
            self.summary.refused.append(result)
        self._run_log.refused(result, source)
        for watcher in self._listeners:
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
        return 0 if self.halting else len(self._queue)

    @property
    def has_more(self) -> bool:
        """There is something to hand out, now or later."""
        return not self.halting and (bool(self._queue) or not self.exhausted)

    # -- rows -------------------------------------------------------------------------------------------------

    def next_batch(self, workers: int = 1, lockstep: int | None = None) -> list[Task]:
        """The next rows for one worker, at most ``lockstep`` of them where the run names no number; [] when there are
        none (now) or the run is halting."""
        if self.halting:
            return []
        most = self._lockstep or lockstep or DEFAULT_LOCKSTEP
        return self._queue.take(most, workers, all_known=self.exhausted)

    def mark_started(self, rows: Sequence[Task], worker: str, node: str = "") -> None:
        """``rows`` went to a worker."""
        now = self._clock()
        for row in rows:
            self._started_at[row.job.id] = now
            self._run_log.started(row.job.id, row.attempt, worker, node)
            for watcher in self._listeners:
                watcher.row_began(row.job.id, row.attempt)

    def update_stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        """Where a row stands; passed on a few times a second, and whenever the stage changes."""
        now = self._clock()
        before = self._stages.get(job_id)
        if before == (stage, done, total):
            return
        self._stages[job_id] = (stage, done, total)
        if (
            before
            and before[0] == stage
            and now - self._reported_at.get(job_id, -1.0) < _STAGE_INTERVAL
            and done < total
        ):
            return
        self._reported_at[job_id] = now
        self._run_log.stage(job_id, stage, done, total)
        for watcher in self._listeners:
            watcher.row_stage(job_id, stage, done, total)

    def deadline(self, rows: Sequence[Task]) -> float | None:
        """When (by the clock) the first of the running ``rows`` has had its time; None where none is limited."""
        ends = [
            self._started_at[row.job.id] + limit - row.spent
            for row in rows
            if (limit := self._limit(row)) is not None and row.job.id in self._started_at
        ]
        return min(ends, default=None)

    def _limit(self, row: Task) -> float | None:
        own = row.job.settings.get("max_seconds")
        return float(own) if own is not None else self._max_seconds

    def is_overdue(self, row: Task) -> bool:
        """The running ``row`` has had its time."""
        end = self.deadline([row])
        return end is not None and self._clock() >= end

    def complete(self, row: Task, result: TaskResult) -> None:
        """A worker's word on ``row``: its end, unless it is to be tried again."""
        if result.state == "interrupted" and not self.halting:
            if self.is_overdue(row):
                # It ended before it was asked how far it is.
                self._stages.setdefault(row.job.id, (result.stage or "fleet", 0, 0))
                self.mark_overdue(row)
            else:
                self.requeue(row, "handed back by its worker")
        elif result.state == "elsewhere" and not row.is_first and not self.halting:
            # Perhaps a worker of ours holds it still that we gave up for lost; it will notice, or end.
            self.requeue(row, result.message, delay=_LOCKED_SECONDS)
        else:
            self.finish(row, result)

    def finish(self, row: Task, result: TaskResult) -> None:
        """The end of ``row`` in this run."""
        if result.state == "kept" and not row.is_first:
            # Our own earlier attempt finished it and died before it could say so.
            result = dataclasses.replace(result, state="done")
        if result.message or result.warnings:
            words = scrub(result.message), [scrub(text) for text in result.warnings]
            result = dataclasses.replace(result, message=words[0], warnings=words[1])
        self._stages.pop(row.job.id, None)
        self._reported_at.pop(row.job.id, None)
        self._started_at.pop(row.job.id, None)
        self._furthest.pop(row.job.id, None)
        self.summary.counts[result.state] += 1
        self.summary.warnings += len(result.warnings)
        if result.state in FAILURES:
            if len(self.summary.failed) < _MAX_FAILURES:
                self.summary.failed.append(result)
            self.halting = self.halting or self._fail_fast
        self._run_log.finished(result)
        for watcher in self._listeners:
            watcher.row_ended(result)

    def mark_overdue(self, row: Task) -> None:
        """``row`` has had its time, and its worker has let go of it: it fails."""
        limit = self._limit(row) or 0.0
        message = (
            f"{row.job.id}: cut after {limit:g} s of wall time (max_seconds){self._stage_text(row)}; its work is kept: "
            "give it more with max_seconds and run again"
        )
        self._fail(row, "failed", self._stage(row), "TimeLimit", message)

    def timed_out(self, rows: Sequence[Task]) -> None:
        """``rows`` were torn from a worker that did not let go when one of them had had its time.

        Which of them is stuck cannot be seen: one that was by itself fails, of several each goes on alone and
        with a fresh clock.
        """
        for row in rows:
            if self.halting:
                self.finish(row, TaskResult(row.job.id, "interrupted", self._stage(row)))
            elif len(rows) == 1:
                self.mark_overdue(row)
            else:
                self._started_at.pop(row.job.id, None)
                self.requeue(dataclasses.replace(row, alone=True, spent=0.0), "it or a neighbour was stuck")

    def worker_lost(self, rows: Sequence[Task], reason: str, *, blame: bool = True) -> None:
        """The worker that had ``rows`` is dead, or as good as that.

        With ``blame`` one of them may be what killed it: each is tried once more, alone, so that it takes no other
        with it, and is quarantined should its worker die again. Without, they just go on elsewhere.
        """
        for row in rows:
            if self.halting:
                self.finish(row, TaskResult(row.job.id, "interrupted", self._stage(row)))
            elif not blame:
                self.requeue(row, reason)
            elif row.attempt < MAX_ATTEMPTS:
                self._retry(dataclasses.replace(row, attempt=row.attempt + 1, alone=True), reason)
            else:
                message = (
                    f"{row.job.id}: its worker died {row.attempt} times{self._stage_text(row)} ({reason}); "
                    "quarantined: "
                    "the next run tries it once more, alone"
                )
                self._fail(row, "quarantined", self._stage(row), "WorkerDied", message)

    def requeue(self, row: Task, reason: str, *, delay: float = 0.0) -> None:
        """``row`` goes on later through no fault of its own; too often in the same place, and it is given up."""
        if self._made_progress(row):
            row = dataclasses.replace(row, stalled=0)
        if row.stalled < MAX_SETBACKS:
            stalled = row.stalled + 1
            alone = row.alone or (stalled >= MAX_SETBACKS // 2 and not delay)
            again = dataclasses.replace(row, setbacks=row.setbacks + 1, stalled=stalled, alone=alone)
            self._retry(again, reason, delay)
        elif delay:
            self.finish(row, TaskResult(row.job.id, "elsewhere", message=reason))
        else:
            message = (
                f"{row.job.id}: taken back {row.stalled} times{self._stage_text(row)} without coming any further, at "
                "last "
                f"because: {reason}; quarantined: the next run tries it once more, alone"
            )
            self._fail(row, "quarantined", self._stage(row), "WorkerLost", message)

    def _made_progress(self, row: Task) -> bool:
        """Whether the running ``row`` is where it has never been before: what a night of lost machines is held to."""
        stage, done, _ = self._stages.get(row.job.id, ("", 0, 0))
        reached = self._furthest.setdefault(row.job.id, {})
        further = bool(stage) and done > reached.get(stage, -1)
        if further:
            reached[stage] = done
        return further

    def _retry(self, row: Task, reason: str, delay: float = 0.0) -> None:
        began = self._started_at.pop(row.job.id, None)
        self._stages.pop(row.job.id, None)
        if began is not None and not delay:
            row = dataclasses.replace(row, spent=row.spent + self._clock() - began)
        self._queue.add(row, delay=delay)
        self._run_log.retried(row.job.id, reason)

    def _stage(self, row: Task) -> str:
        return self._stages.get(row.job.id, ("fleet", 0, 0))[0]

    def _stage_text(self, row: Task) -> str:
        stage, done, total = self._stages.get(row.job.id, ("", 0, 0))
        return f" at {stage} {done}/{total}" if total else ""

    def _fail(self, row: Task, state: State, stage: str, error: str, message: str, *, record: bool = True) -> None:
        """A failure that no worker could record; it is recorded here unless the folder is not for us to write in."""
        now = self._clock()
        seconds = row.spent + now - self._started_at.get(row.job.id, now)
        result = TaskResult(
            row.job.id, state, stage, error, message, seconds, reproduce=row.reproduce, attempts=row.attempt
        )
        if record:
            self._record_failure(row, result)
        self.finish(row, result)

    def _record_failure(self, row: Task, result: TaskResult) -> None:
        try:
            # A worker that was just killed may hold the lock a moment longer. Its file goes with ours.
            wait = _LETTING_GO_SECONDS if row.job.id in self._started_at else 0.0
            again = dataclasses.replace(row, attempt=row.attempt + 1)
            with deadline(_DEADLINE_SECONDS), self._output_root.claim(again, wait_seconds=wait):
                record_failure(self._output_root, row, result)
        except (OSError, StorageError):
            pass  # its line in the summary is what remains

    def close(self, *, interrupted: bool, seconds: float) -> RunSummary:
        """No more will be handed out."""
        self.summary.interrupted = interrupted
        self.summary.counts["waiting"] += len(self._queue)
        if self._total is not None and (not self.exhausted or self.summary.problem):
            self.summary.counts["waiting"] += max(0, self._total - self.summary.kept - self._planned)
        self.summary.seconds = seconds
        return self.summary
