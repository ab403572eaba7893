"""Metrics of a run for Prometheus: counters and gauges that Ray exports with its own.

Every series has the tag ``run``. A node that exports metrics (``ray start --metrics-export-port``) names them with the
prefix ``ray_latentkiln_``.
"""

from __future__ import annotations

from pipeline.core.outcome import TaskResult
from pipeline.scheduler.progress import Progress

_SECONDS = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0]


class Metrics(Progress):
    """Counts the rows of one run. Ray must be running."""

    def __init__(self, run_id: str) -> None:
        from ray.util import metrics

        self._tags = {"run": run_id}
        keys = ("run",)
        self._ended = metrics.Counter("latentkiln_rows_ended", "Rows that ended.", (*keys, "state"))
        self._retried = metrics.Counter("latentkiln_rows_retried", "Rows started again after a setback.", keys)
        self._running = metrics.Gauge("latentkiln_rows_running", "Rows being built now.", keys)
        self._build = metrics.Gauge("latentkiln_rows_to_build", "Rows to build that are known so far.", keys)
        self._kept = metrics.Gauge("latentkiln_rows_up_to_date", "Rows found up to date.", keys)
        self._seconds = metrics.Histogram(
            "latentkiln_row_seconds", "Wall time of finished rows.", boundaries=_SECONDS, tag_keys=keys
        )
        self._running_ids: set[str] = set()

    def planned(self, *, build: int, kept: int) -> None:
        self._build.set(build, self._tags)
        self._kept.set(kept, self._tags)

    def row_began(self, job_id: str, attempt: int) -> None:
        if job_id in self._running_ids:
            self._retried.inc(1, self._tags)
        self._running_ids.add(job_id)
        self._running.set(len(self._running_ids), self._tags)

    def row_ended(self, result: TaskResult) -> None:
        self._running_ids.discard(result.job_id)
        self._running.set(len(self._running_ids), self._tags)
        self._ended.inc(1, self._tags | {"state": result.state})
        if result.state == "done":
            self._seconds.observe(max(result.seconds, 1e-6), self._tags)
