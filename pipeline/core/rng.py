"""Random generators keyed by (seed, purpose, step). Resuming replays no draws, and no draw uses global state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Returns the 63-bit seed of the stream ``(seed, purpose, step)``, equal on all machines and Python versions."""
    digest = hashlib.sha256(f"{seed}\x1f{purpose}\x1f{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """Returns a numpy generator of the stream ``(seed, purpose, step)``."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, purpose, step)))


def torch_generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Returns a CPU torch generator of the stream ``(seed, purpose, step)``.

    It is always on the CPU, so the draws do not depend on the compute device.
    """
    import torch

    return torch.Generator(device="cpu").manual_seed(derive_seed(seed, purpose, step))
