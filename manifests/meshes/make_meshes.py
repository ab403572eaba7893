"""Models the example meshes of this folder; run it to write them again, with the same bytes.

    python manifests/meshes/make_meshes.py [FOLDER]

Two ways of modelling. *Solids* are signed distance functions (negative inside, arrays ``(N, 3) -> (N,)``) that
are polygonised by dual contouring, which keeps sharp edges; they have no texture coordinates. *Turned and swept*
shapes come with their own texture coordinates. Every mesh is closed and its faces are counter-clockwise seen
from outside. +Y is up and +Z the front, but for ``mushrooms.stl``, which is Z-up as STL files often are.
"""

from __future__ import annotations

import itertools
import math
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Solid = Callable[[Array], Array]


# ---------------------------------------------------------------------------------------- signed distances


def ball(p: Array, centre: ArrayLike, radii: ArrayLike) -> Array:
    """Sphere or, with three radii, an ellipsoid (approximate away from its surface)."""
    q = p - np.asarray(centre, float)
    radii = np.asarray(radii, float)
    near = np.linalg.norm(q / radii, axis=1)
    return near * (near - 1) / np.maximum(np.linalg.norm(q / radii**2, axis=1), 1e-9)


def limb(p: Array, start: ArrayLike, end: ArrayLike, first: float, last: float) -> Array:
    """A rod with round ends whose radius goes from ``first`` to ``last``."""
    start, axis = np.asarray(start, float), np.asarray(end, float) - np.asarray(start, float)
    t = np.clip((p - start) @ axis / (axis @ axis), 0, 1)
    return np.linalg.norm(p - start - t[:, None] * axis, axis=1) - (first + (last - first) * t)


def chain(p: Array, points: Sequence[ArrayLike], radii: Sequence[float], pieces: int = 4) -> Array:
    """Limbs along a smooth line through ``points``."""
    line = curve(np.column_stack([np.asarray(points, float), radii]), pieces)
    return union(limb(p, a[:3], b[:3], a[3], b[3]) for a, b in itertools.pairwise(line))


def block(p: Array, centre: ArrayLike, half: ArrayLike, rounding: float = 0.0) -> Array:
    """A box of half extents ``half``, its edges rounded off."""
    q = np.abs(p - np.asarray(centre, float)) - np.asarray(half, float) + rounding
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0) - rounding


def pillar(p: Array, centre: ArrayLike, radius: float, half: float) -> Array:
    """An upright cylinder."""
    q = p - np.asarray(centre, float)
    d = np.stack([np.hypot(q[:, 0], q[:, 2]) - radius, np.abs(q[:, 1]) - half], axis=1)
    return np.linalg.norm(np.maximum(d, 0), axis=1) + np.minimum(d.max(axis=1), 0)


def polygon(x: Array, y: Array, outline: ArrayLike) -> Array:
    """Distance in the plane to a polygon ``(E, 2)``, negative inside."""
    points = np.asarray(outline, float)
    nearest, inside = np.full(len(x), np.inf), np.zeros(len(x), bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - t * ex) ** 2 + (py - t * ey) ** 2)
        if ey != 0:
            inside ^= ((ay <= y) != (by <= y)) & (x < ax + (y - ay) / ey * ex)
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def turned(p: Array, profile: ArrayLike, centre: tuple[float, float] = (0, 0)) -> Array:
    """The solid that a profile of (radius, height) makes when turned about the Y axis."""
    radius = np.hypot(p[:, 0] - centre[0], p[:, 2] - centre[1])
    points = np.asarray(profile, float)
    # Closed on the far side of the axis, so that the axis itself is deep inside.
    outline = np.concatenate([points, [[-1, points[-1, 1]], [-1, points[0, 1]]]])
    return polygon(radius, p[:, 1], outline)


def union(parts: Iterable[Array]) -> Array:
    return np.minimum.reduce(list(parts))


def blended(parts: Iterable[Array], width: float) -> Array:
    """A union whose creases are filled over ``width``."""
    first, *rest = parts
    for part in rest:
        h = np.maximum(width - np.abs(first - part), 0) / width
        first = np.minimum(first, part) - h * h * width / 4
    return first


def carved(solid: Array, *tools: Array) -> Array:
    """``solid`` without the ``tools``."""
    return np.maximum.reduce([solid, *(-tool for tool in tools)])


def arch(p: Array, centre: ArrayLike, half_width: float, height: float, depth: float) -> Array:
    """A doorway shape along Z: a box with a half-round top; ``centre`` is the middle of its sill."""
    q = p - np.asarray(centre, float)
    flat = block(q, (0, (height - half_width) / 2, 0), (half_width, (height - half_width) / 2, depth))
    crown = np.maximum(np.hypot(q[:, 0], q[:, 1] - height + half_width) - half_width, np.abs(q[:, 2]) - depth)
    return np.minimum(flat, crown)


