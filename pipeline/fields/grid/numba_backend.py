"""Compiled grid encoding for the CPU; see ``grid`` for the layout.

Forward and backward go level by level, because a level's table fits into a core's cache and the whole table does not.
A single thread reads and writes a level, in the order of the points, so there are no races, and the bytes are the same
for any number of threads. The backward pass computes the corners again, which is cheaper than keeping 8 indices and
weights of each point and level in memory.

Encoded values are stored column by column, (L F, N), and returned as the transpose.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# Compiled functions take their types from their arguments.

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.jit import njit, numba, prange

if TYPE_CHECKING:
    from pipeline.fields.grid.layout import GridSettings

_PRIME_Y = 2654435761
_PRIME_Z = 805459861
_MASK = 0xFFFFFFFF


def encode(points: Tensor, table: Tensor, settings: GridSettings) -> Tensor:
    """As ``grid.encode``: (N, 3) float32 points, (parameter_count,) table -> (N, L F), on the CPU."""
    apply: Any = _Encode.apply
    encoded: Tensor = apply(points, table, settings)
    return encoded


class _Encode(torch.autograd.Function):
    """The compiled loops, with their hand-written gradient for the table."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, settings: GridSettings) -> Tensor:
        points = points.contiguous()
        encoded = torch.empty(settings.feature_count, len(points), dtype=table.dtype)
        _run(_gather, points, table.detach(), settings, encoded)
        ctx.save_for_backward(points)
        ctx.settings = settings
        return encoded.t()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (points,) = ctx.saved_tensors
        table = torch.empty(ctx.settings.parameter_count, dtype=grad.dtype)
        # No copy after a linear layer, because torch returns gradients in the memory order of its inputs.
        _run(_scatter, points, table, ctx.settings, grad.t().contiguous())
        return None, table, None


def _run(kernel: Any, points: Tensor, table: Tensor, settings: GridSettings, columns: Tensor) -> None:
    """Runs ``kernel`` on points (N, 3), a whole table and encoded columns (L F, N), all contiguous.

    Deals the levels to the threads in turn, because fine levels cost more than coarse ones and prange gives each thread
    one run of consecutive indices. Uses as many threads as torch may use, so that a worker that shares the machine
    keeps to its share.
    """
    limits: Any = numba.config
    threads = max(1, min(torch.get_num_threads(), limits.NUMBA_NUM_THREADS, settings.levels))
    numba.set_num_threads(threads)
    order = np.concatenate([np.arange(thread, settings.levels, threads) for thread in range(threads)])
    entries = table.contiguous().view(-1, settings.features)
    kernel(order, points.numpy(), entries.numpy(), *_layout(settings), columns.numpy())


@functools.cache
def _layout(settings: GridSettings) -> tuple[Any, ...]:
    return (
        np.array(settings.scales, np.float32),
        np.array(settings.resolutions, np.int64),
        np.array(settings.offsets, np.int64),
        np.array(settings.hashed, np.bool_),
    )


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _cell(x, scale):
    """Lower corner of the cell along one axis and the position in the cell, with a fused multiply-add's rounding."""
    position = np.float32(np.float64(x) * np.float64(scale) + 0.5)
    low = np.floor(position)
    return np.int64(low), position - low


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _entry(x, y, z, size, hashed):
    """Entry of a corner whose terms along the axes are x, y, z. ``size`` of a hashed level is a power of two."""
    if hashed:
        # The low bits of a product do not depend on the high ones, so no reduction to 32 bits is needed before.
        return (x ^ y ^ z) & (size - 1)
    index = x + y + z
    if index < 0 or index >= size:
        index = (index & _MASK) % size
    return index


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _corners(point, scale, resolution, size, hashed):
    """The 8 entries around a point and their weights (float32), in the order of ``torch_backend.corners``."""
    x, fx = _cell(point[0], scale)
    y, fy = _cell(point[1], scale)
    z, fz = _cell(point[2], scale)
    up_y, up_z = resolution, resolution * resolution
    if hashed:
        up_y, up_z = np.int64(_PRIME_Y), np.int64(_PRIME_Z)
    y *= up_y
    z *= up_z
    x1, y1, z1 = x + 1, y + up_y, z + up_z
    one = np.float32(1)
    gx, gy, gz = one - fx, one - fy, one - fz
    entries = (
        _entry(x, y, z, size, hashed),
        _entry(x1, y, z, size, hashed),
        _entry(x, y1, z, size, hashed),
        _entry(x1, y1, z, size, hashed),
        _entry(x, y, z1, size, hashed),
        _entry(x1, y, z1, size, hashed),
        _entry(x, y1, z1, size, hashed),
        _entry(x1, y1, z1, size, hashed),
    )
    a, b, c, d = gx * gy, fx * gy, gx * fy, fx * fy
    return entries, (a * gz, b * gz, c * gz, d * gz, a * fz, b * fz, c * fz, d * fz)


@njit(cache=True, nogil=True, error_model="numpy")
def _gather_level(points, table, scale, resolution, hashed, encoded):
    """encoded (F, N) = the level's table (E, F) at points (N, 3)."""
    size, features = table.shape
    for i in range(len(points)):
        e, w = _corners(points[i], scale, resolution, size, hashed)
        for f in range(features):
            low = w[0] * table[e[0], f] + w[1] * table[e[1], f] + w[2] * table[e[2], f] + w[3] * table[e[3], f]
            high = w[4] * table[e[4], f] + w[5] * table[e[5], f] + w[6] * table[e[6], f] + w[7] * table[e[7], f]
            encoded[f, i] = low + high


@njit(cache=True, nogil=True, error_model="numpy")
def _scatter_level(points, table, scale, resolution, hashed, grad):
    """table (E, F) = the transpose of ``_gather_level`` applied to grad (F, N)."""
    size, features = table.shape
    table[:] = 0
    for i in range(len(points)):
        e, w = _corners(points[i], scale, resolution, size, hashed)
        for f in range(features):
            g = grad[f, i]
            for c in range(8):
                table[e[c], f] += w[c] * g


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _gather(order, points, table, scales, resolutions, offsets, hashed, encoded):
    """encoded (L F, N) = table (entries, F) at points (N, 3)."""
    features = table.shape[1]
    for position in prange(len(order)):
        k = order[position]
        _gather_level(
            points,
            table[offsets[k] : offsets[k + 1]],
            scales[k],
            resolutions[k],
            hashed[k],
            encoded[k * features : (k + 1) * features],
        )


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _scatter(order, points, table, scales, resolutions, offsets, hashed, grad):
    """table (entries, F) = the transpose of ``_gather`` applied to grad (L F, N)."""
    features = table.shape[1]
    for position in prange(len(order)):
        k = order[position]
        _scatter_level(
            points,
            table[offsets[k] : offsets[k + 1]],
            scales[k],
            resolutions[k],
            hashed[k],
            grad[k * features : (k + 1) * features],
        )
