"""The driver's book: which rows wait, which run, what became of each; it tells the ledger and the display."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pipeline.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_ROWS_FAILED
from pipeline.fleet.group import record_failure
from pipeline.fleet.ledger import Ledger
from pipeline.fleet.locks import asset_lock
from pipeline.fleet.progress import Progress
from pipeline.fleet.rows import Row, RowResult

_STAGE_INTERVAL = 0.25
# A row whose worker died is tried this often in all.
MAX_ATTEMPTS = 2


@dataclass
class RunSummary:
    """What a run came to. ``counts`` by state over the rows that were to be built; ``kept`` were up to
    date."""

    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[RowResult] = field(default_factory=list)
    warnings: int = 0
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def built(self) -> int:
        """Rows built in this run."""
        return self.counts["done"]

    @property
    def exit_code(self) -> int:
        """As ``core.errors``: rows left to another run, or not begun, are worth running again (3)."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if self.failed:
            return EXIT_ROWS_FAILED
        return EXIT_INTERRUPTED if self.counts["elsewhere"] or self.counts["waiting"] else EXIT_OK


class Book:
    """Hands out groups and takes results. One thread."""

    def __init__(
        self,
        rows: Sequence[Row],
        out: Path,
        *,
        kept: int,
        lockstep: int,
        fail_fast: bool,
        ledger: Ledger,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._fresh, self._out, self._lockstep = deque(rows), out, max(1, lockstep)
        self._fail_fast, self._ledger, self._progress, self._clock = fail_fast, ledger, progress, clock
        self._alone: deque[Row] = deque()
        self._told: dict[str, float] = {}
        self._where: dict[str, tuple[str, int, int]] = {}
        self.summary = RunSummary(kept=kept)
        self.halting = False

    @property
    def rows_left(self) -> int:
        """How many rows are still to be handed out: the most workers there is work for."""
        return len(self._alone) + len(self._fresh)

    def next_group(self, workers: int = 1) -> list[Row]:
        """The next rows for one worker; [] when there are none or the run is halting.

        At most ``lockstep`` consecutive rows of one recipe, fewer where that leaves none of ``workers`` idle:
        the recipe pads its batches, so who stands beside whom changes no byte.
        """
        if self.halting:
            return []
        if self._alone:
            group = [self._alone.popleft()]
        else:
            count = len(self._fresh)
            groups = max(math.ceil(count / self._lockstep), min(max(1, workers), count))
            size = math.ceil(count / groups) if groups else 0
            group = list(islice(self._fresh, size))
            group = [row for row in group if row.job.recipe == group[0].job.recipe]
            for _ in group:
                self._fresh.popleft()
        return group

    def began(self, rows: Sequence[Row], worker: str) -> None:
        """``rows`` went to a worker."""
        for row in rows:
            self._ledger.began(row.job.id, row.attempt, worker)
            self._progress.row_began(row.job.id, row.attempt)

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
        self._progress.row_stage(job_id, stage, done, total)

    def ended(self, row: Row, result: RowResult) -> None:
        """A worker's word on ``row``."""
        if result.state == "kept" and row.attempt > 1:
            # Our own earlier attempt finished it and died before it could say so.
            result = dataclasses.replace(result, state="done")
        self._where.pop(row.job.id, None)
        self._told.pop(row.job.id, None)
        self.summary.counts[result.state] += 1
        self.summary.warnings += len(result.warnings)
        if result.state == "failed":
            self.summary.failed.append(result)
            self.halting = self.halting or self._fail_fast
        self._ledger.ended(result)
        self._progress.row_ended(result)

    def died(self, rows: Sequence[Row], reason: str) -> None:
        """The worker that had ``rows`` is dead.

        Each row is tried once more, alone: should one of them be what kills workers, it takes no other with
        it.
        """
        for row in rows:
            stage, done, total = self._where.get(row.job.id, ("fleet", 0, 0))
            if self.halting:
                self.ended(row, RowResult(row.job.id, "interrupted", stage))
            elif row.attempt < MAX_ATTEMPTS:
                self._where.pop(row.job.id, None)
                self._alone.append(dataclasses.replace(row, attempt=row.attempt + 1))
                self._ledger.retried(row.job.id, reason)
            else:
                where = f" at {stage} {done}/{total}" if total else ""
                message = f"{row.job.id}: its worker died {row.attempt} times{where} ({reason}); not tried again"
                result = RowResult(
                    row.job.id,
                    "failed",
                    stage,
                    "WorkerDied",
                    message,
                    reproduce=row.reproduce,
                    attempts=row.attempt,
                )
                folder = self._out / row.job.id
                with asset_lock(folder, wait_seconds=1.0):
                    record_failure(folder, row, result)
                self.ended(row, result)

    def close(self, *, interrupted: bool, seconds: float) -> RunSummary:
        """No more will be handed out."""
        self.summary.interrupted = interrupted
        self.summary.counts["waiting"] += len(self._fresh) + len(self._alone)
        self.summary.seconds = seconds
        return self.summary
