"""The cores and GPUs of this machine, and the defaults that follow from them. Imports neither torch nor Ray."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

# A small UNet gains nothing from more threads; a larger machine gets more workers instead.
MAX_THREADS = 8
# Memory of one worker with the embedded prior, with a margin.
_WORKER_BYTES = 3 << 30
_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
_GPUS = Path("/proc/driver/nvidia/gpus")


def core_count() -> int:
    """Return the number of cores that this process may use, by its affinity and its cgroup's quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def gpu_count() -> int:
    """Return the number of NVIDIA GPUs that the driver lists and CUDA_VISIBLE_DEVICES does not hide."""
    present = len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def threads_per_worker() -> int:
    """Return the number of torch threads of each worker.

    It depends on the machine only, never on the number of workers: the number of threads changes the order of sums,
    and the bytes of an asset must not depend on how many workers there were.
    """
    return min(core_count(), MAX_THREADS)


def default_workers() -> int:
    """Return one worker per GPU, or without GPUs as many as cores and memory allow, at least 1."""
    if gpus := gpu_count():
        return gpus
    by_memory = int(psutil.virtual_memory().available // _WORKER_BYTES)
    return max(1, min(core_count() // threads_per_worker(), by_memory))
