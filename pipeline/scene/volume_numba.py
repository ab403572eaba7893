"""Marching and compositing compiled by numba for CPU tensors. Rays are independent: each thread owns whole rays, so
nothing is ever added from two sides, and the results are the same for any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from pipeline.scene.occupancy import OccupancyGrid


def march(
    origins: Tensor, directions: Tensor, occupancy: OccupancyGrid, step: float, jitter: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``volume.march``: (points, t, delta, start)."""
    o, d, j = (np.ascontiguousarray(x.numpy()) for x in (origins, directions, jitter))
    where = (occupancy.binary, np.float32(occupancy.bound), np.float32(step))
    nothing = np.zeros((0, 3), np.float32), np.zeros(0, np.float32)
    counts = np.zeros(len(o), np.int64)
    _march(o, d, j, *where, counts, np.zeros(len(o), np.int64), *nothing, False)
    start = np.zeros(len(o) + 1, np.int64)
    np.cumsum(counts, out=start[1:])
    points, t = np.empty((start[-1], 3), np.float32), np.empty(start[-1], np.float32)
    _march(o, d, j, *where, counts, start[:-1], points, t, True)
    delta = np.full(len(t), step, np.float32)
    return torch.from_numpy(points), torch.from_numpy(t), torch.from_numpy(delta), torch.from_numpy(start)


@njit(cache=True, nogil=True, parallel=True)
def _march(  # type: ignore[no-untyped-def]
    origins, directions, jitter, binary, bound, step, counts, start, points, distances, write
) -> None:
    resolution = binary.shape[0]
    to_cell = np.float32(np.float64(resolution) / (2 * np.float64(bound)))
    for ray in prange(origins.shape[0]):
        near, far = np.float32(0), np.float32(np.inf)
        for axis in range(3):
            d = directions[ray, axis]
            if abs(d) < np.float32(1e-12):
                d = np.float32(-1e-12) if d < 0 else np.float32(1e-12)
            inverse = np.float32(1) / d
            first = (-bound - origins[ray, axis]) * inverse
            second = (bound - origins[ray, axis]) * inverse
            near = max(near, min(first, second))
            far = min(far, max(first, second))
        found = 0
        i = np.int64(0)
        while True:
            t = near + (np.float32(i) + jitter[ray]) * step
            if not t < far:
                break
            x = origins[ray, 0] + t * directions[ray, 0]
            y = origins[ray, 1] + t * directions[ray, 1]
            z = origins[ray, 2] + t * directions[ray, 2]
            cx = np.int64(np.floor((x + bound) * to_cell))
            cy = np.int64(np.floor((y + bound) * to_cell))
            cz = np.int64(np.floor((z + bound) * to_cell))
            if cx < 0 or cy < 0 or cz < 0 or cx >= resolution or cy >= resolution or cz >= resolution:
                i += 1
                continue
            if binary[cx, cy, cz] != 0:
                if write:
                    at = start[ray] + found
                    points[at, 0], points[at, 1], points[at, 2] = x, y, z
                    distances[at] = t
                found += 1
                i += 1
                continue
            # Steps that surely stay in this empty cell are jumped over; the last one before its border is not, so
            # that rounding never skips a sample that the plain twin takes.
            ahead = np.float64(np.inf)
            for axis in range(3):
                d = directions[ray, axis]
                if d == 0:
                    continue
                cell = cx if axis == 0 else cy if axis == 1 else cz
                border = (cell + (1 if d > 0 else 0)) / np.float64(to_cell) - np.float64(bound)
                here = x if axis == 0 else y if axis == 1 else z
                ahead = min(ahead, (border - np.float64(here)) / np.float64(d))
            i += max(np.int64(1), np.int64(min(ahead, 1e6) / np.float64(step)))
        if not write:
            counts[ray] = found


class _Composite(torch.autograd.Function):
    """Both directions ray by ray. Symbols as in ``volume``."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, sigma: Tensor, values: Tensor, delta: Tensor, t: Tensor, start: Tensor, stop: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rays = len(start) - 1
        arrays = [np.ascontiguousarray(x.detach().numpy()) for x in (sigma, values, delta, t, start)]
        kind = arrays[0].dtype
        out, weight, distance = np.zeros((rays, values.shape[1]), kind), np.zeros(rays, kind), np.zeros(rays, kind)
        weights, through = np.zeros(len(sigma), kind), np.zeros(len(sigma), kind)
        _forward(*arrays, kind.type(stop), out, weight, distance, weights, through)
        ctx.arrays = (*arrays, weights, through)
        return tuple(torch.from_numpy(x) for x in (out, weight, distance, weights))  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        sigma, values, delta, t, start, weights, through = ctx.arrays
        g_out, g_weight, g_distance, g_weights = (np.ascontiguousarray(g.numpy()) for g in gradients)
        d_sigma, d_values = np.zeros_like(sigma), np.zeros_like(values)
        _backward(values, delta, t, start, weights, through, g_out, g_weight, g_distance, g_weights, d_sigma, d_values)
        return torch.from_numpy(d_sigma), torch.from_numpy(d_values), None, None, None, None


def composite(sigma: Tensor, values: Tensor, packed: Any, stop: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``volume.composite``: (values (R, C), weight (R,), sum of w t (R,), weights (M,))."""
    kind = sigma.dtype
    return _Composite.apply(sigma, values.to(kind), packed.delta.to(kind), packed.t.to(kind), packed.start, stop)


@njit(cache=True, nogil=True, parallel=True)
def _forward(  # type: ignore[no-untyped-def]
    sigma, values, delta, t, start, stop, out, weight, distance, weights, through
) -> None:
    for ray in prange(len(start) - 1):
        tau = sigma[0] * 0 if len(sigma) else stop * 0
        for i in range(start[ray], start[ray + 1]):
            left = np.exp(-tau)
            if left < stop:
                break
            here = sigma[i] * delta[i]
            w = left * -np.expm1(-here)
            tau += here
            weights[i] = w
            # What is left behind the sample; 0 marks samples beyond the ray's end.
            through[i] = left * np.exp(-here)
            weight[ray] += w
            distance[ray] += w * t[i]
            for c in range(values.shape[1]):
                out[ray, c] += w * values[i, c]


@njit(cache=True, nogil=True, parallel=True)
def _backward(  # type: ignore[no-untyped-def]
    values, delta, t, start, weights, through, g_out, g_weight, g_distance, g_weights, d_sigma, d_values
) -> None:
    """With u_i = dL/dw_i: dL/dsigma_i = delta_i (T_{i+1} u_i - sum of w_j u_j over j > i)."""
    for ray in prange(len(start) - 1):
        behind = g_weight[ray] * 0
        for k in range(start[ray + 1] - start[ray]):
            i = start[ray + 1] - 1 - k
            w = weights[i]
            if w == 0 and through[i] == 0:
                continue
            u = g_weight[ray] + g_distance[ray] * t[i] + g_weights[i]
            for c in range(values.shape[1]):
                u += g_out[ray, c] * values[i, c]
                d_values[i, c] = g_out[ray, c] * w
            d_sigma[i] = delta[i] * (through[i] * u - behind)
            behind += w * u
