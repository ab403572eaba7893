"""Triangulates polygons of any shape: concave, with bridged holes, with repeated corners.

The signed triangles of a triangulation without new vertices cover each point as often as the outline winds around it.
So it covers a polygon exactly if no triangle is flipped, which is when the sum of unsigned areas is minimal. Small
polygons get the triangulation of least area by dynamic programming (Barequet and Sharir, Filling Gaps in the Boundary
of a Polyhedron, 1995), which needs no projection and no special cases. Large ones are cut by ear clipping
(mapbox_earcut), whose result is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError

# Polygons of at most this many corners get the triangulation of least area at once. Its cost is cubic in the corners.
LARGEST_LEAST_AREA = 64
# Larger polygons get it only if ear clipping folds them, and none with more corners than this.
LARGEST_FOLDED = 512
# Limit on candidate triangles in all polygons of a file: some ten seconds. Later polygons are cut by ear clipping.
LARGEST_WORK = 60_000_000
# Limit on the steps of ear clipping in a file: a polygon of n corners takes n^2 / 20 + 3000. Some fifteen seconds at
# worst. Later polygons are cut into fans, with a warning.
LARGEST_CLIPPED_WORK = 60_000_000
# Costs as shares of a polygon's squared extent: of a triangle without area (it is dropped later and leaves its
# neighbour's edge open), and of a triangle's squared edges, so that among equal areas the rounder triangles win.
_FLAT_COST = 1e-5
_EDGE_COST = 1e-7
# A triangle is flat when twice its area is below this part of the square of its longest edge.
_FLAT = 1e-9


@dataclass
class _Budget:
    """The remaining work budget of a file, and the number of polygons beyond it."""

    exact: int
    clipped: int
    fanned: int = 0


def triangulate(
    positions: NDArray[np.float64], corners: NDArray[np.int64], counts: NDArray[np.int64], *, name: str, max_faces: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Triangulates polygons, in their order.

    positions (P, 3); corners (C,) vertex of each polygon corner, polygon after polygon; counts (N,) corners of each
    polygon. Returns ((F, 3) int64 indices into ``corners``, a warning for each kind of dropped or failed polygon). Cuts
    quads along the diagonal whose halves face one way (the shorter one if both do), fans convex polygons, and covers
    others without folds. Raises MeshError for a missing vertex and for more than ``max_faces`` triangles.
    """
    counts = np.asarray(counts, np.int64)
    pieces = np.maximum(counts - 2, 0)
    total = int(pieces.sum())
    if total > max_faces:
        raise MeshError(f"{name}: {total} faces are more than max_faces = {max_faces}")
    if len(corners) and (corners.min() < 0 or corners.max() >= len(positions)):
        wrong = int(corners.max()) if corners.max() >= len(positions) else int(corners.min())
        raise MeshError(
            f"{name}: a face names vertex {wrong} (counting from 0), but there are only {len(positions)}: "
            "the index is out of range"
        )
    starts = np.cumsum(counts) - counts
    offsets = np.cumsum(pieces) - pieces
    faces = np.empty((total, 3), np.int64)
    budget = _Budget(LARGEST_WORK, LARGEST_CLIPPED_WORK)
    for size in np.unique(counts[counts >= 3]):
        which = np.flatnonzero(counts == size)
        index = starts[which][:, None] + np.arange(size)
        with np.errstate(all="ignore"):
            local = _cut(np.asarray(positions, np.float64)[corners[index]], int(size), budget)
        faces[offsets[which][:, None] + np.arange(size - 2)] = index[np.arange(len(which))[:, None, None], local]
    notes = []
    if lacking := int(np.count_nonzero(counts < 3)):
        notes.append(f"{lacking} faces with fewer than three corners were dropped")
    if budget.fanned:
        notes.append(
            f"{budget.fanned} polygons have too many corners, or cross themselves, and may be cut wrongly: "
            "triangulate them in the program that made them"
        )
    return faces, notes