def around(p: Array, angle: float) -> Array:
    """``p`` seen by something turned by ``angle`` (degrees) from +Z towards +X."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.stack([c * p[:, 0] - s * p[:, 2], p[:, 1], s * p[:, 0] + c * p[:, 2]], axis=1)


# ------------------------------------------------------------------------------------------ dual contouring


@dataclass
class Model:
    """A mesh to write: triangles or quads, and texture coordinates (top-left origin) where it has its own."""

    vertices: Array
    faces: Index  # (F, 3) or (F, 4)
    uv: Array | None = None
    uv_faces: Index | None = None


def polygonise(solid: Solid, low: ArrayLike, high: ArrayLike, step: float, sharp: float = 0.01) -> Model:
    """Triangles on the surface of ``solid`` within a box, one vertex per grid cell that it passes.

    Each vertex is where the planes at the cell's crossings meet best, kept in its cell; ``sharp`` is how much
    weight their mean has against that: small for crisp edges, large for even faces.
    """
    # Off the round numbers models are made of, so that no grid point lies on the surface.
    axes = [np.arange(a - 1.3819 * step, b + 2 * step, step) for a, b in zip(low, high, strict=True)]
    shape = tuple(len(axis) for axis in axes)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = (solid(grid) < 0).reshape(shape)

    stride = (shape[1] * shape[2], shape[2], 1)
    starts, ends, cells, flips = [], [], [], []
    for axis in range(3):
        cut = [slice(None)] * 3
        cut[axis] = slice(0, -1)
        ahead = list(cut)
        ahead[axis] = slice(1, None)
        crossing = np.argwhere(inside[tuple(cut)] != inside[tuple(ahead)])
        base = crossing @ np.array(stride)
        starts.append(base)
        ends.append(base + stride[axis])
        one, two = stride[(axis + 1) % 3], stride[(axis + 2) % 3]
        # The four cells around an edge, counter-clockwise seen from its end.
        cells.append(np.stack([base - one - two, base - two, base, base - one], axis=1))
        flips.append(inside[tuple(crossing.T)])
    start, end, cell = np.concatenate(starts), np.concatenate(ends), np.concatenate(cells)

    point = _crossing(solid, grid[start], grid[end])
    normal = _gradient(solid, point, 0.01 * step)

    number, local = np.unique(cell, return_inverse=True)
    local = local.reshape(-1, 4)
    owner, source = local.reshape(-1), np.repeat(np.arange(len(cell)), 4)
    count = np.bincount(owner)
    mean = _summed(owner, point[source]) / count[:, None]
    away = ((point[source] - mean[owner]) * normal[source]).sum(axis=1)
    outer = (normal[source][:, :, None] * normal[source][:, None, :]).reshape(-1, 9)
    matrix = _summed(owner, outer).reshape(-1, 3, 3) + sharp * count[:, None, None] * np.eye(3)
    moved = mean + np.linalg.solve(matrix, _summed(owner, normal[source] * away[:, None])[:, :, None])[:, :, 0]
    vertices = np.clip(moved, grid[number], grid[number] + step)

    quads = np.where(np.concatenate(flips)[:, None], local, local[:, ::-1])
    return Model(vertices, _split(vertices, quads))


def _crossing(solid: Solid, inner: Array, outer: Array) -> Array:
    """Where the surface cuts the segments between two points each, by bisection."""
    low, high = inner.copy(), outer.copy()
    starts_inside = solid(low) < 0
    for _ in range(12):
        middle = (low + high) / 2
        same = ((solid(middle) < 0) == starts_inside)[:, None]
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return (low + high) / 2


def _gradient(solid: Solid, p: Array, step: float) -> Array:
    """Unit normals of the surface at ``p``."""
    offsets = np.eye(3) * step
    slope = np.stack([solid(p + o) - solid(p - o) for o in offsets], axis=1)
    return slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-12)


def _summed(owner: Index, values: Array) -> Array:
    return np.stack([np.bincount(owner, column) for column in values.T], axis=1)


def _split(vertices: Array, quads: Index) -> Index:
    """Two triangles for each quad, along the diagonal that bends the surface less."""
    corner = vertices[quads]

    def bend(a: int, b: int, c: int, d: int) -> Array:
        one = np.cross(corner[:, b] - corner[:, a], corner[:, c] - corner[:, a])
        two = np.cross(corner[:, c] - corner[:, a], corner[:, d] - corner[:, a])
        length = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        return (one * two).sum(axis=1) / np.maximum(length, 1e-18)

    # A small preference makes flat quads alike whatever the last bit says.
    first = bend(0, 1, 2, 3) + 1e-3 >= bend(1, 2, 3, 0)
    one = np.where(first[:, None], quads[:, [0, 1, 2]], quads[:, [1, 2, 3]])
    two = np.where(first[:, None], quads[:, [0, 2, 3]], quads[:, [1, 3, 0]])
    return np.stack([one, two], axis=1).reshape(-1, 3)


# ----------------------------------------------------------------------- turned and swept, with own texture


@dataclass
class Chart:
    """Quads with texture coordinates in the units of the mesh, before packing."""

    quads: Index  # (F, 4) into vertices; a triangle repeats its last corner
    uv: Array  # (T, 2), v downwards
    uv_quads: Index  # (F, 4)


def curve(points: ArrayLike, pieces: int) -> Array:
    """A smooth line through ``points`` (Catmull-Rom), ``pieces`` steps between two of them."""
    p = np.asarray(points, float)
    p = np.concatenate([[2 * p[0] - p[1]], p, [2 * p[-1] - p[-2]]])
    t = (np.arange(pieces) / pieces)[:, None]
    line = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        line.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*line, p[-2:-1]])


class Builder:
    """Gathers rings of vertices and the charts between them."""

    def __init__(self) -> None:
        self.vertices: list[Array] = []
        self.count = 0
        self.charts: list[Chart] = []

    def ring(self, points: Array) -> Index:
        """Adds vertices; returns their numbers. A ring without extent is one vertex, repeated."""
        if np.ptp(points, axis=0).max() < 1e-9:
            self.vertices.append(points[:1])
            self.count += 1
            return np.full(len(points), self.count - 1)
        self.vertices.append(points)
        self.count += len(points)
        return np.arange(self.count - len(points), self.count)

    def tube(self, rings: Sequence[Array], cuts: Sequence[int] = ()) -> None:
        """A skin over closed rings of equal length; a chart of its own between any two of ``cuts``.

        Rings at both ends should be single points, so that the skin is closed. A chart that ends in a point is
        laid out as a disc, any other as a strip, with the later ring at the top.
        """
        numbers = [self.ring(ring) for ring in rings]
        first = len(self.charts)
        bounds = [0, *cuts, len(rings) - 1]
        for begin, end in itertools.pairwise(bounds):
            self._chart(rings[begin : end + 1], numbers[begin : end + 1])
        # Outside is where the volume is positive, and no chart shows its texture mirrored.
        vertices = np.concatenate(self.vertices)
        inverted = _volume(vertices, np.concatenate([chart.quads for chart in self.charts[first:]])) < 0
        for chart in self.charts[first:]:
            if inverted:
                chart.quads, chart.uv_quads = chart.quads[:, ::-1], chart.uv_quads[:, ::-1]
            corner = chart.uv[chart.uv_quads]
            one, two = corner[:, 2] - corner[:, 0], corner[:, 3] - corner[:, 1]
            if (one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]).sum() > 0:
                chart.uv = chart.uv * (-1, 1)

    def _chart(self, rings: Sequence[Array], numbers: Sequence[Index]) -> None:
        n, m = len(rings[0]), len(rings)
        along = [np.linalg.norm(b - a, axis=1).mean() for a, b in itertools.pairwise(rings)]
        along = np.concatenate([[0], np.cumsum(along)])
        lower, upper = np.ptp(rings[0], axis=0).max() < 1e-9, np.ptp(rings[-1], axis=0).max() < 1e-9
        i, j = np.arange(m - 1)[:, None], np.arange(n)
        if lower or upper:
            radius = along if lower else along[-1] - along
            # Seen from outside: turning the other way when the point is above.
            angle = 2 * np.pi * np.arange(n) / n * (1 if upper else -1)
            uv = np.stack([np.outer(radius, np.sin(angle)), np.outer(radius, np.cos(angle))], axis=-1)
            a, b = i * n + j, i * n + (j + 1) % n
            c, d = b + n, a + n
        else:
            loops = [np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1).sum() for ring in rings]
            width = float(np.mean(loops))
            uv = np.stack(np.broadcast_arrays(width * np.arange(n + 1)[None] / n, along[-1] - along[:, None]), axis=-1)
            a = i * (n + 1) + j
            b, c, d = a + 1, a + n + 2, a + n + 1
        number = np.stack(numbers)
        quads = np.stack([number[i, j], number[i, (j + 1) % n], number[i + 1, (j + 1) % n], number[i + 1, j]], axis=-1)
        self.charts.append(
            Chart(quads.reshape(-1, 4), uv.reshape(-1, 2), np.stack([a, b, c, d], axis=-1).reshape(-1, 4))
        )

    def model(self) -> Model:
        """The mesh with its charts packed into the unit square, all at one scale."""
        vertices = np.concatenate(self.vertices)
        places, side = _pack([np.ptp(chart.uv, axis=0) for chart in self.charts])
        uv, uv_faces, faces, total = [], [], [], 0
        for chart, place in zip(self.charts, places, strict=True):
            uv.append((chart.uv - chart.uv.min(axis=0) + place) / side)
            uv_faces.append(chart.uv_quads + total)
            faces.append(chart.quads)
            total += len(chart.uv)
        return Model(vertices, np.concatenate(faces), np.concatenate(uv), np.concatenate(uv_faces))


def _volume(vertices: Array, quads: Index) -> float:
    a, b, c = vertices[triangles(quads)].swapaxes(0, 1)
    return float((a * np.cross(b, c)).sum() / 6)


def _pack(sizes: Sequence[Array]) -> tuple[list[Array], float]:
    """Shelves: where each rectangle goes, and the side of the square that holds them all, with gaps."""
    gap = 0.02 * math.sqrt(sum(float(w * h) for w, h in sizes))
    order = sorted(range(len(sizes)), key=lambda k: (-round(float(sizes[k][1]), 9), k))
    best: tuple[float, dict[int, Array]] | None = None
    widest = max(float(w) for w, _ in sizes) + 2 * gap
    for stretch in np.linspace(1, 3, 41):
        limit, x, y, shelf, places = widest * stretch, gap, gap, 0.0, {}
        for k in order:
            width, height = map(float, sizes[k])
            if x + width + gap > limit:
                x, y, shelf = gap, y + shelf + gap, 0.0
            places[k] = np.array([x, y])
            x, shelf = x + width + gap, max(shelf, height)
        side = max(limit, y + shelf + gap)
        if best is None or side < best[0] - 1e-9:
            best = side, places
    assert best is not None
    return [best[1][k] for k in range(len(sizes))], best[0]


def circle(radius: float, height: float, segments: int) -> Array:
    """A ring about the Y axis, beginning at the back, where a seam is seen least."""
    angle = 2 * np.pi * np.arange(segments) / segments
    return np.stack([-radius * np.sin(angle), np.full(segments, float(height)), -radius * np.cos(angle)], axis=1)


def lathe(builder: Builder, profile: Array, segments: int, cuts: Sequence[int]) -> None:
    """A turned shape: ``profile`` (M, 2) of radius and height, from the axis below, outside up, to the axis."""
    builder.tube([circle(r, y, segments) for r, y in profile], cuts)


def hose(
    builder: Builder,
    path: Array,
    stations: Sequence[tuple[int, float]],
    segments: int,
    squash: float = 1.0,
    cuts: Sequence[int] = (),
) -> None:
    """A tube along ``path`` (M, 2) in the XY plane, ``squash`` times as thick along Z.

    ``stations`` are (point of the path, radius), from end to end; both ends have radius 0. They may come back
    along the path with smaller radii, which makes a mouth.
    """
    forward = np.gradient(path, axis=0)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    angle = 2 * np.pi * np.arange(segments) / segments
    rings = []
    for k, radius in stations:
        (x, y), (fx, fy), side = path[k], forward[k], radius * np.cos(angle)
        rings.append(np.stack([x - fy * side, y + fx * side, squash * radius * np.sin(angle)], axis=1))
    builder.tube(rings, cuts)


# --------------------------------------------------------------------------------------------------- models


def teapot() -> Model:
    """A round-bellied pot with lid, spout and handle. Centimetres."""
    builder = Builder()
    belly = curve([[4.6, 0.9], [6.6, 2.6], [7.4, 5.2], [6.7, 8.0], [4.9, 10.0], [4.2, 10.6]], 3)
    lid = curve([[4.2, 11.15], [3.4, 11.8], [1.9, 12.4], [0.95, 12.75], [0.75, 13.2]], 3)
    knob = curve([[0.75, 13.2], [1.35, 13.85], [1.3, 14.6], [0.7, 15.1]], 3)
    rim = np.array([[4.55, 10.75], [4.6, 11.0]])
    foot = np.array([[0, 0.45], [3.6, 0.45], [3.75, 0.0], [4.5, 0.0], [4.6, 0.35]])
    profile = np.concatenate([foot, belly, rim, lid, knob[1:], [[0, 15.3]]])
    cuts = [4, 4 + len(belly), 6 + len(belly)]
    lathe(builder, profile, 40, cuts)

    path = curve([[5.6, 3.6], [8.6, 4.3], [10.3, 6.6], [11.3, 8.9], [12.9, 10.6]], 4)
    last = len(path) - 1
    outside = [(k, 1.95 - 1.2 * (k / last) ** 0.75) for k in range(last + 1)]
    mouth = [(k, 0.52) for k in range(last, last - 5, -1)]
    hose(builder, path, [(0, 0.0), *outside, *mouth, (mouth[-1][0], 0.0)], 16, cuts=[1, last + 1])

    path = curve([[-5.2, 9.2], [-7.6, 10.2], [-10.4, 9.3], [-11.0, 6.6], [-9.2, 4.2], [-6.3, 3.3]], 4)
    last = len(path) - 1
    grip = [(k, 0.62 + 0.14 * math.cos(2 * math.pi * k / last)) for k in range(last + 1)]
    hose(builder, path, [(0, 0.0), *grip, (last, 0.0)], 12, 1.35, cuts=[1, last + 1])
    return builder.model()


def vase() -> Model:
    """A slender vase with a flared neck, open at the top. Centimetres."""
    outer = curve(
        [[3.9, 0.7], [4.5, 2.0], [6.6, 6.5], [7.6, 11.5], [6.6, 16.5], [3.9, 20.6], [2.7, 23.6], [2.9, 26.2],
         [4.7, 28.6]],
        3,
    )  # fmt: skip
    inner = curve([[4.25, 28.65], [2.45, 26.2], [2.25, 23.6], [3.4, 20.8], [6.0, 16.5], [6.9, 11.5]], 3)
    foot = np.array([[0, 0.35], [3.2, 0.35], [3.4, 0.0], [4.2, 0.0], [4.3, 0.4]])
    profile = np.concatenate([foot, outer, [[4.6, 28.95]], inner, [[5.9, 6.5], [3.9, 2.2], [0, 1.6]]])
    builder = Builder()
    turn = 4 + len(outer) + 1
    lathe(builder, profile, 36, [4, turn, len(profile) - 3])
    return builder.model()


def mushrooms() -> Model:
    """Three toadstools that lean on their own axes; each is closed, Z-up. Millimetres."""
    stem = curve([[7.0, 0], [8.2, 3], [6.6, 12], [5.6, 26], [5.4, 38]], 3)
    gills = np.array([[6.2, 41.5], [10, 40.2], [16, 38.2], [21.5, 35.6], [23.6, 34.6]])
    cap = curve([[24.6, 35.4], [24.0, 39.5], [20.6, 47.0], [13.5, 53.4], [5.0, 56.2]], 3)
    profile = np.concatenate([[[0, -1.5], [4.5, -1.5]], stem, gills, cap, [[0, 56.6]]])
    parts = []
    for scale, lean, heading, (x, z), segments in (
        (1.0, 6, 200, (0, 0), 26), (0.62, 14, 60, (27, 9), 20), (0.42, 20, 310, (-21, 17), 16),
    ):  # fmt: skip
        builder = Builder()
        lathe(builder, profile, segments, [])
        p = builder.model()
        # The stem bends towards its heading, more so higher up.
        v = p.vertices * scale
        bend = math.tan(math.radians(lean)) * np.maximum(v[:, 1], 0) ** 1.4 / (40 * scale) ** 0.4
        v[:, 0] += bend * math.sin(math.radians(heading)) + x
        v[:, 2] += bend * math.cos(math.radians(heading)) + z
        parts.append(Model(v, triangles(p.faces)))
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
    vertices = np.concatenate([part.vertices for part in parts])
    faces = np.concatenate([part.faces + o for part, o in zip(parts, offsets, strict=False)])
    # Y-up to Z-up: the front looks along -Y then.
    return Model(np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], axis=1), faces)


def tower() -> Model:
    """A castle tower with battlements, a side turret, arrow slits and a door. Metres."""

    def solid(p: Array) -> Array:
        body = turned(
            p,
            [[0, 0], [2.25, 0], [2.25, 0.45], [1.95, 0.95], [1.8, 5.3], [2.3, 6.05], [2.3, 7.5], [1.85, 7.5],
             [1.85, 6.65], [0, 6.65]],
        )  # fmt: skip
        turret = turned(
            p,
            [[0, 3.3], [0.16, 3.3], [0.78, 4.4], [0.78, 7.4], [1.12, 7.4], [1.12, 7.72], [0.1, 9.9], [0, 9.9]],
            (1.95, -0.55),
        )
        frame = arch(p, (0, 0, 1.95), 0.78, 2.3, 0.32)
        solid = union([body, turret, frame])
        gaps = [block(around(p, a), (0, 7.4, 2), (0.3, 0.42, 0.9)) for a in range(0, 360, 45)]
        band = np.maximum(np.abs(np.hypot(p[:, 0], p[:, 2]) - 2.5) - 0.75, np.abs(p[:, 1] - 7.4) - 0.6)
        # The gaps are cut from the parapet, not from the turret that stands in it.
        crown = np.maximum(np.minimum.reduce(gaps), band)
        beside = np.hypot(p[:, 0] - 1.95, p[:, 2] + 0.55) - 0.95
        slits = [arch(around(p, a), (0, y, 1.8), 0.16, 1.15, 0.34) for a, y in ((0, 3.4), (125, 2.2), (245, 3.4))]
        windows = [arch(q, (0, 5.6, 0.78), 0.17, 0.9, 0.2) for q in (around(p - (1.95, 0, -0.55), 60),)]
        return carved(
            solid,
            np.maximum(crown, -beside),
            arch(p, (0, -0.5, 2.2), 0.52, 2.52, 0.42),
            *slits,
            *windows,
        )

    return polygonise(solid, (-2.4, 0, -2.4), (3.1, 9.9, 2.5), 0.1851)


def knight() -> Model:
    """A chess knight that looks to the front. Centimetres."""
    head = [
        [-1.45, 2.3], [-1.62, 3.3], [-1.58, 4.4], [-1.3, 5.6], [-0.85, 6.6], [-0.3, 7.25], [-0.12, 8.0],
        [0.22, 7.45], [0.75, 7.05], [1.3, 6.3], [1.95, 5.5], [2.3, 5.0], [2.28, 4.55], [1.95, 4.25], [1.5, 4.3],
        [1.1, 4.65], [0.62, 4.75], [0.75, 4.1], [1.15, 3.3], [1.35, 2.3],
    ]  # fmt: skip
    base = np.concatenate(
        [
            [[0, 0], [2.3, 0]],
            curve([[2.3, 0.35], [2.26, 0.5], [2.1, 0.7]], 3),
            curve([[1.85, 0.8], [1.95, 1.05], [1.8, 1.3]], 3),
            curve([[1.55, 1.45], [1.3, 1.8], [1.5, 2.25]], 3),
            [[1.72, 2.35], [1.72, 2.6], [0, 2.6]],
        ]
    )

    def solid(p: Array) -> Array:
        outline = polygon(p[:, 2], p[:, 1], head)
        # Thick at the chest, thinner at ears and muzzle; the edge of the silhouette is rounded over.
        t = np.clip((p[:, 1] - 2.3) / 5.0, 0, 1)
        half = 1.08 - 0.5 * t + 0.1 * np.exp(-(((p[:, 1] - 5.6) / 0.7) ** 2))
        half *= 1 - 0.22 * np.clip((p[:, 2] - 0.6) / 1.2, 0, 1)
        d = np.stack([outline + 0.42, np.abs(p[:, 0]) - half + 0.42], axis=1)
        profile = np.linalg.norm(np.maximum(d, 0), axis=1) + np.minimum(d.max(axis=1), 0) - 0.42
        q = np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], axis=1)
        ears = limb(q, (0.3, 7.0, -0.25), (0.42, 8.05, -0.22), 0.27, 0.09)
        brow = ball(q, (0.52, 6.25, 0.55), (0.26, 0.3, 0.36))
        eye = ball(q, (0.68, 6.2, 0.7), 0.2)
        nostril = ball(q, (0.5, 4.95, 2.12), (0.2, 0.15, 0.18))
        cheek = ball(q, (0.42, 5.2, 0.35), (0.35, 0.6, 0.6))
        body = blended([profile, ears, cheek, brow], 0.25)
        mane = [
            limb(p, (0, y, z), (0, y + 0.3, z - 0.3), 0.46, 0.26)
            for y, z in ((6.75, -0.62), (6.0, -1.02), (5.2, -1.32), (4.35, -1.5), (3.5, -1.56))
        ]
        body = blended([body, union(mane)], 0.2)
        mouth = np.maximum(np.abs(p[:, 1] - 4.55 - 0.1 * (p[:, 2] - 2)) - 0.09, 1.6 - p[:, 2])
        return union([carved(np.minimum(body, eye), nostril, mouth), turned(p, base)])

    return polygonise(solid, (-2.3, 0, -2.3), (2.3, 8.2, 2.5), 0.16244, 0.02)


def chair() -> Model:
    """A wooden chair with a slatted back. Centimetres."""

    def solid(p: Array) -> Array:
        q = np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], axis=1)
        front = limb(q, (19.5, 0, 19), (18.5, 44, 17.5), 2.0, 2.9)
        rear = chain(q, [(19.5, 0, -21), (18.5, 45, -18), (18.3, 92, -25)], [2.0, 2.9, 2.3])
        seat = block(p, (0, 45.5, 0), (22.5, 2.5, 21.5), 1.6)
        dish = ball(p, (0, 64, 2), (32, 17.5, 27))
        seat = np.maximum(seat, -dish)
        rails = [block(q, (0, 39.5, 17.5), (18, 3, 1.5), 0.6), block(q, (0, 39.5, -18), (18, 3, 1.5), 0.6)]
        rails += [block(q, (18.5, 39.5, 0), (1.5, 3, 18), 0.6), limb(q, (19.2, 18, 18.2), (19.2, 16, -19.4), 1.7, 1.7)]
        rails += [limb(q, (-19, 17, -0.5), (19.2, 17, -0.5), 1.7, 1.7)]
        # The back leans; its rails are bowed.
        lean = p[:, 2] + 18 + (p[:, 1] - 45) * 0.149 + 2.4 * (1 - (p[:, 0] / 18) ** 2)
        r = np.stack([p[:, 0], p[:, 1], lean], axis=1)
        crest = np.maximum(block(r, (0, 86, 0), (19, 7.5, 1.7), 1.2), ball(p, (0, 50, -22), (44, 44.5, 60)))
        lower = block(r, (0, 58, 0), (18.5, 2.6, 1.6), 1.0)
        slats = [block(r, (x, 70, 0), (2.0, 12, 1.5), 0.9) for x in (-10.2, -3.4, 3.4, 10.2)]
        feet = np.maximum(union([front, rear]), 0.0 - p[:, 1])
        return union([feet, seat, *rails, crest, lower, *slats])

    return polygonise(solid, (-23, 0, -30), (23, 96, 23), 1.75096, 0.02)


def dinosaur() -> Model:
    """A friendly long-necked dinosaur on four legs. Metres."""

    def solid(p: Array) -> Array:
        q = np.stack([np.abs(p[:, 0]), p[:, 1], p[:, 2]], axis=1)
        trunk = blended([ball(p, (0, 1.75, -0.1), (0.88, 0.86, 1.35)), ball(p, (0, 1.72, 0.75), (0.66, 0.7, 0.7))], 0.4)
        neck = chain(
            p,
            [(0, 1.95, 1.0), (0, 2.75, 1.75), (0, 3.75, 2.0), (0, 4.55, 2.1)],
            [0.56, 0.4, 0.31, 0.3],
        )
        skull = blended(
            [ball(p, (0, 4.72, 2.2), (0.45, 0.44, 0.52)), ball(p, (0, 4.58, 2.72), (0.36, 0.27, 0.42))], 0.2
        )
        tail = chain(
            p,
            [(0, 1.75, -1.1), (0, 1.2, -2.2), (0.12, 0.72, -3.1), (0.5, 0.55, -3.9), (1.0, 0.75, -4.4)],
            [0.62, 0.44, 0.29, 0.18, 0.08],
        )
        legs = [
            limb(q, (0.55, 1.5, 0.75), (0.6, 0.28, 0.82), 0.36, 0.29),
            limb(q, (0.55, 1.55, -0.75), (0.62, 0.28, -0.85), 0.46, 0.31),
        ]
        feet = [ball(q, (0.6, 0.2, 0.92), (0.35, 0.24, 0.42)), ball(q, (0.62, 0.2, -0.75), (0.37, 0.24, 0.44))]
        body = blended([trunk, neck, skull, tail, *legs, *feet], 0.28)
        crest = [
            ball(p, (0, y, z), (0.11, r, r))
            for y, z, r in (
                (5.06, 1.86, 0.18), (4.4, 1.74, 0.21), (3.7, 1.68, 0.22), (3.05, 1.55, 0.25), (2.55, 1.1, 0.28),
                (2.6, 0.5, 0.34), (2.66, -0.12, 0.38), (2.5, -0.76, 0.34), (2.05, -1.4, 0.29), (1.6, -1.98, 0.24),
                (1.2, -2.5, 0.19),
            )
        ]  # fmt: skip
        body = blended([body, union(crest)], 0.06)
        eyes = ball(q, (0.36, 4.92, 2.44), 0.14)
        nostrils = ball(q, (0.14, 4.72, 3.08), 0.07)
        smile = chain(q, [(0, 4.44, 3.16), (0.3, 4.46, 2.98), (0.42, 4.56, 2.6)], [0.06, 0.06, 0.05])
        body = np.maximum(np.minimum(body, eyes), -np.minimum(nostrils, smile))
        return np.maximum(body, 0.02 - p[:, 1])

    return polygonise(solid, (-1.0, 0, -4.6), (1.2, 5.3, 3.2), 0.10275, 0.06)


def boulder() -> Model:
    """A weathered rock with broken faces. Metres."""
    random = np.random.Generator(np.random.Philox(20))
    direction = random.normal(size=(22, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    reach = random.uniform(0.74, 1.0, 22)
    wave = random.normal(size=(5, 3)) * 2.3
    phase = random.uniform(0, 2 * np.pi, 5)

    def solid(p: Array) -> Array:
        q = p * (0.78, 1.08, 0.9) + (0, -0.62, 0)
        worn = 0.035 * np.sin(q @ wave.T + phase).sum(axis=1) / 2
        planes = (q @ direction.T - reach).max(axis=1)
        cracks = np.abs(q[:, 0] * 0.8 + q[:, 1] * 0.5 + 0.3 * np.sin(3 * q[:, 2]) - 0.18)
        groove = 0.07 * np.exp(-((cracks / 0.09) ** 2))
        return np.maximum(np.maximum(planes, np.linalg.norm(q, axis=1) - 1.0) + worn + groove, 0.06 - p[:, 1])

    return polygonise(solid, (-1.4, 0, -1.3), (1.4, 1.7, 1.3), 0.09145, 0.08)


def chest() -> Model:
    """A treasure chest with iron bands, a lock and a ring on each side. Centimetres."""

    def solid(p: Array) -> Array:
        q = np.stack([np.abs(p[:, 0]), p[:, 1], np.abs(p[:, 2])], axis=1)
        taper = 1 + 0.0016 * (p[:, 1] - 30)
        box = block(np.stack([p[:, 0], p[:, 1], p[:, 2] / taper], axis=1), (0, 16.5, 0), (36, 14.5, 21.5), 0.6)

        def barrel(radius: float, half: float) -> Array:
            r = np.hypot((p[:, 1] - 33.5) * 1.08, p[:, 2])
            return np.maximum(np.maximum(r - radius, np.abs(p[:, 0]) - half), 33.5 - p[:, 1])

        lid = barrel(22.3, 36)
        rim = block(p, (0, 33, 0), (38, 3.4, 23.6), 0.6)
        bands = []
        for x, half in ((0, 3.6), (29, 4.0)):
            slab = np.abs(q[:, 0] - x) - half
            bands.append(np.maximum(slab, block(p, (0, 18, 0), (60, 16, 25.6), 0.0)))
            bands.append(np.maximum(slab, barrel(25.6, 60)))
        lock = block(p, (0, 33, 26), (7.4, 8.2, 3.0), 1.4)
        key = np.maximum(np.hypot(p[:, 0], p[:, 1] - 33) - 2.9, 26.6 - p[:, 2])
        feet = block(q, (30, 2.2, 18.5), (7, 2.2, 7.4), 0.6)
        handle = np.hypot(np.hypot(p[:, 1] - 17.5, p[:, 2]) - 6.4, q[:, 0] - 38.4) - 1.8
        knob = ball(q, (37, 24, 0), (3.2, 3, 3))
        return carved(union([box, lid, rim, *bands, lock, feet, handle, knob]), key)

    return polygonise(solid, (-41, 0, -25), (41, 61, 30), 1.9982)


# -------------------------------------------------------------------------------------------------- writing


def triangles(faces: Index) -> Index:
    """Quads as two triangles each, those without extent left out."""
    if faces.shape[1] == 3:
        return faces
    both = np.stack([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]], axis=1).reshape(-1, 3)
    return both[_proper(both)]


def _proper(faces: Index) -> NDArray[np.bool_]:
    """Triangles whose corners differ."""
    a, b, c = faces.T
    return (a != b) & (b != c) & (c != a)


def obj(model: Model) -> bytes:
    """OBJ with quads where there are any; texture coordinates start at the bottom left in this format."""
    lines = [f"v {x:.3f} {y:.3f} {z:.3f}" for x, y, z in model.vertices]
    if model.uv is None or model.uv_faces is None:
        lines += ["f " + " ".join(str(v + 1) for v in face) for face in model.faces]
    else:
        lines += [f"vt {u:.4f} {1 - v:.4f}" for u, v in model.uv]
        for face, uv_face in zip(model.faces, model.uv_faces, strict=True):
            corners = [(v, t) for k, (v, t) in enumerate(zip(face, uv_face, strict=True)) if v != face[k - 1]]
            lines.append("f " + " ".join(f"{v + 1}/{t + 1}" for v, t in corners))
    return ("\n".join(lines) + "\n").replace("-0.000 ", "0.000 ").replace("-0.000\n", "0.000\n").encode()


def ply(model: Model) -> bytes:
    """Binary PLY."""
    faces = triangles(model.faces)
    head = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(model.vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.empty(len(faces), np.dtype([("n", "u1"), ("v", "<i4", 3)]))
    rows["n"], rows["v"] = 3, faces
    return head.encode() + _rounded(model.vertices).tobytes() + rows.tobytes()


def stl(model: Model) -> bytes:
    """Binary STL; the normals are left at zero, as readers work them out."""
    faces = triangles(model.faces)
    rows = np.zeros(len(faces), np.dtype([("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")]))
    rows["v"] = _rounded(model.vertices)[faces]
    return b"latentkiln example".ljust(80) + struct.pack("<I", len(faces)) + rows.tobytes()


def off(model: Model) -> bytes:
    """OFF text."""
    faces = triangles(model.faces)
    lines = ["OFF", f"{len(model.vertices)} {len(faces)} 0"]
    lines += [f"{x:.4f} {y:.4f} {z:.4f}" for x, y, z in _rounded(model.vertices)]
    lines += [f"3 {a} {b} {c}" for a, b, c in faces]
    return ("\n".join(lines) + "\n").encode()


def glb(model: Model) -> bytes:
    """GLB with positions and 16-bit indices only."""
    import json

    positions, faces = _rounded(model.vertices), triangles(model.faces).astype("<u2")
    index = faces.tobytes() + bytes(-faces.nbytes % 4)
    document = {
        "asset": {"version": "2.0", "generator": "latentkiln example"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5126,
                "count": len(positions),
                "type": "VEC3",
                "min": positions.min(axis=0).tolist(),
                "max": positions.max(axis=0).tolist(),
            },
            {"bufferView": 1, "componentType": 5123, "count": faces.size, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": positions.nbytes, "target": 34962},
            {"buffer": 0, "byteOffset": positions.nbytes, "byteLength": faces.nbytes, "target": 34963},
        ],
        "buffers": [{"byteLength": positions.nbytes + len(index)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary = positions.tobytes() + index
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _rounded(vertices: Array) -> NDArray[np.float32]:
    """Float32 on a grid of 1/4096: the last bit of a sine does not decide a file's bytes."""
    return (np.round(vertices * 4096) / 4096 + 0.0).astype("<f4")


MESHES: dict[str, tuple[Callable[[], Model], Callable[[Model], bytes]]] = {
    "teapot.obj": (teapot, obj),
    "vase.obj": (vase, obj),
    "mushrooms.stl": (mushrooms, stl),
    "tower.glb": (tower, glb),
    "knight.glb": (knight, glb),
    "chair.glb": (chair, glb),
    "dinosaur.glb": (dinosaur, glb),
    "boulder.off": (boulder, off),
    "chest.ply": (chest, ply),
}


def make(name: str) -> bytes:
    """The bytes of one of ``MESHES``."""
    build, write = MESHES[name]
    return write(build())


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name in MESHES:
        (folder / name).write_bytes(make(name))


if __name__ == "__main__":
    main()
