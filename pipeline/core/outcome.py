"""What became of one job: the value a recipe hands back for each row, whatever happened to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True)
class BuildResult:
    """The end of one job.

    ``stage`` is the step of the pipeline in which a failed or interrupted job stood; ``error`` the name of
    the exception's class and ``message`` its one line (both empty when done). ``seconds`` is the wall time
    the job took, shared time of a lockstep group included.
    """

    job_id: str
    status: Status
    stage: str = ""
    error: str = ""
    message: str = ""
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
