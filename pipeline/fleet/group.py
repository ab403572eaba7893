"""Builds one group of rows inside this process: locks, the recipe, a log and a record for each failure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import Interrupted, LatentkilnError
from pipeline.core.job import Reporter
from pipeline.core.outcome import Outcome
from pipeline.core.redact import redact
from pipeline.export.record import output_problem, read_failure, read_record, write_failure
from pipeline.fleet.locks import asset_lock
from pipeline.fleet.rowlog import RowLog
from pipeline.fleet.rows import Row, RowResult, Toolbox

ELSEWHERE = "being built by another run"
# A worker that was declared dead may hold its locks a moment longer.
_RETRY_LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Bench:
    """Where a group is built: the output root, the loaded prior, and how. ``run_id`` goes into the rows' logs."""

    out: Path
    prior: Any
    lockstep: int
    toolbox: Toolbox
    checkpoint_seconds: float = 30.0
    run_id: str = ""


def build_group(
    rows: Sequence[Row],
    bench: Bench,
    report: Callable[[str, str, int, int], None],
    stop: Callable[[], bool],
) -> list[RowResult]:
    """Builds ``rows`` (one recipe, at most ``bench.lockstep``) and gives one result each, in order.

    ``report(job_id, stage, done, total)`` is called at every step. Rows another run holds come back as
    ``elsewhere``; rows that are finished already (built by another run or an attempt that died late) as
    ``kept``.
    """
    results: dict[str, RowResult] = {}
    with contextlib.ExitStack() as locks:
        mine: list[Row] = []
        for row in rows:
            folder = bench.out / row.job.id
            wait = 0.0 if row.first else _RETRY_LOCK_SECONDS
            try:
                held = locks.enter_context(asset_lock(folder, wait_seconds=wait))
            except OSError as error:
                reason = f"{folder}: cannot be written ({error.strerror or error}); check --out"
                results[row.job.id] = _failed(row, "fleet", type(error).__name__, reason)
                continue
            if not held:
                results[row.job.id] = RowResult(row.job.id, "elsewhere", message=ELSEWHERE)
            elif _is_finished(folder, row.fingerprint):
                results[row.job.id] = RowResult(row.job.id, "kept")
            else:
                mine.append(row)
        logs = {row.job.id: RowLog(bench.out / row.job.id, row, bench.run_id) for row in mine}

        def tell(job_id: str, stage: str, done: int, total: int) -> None:
            logs[job_id].stage(stage, done, total)
            report(job_id, stage, done, total)

        for result in _build(mine, bench, tell, stop):
            results[result.job_id] = result
        for row in mine:
            result = results[row.job.id]
            if result.state == "failed":
                record_failure(bench.out / row.job.id, row, result)
            logs[row.job.id].ended(result)
    return [results[row.job.id] for row in rows]


def _build(
    rows: Sequence[Row],
    bench: Bench,
    report: Callable[[str, str, int, int], None],
    stop: Callable[[], bool],
) -> list[RowResult]:
    """Calls the recipe. Should it raise for a whole group, each row is tried alone, to find the guilty
    one."""
    if not rows:
        return []
    begun = time.monotonic()

    def report_for(index: int) -> Reporter:
        job_id = rows[index].job.id
        return lambda stage, done, total: report(job_id, stage, done, total)

    try:
        outcomes = bench.toolbox.recipe(rows[0].job.recipe)(
            [row.job for row in rows],
            bench.prior,
            bench.out,
            fingerprints=[row.fingerprint for row in rows],
            lockstep=bench.lockstep,
            report_for=report_for,
            checkpoint_seconds=bench.checkpoint_seconds,
            stop=stop,
        )
    except Interrupted as error:
        return [RowResult(row.job.id, "interrupted", error.stage, message=error.message) for row in rows]
    except Exception as error:
        if len(rows) > 1:
            return [_build([row], bench, report, stop)[0] for row in rows]
        stage = error.stage if isinstance(error, LatentkilnError) else "internal"
        message = one_line(f"{rows[0].job.id}: {error}")
        return [_failed(rows[0], stage, type(error).__name__, message, time.monotonic() - begun)]
    return [_result(row, outcome) for row, outcome in zip(rows, outcomes, strict=True)]


def _result(row: Row, outcome: Outcome) -> RowResult:
    return RowResult(
        row.job.id,
        outcome.status,
        outcome.stage,
        outcome.error,
        outcome.message,
        outcome.seconds,
        list(outcome.warnings),
        row.reproduce if outcome.status == "failed" else "",
        row.attempt,
    )


def _failed(row: Row, stage: str, error: str, message: str, seconds: float = 0.0) -> RowResult:
    return RowResult(
        row.job.id, "failed", stage, error, message, seconds, reproduce=row.reproduce, attempts=row.attempt
    )


def _is_finished(folder: Path, fingerprint: str) -> bool:
    record = read_record(folder)
    return record is not None and record["fingerprint"] == fingerprint and not output_problem(folder, record)


def record_failure(folder: Path, row: Row, result: RowResult) -> None:
    """Writes ``failure.json``, keeping what the recipe wrote there about this attempt. Never raises OSError.

    The caller holds the asset's lock.
    """
    known = read_failure(folder) or {}
    if known.get("fingerprint") != row.fingerprint or known.get("message") != result.message:
        known = {}
    failure = known | {
        "id": row.job.id,
        "fingerprint": row.fingerprint,
        "source": str(row.job.source),
        "stage": result.stage,
        "error": result.error,
        "message": redact(result.message),
        "quarantined": result.state == "quarantined",
        "reproduce": row.reproduce or known.get("reproduce", ""),
        "attempts": row.attempt,
        "finished": time.time(),
    }
    # The row has failed already, and its result says why; a disk that is full or read-only adds nothing to
    # it.
    with contextlib.suppress(OSError):
        write_failure(folder, failure)


def one_line(text: str, limit: int = 300) -> str:
    """``text`` on one line, shortened."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
