"""A task, and the functions with which a worker runs tasks: plain values that Ray can send."""

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
    """One job to build, with what happened to it so far in this run.

    It starts from a ``plan.PlanItem`` whose action is ``build``, which holds why the job is built.
    ``reproduce`` is the command that builds the job alone. ``attempt`` is 1 plus the number of workers that the job
    may have killed. ``setbacks`` counts how often the job was requeued for another reason, such as a lost machine or
    a neighbour that timed out. ``stalled`` counts the latest setbacks between which the job made no progress.
    ``spent`` is the wall time of earlier attempts in this run, in seconds. ``alone`` keeps the job out of batches,
    because it may kill its worker.
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
        """Whether no earlier attempt of this run can still hold the lock."""
        return self.attempt == 1 and not self.setbacks


def load_worker_prior(spec: str, threads: int, options: PriorOptions | None = None) -> Prior:
    """Load the prior named ``spec`` and limit torch to ``threads`` threads in this process.

    The number of threads decides the order of floating-point sums, and with it the bytes of assets. Raises PriorError.
    """
    import torch

    torch.set_num_threads(threads)
    from pipeline.prior import load

    return load.load_prior(spec, options=options)


@dataclass(frozen=True)
class Hooks:
    """Functions that a worker calls: to load the prior, to find a recipe and to measure the device's capacity.

    Tests replace them as one value.
    """

    load_prior: Callable[[str, int], Prior] = load_worker_prior
    recipe: Callable[[str], BuildFunction] = get_recipe
    measure: Callable[[Prior, int | None], Capacity] = measure_capacity