def _cut(points: NDArray[np.float64], size: int, budget: _Budget) -> NDArray[np.int64]:
    """(n, size - 2, 3) corners of the triangles of n polygons (n, size, 3)."""
    if size == 3:
        return np.broadcast_to(np.arange(3), (len(points), 1, 3))
    if size == 4:
        return _cut_quads(points)
    fan = _fan(size)
    result = np.broadcast_to(fan, (len(points), size - 2, 3)).copy()
    rows = np.flatnonzero(~_fans_fit(points, fan) & np.isfinite(points).all(axis=(1, 2)))
    each = size**3 // 6
    if size <= LARGEST_LEAST_AREA:
        exact = rows[: budget.exact // each]
        if len(exact):
            result[exact] = least_area(points[exact])
            budget.exact -= each * len(exact)
        rows = rows[len(exact) :]
    steps = size**2 // 20 + 3000
    for row in rows:
        cut = None
        if budget.clipped >= steps:
            budget.clipped -= steps
            cut = _clip_ears(points[row])
        if cut is None and size <= LARGEST_FOLDED and budget.exact >= each:
            budget.exact -= each
            cut = least_area(points[row : row + 1])[0]
        if cut is None:
            budget.fanned += 1
        else:
            result[row] = cut
    return result


def _fan(size: int) -> NDArray[np.int64]:
    return np.stack([np.zeros(size - 2, np.int64), np.arange(1, size - 1), np.arange(2, size)], axis=1)


def _cut_quads(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n, 2, 3) corners of the two halves of each quad (n, 4, 3)."""
    side = points[:, [1, 2, 3, 0]] - points
    # Normal at each corner: the cut through corners 0 and 2 is good when 1 and 3 turn the same way.
    turn = np.cross(np.roll(side, 1, axis=1), side)
    through02 = np.einsum("ni,ni->n", turn[:, 1], turn[:, 3])
    through13 = np.einsum("ni,ni->n", turn[:, 0], turn[:, 2])
    length02 = np.linalg.norm(points[:, 2] - points[:, 0], axis=1)
    length13 = np.linalg.norm(points[:, 3] - points[:, 1], axis=1)
    # A slight preference for the first diagonal, so that rounding does not decide for parallelograms.
    other = np.where((through02 > 0) == (through13 > 0), length13 < length02 * (1 - 1e-6), through13 > through02)
    return np.where(other[:, None, None], [[0, 1, 3], [1, 2, 3]], [[0, 1, 2], [0, 2, 3]])


def _fans_fit(points: NDArray[np.float64], fan: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) bool: whether the ``fan`` covers a polygon of (n, size, 3): it is convex and no triangle is flat."""
    side = np.roll(points, -1, axis=1) - points
    turn = np.cross(np.roll(side, 1, axis=1), side)
    normal = np.cross(points - points[:, :1], np.roll(points, -1, axis=1) - points[:, :1]).sum(axis=1)
    convex = (np.einsum("nsi,ni->ns", turn, normal) >= 0).all(axis=1)
    spoke = points[:, 1:] - points[:, :1]
    outer = side[:, 1:-1]
    doubled = np.cross(spoke[:, :-1], spoke[:, 1:])
    squares = [np.einsum("nsi,nsi->ns", edge, edge) for edge in (spoke[:, :-1], spoke[:, 1:], outer)]
    facing = np.einsum("nsi,ni->ns", doubled, normal)
    longest = np.maximum.reduce(squares)
    fits: NDArray[np.bool_] = convex & (facing > _FLAT * longest * np.linalg.norm(normal, axis=1)[:, None]).all(axis=1)
    return fits


def least_area(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n, size - 2, 3) triangulations of n polygons (n, size, 3) with the least sum of areas."""
    count, size = points.shape[:2]
    result = np.empty((count, size - 2, 3), np.int64)
    step = max(1, 2_000_000 // size**2)
    for first in range(0, count, step):
        result[first : first + step] = _least_area(points[first : first + step])
    return result


def _least_area(points: NDArray[np.float64]) -> NDArray[np.int64]:
    count, size = points.shape[:2]
    points = points - points.mean(axis=1, keepdims=True)
    extent = np.linalg.norm(points, axis=2).max(axis=1)
    points = points / np.where(extent > 0, extent, 1.0)[:, None, None]
    squared = np.square(points[:, :, None] - points[:, None]).sum(axis=3)  # (n, size, size) edges
    cost = np.zeros((count, size, size))
    middle = np.zeros((count, size, size), np.int64)
    for gap in range(2, size):
        low = np.arange(size - gap)[:, None]
        high, between = low + gap, low + np.arange(1, gap)  # (s, 1), (s, gap - 1)
        along = points[:, between] - points[:, low]
        across = points[:, high] - points[:, low]
        doubled = np.linalg.norm(np.cross(along, across), axis=3)
        edges = np.stack([squared[:, low, between], squared[:, between, high],
                          np.broadcast_to(squared[:, low, high], doubled.shape)])  # fmt: skip
        flat = doubled <= _FLAT * edges.max(axis=0)
        total = 0.5 * doubled + _EDGE_COST * edges.sum(axis=0) + _FLAT_COST * flat
        total = total + cost[:, low, between] + cost[:, between, high]
        best = total.argmin(axis=2)
        cost[:, low[:, 0], high[:, 0]] = np.take_along_axis(total, best[:, :, None], 2)[:, :, 0]
        middle[:, low[:, 0], high[:, 0]] = best + low[:, 0] + 1
    return _read_back(middle)


def _read_back(middle: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, size - 2, 3) triangles, given (n, size, size) the third corner of the triangle on each chord."""
    count, size = middle.shape[:2]
    rows = np.arange(count)
    result = np.empty((count, size - 2, 3), np.int64)
    # Handle all polygons at once. Each has a stack of chords that still need a triangle; the depths differ.
    low = np.zeros((count, size), np.int64)
    high = np.full((count, size), size - 1, np.int64)
    depth = np.ones(count, np.int64)
    for position in range(size - 2):
        depth -= 1
        a, c = low[rows, depth], high[rows, depth]
        b = middle[rows, a, c]
        result[:, position] = np.stack([a, b, c], axis=1)
        for start, end in ((b, c), (a, b)):
            has = end - start > 1
            low[rows[has], depth[has]], high[rows[has], depth[has]] = start[has], end[has]
            depth += has
    return result


def _clip_ears(points: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """(size - 2, 3) triangles of one polygon (size, 3), projected along its normal; None if they would fold."""
    import mapbox_earcut

    size = len(points)
    flat = _flattened(points)
    if flat is None:
        return None
    before, after = flat - np.roll(flat, 1, axis=0), np.roll(flat, -1, axis=0) - flat
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    # Corners on a straight edge are removed here and put back below. Ear clipping would lose them, and the edge of a
    # neighbour that has them would stay open.
    straight = (np.abs(turn) < 1e-12) & ((before * after).sum(axis=1) >= 0)
    ring = np.flatnonzero(~straight)
    if len(ring) < 3:
        return None
    cut = mapbox_earcut.triangulate_float64(np.ascontiguousarray(flat[ring]), np.array([len(ring)], np.uint32))
    # In the order of the outline, which determines the winding of each triangle.
    triangles = np.sort(ring[np.asarray(cut, np.int64).reshape(-1, 3)], axis=1)
    doubled = _doubled(flat, triangles)
    signed_area = float((flat[:, 0] * np.roll(flat[:, 1], -1) - flat[:, 1] * np.roll(flat[:, 0], -1)).sum())
    if not len(triangles) or doubled.min() < -1e-12 or abs(doubled.sum() - signed_area) > 1e-9 * max(signed_area, 1e-3):
        return None
    complete = _with_straight(triangles, ring, size)
    if len(complete) > size - 2:
        return None
    # Repeated corners leave fewer triangles. Fill up with triangles without area, which are dropped later.
    return np.concatenate([complete, np.zeros((size - 2 - len(complete), 3), np.int64)])


def _flattened(points: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(size, 2) the polygon projected so that it is counter-clockwise, of extent 1; None if it has no plane."""
    points = points - points.mean(axis=0)
    points = points / max(float(np.abs(points).max()), 1e-300)
    normal = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)
    length = float(np.linalg.norm(normal))
    if not np.isfinite(length) or length < 1e-12:
        return None
    normal /= length
    across = np.cross(normal, np.eye(3)[int(np.argmin(np.abs(normal)))])
    across /= np.linalg.norm(across)
    return np.stack([points @ across, points @ np.cross(normal, across)], axis=1)


def _doubled(flat: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.float64]:
    a, b, c = (flat[triangles[:, i]] for i in range(3))
    return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])


def _with_straight(triangles: NDArray[np.int64], ring: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Returns ``triangles``, split at edges from which corners between two neighbours of ``ring`` were removed."""
    ends = {int(a): int(c) for a, c in zip(ring, np.roll(ring, -1), strict=True) if (c - a) % size > 1}
    result = []
    for triangle in triangles.tolist():
        pending = [tuple(triangle)]
        for turn in range(3):
            a, c, far = triangle[turn], triangle[(turn + 1) % 3], triangle[(turn + 2) % 3]
            if ends.get(a) != c:
                continue
            del ends[a]
            # The piece that still has this edge, with its own far corner.
            at = next(i for i, piece in enumerate(pending) if a in piece and c in piece)
            piece = pending.pop(at)
            far = next(corner for corner in piece if corner not in (a, c))
            line = [(a + i) % size for i in range((c - a) % size + 1)]
            pending += [(line[i], line[i + 1], far) for i in range(len(line) - 1)]
        result += pending
    return np.array(result, np.int64).reshape(-1, 3)
