"""The state of all rows of a run: which wait, which run, and their results. Informs the run log and the display."""

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
# A row is quarantined when this many workers died with it.
MAX_ATTEMPTS = 2
# A row that was requeued this often without any progress is quarantined: its machine was lost each time, even though
# nothing proves that the row is the cause. After half as many it is built alone, to spare its neighbours.
MAX_SETBACKS = 20
# When to retry a lock that a lost worker of this run may still hold.
_LOCKED_SECONDS = 5.0
_LETTING_GO_SECONDS = 3.0
_MAX_FAILURES = 1000
# How long the driver waits for a store when it writes a failure's record.
_DEADLINE_SECONDS = 5.0


@dataclass
class RunSummary:
    """The results of a run. ``counts`` by state covers the rows that were to be built; ``kept`` were up to date.

    ``failed`` holds the first thousand failures, quarantined rows included; ``counts`` has all of them. ``refused``
    holds the first thousand rows that the manifest refuses, which ``counts`` leaves out. ``problem`` says why the plan
    could not be read to its end. ``run_id`` is the id in the run's logs.
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
        """The exit code of the command. It is 3 if rows were left to another run or not started."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if self.failures or self.refused:
            return EXIT_ROWS_FAILED
        return EXIT_INTERRUPTED if self.counts["elsewhere"] or self.counts["waiting"] or self.problem else EXIT_OK


