"""Connected parts of a mesh: their orientation, and a layout that moves distant parts together for painting.

A part is a set of faces that are connected through shared vertices. V vertices, F faces, P parts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from pipeline.core.arrays import Float64Array
from pipeline.mesh.mesh import face_normals

# An open part has no inside if its signed volume about its middle is below this share of the unsigned one.
_LEAST_ENCLOSED = 0.1
# Parts belong together if their gap is at most this many radii of the larger one.
_NEAR = 0.5
# The gap between gathered groups in radii, so that oblique views see their sides.
_APART = 1.0
# Gather parts only if that shrinks the object below this share of its size, which doubles the detail in views.
_WORTHWHILE = 0.5
# Grids group more parts than this first: the comparison of pairs is quadratic.
_MOST_PARTS = 2000
_GRIDS = (64, 32, 16, 8)


def part_labels(faces: NDArray[np.integer], vertex_count: int) -> NDArray[np.int64]:
    """(F,) int64 part of each face, numbered from 0."""
    faces = np.asarray(faces, np.int64)
    a, b = np.concatenate([faces[:, 0], faces[:, 1]]), np.concatenate([faces[:, 1], faces[:, 2]])
    graph = sparse.coo_array((np.ones(len(a), np.int8), (a, b)), (vertex_count, vertex_count))
    _, label = connected_components(graph, directed=False)
    _, numbered = np.unique(label[faces[:, 0]], return_inverse=True)
    return np.asarray(numbered.reshape(-1), np.int64)


def outward_signs(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.int8]:
    """(F,) int8: 1 if a face is counter-clockwise seen from outside its part, -1 if the part is inside out.

    A closed part is inside out if its volume is negative, unless another closed part surrounds it: then it is the
    wall of a cavity. An open part is inside out if its faces clearly face its middle. Parts without an inside get 1.
    """
    faces = np.asarray(faces, np.int64)
    low = np.asarray(vertices, np.float64).min(axis=0)
    extent = float((np.asarray(vertices, np.float64).max(axis=0) - low).max()) or 1.0
    points = (np.asarray(vertices, np.float64) - low) / extent
    part = part_labels(faces, len(points))
    count = int(part.max()) + 1
    closed = _closed_parts(faces, part, len(points))
    normals, centres = face_normals(points, faces), points[faces].mean(axis=1)
    area = np.linalg.norm(normals, axis=1)
    total = np.maximum(np.bincount(part, area, count), 1e-300)
    middle = np.stack([np.bincount(part, area * centres[:, axis], count) / total for axis in range(3)], axis=1)
    towards = np.einsum("fi,fi->f", normals, centres - middle[part])
    volume, most = np.bincount(part, towards, count), np.bincount(part, np.abs(towards), count)
    inside_out = np.where(closed, volume < -1e-9 * most, volume < -_LEAST_ENCLOSED * most)
    outer = np.flatnonzero(closed & ~inside_out)
    if inside_out.any() and len(outer):
        lows, highs = _boxes(points, faces, part, count)
        for number in np.flatnonzero(inside_out & closed):
            encloses = (lows[outer] <= lows[number]).all(axis=1) & (highs[outer] >= highs[number]).all(axis=1)
            inside_out[number] = not encloses.any()
    return np.where(inside_out, -1, 1).astype(np.int8)[part]


def _closed_parts(faces: NDArray[np.integer], part: NDArray[np.int64], vertex_count: int) -> NDArray[np.bool_]:
    """(P,) bool: whether both directions of each edge of a part occur equally often."""
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    key = np.minimum(start, end) * vertex_count + np.maximum(start, end)
    _, first, edge = np.unique(key, return_index=True, return_inverse=True)
    open_edges = np.bincount(edge.reshape(-1), np.sign(end - start)) != 0
    closed = np.ones(int(part.max()) + 1, bool)
    closed[part[first[open_edges] // 3]] = False
    return closed


def _boxes(
    points: Float64Array, faces: NDArray[np.integer], part: NDArray[np.int64], count: int
) -> tuple[Float64Array, Float64Array]:
    """(P, 3) lowest and (P, 3) highest corners of the parts' bounding boxes."""
    low, high = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
    corners = points[faces]
    np.minimum.at(low, part, corners.min(axis=1))
    np.maximum.at(high, part, corners.max(axis=1))
    return low, high


