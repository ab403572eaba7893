"""Connected parts of a mesh: which way each faces, and how parts that lie far apart are gathered to be painted.

A part is a set of faces that are connected through shared vertices. V vertices, F faces, P parts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.mesh import face_normals

Floats = NDArray[np.float64]

# An open part whose faces enclose less than this share of what they could, seen from its middle, has no inside.
_LEAST_ENCLOSED = 0.1
# Parts no farther apart than this many radii of the larger one belong together.
_NEAR = 0.5
# Gathered groups stand this many of their own radii apart, so that views at a slant see their sides.
_APART = 1.0
# Parts are gathered where that makes the object smaller than this share of its size: views of an object that fills
# less than that of itself would show its parts at less than half the detail.
_WORTHWHILE = 0.5
# More parts than this are grouped by the cells of a grid first: pairs of parts are compared, and their number is the
# square.
_MOST_PARTS = 2000
_GRIDS = (64, 32, 16, 8)


def part_labels(faces: NDArray[np.integer], vertex_count: int) -> NDArray[np.int64]:
    """(F,) the part of each face, numbered from 0."""
    faces = np.asarray(faces, np.int64)
    a, b = np.concatenate([faces[:, 0], faces[:, 1]]), np.concatenate([faces[:, 1], faces[:, 2]])
    graph = sparse.coo_array((np.ones(len(a), np.int8), (a, b)), (vertex_count, vertex_count))
    _, label = connected_components(graph, directed=False)
    _, numbered = np.unique(label[faces[:, 0]], return_inverse=True)
    return np.asarray(numbered.reshape(-1), np.int64)


def outward_signs(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.int8]:
    """(F,) 1 where a face's corners turn counter-clockwise seen from outside its part, -1 where the part is inside out.

    A closed part is inside out where its volume is negative, unless another closed part surrounds it: then it is the
    wall of a cavity. An open part is where its faces look clearly towards its middle. Parts without an inside keep
    their faces as they are.
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
    turned = np.where(closed, volume < -1e-9 * most, volume < -_LEAST_ENCLOSED * most)
    outer = np.flatnonzero(closed & ~turned)
    if turned.any() and len(outer):
        lows, highs = _boxes(points, faces, part, count)
        for number in np.flatnonzero(turned & closed):
            around = (lows[outer] <= lows[number]).all(axis=1) & (highs[outer] >= highs[number]).all(axis=1)
            turned[number] = not around.any()
    return np.where(turned, -1, 1).astype(np.int8)[part]


def _closed_parts(faces: NDArray[np.integer], part: NDArray[np.int64], vertex_count: int) -> NDArray[np.bool_]:
    """(P,) whether as many faces run along each edge of a part one way as the other."""
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    key = np.minimum(start, end) * vertex_count + np.maximum(start, end)
    _, first, edge = np.unique(key, return_index=True, return_inverse=True)
    open_edges = np.bincount(edge.reshape(-1), np.sign(end - start)) != 0
    closed = np.ones(int(part.max()) + 1, bool)
    closed[part[first[open_edges] // 3]] = False
    return closed


def _boxes(points: Floats, faces: NDArray[np.integer], part: NDArray[np.int64], count: int) -> tuple[Floats, Floats]:
    """(P, 3) lowest and (P, 3) highest corners of the parts' bounding boxes."""
    low, high = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
    corners = points[faces]
    np.minimum.at(low, part, corners.min(axis=1))
    np.maximum.at(high, part, corners.max(axis=1))
    return low, high


def gathered(vertices: NDArray[np.floating], faces: NDArray[np.integer], radius: float) -> Floats | None:
    """(V, 3) vertices with groups of parts that lie far apart moved next to each other; None where they do not.

    Each group moves as one and keeps its shape, its direction and, among all, its relative size. The result is centred
    at the origin and its farthest vertex lies at ``radius``. Groups stand in rows, upright, in the plane that faces +Z.
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
    moved = points + (_rows(high - low) - (low + high) / 2)[of_vertex]
    moved -= (moved.min(axis=0) + moved.max(axis=0)) / 2
    farthest = float(np.linalg.norm(moved, axis=1).max())
    before = float(np.linalg.norm(points - (low.min(axis=0) + high.max(axis=0)) / 2, axis=1).max())
    return moved * (radius / farthest) if farthest < _WORTHWHILE * before else None


def _groups(low: Floats, high: Floats) -> NDArray[np.int64]:
    """(P,) groups of parts, given by their boxes (P, 3), that lie near each other or reach into each other."""
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
            # How far the one begins behind the other's end; whichever way round, it must not be far.
            gap = lows[:, axis][:, None] - highs[:, axis][None, :]
            near &= np.maximum(gap, gap.T) <= allowed
        joined, label = connected_components(sparse.csr_array(near), directed=False)
        group = label.astype(np.int64)[group]
        if joined == count:
            return group


def _by_cells(low: Floats, high: Floats) -> NDArray[np.int64]:
    """(P,) each part a group of its own; of too many parts those whose middles share a cell of a grid are one."""
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


def _rows(extents: Floats) -> Floats:
    """(G, 3) middles for groups of the given ``extents`` (G, 3): rows along +X, one above the other, highest first."""
    apart = _APART * np.linalg.norm(extents, axis=1) / 2
    wide, high = extents[:, 0] + apart, extents[:, 1] + apart
    longest = max(float(wide.max()), float(np.sqrt((wide * high).sum())))
    places = np.zeros_like(extents)
    x = y = row = 0.0
    for number in np.argsort(-high, kind="stable"):
        if x > 0 and x + wide[number] > 1.001 * longest:
            x, y, row = 0.0, y - row, 0.0
        row = max(row, float(high[number]))
        places[number] = (x + wide[number] / 2, y - high[number] / 2, 0.0)
        x += float(wide[number])
    return places
