"""Normals per face corner: smooth within a crease angle, split across sharper edges.

Symbols: F faces, V positions, N distinct normals. A *corner* is one of a face's three; corner ``3 f + k`` is
the k-th of face f. Two corners share a normal when they meet at one position and are joined, around it, by
edges that are smooth: shared by exactly two faces that agree on the outside and bend by at most the crease
angle.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.mesh import Mesh
from pipeline.mesh.parts import outward_signs

# A face whose height is below this share of its longest edge has no direction that float32 input could tell.
_SLIVER_RATIO = 1e-6
# ... nor has one with a smaller area, as a share of the squared size of the mesh.
_TINY = 1e-14
_SUM_TOO_SHORT = 1e-6
_UP = (0.0, 1.0, 0.0)


def unit_face_normals(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    """Unit normals of the faces, ``(F, 3)``; zero for faces without a direction. Units do not matter."""
    corners = _scaled(vertices)[faces]
    return _unit_face_normals(corners)


def _scaled(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """``vertices`` moved and scaled into the unit cube, so that thresholds do not depend on units."""
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
    """Pairs ``(P, 2)`` of half-edges that run along one edge in opposite directions and are alone on it.

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
    their angle at the corner, so the result does not depend on how a flat polygon was triangulated. Faces
    without a direction take a neighbour's normal, and +Y where there is none.
    """
    corners = _scaled(vertices)[faces]
    direction = _unit_face_normals(corners)
    has_direction: NDArray[np.bool_] = np.asarray(direction.any(axis=1))

    pairs = paired_half_edges(faces)
    one, two = pairs[:, 0] // 3, pairs[:, 1] // 3
    bend: NDArray[np.float64] = np.einsum("pi,pi->p", direction[one], direction[two])
    smooth = (bend >= math.cos(crease_angle) - 1e-6) & has_direction[one] & has_direction[two]
    pairs = pairs[smooth]
    # A half-edge starts at the corner of its own number, and starts where its twin ends.
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

    lost = np.flatnonzero(~usable[group])
    if len(lost):
        normals, group = _replace_lost_normals(normals, group, lost, usable, direction, faces)
    return (normals + 0.0).astype(np.float32), group.reshape(-1, 3)


def _replace_lost_normals(
    normals: NDArray[np.float64],
    group: NDArray[np.int64],
    lost: NDArray[np.int64],
    usable: NDArray[np.bool_],
    direction: NDArray[np.float64],
    faces: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Gives ``lost`` corners (no usable sum) their face's direction, else a neighbour's normal, else +Y.

    Normals that are no longer used are dropped.
    """
    position = faces.reshape(-1)
    # The first usable group at each position: assigned from the last to the first, so the first wins.
    known = np.flatnonzero(usable[group])[::-1]
    at_position = np.full(int(position.max()) + 1, -1, dtype=np.int64)
    at_position[position[known]] = group[known]

    own = direction[lost // 3]
    has_own = own.any(axis=1)
    neighbour = at_position[position[lost]]
    group = group.copy()
    group[lost] = np.where(neighbour >= 0, neighbour, len(normals))
    group[lost[has_own]] = len(normals) + 1 + np.arange(int(has_own.sum()))
    normals = np.concatenate([normals, [_UP], own[has_own]])
    used, group = np.unique(group, return_inverse=True)
    return normals[used], group


def corner_normals(mesh: Mesh, crease_angle: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The normals an asset is exported with: the input's own where it has usable ones, else smooth by angle.

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
    """Whether the surface has an inside that is never seen: every edge is balanced, the volume is positive, and no part
    is inside out.

    Balanced: as many faces run along an edge one way as the other way.
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
