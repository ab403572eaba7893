"""Normals per face corner: smooth within a crease angle, split across sharper edges.

Symbols: F faces, V positions, N distinct normals. Corner ``3 f + k`` is the k-th corner of face f. An edge is smooth
if exactly two faces of consistent winding share it and bend by at most the crease angle. Two corners at one position
share a normal if smooth edges connect them around it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.mesh import Mesh
from pipeline.mesh.parts import outward_signs

# A face has no reliable direction in float32 if its height is below this share of its longest edge,
_SLIVER_RATIO = 1e-6
# or if its doubled area is below this share of the squared size of the mesh.
_TINY = 1e-14
_SUM_TOO_SHORT = 1e-6
_UP = (0.0, 1.0, 0.0)


def unit_face_normals(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    """Unit normals of the faces, ``(F, 3)``; zero for faces without a direction. Independent of scale."""
    corners = _scaled(vertices)[faces]
    return _unit_face_normals(corners)


def _scaled(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moves and scales ``vertices`` into the unit cube, so that thresholds do not depend on units."""
    lowest = vertices.min(axis=0)
    extent = float((vertices.max(axis=0) - lowest).max())
    return np.asarray((vertices - lowest) / (extent if extent > 0 else 1.0))


def _unit_face_normals(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """As ``unit_face_normals``, from corners ``(F, 3, 3)`` in the unit cube."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    third = second - first
    crossed = np.cross(first, second)
    doubled_area = np.linalg.norm(crossed, axis=1)
    longest = np.maximum.reduce([(edge * edge).sum(axis=1) for edge in (first, second, third)])
    good = (doubled_area > _SLIVER_RATIO * longest) & (doubled_area > _TINY)
    return np.where(good[:, None], crossed / np.where(good, doubled_area, 1.0)[:, None], 0.0)


def _corner_angles(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """The angle at each corner, ``(F, 3)`` radians."""
    ahead = np.roll(corners, -1, axis=1) - corners
    back = np.roll(corners, 1, axis=1) - corners
    across = np.linalg.norm(np.cross(ahead, back), axis=2)
    return np.asarray(np.arctan2(across, (ahead * back).sum(axis=2)))


def paired_half_edges(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs ``(P, 2)`` of opposite half-edges, for edges with exactly two.

    Half-edge ``3 f + k`` goes from the k-th corner of face f to the next one.
    """
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    low, high = np.minimum(start, end), np.maximum(start, end)
    key = low * (int(faces.max(initial=0)) + 1) + high
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.ones(len(key), dtype=bool)
    first[1:] = key[1:] != key[:-1]
    begins = np.flatnonzero(first)
    count = np.diff(np.append(begins, len(key)))
    begins = begins[count == 2]
    pairs = np.stack([order[begins], order[begins + 1]], axis=1)
    opposite = (start[pairs[:, 0]] == end[pairs[:, 1]]) & (start[pairs[:, 0]] != end[pairs[:, 0]])
    return np.asarray(pairs[opposite])


def smooth_normals(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], crease_angle: float = math.radians(60)
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Normals of every corner: ``(N, 3)`` unit vectors and ``(F, 3)`` indices into them.

    ``crease_angle`` (radians) is the largest bend of an edge that is shaded as smooth. Faces are weighted by
    their angle at the corner, so the result does not depend on the triangulation of a flat polygon. Faces
    without a direction take a neighbour's normal, or +Y without such a neighbour.
    """
    corners = _scaled(vertices)[faces]
    direction = _unit_face_normals(corners)
    has_direction: NDArray[np.bool_] = np.asarray(direction.any(axis=1))

    pairs = paired_half_edges(faces)
    face_a, face_b = pairs[:, 0] // 3, pairs[:, 1] // 3
    bend: NDArray[np.float64] = np.einsum("pi,pi->p", direction[face_a], direction[face_b])
    smooth = (bend >= math.cos(crease_angle) - 1e-6) & has_direction[face_a] & has_direction[face_b]
    pairs = pairs[smooth]
    # Half-edge i starts at corner i, where its twin ends.
    ends = 3 * (pairs // 3) + (pairs + 1) % 3
    rows = np.concatenate([pairs[:, 0], ends[:, 0]])
    columns = np.concatenate([ends[:, 1], pairs[:, 1]])
    total = faces.size
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(total, total))
    groups, group = connected_components(graph, directed=False)
    group = group.astype(np.int64)

    weighted = (direction[:, None, :] * _corner_angles(corners)[:, :, None]).reshape(-1, 3)
    summed = np.stack([np.bincount(group, weighted[:, axis], groups) for axis in range(3)], axis=1)
    length = np.linalg.norm(summed, axis=1)
    usable = length > _SUM_TOO_SHORT
    normals = summed / np.where(usable, length, 1.0)[:, None]

    undefined = np.flatnonzero(~usable[group])
    if len(undefined):
        normals, group = _replace_undefined_normals(normals, group, undefined, usable, direction, faces)
    return (normals + 0.0).astype(np.float32), group.reshape(-1, 3)


def _replace_undefined_normals(
    normals: NDArray[np.float64],
    group: NDArray[np.int64],
    undefined: NDArray[np.int64],
    usable: NDArray[np.bool_],
    direction: NDArray[np.float64],
    faces: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Gives ``undefined`` corners (no usable sum) their face's direction, else a neighbour's normal, else +Y.

    Drops normals that are no longer used.
    """
    position = faces.reshape(-1)
    # Assign in reverse, so the first usable group at each position wins.
    known = np.flatnonzero(usable[group])[::-1]
    at_position = np.full(int(position.max()) + 1, -1, dtype=np.int64)
    at_position[position[known]] = group[known]

    corner_direction = direction[undefined // 3]
    defined = corner_direction.any(axis=1)
    neighbour = at_position[position[undefined]]
    group = group.copy()
    group[undefined] = np.where(neighbour >= 0, neighbour, len(normals))
    group[undefined[defined]] = len(normals) + 1 + np.arange(int(defined.sum()))
    normals = np.concatenate([normals, [_UP], corner_direction[defined]])
    used, group = np.unique(group, return_inverse=True)
    return normals[used], group


def corner_normals(mesh: Mesh, crease_angle: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the normals for export: the input's own if usable, else smooth ones within ``crease_angle`` (radians).

    Returns ``(N, 3)`` unit float32 and ``(F, 3)`` indices into them, all valid.
    """
    if mesh.normals is None or mesh.normal_faces is None or not len(mesh.normals):
        return smooth_normals(mesh.vertices, mesh.faces, crease_angle)
    input_normals = mesh.normals.astype(np.float64)
    length = np.linalg.norm(input_normals, axis=1)
    usable = np.isfinite(length) & (length > 1e-12)
    unit = np.where(usable[:, None], input_normals, 0.0) / np.where(usable, length, 1.0)[:, None]
    index = np.where(mesh.normal_faces >= 0, mesh.normal_faces, 0)
    missing = (mesh.normal_faces < 0) | ~usable[index]
    if not missing.any():
        return (unit + 0.0).astype(np.float32), index
    ours, our_index = smooth_normals(mesh.vertices, mesh.faces, crease_angle)
    normals = np.concatenate([(unit + 0.0).astype(np.float32), ours])
    return normals, np.where(missing, our_index + len(unit), index)


def is_closed(mesh: Mesh) -> bool:
    """Tells whether the surface is watertight, so that its inside is never seen.

    Both directions of each edge occur equally often, the volume is positive, and no part is inside out.
    """
    start, end = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    low, high = np.minimum(start, end), np.maximum(start, end)
    _, edge = np.unique(low * len(mesh.vertices) + high, return_inverse=True)
    balance = np.bincount(edge, np.sign(end - start))
    if balance.any():
        return False
    corners = _scaled(mesh.vertices)[mesh.faces]
    volume = (corners[:, 0] * np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    return bool(volume > 0 and (outward_signs(mesh.vertices, mesh.faces) > 0).all())