class TaskTracker:
    """Reads the plan as far as needed, hands out batches and takes results. For one thread only.

    ``items`` is read lazily: at most ``window`` tasks are held, so that memory does not grow with the manifest.
    ``total`` is the number of items, if known. ``max_seconds`` limits the wall time of each row that sets no limit of
    its own. ``lockstep`` None leaves the size of a batch to the caller of ``next_batch``.
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
        # The most steps that requeued rows reached in each stage.
        self._furthest: dict[str, dict[str, int]] = {}
        self.summary = RunSummary()
        self.exhausted = False
        self.halting = False

    # -- the plan ---------------------------------------------------------------------------------------------

    def add_listener(self, progress: Progress) -> None:
        """Inform ``progress``, too, from now on."""
        self._listeners.append(progress)

    def remove_listener(self, progress: Progress) -> None:
        """Stop informing ``progress``."""
        self._listeners.remove(progress)

    def load_more(self, seconds: float = float("inf")) -> None:
        """Read the plan until a window of tasks waits, the plan ends, or ``seconds`` have passed.

        If an error ends the plan early, the rows read so far are built and ``summary.problem`` has the error. Raises
        LatentkilnError if no row was read.
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
            self._run_log.note(f"the plan cannot be read further: {error.message}")
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
            # The row ends here. Listeners count it among the rows to build first.
            for watcher in self._listeners:
                watcher.planned(**self.expected())
            self._fail(row, "failed", "plan", "Blocked", item.reason, record=not item.foreign)
        else:
            self._queue.add(row)

    def refused(self, result: TaskResult, source: str) -> None:
        """Note a row that the manifest refuses. It is counted apart. ``source`` is its file and row."""
        if len(self.summary.refused) < _MAX_FAILURES:
            self.summary.refused.append(result)
        self._run_log.refused(result, source)
        for watcher in self._listeners:
            watcher.row_refused(result)

    def expected(self) -> dict[str, int]:
        """Return the known number of rows to build (``build``) and of rows up to date (``kept``)."""
        build = self._planned
        if not self.exhausted and self._total is not None:
            build = max(build, self._total - self.summary.kept)
        return {"build": build, "kept": self.summary.kept}

    @property
    def rows_left(self) -> int:
        """The number of tasks that wait, which is the most workers that can be used."""
        return 0 if self.halting else len(self._queue)

    @property
    def has_more(self) -> bool:
        """Whether there is a task to hand out, now or later."""
        return not self.halting and (bool(self._queue) or not self.exhausted)

    # -- rows -------------------------------------------------------------------------------------------------

    def next_batch(self, workers: int = 1, lockstep: int | None = None) -> list[Task]:
        """Return the next tasks for one worker; [] if none can start now or the run is halting.

        ``lockstep`` is the largest batch if the run itself sets none.
        """
        if self.halting:
            return []
        most = self._lockstep or lockstep or DEFAULT_LOCKSTEP
        return self._queue.take(most, workers, all_known=self.exhausted)

    def mark_started(self, rows: Sequence[Task], worker: str, node: str = "") -> None:
        """Note that ``rows`` went to a worker."""
        now = self._clock()
        for row in rows:
            self._started_at[row.job.id] = now
            self._run_log.started(row.job.id, row.attempt, worker, node)
            for watcher in self._listeners:
                watcher.row_began(row.job.id, row.attempt)

    def update_stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        """Note a row's progress. Passed on a few times a second, and whenever the stage changes."""
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
        """Return when the first of the running ``rows`` is overdue, by the clock; None if none has a limit."""
        ends = [
            self._started_at[row.job.id] + limit - row.spent
            for row in rows
            if (limit := self._limit(row)) is not None and row.job.id in self._started_at
        ]
        return min(ends, default=None)

    def _limit(self, row: Task) -> float | None:
        row_limit = row.job.settings.get("max_seconds")
        return float(row_limit) if row_limit is not None else self._max_seconds

    def is_overdue(self, row: Task) -> bool:
        """Return whether the running ``row`` is overdue."""
        end = self.deadline([row])
        return end is not None and self._clock() >= end

    def complete(self, row: Task, result: TaskResult) -> None:
        """Take a worker's result for ``row``. It is final unless the row is to be tried again."""
        if result.state == "interrupted" and not self.halting:
            if self.is_overdue(row):
                # It ended before the first heartbeat.
                self._stages.setdefault(row.job.id, (result.stage or "fleet", 0, 0))
                self.mark_overdue(row)
            else:
                self.requeue(row, "handed back by its worker")
        elif result.state == "elsewhere" and not row.is_first and not self.halting:
            # A worker of this run that was given up as lost may still hold it. It will notice, or end.
            self.requeue(row, result.message, delay=_LOCKED_SECONDS)
        else:
            self.finish(row, result)

    def finish(self, row: Task, result: TaskResult) -> None:
        """Make ``result`` the final result of ``row`` in this run."""
        if result.state == "kept" and not row.is_first:
            # An earlier attempt of this run finished the row and died before it could report that.
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
        """Fail ``row``, which is overdue and whose worker has stopped."""
        limit = self._limit(row) or 0.0
        message = (
            f"{row.job.id}: stopped after {limit:g} s of wall time (max_seconds){self._stage_text(row)}; "
            "its work is kept: raise max_seconds and run again"
        )
        self._fail(row, "failed", self._stage(row), "TimeLimit", message)

    def timed_out(self, rows: Sequence[Task]) -> None:
        """Handle ``rows`` whose worker was killed because it did not stop for an overdue row.

        A single row fails. Of several it is not known which one is stuck, so each is retried alone with its full time.
        """
        for row in rows:
            if self.halting:
                self.finish(row, TaskResult(row.job.id, "interrupted", self._stage(row)))
            elif len(rows) == 1:
                self.mark_overdue(row)
            else:
                self._started_at.pop(row.job.id, None)
                self.requeue(
                    dataclasses.replace(row, alone=True, spent=0.0), "it or another row of its batch was stuck"
                )

    def worker_lost(self, rows: Sequence[Task], reason: str, *, blame: bool = True) -> None:
        """Handle ``rows`` whose worker is dead or out of reach.

        With ``blame`` one of the rows may be the cause. Each is tried once more, alone, so that it takes no other row
        with it, and is quarantined if its worker dies again. Without ``blame`` the rows are requeued.
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
                    "quarantined: the next run tries it once more, alone"
                )
                self._fail(row, "quarantined", self._stage(row), "WorkerDied", message)

    def requeue(self, row: Task, reason: str, *, delay: float = 0.0) -> None:
        """Queue ``row`` again after a setback that it did not cause. Give it up after too many without progress."""
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
                f"{row.job.id}: requeued {row.stalled} times{self._stage_text(row)} without progress, the last time "
                f"because: {reason}; quarantined: the next run tries it once more, alone"
            )
            self._fail(row, "quarantined", self._stage(row), "WorkerLost", message)

    def _made_progress(self, row: Task) -> bool:
        """Return whether the running ``row`` got further than any earlier attempt, and remember how far."""
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
        """Fail ``row`` in the driver, where no worker did. Write its record unless the folder is foreign."""
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
            # A worker that was just killed may hold the lock for a moment longer.
            wait = _LETTING_GO_SECONDS if row.job.id in self._started_at else 0.0
            again = dataclasses.replace(row, attempt=row.attempt + 1)
            with deadline(_DEADLINE_SECONDS), self._output_root.claim(again, wait_seconds=wait):
                record_failure(self._output_root, row, result)
        except (OSError, StorageError):
            pass  # the summary still lists the failure

    def close(self, *, interrupted: bool, seconds: float) -> RunSummary:
        """Count the tasks that were not started, and return the summary."""
        self.summary.interrupted = interrupted
        self.summary.counts["waiting"] += len(self._queue)
        if self._total is not None and (not self.exhausted or self.summary.problem):
            self.summary.counts["waiting"] += max(0, self._total - self.summary.kept - self._planned)
        self.summary.seconds = seconds
        return self.summary
