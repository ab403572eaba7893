"""What goes to a worker and what comes back: plain values, cheap to send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.job import Job
from pipeline.core.outcome import TaskResult as TaskResult
from pipeline.prior.options import PriorOptions
from pipeline.recipes.registry import BuildFunction, get_recipe
from pipeline.scheduler.gpu_capacity import Capacity, measure_capacity

if TYPE_CHECKING:
    from pipeline.prior.load import Prior


@dataclass(frozen=True)
class Task:
    """One job to build.

    ``reproduce`` is the command that builds it alone. ``attempt`` counts from 1 how often it was begun and may
    have killed its worker; ``setbacks`` how often it was taken back through no fault of its own (its machine went
    away, a neighbour was cut), ``stalled`` how often of late without having come any further. ``spent`` is the wall
    time of earlier attempts of this run, in seconds. ``alone`` keeps it out of groups: it is suspected of killing
    workers, or machines.
    """

    job: Job
    fingerprint: str
    reproduce: str = ""
    attempt: int = 1
    setbacks: int = 0
    stalled: int = 0
    spent: float = 0.0
    alone: bool = False

    @property
    def is_first(self) -> bool:
        """No earlier attempt of this run may still hold its lock."""
        return self.attempt == 1 and not self.setbacks


def load_worker_prior(spec: str, threads: int, options: PriorOptions | None = None) -> Prior:
    """Loads the prior named ``spec`` with torch bound to ``threads`` threads of this process.

    The number of threads decides in which order floating-point sums are formed, so it is set, never guessed.
    Raises PriorError.
    """
    import torch

    torch.set_num_threads(threads)
    from pipeline.prior import load

    return load.load_prior(spec, options=options)


@dataclass(frozen=True)
class Hooks:
    """How a worker gets its prior and its recipes, and learns what the prior leaves room for: a value, so that it can
    be replaced as a whole."""

    load_prior: Callable[[str, int], Prior] = load_worker_prior
    recipe: Callable[[str], BuildFunction] = get_recipe
    measure: Callable[[Prior, int | None], Capacity] = measure_capacity
