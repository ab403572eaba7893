"""Build one batch of rows in this process: locks, the recipe, a log per row and a record of each failure."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import Interrupted, LatentkilnError, describe_os_error
from pipeline.core.job import Reporter
from pipeline.core.outcome import TaskResult
from pipeline.scheduler.output_root import OutputRoot
from pipeline.scheduler.task_log import TaskLog
from pipeline.scheduler.tasks import Hooks, Task
from pipeline.storage.errors import StorageError
from pipeline.storage.inputs import with_local_files
from pipeline.storage.secrets import scrub

if TYPE_CHECKING:
    from pipeline.prior.load import Prior

ELSEWHERE = "being built by another run"
# A worker that was declared dead may hold its locks for a moment longer.
_RETRY_LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class BatchContext:
    """What the batches of one worker share: the output root, the loaded prior and how to build.

    ``run_id`` goes into the rows' logs.
    """

    output_root: OutputRoot
    prior: Prior
    lockstep: int
    hooks: Hooks
    checkpoint_seconds: float = 30.0
    run_id: str = ""

    @property
    def out(self) -> Path:
        """The local folder into which recipes write."""
        return self.output_root.root


def build_batch(
    rows: Sequence[Task],
    context: BatchContext,
    report: Callable[[str, str, int, int], None],
    stop: Callable[[], bool],
) -> list[TaskResult]:
    """Build ``rows`` of one recipe, at most ``context.lockstep`` of them. Return one result per row, in order.

    ``report(job_id, stage, done, total)`` is called at every step. A row that another run holds ends as
    ``elsewhere``. A row that is finished already, built by another run or by an attempt that died late, ends as
    ``kept``.
    """
    results: dict[str, TaskResult] = {}
    with contextlib.ExitStack() as locks:
        claimed: list[Task] = []
        for row in rows:
            wait = 0.0 if row.is_first else _RETRY_LOCK_SECONDS
            try:
                held = locks.enter_context(context.output_root.claim(row, wait_seconds=wait))
                if not held:
                    results[row.job.id] = TaskResult(row.job.id, "elsewhere", message=ELSEWHERE)
                elif context.output_root.is_finished(row):
                    results[row.job.id] = TaskResult(row.job.id, "kept")
                else:
                    claimed.append(row)
            except OSError as error:
                path = error.filename or context.out / row.job.id
                reason = f"{path}: cannot be written ({error.strerror or error}); check --out"
                results[row.job.id] = _failed(row, "fleet", type(error).__name__, reason)
            except StorageError as error:
                results[row.job.id] = _failed(row, error.stage, type(error).__name__, error.message)
        logs = {row.job.id: TaskLog(context.out / row.job.id, row, context.run_id) for row in claimed}

        def tell(job_id: str, stage: str, done: int, total: int) -> None:
            logs[job_id].stage(stage, done, total)
            report(job_id, stage, done, total)

        for row, built in zip(claimed, _build_and_publish(claimed, context, tell, stop), strict=True):
            result = _committed(row, built, context)
            if result.state == "failed":
                record_failure(context.output_root, row, result)
            logs[row.job.id].finished(result)
            results[row.job.id] = result
    return [results[row.job.id] for row in rows]


def _build_and_publish(
    rows: Sequence[Task],
    context: BatchContext,
    report: Callable[[str, str, int, int], None],
    stop: Callable[[], bool],
) -> list[TaskResult]:
    """Build as ``_build`` does while the output root copies the checkpoints."""
    try:
        with context.output_root.working(rows):
            return _build(rows, context, report, stop)
    except StorageError as error:
        return [_failed(row, error.stage, type(error).__name__, error.message) for row in rows]


def _committed(row: Task, result: TaskResult, context: BatchContext) -> TaskResult:
    """Publish a row that was built. Return ``result``, or the failure to publish it."""
    if result.state != "done":
        return result
    try:
        context.output_root.commit(row)
    except StorageError as error:
        return _failed(row, error.stage, type(error).__name__, error.message, result.seconds)
    except OSError as error:
        reason = f"{row.job.id}: {describe_os_error(error, context.out / row.job.id)}"
        return _failed(row, "storage", type(error).__name__, reason, result.seconds)
    return result


def _build(
    rows: Sequence[Task],
    context: BatchContext,
    report: Callable[[str, str, int, int], None],
    stop: Callable[[], bool],
) -> list[TaskResult]:
    """Call the recipe. If it raises for a batch of several rows, build each row alone to find the cause."""
    if not rows:
        return []
    start_time = time.monotonic()

    def report_for(index: int) -> Reporter:
        job_id = rows[index].job.id
        return lambda stage, done, total: report(job_id, stage, done, total)

    try:
        results = context.hooks.recipe(rows[0].job.recipe)(
            [with_local_files(row.job) for row in rows],
            context.prior,
            context.out,
            fingerprints=[row.fingerprint for row in rows],
            lockstep=context.lockstep,
            report_for=report_for,
            checkpoint_seconds=context.checkpoint_seconds,
            stop=stop,
            unwrap_cache=context.output_root.unwrap_cache,
        )
    except Interrupted as error:
        return [TaskResult(row.job.id, "interrupted", error.stage, message=error.message) for row in rows]
    except Exception as error:
        if len(rows) > 1:
            return [_build([row], context, report, stop)[0] for row in rows]
        stage = error.stage if isinstance(error, LatentkilnError) else "internal"
        words = describe_os_error(error) if isinstance(error, OSError) else str(error)
        message = one_line(f"{rows[0].job.id}: {words}")
        return [_failed(rows[0], stage, type(error).__name__, message, time.monotonic() - start_time)]
    return [_with_attempt(result, row) for row, result in zip(rows, results, strict=True)]


def _with_attempt(result: TaskResult, row: Task) -> TaskResult:
    """Add what the recipe does not know of ``row``: the command that builds it alone and the number of attempts."""
    reproduce = row.reproduce if result.state == "failed" else ""
    return dataclasses.replace(
        result, job_id=row.job.id, warnings=list(result.warnings), reproduce=reproduce, attempts=row.attempt
    )


def _failed(row: Task, stage: str, error: str, message: str, seconds: float = 0.0) -> TaskResult:
    return TaskResult(
        row.job.id, "failed", stage, error, message, seconds, reproduce=row.reproduce, attempts=row.attempt
    )


def record_failure(output_root: OutputRoot, row: Task, result: TaskResult) -> None:
    """Write ``failure.json`` and keep the entries that the recipe wrote there about this attempt.

    The caller holds the asset's lock. Raises neither OSError nor StorageError.
    """
    known = dict(output_root.read_failure(row.job.id) or {})
    if known.get("fingerprint") != row.fingerprint or known.get("message") != result.message:
        known = {}
    failure = known | {
        "id": row.job.id,
        "fingerprint": row.fingerprint,
        "source": str(row.job.row_location),
        "stage": result.stage,
        "error": result.error,
        "message": scrub(result.message),
        "quarantined": result.state == "quarantined",
        "reproduce": row.reproduce or known.get("reproduce", ""),
        "attempts": row.attempt,
        "finished": time.time(),
    }
    # The row has failed already and its result says why, so an error of the disk adds nothing.
    with contextlib.suppress(OSError, StorageError):
        output_root.write_failure(row.job.id, failure)


def one_line(text: str, limit: int = 300) -> str:
    """Return ``text`` on one line, shortened to ``limit`` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
