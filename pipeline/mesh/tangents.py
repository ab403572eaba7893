"""Tangents per face corner by the MikkTSpace rules (Mikkelsen, 2008), which bakers and renderers agree on.

Symbols: F faces; corner k of face f. Corners with equal position, normal and texture coordinate are one vertex. Around
a vertex, faces that share edges and have the same orientation in the texture (mirrored or not) form a group. A group
shares one tangent: the mean of the faces' directions of u in the plane of the normal, weighted by their angles there.
Faces without an area in the texture join the group that reaches them first, and contribute nothing.

The reference is Mikkelsen's mikktspace.c at its default angle of 180 degrees. If it leaves a corner without a tangent,
ours takes any direction at right angles to the normal, so that files stay valid.
"""

# mypy: disallow-untyped-calls=False
# Compiled functions take their types from their arguments.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Float64Array
from pipeline.core.jit import njit
from pipeline.mesh.mesh import unique_rows

# Values up to the smallest normal float32 count as zero, as in the reference.
_ZERO = float(np.finfo(np.float32).tiny)


def corner_tangents(
    positions: NDArray[np.floating],
    faces: NDArray[np.int64],
    normals: NDArray[np.floating],
    normal_faces: NDArray[np.int64],
    uv: NDArray[np.floating],
    uv_faces: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Tangents (F, 3, 4) float32 of every corner: a unit vector along u, across the normal, and the handedness w.

    The bitangent is w cross(normal, tangent); it points up the texture.

    Args:
        positions: (V, 3), faces (F, 3) into them. normals: (N, 3) unit, normal_faces (F, 3) into them.
        uv: (T, 2) with the origin at the top left, as in glTF; uv_faces (F, 3) into them.
    """
    points = np.asarray(positions, np.float64)
    points = (points - points.mean(axis=0))[faces]
    normal = np.asarray(normals, np.float64)[normal_faces]
    # In the rules v points up; its origin is irrelevant.
    texture = (np.asarray(uv, np.float32) * np.asarray([1, -1], np.float32))[uv_faces]
    _, first = unique_rows(np.asarray(positions, np.float32))
    keys = np.stack([first[faces], unique_rows(np.asarray(normals, np.float32))[1][normal_faces]], axis=2)
    keys = np.concatenate([keys, unique_rows(np.asarray(uv, np.float32))[1][uv_faces][..., None]], axis=2)
    _, vertex = unique_rows(keys.reshape(-1, 3))
    vertex = vertex.reshape(-1, 3)
    # Faces whose corners coincide in float32 have no neighbours.
    spot = first[faces]
    point_like = (spot == np.roll(spot, 1, axis=1)).any(axis=1)
    along, upright, plain = _directions(points, texture)
    neighbours = _neighbours(vertex, point_like)
    grouping: Any = _group
    group, mirrored_not = grouping(vertex, neighbours, upright.copy(), plain, point_like)
    return _averaged(points, normal, along, vertex, group, mirrored_not, plain | point_like)


def _directions(
    points: Float64Array, texture: NDArray[np.float32]
) -> tuple[Float64Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Per face: its unit direction of u (F, 3), whether its texture is not mirrored, whether it has no area there."""
    edge1, edge2 = texture[:, 1] - texture[:, 0], texture[:, 2] - texture[:, 0]
    area = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]
    edges = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    along = edge2[:, 1, None].astype(np.float64) * edges[0] - edge1[:, 1, None].astype(np.float64) * edges[1]
    across = -edge2[:, 0, None].astype(np.float64) * edges[0] + edge1[:, 0, None].astype(np.float64) * edges[1]
    upright = area > 0
    plain = np.abs(area) <= _ZERO
    plain |= (np.linalg.norm(along, axis=1) <= _ZERO) | (np.linalg.norm(across, axis=1) <= _ZERO)
    along *= np.where(upright, 1.0, -1.0)[:, None]
    return _unit(along), upright, plain


