"""Measures ambient occlusion: the share of a uniform sky that each point of the surface sees past the mesh itself.

The mesh is drawn from many directions all around. A point sees a direction if nothing hides it in that picture. Uses no
random numbers and no estimates. M points, V vertices, F faces, D directions.
"""

# mypy: disallow-untyped-calls=False
# Compiled functions take their types from their arguments.

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.jit import njit, prange
from pipeline.raster.camera import orbit
from pipeline.raster.rasterise import rasterise

# Number of directions all around, of which a point of a plane sees half, and side of their pictures in pixels.
DIRECTIONS, SIDE = 64, 256
# Number of directions that are drawn at a time. Bounds memory.
_BATCH = 16
# Distance of the cameras in radii. Their rays are almost parallel.
_DISTANCE = 40.0
# Below this cosine to a face, its own depth cannot be distinguished from a neighbour's.
_LEAST_COSINE, _STEEPEST = 0.1, 6.0
_GOLDEN = math.pi * (3 - math.sqrt(5))


def measure_occlusion(
    vertices: NDArray[np.floating],
    faces: NDArray[np.int64],
    points: NDArray[np.floating],
    flat: NDArray[np.floating],
    smooth: NDArray[np.floating],
    *,
    directions: int = DIRECTIONS,
    side: int = SIDE,
) -> NDArray[np.float32]:
    """The share of the sky that points of a mesh see, (M,) float32: 1 in the open, 0 in a closed cave.

    Args:
        vertices: (V, 3) float64, faces: (F, 3). points: (M, 3) on its surface.
        flat, smooth: (M, 3) unit normals of the face, and for shading: directions are weighted by their cosine to it.
        directions, side: number of pictures, and their side in pixels.
    """
    positions = np.asarray(vertices, np.float64)
    centre = (positions.min(axis=0) + positions.max(axis=0)) / 2
    positions = positions - centre
    radius = float(np.linalg.norm(positions, axis=1).max())
    if radius <= 0 or len(points) == 0:
        return np.ones(len(points), np.float32)
    positions = positions / radius
    centred = np.ascontiguousarray((np.asarray(points, np.float64) - centre) / radius, np.float32)
    arrays = centred, np.ascontiguousarray(flat, np.float32), np.ascontiguousarray(smooth, np.float32)
    height = 1 - 2 * (np.arange(directions) + 0.5) / directions
    cameras = orbit(
        np.arccos(height),
        _GOLDEN * np.arange(directions),
        _DISTANCE,
        2 * math.asin(1.02 / _DISTANCE),
        near=_DISTANCE / 2,
        far=2 * _DISTANCE,
    )
    visible_sky, total_sky = np.zeros(len(centred), np.float32), np.zeros(len(centred), np.float32)
    add: Any = _add_directions
    for start in range(0, directions, _BATCH):
        some = cameras[start : start + _BATCH]
        depth = rasterise(positions, faces, some, side, side).depth
        towards = (some.eye / np.linalg.norm(some.eye, axis=1, keepdims=True)).astype(np.float32)
        add(
            *arrays,
            depth,
            some.clip_from_world[:, (0, 1, 3)].astype(np.float32),
            towards,
            np.float32(2.04 / side),
            visible_sky,
            total_sky,
        )
    return np.where(total_sky > 0, visible_sky / np.maximum(total_sky, 1e-12), 1).astype(np.float32)


@njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _add_directions(points, flat, smooth, depth, matrix, towards, pixel, visible_sky, total_sky):  # type: ignore[no-untyped-def]
    """Adds to each point (M,) the visible sky and the whole sky. matrix: (D, 3, 4) to x, y and w of clip space."""
    side = depth.shape[1]
    for m in prange(len(points)):
        x, y, z = points[m, 0], points[m, 1], points[m, 2]
        for d in range(len(depth)):
            cosine = flat[m, 0] * towards[d, 0] + flat[m, 1] * towards[d, 1] + flat[m, 2] * towards[d, 2]
            weight = smooth[m, 0] * towards[d, 0] + smooth[m, 1] * towards[d, 1] + smooth[m, 2] * towards[d, 2]
            if cosine < _LEAST_COSINE or weight <= 0:
                continue
            total_sky[m] += weight
            w = matrix[d, 2, 0] * x + matrix[d, 2, 1] * y + matrix[d, 2, 2] * z + matrix[d, 2, 3]
            u = (matrix[d, 0, 0] * x + matrix[d, 0, 1] * y + matrix[d, 0, 2] * z + matrix[d, 0, 3]) / w
            v = (matrix[d, 1, 0] * x + matrix[d, 1, 1] * y + matrix[d, 1, 2] * z + matrix[d, 1, 3]) / w
            column, row = (u + 1) * 0.5 * side - 0.5, (1 - v) * 0.5 * side - 0.5
            left, above = math.floor(column), math.floor(row)
            fx, fy = column - left, row - above
            slope = min(math.sqrt(max(1 - cosine * cosine, 0.0)) / cosine, _STEEPEST)
            near = w - pixel * (1 + slope)
            open_sky = 0.0
            for corner in range(4):
                i, j = int(left) + corner % 2, int(above) + corner // 2
                share = (fx if corner % 2 else 1 - fx) * (fy if corner // 2 else 1 - fy)
                if i < 0 or j < 0 or i >= side or j >= side or depth[d, j, i] >= near:
                    open_sky += share
            visible_sky[m] += weight * open_sky
