"""Compiled volume rendering for the CPU; the rules are in ``volume``.

One thread goes ray after ray, so the bytes are always the same. Marching skips empty blocks of cells, and still finds
the same samples as ``torch_backend``, which tests every interval: a skip never reaches into another block.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# Compiled functions take their types from their arguments.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.jit import njit

if TYPE_CHECKING:
    from pipeline.fields.occupancy import OccupancyGrid
    from pipeline.fields.volume.layout import PackedSamples

# Side, in cells, of the blocks that are skipped if they are empty.
_BLOCK = 8
# Equals volume.FAINT; compiled code takes it as a constant.
_FAINT = 1e-4
# In cells. This close to a block's face, rounding may put a sample into the next block.
_MARGIN = 1e-6


def march(
    origins: Tensor,
    directions: Tensor,
    jitter: Tensor,
    occupancy: OccupancyGrid,
    step: float,
    nearest: float,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``volume.march``: points (M, 3), t (M,), delta (M,), start (R + 1,)."""
    start = np.zeros(len(origins) + 1, np.int64)
    rays = (origins.numpy(), directions.numpy(), jitter.numpy())
    cube = (occupancy.bound, step, nearest)
    binary = np.ascontiguousarray(occupancy.binary, np.uint8)
    choose: Any = _select_intervals
    chosen = choose(*rays, binary, _blocks(binary), *cube, limit, start)
    points = np.empty((len(chosen), 3), np.float32)
    t, delta = np.empty(len(chosen), np.float32), np.empty(len(chosen), np.float32)
    fill_samples: Any = _fill_samples
    fill_samples(*rays, *cube, chosen, start, points, t, delta)
    arrays = (torch.from_numpy(array) for array in (points, t, delta, start))
    return tuple(arrays)  # type: ignore[return-value]