def _neighbours(vertex: NDArray[np.int64], point_like: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(F, 3) the half-edge across each half-edge, or -1; half-edge 3 f + k goes from corner k of f to the next.

    Half-edges of one edge are paired in order of their faces, each with the first free one that runs the other way.
    """
    start, end = vertex.reshape(-1), np.roll(vertex, -1, axis=1).reshape(-1)
    order = np.lexsort((np.arange(len(start)), np.maximum(start, end), np.minimum(start, end)))
    order = order[~np.repeat(point_like, 3)[order]]
    low, high = np.minimum(start, end)[order], np.maximum(start, end)[order]
    result = np.full(len(start), -1, np.int64)
    same = np.flatnonzero((low[1:] == low[:-1]) & (high[1:] == high[:-1]))
    pairing: Any = _pair
    pairing(order, same, low, high, start, result)
    return result.reshape(-1, 3)


@njit(cache=True, nogil=True)
def _pair(order, same, low, high, start, result):  # type: ignore[no-untyped-def]
    for i in same:
        a = order[i]
        if result[a] >= 0:
            continue
        j = i + 1
        while j < len(order) and low[j] == low[i] and high[j] == high[i]:
            b = order[j]
            if result[b] < 0 and start[b] != start[a]:
                result[a], result[b] = b, a
                break
            j += 1


@njit(cache=True, nogil=True)
def _group(vertex, neighbours, upright, plain, point_like):  # type: ignore[no-untyped-def]
    """Groups (F, 3) of corners, -1 for none, and whether each group is not mirrored (3 F,)."""
    faces = len(vertex)
    group = np.full((faces, 3), -1, np.int64)
    straight = np.zeros(3 * faces, np.bool_)
    stack = np.empty(3 * faces + 16, np.int64)
    count = 0
    for f in range(faces):
        if plain[f] or point_like[f]:
            continue
        for k in range(3):
            if group[f, k] >= 0:
                continue
            straight[count] = upright[f]
            group[f, k] = count
            depth = 0
            # Across both edges at the corner: the one that leaves it and the one that comes in.
            for edge in (k, (k + 2) % 3):
                if neighbours[f, edge] >= 0:
                    stack[depth] = neighbours[f, edge] // 3
                    depth += 1
            while depth > 0:
                depth -= 1
                t = stack[depth]
                c = 0 if vertex[t, 0] == vertex[f, k] else 1 if vertex[t, 1] == vertex[f, k] else 2
                if group[t, c] >= 0:
                    continue
                if plain[t] and group[t, 0] < 0 and group[t, 1] < 0 and group[t, 2] < 0:
                    upright[t] = straight[count]
                if upright[t] != straight[count]:
                    continue
                group[t, c] = count
                for edge in (c, (c + 2) % 3):
                    if neighbours[t, edge] >= 0:
                        if depth == len(stack):
                            stack = np.concatenate((stack, np.empty_like(stack)))
                        stack[depth] = neighbours[t, edge] // 3
                        depth += 1
            count += 1
    return group, straight


def _averaged(
    points: Float64Array,
    normal: Float64Array,
    along: Float64Array,
    vertex: NDArray[np.int64],
    group: NDArray[np.int64],
    straight: NDArray[np.bool_],
    silent: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Tangents (F, 3, 4) from the groups; faces that are ``silent`` add nothing."""

    def flat(vectors: Float64Array) -> Float64Array:
        return _unit(vectors - normal * (normal * vectors).sum(axis=2, keepdims=True))

    before, after = (flat(np.roll(points, shift, axis=1) - points) for shift in (1, -1))
    angle = np.arccos(np.clip((before * after).sum(axis=2), -1, 1))
    weighted = flat(np.repeat(along[:, None], 3, axis=1)) * angle[..., None]
    adds = (group >= 0) & ~silent[:, None]
    total = np.stack([np.bincount(group[adds], weighted[adds][:, c], group.size) for c in range(3)], axis=1)
    # Corners that no group reached take the tangent of a corner at the same vertex.
    corner = group.reshape(-1).copy()
    reached = np.flatnonzero(corner >= 0)[::-1]
    of_vertex = np.full(int(vertex.max(initial=0)) + 1, -1, np.int64)
    of_vertex[vertex.reshape(-1)[reached]] = corner[reached]
    corner = np.where(corner >= 0, corner, of_vertex[vertex.reshape(-1)])
    tangent = np.where((corner >= 0)[:, None], total[corner], 0.0)
    tangent = _across(_unit(tangent), normal.reshape(-1, 3))
    handedness = np.where((corner < 0) | straight[corner], 1.0, -1.0)
    result = np.concatenate([tangent, handedness[:, None]], axis=1).astype(np.float32) + np.float32(0)
    return np.ascontiguousarray(result.reshape(-1, 3, 4))


def _across(tangent: Float64Array, normal: Float64Array) -> Float64Array:
    """``tangent`` (C, 3), replaced by a unit vector at right angles to ``normal`` (C, 3) where it is zero."""
    undefined = ~tangent.any(axis=1)
    if not undefined.any():
        return tangent
    axis = np.eye(3)[np.abs(normal[undefined]).argmin(axis=1)]
    tangent = tangent.copy()
    tangent[undefined] = _unit(np.cross(axis, normal[undefined]))
    return tangent


def _unit(vectors: Float64Array) -> Float64Array:
    """Unit vectors; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Float64Array = np.where(length > _ZERO, vectors / np.where(length > _ZERO, length, 1.0), 0.0)
    return result
