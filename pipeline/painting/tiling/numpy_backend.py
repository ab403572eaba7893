"""Plain lookups of an exemplar on a surface. Tests compare ``numba_backend`` with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.core.arrays import Float32Array
    from pipeline.painting.tiling.layout import Exemplar, Projectors

# Directions with less than this share of the largest weight are left out.
LEAST_WEIGHT = 0.02
# Hexagonal tiles: corners of the triangular grid per side of the exemplar, and the power that sharpens the weights of
# the three lookups.
GRID, POWER = 1.7320508, 4


def blend(
    exemplar: Exemplar, directions: Projectors, points: Float32Array, normals: Float32Array, seed: np.uint32
) -> NDArray[np.float32]:
    """Colours (M, 3) in [0, 1] at ``points`` (M, 3), in units of tiles, with unit ``normals`` (M, 3)."""
    weight = _weights(directions, normals)
    total = np.zeros((len(points), 3), np.float32)
    hexagonal = exemplar.layout == "hexagonal"
    for d in range(len(directions.normal)):
        used = np.flatnonzero(weight[:, d])
        right = points[used] @ directions.right[d] + directions.offset[d, 0]
        down = points[used] @ directions.down[d] + directions.offset[d, 1]
        look_up = (
            _hexagonal(exemplar.values, right, down, seed) if hexagonal else _bilinear(exemplar.values, right, down)
        )
        total[used] += weight[used, d, None] * look_up
    if not hexagonal:
        return np.clip(total, 0, 1)
    total /= np.sqrt((weight**2).sum(axis=1, keepdims=True))
    return _to_rgb(exemplar, total)


def blend_maps(
    values: Float32Array,
    hexagonal: bool,
    directions: Projectors,
    points: Float32Array,
    normals: Float32Array,
    seed: np.uint32,
) -> NDArray[np.float32]:
    """K blended channels and a gradient, (M, K + 3), at ``points`` (M, 3), in tiles, with unit ``normals`` (M, 3).

    ``values`` (H, W, K + 2) are K channels of mean 0, then the slopes to the right and down, which each direction
    converts to a vector. The weights are those of ``blend``.
    """
    weight, scalars = _weights(directions, normals), values.shape[2] - 2
    total = np.zeros((len(points), scalars + 3), np.float32)
    for d in range(len(directions.normal)):
        used = np.flatnonzero(weight[:, d])
        right = points[used] @ directions.right[d] + directions.offset[d, 0]
        down = points[used] @ directions.down[d] + directions.offset[d, 1]
        look_up = _hexagonal(values, right, down, seed) if hexagonal else _bilinear(values, right, down)
        gradient = look_up[:, scalars, None] * directions.right[d] + look_up[:, scalars + 1, None] * directions.down[d]
        total[used] += weight[used, d, None] * np.concatenate([look_up[:, :scalars], gradient], axis=1)
    if hexagonal:
        total /= np.sqrt((weight**2).sum(axis=1, keepdims=True))
    return total


def _weights(directions: Projectors, normals: Float32Array) -> Float32Array:
    """Weights (M, D) of the directions for ``normals`` (M, 3), of sum 1."""
    cosine = normals @ directions.normal.T
    weight: Float32Array = np.exp(directions.sharpness * (cosine - cosine.max(axis=1, keepdims=True)))
    weight[weight < LEAST_WEIGHT] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


def _bilinear(values: Float32Array, right: Float32Array, down: Float32Array) -> Float32Array:
    """Bilinear lookups (M, C) in ``values`` (H, W, C), which wrap around, at coordinates in tiles."""
    height, width = values.shape[:2]
    x, y = right * width - 0.5, down * height - 0.5
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - column)[:, None].astype(np.float32), (y - row)[:, None].astype(np.float32)
    left, above = column % width, row % height
    beside, below = (column + 1) % width, (row + 1) % height
    upper = values[above, left] * (1 - fx) + values[above, beside] * fx
    lower = values[below, left] * (1 - fx) + values[below, beside] * fx
    result: Float32Array = upper * (1 - fy) + lower * fy
    return result


def _hexagonal(values: Float32Array, right: Float32Array, down: Float32Array, seed: np.uint32) -> Float32Array:
    """Blend three lookups (M, C), one for each corner of the grid's triangle, with random offsets per corner."""
    x, y = GRID * (right - down * np.float32(0.57735027)), GRID * down * np.float32(1.15470054)
    column, row = np.floor(x), np.floor(y)
    fx, fy = x - column, y - row
    lower = fx + fy < 1
    weights = np.stack(
        [np.where(lower, 1 - fx - fy, fx + fy - 1), np.where(lower, fy, 1 - fy), np.where(lower, fx, 1 - fx)]
    )
    weights = weights**POWER
    weights /= weights.sum(axis=0)
    i, j, upper = column.astype(np.int64), row.astype(np.int64), (~lower).astype(np.int64)
    corners = ((i + upper, j + upper), (i + upper, j + 1 - upper), (i + 1 - upper, j + upper))
    total = np.zeros((len(right), values.shape[2]), np.float32)
    for weight, (a, b) in zip(weights, corners, strict=True):
        offset = _offsets(a, b, seed)
        total += weight[:, None].astype(np.float32) * _bilinear(values, right + offset[0], down + offset[1])
    result: Float32Array = total / np.sqrt((weights**2).sum(axis=0))[:, None].astype(np.float32)
    return result


def _offsets(column: NDArray[np.int64], row: NDArray[np.int64], seed: np.uint32) -> tuple[Float32Array, Float32Array]:
    """Two pseudo-random numbers in [0, 1) for each corner of the grid, by hashing."""
    key = (column.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ (row.astype(np.uint32) * np.uint32(0x85EBCA77)) ^ seed
    first = _mix(key)
    second = _mix(first + np.uint32(0x9E3779B9))
    scale = np.float32(2**-24)
    return (first >> np.uint32(8)).astype(np.float32) * scale, (second >> np.uint32(8)).astype(np.float32) * scale


def _mix(key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The finaliser of MurmurHash3 (32 bits)."""
    key = key ^ (key >> np.uint32(16))
    key = key * np.uint32(0x85EBCA6B)
    key = key ^ (key >> np.uint32(13))
    key = key * np.uint32(0xC2B2AE35)
    return key ^ (key >> np.uint32(16))


def _to_rgb(exemplar: Exemplar, gaussian: Float32Array) -> Float32Array:
    """Convert Gaussian values (M, 3) to colours (M, 3) with the exemplar's distribution."""
    from pipeline.painting.tiling.layout import TABLE_REACH, TABLE_SIZE

    table_index = np.clip((gaussian + TABLE_REACH) * ((TABLE_SIZE - 1) / (2 * TABLE_REACH)), 0, TABLE_SIZE - 1.001)
    low = table_index.astype(np.int64)
    share = (table_index - low).astype(np.float32)
    components = np.stack(
        [
            exemplar.table[c][low[:, c]] * (1 - share[:, c]) + exemplar.table[c][low[:, c] + 1] * share[:, c]
            for c in range(3)
        ],
        axis=1,
    )
    result: Float32Array = np.clip(components @ exemplar.axes + exemplar.mean, 0, 1).astype(np.float32)
    return result
