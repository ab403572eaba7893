"""Solves linear systems over texels by conjugate gradients, for several colour channels at once.

We do not use a library's solver for two reasons: here the channels share one pass over the matrix, and no threaded
vector library is called. On busy cores the short dot products of a general solver mostly wait for its threads.
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
    """Solves apply(x) = target, both (n, C), for a symmetric positive ``apply``; each column is its own system.

    Starts from 0 and preconditions with the operator's ``diagonal`` (n,). Ends after ``steps``, or when the residual's
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
