"""Measure how many assets a device can build at once with a loaded prior, and how many workers can share a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.prior.load import Prior

DEFAULT_LOCKSTEP = 1
"""Rows per batch on a CPU: the views of one asset use all cores, and more assets at a time make each of them slower
(`benchmarks/paint_step.py`)."""
# The share of a GPU's memory that its workers may use, and the bytes that each takes beside its tensors: the CUDA
# context and the buffers of cuBLAS and cuDNN.
_USABLE = 0.85
_CONTEXT_BYTES = 600 << 20
# More processes than this only take turns on a GPU.
_MOST_PER_GPU = 8


@dataclass(frozen=True)
class Capacity:
    """``lockstep``: rows that a worker builds together. ``per_gpu``: how many such workers fit on one GPU."""

    lockstep: int = DEFAULT_LOCKSTEP
    per_gpu: int = 1


def measure_capacity(prior: Prior, lockstep: int | None) -> Capacity:
    """Measure the capacity of the device on which ``prior`` was loaded. Takes seconds on a GPU, no time on a CPU.

    With ``lockstep`` None, the result is the largest lockstep that fits into the device's memory, so that one worker
    fills a GPU. With a given lockstep, the peak memory of a step decides how many workers share a GPU. The recipe with
    the larger views counts. Raises OutOfMemory if not even one scene fits.
    """
    device = getattr(prior, "device", None)
    if device is None or device.type != "cuda":
        return Capacity(lockstep or DEFAULT_LOCKSTEP)
    from pipeline.optimize import adaptive_batch

    # By the pixels of a step. A row's own views may differ; the build adapts to them.
    views, size = max(
        ((d.views, d.view_size) for d in (prior.defaults, prior.generate_defaults)), key=lambda v: v[0] * v[1] ** 2
    )
    if lockstep is None:
        return Capacity(adaptive_batch.fitting_batch_size(prior, views, size))
    peak = adaptive_batch.step_bytes(prior, lockstep, views, size)
    total = adaptive_batch.device_bytes(prior.device)
    return Capacity(lockstep, 1 if peak is None else workers_per_gpu(peak, total))


def workers_per_gpu(peak: int, total: int) -> int:
    """Return how many workers that allocate at most ``peak`` bytes can share a GPU of ``total`` bytes, at least 1."""
    return max(1, min(_MOST_PER_GPU, int(_USABLE * total // (peak + _CONTEXT_BYTES))))


def gpu_options(per_gpu: int, cpus: int) -> dict[str, float]:
    """Return the resources that each of ``per_gpu`` workers on one GPU asks for; a single one asks for ``cpus`` CPUs.

    The workers share the CPUs, too, because they mostly wait for the GPU.
    """
    # Ray counts in steps of 1/10000, and the sum must not be over 1.
    return {"num_gpus": math.floor(1e4 / per_gpu) / 1e4, "num_cpus": max(1, cpus // per_gpu) if cpus else 0}
