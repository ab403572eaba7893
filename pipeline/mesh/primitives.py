"""Primitive solids of a sketch, as triangles.

Working frame: right-handed, +Y up, +Z towards the viewer. Every solid is closed and counter-clockwise seen from
outside. Solids may overlap: the winding number is at least 1 in their union.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Float64Array
from pipeline.core.errors import SettingError
from pipeline.core.json_types import Json
from pipeline.mesh.mesh import unique_rows

Indices = NDArray[np.int64]
Solid = tuple[Float64Array, Indices]

# Corners of a full turn. The error is at most 0.0012 of a circle's radius.
SEGMENTS = 64
# Squares per side of a box's face, so that hidden parts of a face can be separated from visible ones.
_BOX_CELLS = 8


def combine(shapes: Sequence[Json]) -> Solid:
    """Combines ``shapes`` to one triangle soup: (V, 3) float64 vertices and (F, 3) int64 faces, in scene units.

    Each shape has ``shape`` (a key of ``SHAPES``), ``size`` (three extents along its own axes) and optionally
    ``position`` (of its centre) and ``rotation`` (degrees about the fixed axes x, then y, then z). Raises SettingError
    for an unknown shape or an impossible size.
    """
    vertices: list[Float64Array] = []
    faces: list[Indices] = []
    count = 0
    for number, shape in enumerate(shapes, start=1):
        name = str(shape["shape"])
        if name not in SHAPES:
            raise SettingError(f"shape {number} is a {name!r}; allowed: {', '.join(SHAPES)}")
        size = np.asarray(shape["size"], np.float64)
        if size.shape != (3,) or not np.isfinite(size).all() or (size <= 0).any():
            raise SettingError(f"shape {number}: its size is {shape['size']}; give three numbers above 0")
        points, corners = SHAPES[name](size)
        turn = rotation_matrix(np.asarray(shape.get("rotation", (0.0, 0.0, 0.0)), np.float64))
        vertices.append(points @ turn.T + np.asarray(shape.get("position", (0.0, 0.0, 0.0)), np.float64))
        faces.append(corners + count)
        count += len(points)
    if not vertices:
        raise SettingError("a sketch needs at least one shape")
    return np.concatenate(vertices), np.concatenate(faces)


def rotation_matrix(degrees: Sequence[float] | Float64Array) -> Float64Array:
    """(3, 3) rotation of column vectors by ``degrees`` about the fixed axes x, then y, then z."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    result: Float64Array = about_z @ about_y @ about_x
    return result


def sphere(size: Float64Array) -> Solid:
    """An ellipsoid with the extents ``size`` (3,)."""
    angle = np.linspace(0, np.pi, SEGMENTS // 2 + 1)
    return _revolved(np.stack([np.sin(angle) / 2, -np.cos(angle) / 2], axis=1), size)


def cylinder(size: Float64Array) -> Solid:
    """An upright cylinder."""
    return _revolved(np.array([(0, -0.5), (0.5, -0.5), (0.5, 0.5), (0, 0.5)]), size)


def cone(size: Float64Array) -> Solid:
    """An upright cone, its tip at the top."""
    return _revolved(np.array([(0, -0.5), (0.5, -0.5), (0, 0.5)]), size)


def capsule(size: Float64Array) -> Solid:
    """An upright cylinder between two half ellipsoids, each half as high as the smaller width."""
    cap = min(size[0], size[2]) / 2 / size[1]
    if cap > 0.5:
        raise SettingError(f"a capsule {size[0]:g} wide cannot be {size[1]:g} high; make its y at least that")
    angle = np.linspace(0, np.pi / 2, SEGMENTS // 4 + 1)
    top = np.stack([np.cos(angle) / 2, 0.5 - cap + cap * np.sin(angle)], axis=1)
    return _revolved(np.concatenate([top[::-1] * (1, -1), top]), size)


def torus(size: Float64Array) -> Solid:
    """A horizontal ring. Its tube is ``size[1]`` high, and as wide along x."""
    tube = size[1] / 2 / size[0]
    if tube > 0.25:
        raise SettingError(
            f"a torus {size[1]:g} thick has no hole at a width of {size[0]:g}; make its y at most half of that"
        )
    angle = np.linspace(0, 2 * np.pi, SEGMENTS + 1)
    profile = np.stack([0.5 - tube + tube * np.cos(angle), np.sin(angle) / 2], axis=1)
    profile[-1] = profile[0]
    return _revolved(profile, size)


def box(size: Float64Array) -> Solid:
    """A box."""
    line = np.arange(_BOX_CELLS + 1) / _BOX_CELLS - 0.5
    first, second = (grid.reshape(-1) for grid in np.meshgrid(line, line, indexing="ij"))
    cell = np.arange(_BOX_CELLS)
    corner = (cell[:, None] * (_BOX_CELLS + 1) + cell).reshape(-1)
    quads = corner[:, None] + np.array([0, _BOX_CELLS + 1, _BOX_CELLS + 2, 1])
    points: list[Float64Array] = []
    faces: list[Indices] = []
    for axis in range(3):
        for side in (-0.5, 0.5):
            sheet = np.empty((len(first), 3))
            sheet[:, axis], sheet[:, (axis + 1) % 3], sheet[:, (axis + 2) % 3] = side, first, second
            points.append(sheet)
            faces.append((quads if side > 0 else quads[:, ::-1]) + len(faces) * len(first))
    return _welded(np.concatenate(points) * size, np.concatenate(faces))


SHAPES: Mapping[str, Callable[[Float64Array], Solid]] = {
    "sphere": sphere,
    "box": box,
    "cylinder": cylinder,
    "cone": cone,
    "capsule": capsule,
    "torus": torus,
}


def _revolved(profile: Float64Array, size: Float64Array) -> Solid:
    """Revolves ``profile`` (P, 2: distance from the axis, height; upwards on the outside) about y and scales it by
    ``size``. The profile lies within [-0.5, 0.5]."""
    turn = 2 * np.pi * np.arange(SEGMENTS) / SEGMENTS
    radius, height = profile.T
    rings = np.empty((len(profile), SEGMENTS, 3))
    rings[..., 0], rings[..., 2] = radius[:, None] * np.sin(turn), radius[:, None] * np.cos(turn)
    rings[..., 1] = height[:, None]
    # A ring of radius 0 is one point, despite rounding.
    rings[radius < 1e-12, :, 0::2] = 0.0
    low = np.arange((len(profile) - 1) * SEGMENTS).reshape(-1, SEGMENTS)
    neighbour = np.roll(low, -1, axis=1)
    quads = np.stack([low, neighbour, neighbour + SEGMENTS, low + SEGMENTS], axis=-1).reshape(-1, 4)
    return _welded(rings.reshape(-1, 3) * size, quads)


def _welded(points: Float64Array, quads: Indices) -> Solid:
    """Triangulates ``quads`` (Q, 4), merges equal points and drops faces with a repeated corner."""
    first, number = unique_rows(points)
    faces = number[np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])]
    proper = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return points[first], faces[proper]
