"""Linear systems over texels: conjugate gradients for several colour channels at once.

Written out because the channels share one pass over the matrix, and because it calls no threaded vector library:
on busy cores the short dot products of a general solver wait for its threads most of the time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Columns = NDArray[np.float32]


def conjugate_gradients(
    apply: Callable[[Columns], Columns],
    diagonal: NDArray[np.float32],
    target: Columns,
    *,
    steps: int = 200,
    tolerance: float = 2e-3,
) -> Columns:
    """x (n, C) with apply(x) = target (n, C), where ``apply`` is symmetric positive; each column on its own.

    Starts from 0, preconditioned by the operator's ``diagonal`` (n,); ends after ``steps`` or when the residual's
    energy has fallen by ``tolerance`` squared in every column.
    """
    inverse = (1 / diagonal)[:, None].astype(np.float32)
    x = np.zeros_like(target)
    residual = target.copy()
    z = inverse * residual
    direction = z.copy()
    energy = np.einsum("nc,nc->c", residual, z, dtype=np.float64)
    goal = energy * tolerance**2
    for _ in range(steps):
        if (energy <= goal).all():
            break
        applied = apply(direction)
        along = np.einsum("nc,nc->c", direction, applied, dtype=np.float64)
        step = np.where(along > 0, energy / np.maximum(along, 1e-300), 0).astype(np.float32)
        x += step * direction
        residual -= step * applied
        z = inverse * residual
        new = np.einsum("nc,nc->c", residual, z, dtype=np.float64)
        direction = z + (new / np.maximum(energy, 1e-300)).astype(np.float32) * direction
        energy = new
    return x
