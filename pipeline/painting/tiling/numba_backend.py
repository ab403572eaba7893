"""Compiled lookups of an exemplar on a surface. ``numpy_backend`` is its plain twin.

Points are independent, so the result does not depend on the number of threads.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# Compiled functions take their types from their arguments.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.jit import njit, prange
from pipeline.painting.tiling.numpy_backend import GRID, LEAST_WEIGHT, POWER

if TYPE_CHECKING:
    from pipeline.core.arrays import Float32Array
    from pipeline.painting.tiling.layout import Exemplar, Projectors

_MASK = 0xFFFFFFFF


def blend(
    exemplar: Exemplar, directions: Projectors, points: Float32Array, normals: Float32Array, seed: np.uint32
) -> NDArray[np.float32]:
    """As ``numpy_backend.blend``."""
    from pipeline.painting.tiling.layout import TABLE_REACH

    colours = np.empty((len(points), 3), np.float32)
    axes = (directions.normal, directions.right, directions.down, directions.offset, directions.sharpness)
    hexagonal = exemplar.layout == "hexagonal"
    shade: Any = _shade
    shade(exemplar.values, hexagonal, *axes, points, normals, np.uint64(seed), colours)
    if hexagonal:
        to_rgb: Any = _to_rgb
        to_rgb(colours, exemplar.table, exemplar.axes, exemplar.mean, TABLE_REACH)
    return colours


def blend_maps(
    values: Float32Array,
    hexagonal: bool,
    directions: Projectors,
    points: Float32Array,
    normals: Float32Array,
    seed: np.uint32,
) -> NDArray[np.float32]:
    """As ``numpy_backend.blend_maps``."""
    blended = np.empty((len(points), values.shape[2] + 1), np.float32)
    axes = (directions.normal, directions.right, directions.down, directions.offset, directions.sharpness)
    tile: Any = _tile_maps
    tile(values, hexagonal, *axes, points, normals, np.uint64(seed), blended)
    return blended


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _mix(key):
    key ^= key >> np.uint64(16)
    key = (key * np.uint64(0x85EBCA6B)) & np.uint64(_MASK)
    key ^= key >> np.uint64(13)
    key = (key * np.uint64(0xC2B2AE35)) & np.uint64(_MASK)
    return key ^ (key >> np.uint64(16))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _add_bilinear(values, right, down, weight, out):
    """out (C,) += weight x values (H, W, C), which wrap around, at coordinates in tiles."""
    height, width = values.shape[:2]
    x, y = right * width - 0.5, down * height - 0.5
    column, row = math.floor(x), math.floor(y)
    fx, fy = x - column, y - row
    left, above = int(column) % width, int(row) % height
    beside, below = (left + 1) % width, (above + 1) % height
    for c in range(len(out)):
        upper = values[above, left, c] * (1 - fx) + values[above, beside, c] * fx
        lower = values[below, left, c] * (1 - fx) + values[below, beside, c] * fx
        out[c] += weight * (upper * (1 - fy) + lower * fy)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _add_hexagonal(values, right, down, seed, weight, out):
    """out (C,) += weight x the variance-preserving mean of the lookups at the three corners around a point."""
    x, y = GRID * (right - down * 0.57735027), GRID * down * 1.15470054
    column, row = math.floor(x), math.floor(y)
    fx, fy = x - column, y - row
    upper = 0 if fx + fy < 1 else 1
    shares = np.empty(3)
    shares[0] = (fx + fy - 1 if upper else 1 - fx - fy) ** POWER
    shares[1] = (1 - fy if upper else fy) ** POWER
    shares[2] = (1 - fx if upper else fx) ** POWER
    norm = weight / math.sqrt(shares[0] ** 2 + shares[1] ** 2 + shares[2] ** 2)
    for corner in range(3):
        i = int(column) + (upper if corner < 2 else 1 - upper)
        j = int(row) + (upper if corner != 1 else 1 - upper)
        key = (np.uint64(i & _MASK) * np.uint64(0x9E3779B1)) & np.uint64(_MASK)
        key ^= (np.uint64(j & _MASK) * np.uint64(0x85EBCA77)) & np.uint64(_MASK)
        first = _mix(key ^ seed)
        second = _mix((first + np.uint64(0x9E3779B9)) & np.uint64(_MASK))
        shift = (first >> np.uint64(8)) * 2.0**-24, (second >> np.uint64(8)) * 2.0**-24
        _add_bilinear(values, right + shift[0], down + shift[1], norm * shares[corner], out)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _weigh(hexagonal, normal, sharpness, towards, weights):
    """Sets weights (D,) of the directions for a point's normal (3,); returns the factor that normalises them."""
    directions = len(normal)
    most = -2.0
    for d in range(directions):
        weights[d] = towards[0] * normal[d, 0] + towards[1] * normal[d, 1] + towards[2] * normal[d, 2]
        most = max(most, weights[d])
    total, squares = 0.0, 0.0
    for d in range(directions):
        share = math.exp(sharpness * (weights[d] - most))
        weights[d] = share if share >= LEAST_WEIGHT else 0.0
        total += weights[d]
        squares += weights[d] ** 2
    return 1 / math.sqrt(squares) if hexagonal else 1 / total


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _project(point, right, down, offset):
    """Coordinates (u, v) of a point (3,) in one direction, in tiles."""
    u, v = float(offset[0]), float(offset[1])
    for axis in range(3):
        u += point[axis] * right[axis]
        v += point[axis] * down[axis]
    return u, v


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _shade(values, hexagonal, normal, right, down, offset, sharpness, points, normals, seed, colours):
    """colours (M, 3) = the blended lookups, still Gaussian where ``hexagonal``."""
    directions = len(normal)
    for m in prange(len(points)):
        weights = np.empty(directions)
        scale = _weigh(hexagonal, normal, sharpness, normals[m], weights)
        out = np.zeros(3)
        for d in range(directions):
            if weights[d] == 0:
                continue
            u, v = _project(points[m], right[d], down[d], offset[d])
            if hexagonal:
                _add_hexagonal(values, u, v, seed, weights[d] * scale, out)
            else:
                _add_bilinear(values, u, v, weights[d] * scale, out)
        for c in range(3):
            colours[m, c] = out[c] if hexagonal else min(max(out[c], 0.0), 1.0)


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _tile_maps(values, hexagonal, normal, right, down, offset, sharpness, points, normals, seed, blended):
    """blended (M, K + 3) = the K scalar channels, and the gradient from the last two channels, slopes."""
    directions, channels = len(normal), values.shape[2]
    scalars = channels - 2
    for m in prange(len(points)):
        weights = np.empty(directions)
        scale = _weigh(hexagonal, normal, sharpness, normals[m], weights)
        total = np.zeros(scalars + 3)
        out = np.empty(channels)
        for d in range(directions):
            if weights[d] == 0:
                continue
            u, v = _project(points[m], right[d], down[d], offset[d])
            out[:] = 0.0
            if hexagonal:
                _add_hexagonal(values, u, v, seed, weights[d] * scale, out)
            else:
                _add_bilinear(values, u, v, weights[d] * scale, out)
            for c in range(scalars):
                total[c] += out[c]
            for axis in range(3):
                total[scalars + axis] += out[scalars] * right[d, axis] + out[scalars + 1] * down[d, axis]
        for c in range(scalars + 3):
            blended[m, c] = total[c]


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _to_rgb(colours, table, axes, mean, reach):
    """Replaces Gaussian values (M, 3) by the exemplar's colours."""
    last = table.shape[1] - 1
    for m in prange(len(colours)):
        components = np.empty(3)
        for c in range(3):
            table_index = min(max((colours[m, c] + reach) * (last / (2 * reach)), 0.0), last - 0.001)
            low = int(table_index)
            share = table_index - low
            components[c] = table[c, low] * (1 - share) + table[c, low + 1] * share
        for c in range(3):
            value = mean[c]
            for axis in range(3):
                value += components[axis] * axes[axis, c]
            colours[m, c] = min(max(value, 0.0), 1.0)
