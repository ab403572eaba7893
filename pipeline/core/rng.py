"""Randomness keyed by (seed, purpose, step): resuming replays nothing, and no draw touches global state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """63-bit seed of the stream ``(seed, purpose, step)``; the same on every machine and Python version."""
    digest = hashlib.sha256(f"{seed}\x1f{purpose}\x1f{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """A numpy generator of the stream ``(seed, purpose, step)``."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, purpose, step)))


def torch_generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU torch generator of the stream ``(seed, purpose, step)``.

    Always on the CPU, so that the draws are the same whatever device computes with them.
    """
    import torch

    return torch.Generator(device="cpu").manual_seed(derive_seed(seed, purpose, step))