def composite(
    sigma: Tensor, values: Tensor, packed: PackedSamples, stop: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``volume.composite``: values (R, C), weight (R,), depth (R,), weights (M,)."""
    apply: Any = _Composite.apply
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = apply(sigma, values, packed, stop)
    return outputs


class _Composite(torch.autograd.Function):
    """The compiled loops, with their hand-written gradient for densities and values."""

    @staticmethod
    def forward(ctx: Any, sigma: Tensor, values: Tensor, packed: PackedSamples, stop: float) -> tuple[Tensor, ...]:
        sigma, values = sigma.contiguous(), values.contiguous()
        rays, channels = len(packed.start) - 1, values.shape[1]
        outputs = (sigma.new_empty(rays, channels), sigma.new_empty(rays), sigma.new_empty(rays))
        weights = torch.empty_like(sigma)
        kernel: Any = _composite
        after = torch.empty(sigma.shape, dtype=torch.float64)
        kernel(*_arrays(sigma, values, packed), stop, *(x.numpy() for x in outputs), weights.numpy(), after.numpy())
        # Keep the transmittances, because their exponentials are the most expensive part of both passes.
        ctx.save_for_backward(sigma, values, after)
        ctx.packed, ctx.stop = packed, stop
        ctx.set_materialize_grads(False)
        return (*outputs, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor, None, None]:
        sigma, values, after = ctx.saved_tensors
        rays = len(ctx.packed.start) - 1
        shapes = ((rays, values.shape[1]), (rays,), (rays,), sigma.shape)
        output_gradients = [
            (sigma.new_zeros(shape) if grad is None else grad.contiguous()).numpy()
            for grad, shape in zip(grads, shapes, strict=True)
        ]
        to_sigma, to_values = torch.zeros_like(sigma), torch.zeros_like(values)
        kernel: Any = _backpropagate
        arrays = _arrays(sigma, values, ctx.packed)[1:]
        kernel(*arrays, ctx.stop, after.numpy(), *output_gradients, to_sigma.numpy(), to_values.numpy())
        return to_sigma, to_values, None, None


def _arrays(sigma: Tensor, values: Tensor, packed: PackedSamples) -> tuple[Any, ...]:
    tensors = (sigma.detach(), values.detach(), packed.t.contiguous(), packed.delta.contiguous(), packed.start)
    return tuple(tensor.numpy() for tensor in tensors)


@njit(cache=True, nogil=True, error_model="numpy")
def _blocks(binary):
    """(B, B, B) uint8, 1 for each block with an occupied cell. Computed for each march, in 1 ms for 128^3."""
    resolution = len(binary)
    count = (resolution + _BLOCK - 1) // _BLOCK
    blocks = np.zeros((count, count, count), np.uint8)
    for x in range(resolution):
        for y in range(resolution):
            for bz in range(count):
                for z in range(bz * _BLOCK, min((bz + 1) * _BLOCK, resolution)):
                    blocks[x // _BLOCK, y // _BLOCK, bz] |= binary[x, y, z]
    return blocks


@njit(cache=True, nogil=True, error_model="numpy")
def _clip(origin, direction, bound, nearest):
    """The distances at which a ray enters and leaves the cube; near >= far if it misses."""
    near, far = nearest, np.inf
    for axis in range(3):
        o, d = np.float64(origin[axis]), np.float64(direction[axis])
        if d == 0.0:
            if abs(o) > bound:
                return np.inf, -np.inf
            continue
        a, b = (-bound - o) / d, (bound - o) / d
        near, far = max(near, min(a, b)), min(far, max(a, b))
    return near, far


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _sample(near, far, step, jitter, k):
    """Distance of a ray's k-th sample, and the length of its interval."""
    begin = near + k * step
    delta = min(max(far - begin, 0.0), step)
    return begin + np.float64(jitter) * delta, delta


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _cell(coordinate, resolution):
    if not coordinate > 0.0:
        return 0
    if coordinate > resolution - 1.0:
        return resolution - 1
    return int(coordinate)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _distance_to_exit(coordinate, direction, block):
    """How much t may grow before the ray reaches the block's face along one axis.

    ``coordinate`` and ``direction`` are in cells. Returns 0 within the margin of any face.
    """
    low, high = block * _BLOCK + _MARGIN, (block + 1) * _BLOCK - _MARGIN
    if coordinate < low or coordinate > high:
        return 0.0
    if direction > 0.0:
        return (high - coordinate) / direction
    if direction < 0.0:
        return (low - coordinate) / direction
    return np.inf


@njit(cache=True, nogil=True, error_model="numpy")
def _select_intervals(origins, directions, jitter, binary, coarse, bound, step, nearest, limit, start):
    """The intervals of each ray that have a sample: int32 numbers, ray after ray. Fills ``start``."""
    resolution = len(binary)
    scale = resolution / (2 * bound)
    chosen = np.empty(1024, np.int32)
    total = 0
    for r in range(len(origins)):
        near, far = _clip(origins[r], directions[r], bound, nearest)
        count = int(np.ceil((far - near) / step)) if near < far else 0
        ox, oy, oz = np.float64(origins[r, 0]), np.float64(origins[r, 1]), np.float64(origins[r, 2])
        dx, dy, dz = np.float64(directions[r, 0]), np.float64(directions[r, 1]), np.float64(directions[r, 2])
        k, chosen_count = 0, 0
        while k < count and chosen_count < limit:
            t, _ = _sample(near, far, step, jitter[r], k)
            px, py, pz = (ox + t * dx + bound) * scale, (oy + t * dy + bound) * scale, (oz + t * dz + bound) * scale
            x, y, z = _cell(px, resolution), _cell(py, resolution), _cell(pz, resolution)
            if binary[x, y, z] != 0:
                if total == len(chosen):
                    grown = np.empty(2 * total, np.int32)
                    grown[:total] = chosen
                    chosen = grown
                chosen[total] = k
                total += 1
                chosen_count += 1
                k += 1
                continue
            bx, by, bz = x // _BLOCK, y // _BLOCK, z // _BLOCK
            k += 1
            if coarse[bx, by, bz] == 0:
                out = min(
                    _distance_to_exit(px, dx * scale, bx),
                    _distance_to_exit(py, dy * scale, by),
                    _distance_to_exit(pz, dz * scale, bz),
                )
                # Rounded down, so that the last interval before the face is tested.
                k = max(k, int((t + out - near) / step - np.float64(jitter[r])))
        start[r + 1] = total
    return chosen[:total]


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_samples(origins, directions, jitter, bound, step, nearest, chosen, start, points, t, delta):
    """points (M, 3), t (M,) and delta (M,) of the chosen intervals."""
    for r in range(len(origins)):
        if start[r] == start[r + 1]:
            continue
        near, far = _clip(origins[r], directions[r], bound, nearest)
        for i in range(start[r], start[r + 1]):
            distance, length = _sample(near, far, step, jitter[r], np.int64(chosen[i]))
            t[i], delta[i] = distance, length
            for axis in range(3):
                points[i, axis] = np.float64(origins[r, axis]) + distance * np.float64(directions[r, axis])


@njit(cache=True, nogil=True, error_model="numpy")
def _composite(sigma, values, t, delta, start, stop, composited, weight, depth, weights, after):
    """Fills composited (R, C), weight (R,), depth (R,), weights (M,), and after (M,) float64: T_{i+1}."""
    channels = values.shape[1]
    total = np.empty(channels)
    for r in range(len(weight)):
        total[:] = 0.0
        left, sum_w, sum_t = 1.0, 0.0, 0.0
        for i in range(start[r], start[r + 1]):
            if left < stop:
                weights[i] = 0.0
                after[i] = left
                continue
            gone = -np.expm1(-np.float64(sigma[i]) * np.float64(delta[i]))
            w = left * gone
            left -= w
            weights[i] = w
            after[i] = left
            sum_w += w
            sum_t += w * t[i]
            for c in range(channels):
                total[c] += w * values[i, c]
        for c in range(channels):
            composited[r, c] = total[c]
        weight[r] = sum_w
        depth[r] = sum_t / max(sum_w, _FAINT)


@njit(cache=True, nogil=True, error_model="numpy")
def _backpropagate(values, t, delta, start, stop, after, g_made, g_weight, g_depth, g_weights, to_sigma, to_values):
    """Fills to_sigma (M,) and to_values (M, C), given as zeros, from the gradients of ``_composite``'s results.

    With a_i the loss's derivative by w_i: dw_i/dx_i = T_{i+1} and dw_j/dx_i = -w_j for j > i. So the derivative by x_i
    is a_i T_{i+1} - sum_{j>i} a_j w_j, and the loop goes through each ray from its end.
    """
    channels = values.shape[1]
    for r in range(len(g_weight)):
        first, end = start[r], start[r]
        left, sum_w, sum_t = 1.0, 0.0, 0.0
        while end < start[r + 1] and left >= stop:
            sum_w += left - after[end]
            sum_t += (left - after[end]) * t[end]
            left = after[end]
            end += 1
        # depth = sum_t / max(sum_w, FAINT)
        by_t = g_depth[r] / max(sum_w, _FAINT)
        by_w = g_weight[r] - (by_t * sum_t / sum_w if sum_w > _FAINT else 0.0)
        behind = 0.0
        for i in range(end - 1, first - 1, -1):
            w = (after[i - 1] if i > first else 1.0) - after[i]
            a = by_w + by_t * t[i] + g_weights[i]
            for c in range(channels):
                a += g_made[r, c] * values[i, c]
                to_values[i, c] = w * g_made[r, c]
            to_sigma[i] = delta[i] * (a * after[i] - behind)
            behind += a * w
