"""What a loaded prior leaves room for on its device: how many assets at once, how many workers on one GPU. Measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.prior.load import Prior

DEFAULT_LOCKSTEP = 1
"""Where there is no device memory to measure: the patches of one asset fill a CPU's cores, and more assets at a time
take longer for each (`benchmarks/paint_step.py`)."""
# Of a GPU's memory that workers sharing it may plan with, and what each takes beside its tensors: CUDA's context,
# cuBLAS' and cuDNN's own buffers.
_USABLE = 0.85
_CONTEXT_BYTES = 600 << 20
# More processes than this take turns on a GPU and gain nothing.
_MOST_PER_GPU = 8


@dataclass(frozen=True)
class Capacity:
    """``lockstep``: rows that a worker builds together. ``per_gpu``: such workers that one GPU has memory for."""

    lockstep: int = DEFAULT_LOCKSTEP
    per_gpu: int = 1


def measure_capacity(prior: Prior, lockstep: int | None) -> Capacity:
    """How ``prior`` is best used where it was loaded; seconds on a GPU, nothing without.

    With ``lockstep`` None the width is the largest for which the device has memory, so that one worker fills a GPU;
    with a width that was asked for, the peak of a step of that width says how many workers share a GPU. Of the
    recipes' own views the larger ones count. Raises OutOfMemory where not even one scene fits.
    """
    device = getattr(prior, "device", None)
    if device is None or device.type != "cuda":
        return Capacity(lockstep or DEFAULT_LOCKSTEP)
    from pipeline.optimize import adaptive_batch

    # By the pixels of a step; what is in a row may differ, and is corrected while it is built.
    views, size = max(
        ((d.views, d.view_size) for d in (prior.defaults, prior.generate_defaults)), key=lambda v: v[0] * v[1] ** 2
    )
    if lockstep is None:
        return Capacity(adaptive_batch.fitting_batch_size(prior, views, size))
    peak = adaptive_batch.step_bytes(prior, lockstep, views, size)
    total = adaptive_batch.device_bytes(prior.device)
    return Capacity(lockstep, 1 if peak is None else workers_per_gpu(peak, total))


def workers_per_gpu(peak: int, total: int) -> int:
    """How many workers that allocate at most ``peak`` bytes share a GPU of ``total`` bytes; at least 1."""
    return max(1, min(_MOST_PER_GPU, int(_USABLE * total // (peak + _CONTEXT_BYTES))))


def gpu_options(per_gpu: int, cpus: int) -> dict[str, float]:
    """What Ray is asked for by each of ``per_gpu`` workers on one GPU, where one by itself asks for ``cpus`` CPUs.

    They share the CPUs, too: what they wait for is the GPU.
    """
    # Ray counts in steps of 1/10000, and the sum must not be over 1.
    return {"num_gpus": math.floor(1e4 / per_gpu) / 1e4, "num_cpus": max(1, cpus // per_gpu) if cpus else 0}
