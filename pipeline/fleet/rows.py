"""What goes to a worker and what comes back: plain values, cheap to send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.core.job import Job
from pipeline.recipes.registry import Recipe, get_recipe

# done: built now. kept: found finished. elsewhere: another run is building it. waiting: never begun.
State = Literal["done", "kept", "failed", "interrupted", "elsewhere", "waiting"]


@dataclass(frozen=True)
class Row:
    """One job to build. ``attempt`` counts from 1; ``reproduce`` is the command that builds it alone."""

    job: Job
    fingerprint: str
    reproduce: str = ""
    attempt: int = 1


@dataclass(frozen=True)
class RowResult:
    """What became of a row. ``stage``, ``error`` (class name) and ``message`` as in ``Outcome``."""

    job_id: str
    state: State
    stage: str = ""
    error: str = ""
    message: str = ""
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    reproduce: str = ""
    attempts: int = 1


def load_prior(spec: str, threads: int) -> Any:
    """Loads the prior named ``spec`` with torch bound to ``threads`` threads of this process.

    The number of threads decides in which order floating-point sums are formed, so it is set, never guessed.
    Raises PriorError.
    """
    import torch

    torch.set_num_threads(threads)
    from pipeline.prior import load

    return load.load_prior(spec)


@dataclass(frozen=True)
class Toolbox:
    """How a worker gets its prior and its recipes: a value, so that it can be replaced as a whole."""

    load_prior: Callable[[str, int], Any] = load_prior
    recipe: Callable[[str], Recipe] = get_recipe
