"""The result of one row, from the recipe that built it to the run's summary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# done: built now. kept: found finished. elsewhere: another run is building it. waiting: not started.
# quarantined: it killed its worker as often as is allowed, or made no progress; otherwise as failed.
State = Literal["done", "kept", "failed", "quarantined", "interrupted", "elsewhere", "waiting"]
FAILURES = ("failed", "quarantined")


@dataclass(frozen=True)
class TaskResult:
    """The result of one attempt at a row, and in the summary the result of the row.

    ``stage`` is the step in which a failed or interrupted row stood. ``error`` is the name of the exception's class,
    ``message`` its one line. Both are empty for a row that was built. ``seconds`` is wall time; rows of one batch
    count the time they share in full. ``reproduce`` is the command that builds the row alone, and ``attempts`` the
    number of attempts that this run made; the scheduler fills in both.

    A recipe returns ``done``, ``failed`` or ``interrupted``. All other states are set by the scheduler.
    """

    job_id: str
    state: State
    stage: str = ""
    error: str = ""
    message: str = ""
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    reproduce: str = ""
    attempts: int = 1
