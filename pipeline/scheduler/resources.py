"""What this machine offers: cores, GPUs, and the defaults that follow from them. No torch, no Ray."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

# More threads than this bring a small UNet nothing; a larger machine gets more workers instead.
MAX_THREADS = 8
# What one worker needs with the embedded prior, and some room.
_WORKER_BYTES = 3 << 30
_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
_GPUS = Path("/proc/driver/nvidia/gpus")


def core_count() -> int:
    """Cores this process may use: affinity and container quota considered; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def gpu_count() -> int:
    """NVIDIA GPUs the driver shows, less those hidden by CUDA_VISIBLE_DEVICES."""
    present = len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def threads_per_worker() -> int:
    """Torch threads of each worker.

    Depends on the machine alone and never on the number of workers: sums are formed in another order with
    another number of threads, and an asset's bytes must not depend on how many workers there were.
    """
    return min(core_count(), MAX_THREADS)


def default_workers() -> int:
    """One worker per GPU; without one, as many as cores and memory carry (one on a small machine)."""
    if gpus := gpu_count():
        return gpus
    by_memory = int(psutil.virtual_memory().available // _WORKER_BYTES)
    return max(1, min(core_count() // threads_per_worker(), by_memory))