def gathered(vertices: NDArray[np.floating], faces: NDArray[np.integer], radius: float) -> Float64Array | None:
    """Moves distant groups of parts next to each other. Returns (V, 3) vertices, or None if that gains little.

    Each group keeps its shape, orientation and relative size. The result is centred at the origin, and its farthest
    vertex lies at ``radius``. The groups stand upright in rows, in the plane that faces +Z.
    """
    points, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    part = part_labels(faces, len(points))
    count = int(part.max()) + 1
    if count == 1:
        return None
    group = _groups(*_boxes(points, faces, part, count))[part]
    count = int(group.max()) + 1
    if count == 1:
        return None
    low, high = _boxes(points, faces, group, count)
    of_vertex = np.zeros(len(points), np.int64)
    of_vertex[faces] = group[:, None]
    shifted = points + (_rows(high - low) - (low + high) / 2)[of_vertex]
    shifted -= (shifted.min(axis=0) + shifted.max(axis=0)) / 2
    farthest = float(np.linalg.norm(shifted, axis=1).max())
    before = float(np.linalg.norm(points - (low.min(axis=0) + high.max(axis=0)) / 2, axis=1).max())
    return shifted * (radius / farthest) if farthest < _WORTHWHILE * before else None


def _groups(low: Float64Array, high: Float64Array) -> NDArray[np.int64]:
    """(P,) groups of parts whose boxes (``low`` and ``high``, (P, 3)) overlap or lie near each other."""
    group = _by_cells(low, high)
    while True:
        count = int(group.max()) + 1
        lows, highs = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
        np.minimum.at(lows, group, low)
        np.maximum.at(highs, group, high)
        radius = np.linalg.norm(highs - lows, axis=1) / 2
        near = np.ones((count, count), bool)
        allowed = _NEAR * np.maximum(radius[:, None], radius[None, :])
        for axis in range(3):
            # The gap between two boxes along the axis; negative if they overlap.
            gap = lows[:, axis][:, None] - highs[:, axis][None, :]
            near &= np.maximum(gap, gap.T) <= allowed
        joined, label = connected_components(sparse.csr_array(near), directed=False)
        group = label.astype(np.int64)[group]
        if joined == count:
            result: NDArray[np.int64] = group
            return result


def _by_cells(low: Float64Array, high: Float64Array) -> NDArray[np.int64]:
    """(P,) initial groups: one per part, or for too many parts one per cell of a grid."""
    group = np.arange(len(low))
    middle = (low + high) / 2
    corner = middle.min(axis=0)
    extent = float((middle.max(axis=0) - corner).max()) or 1.0
    for side in _GRIDS:
        if int(group.max()) < _MOST_PARTS:
            break
        cell = np.minimum((middle - corner) / extent * side, side - 1).astype(np.int64)
        _, group = np.unique(cell @ np.array([side * side, side, 1]), return_inverse=True)
        group = group.reshape(-1)
    return group


def _rows(extents: Float64Array) -> Float64Array:
    """(G, 3) centres for groups of ``extents`` (G, 3): in rows along +X, one below the other, highest first."""
    apart = _APART * np.linalg.norm(extents, axis=1) / 2
    wide, high = extents[:, 0] + apart, extents[:, 1] + apart
    longest = max(float(wide.max()), float(np.sqrt((wide * high).sum())))
    centres = np.zeros_like(extents)
    x = y = row = 0.0
    for number in np.argsort(-high, kind="stable"):
        if x > 0 and x + wide[number] > 1.001 * longest:
            x, y, row = 0.0, y - row, 0.0
        row = max(row, float(high[number]))
        centres[number] = (x + wide[number] / 2, y - high[number] / 2, 0.0)
        x += float(wide[number])
    return centres
