"""Maps a texture's texels to the mesh (face and position), and lists the texels that meet at chart borders.

S is the texture's side, F faces, B border edges. The origin of texture coordinates is at the top left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.mesh import UVMesh, face_areas, face_normals
from pipeline.raster.rasterise import interpolate, rasterise_uv

# A texel belongs to a chart if its centre is at most this far outside, in texels: half a diagonal, so that charts
# thinner than a texel keep the texels that they run through.
MARGIN = 0.75


@dataclass(frozen=True)
class TexelMap:
    """Which texels lie on the surface."""

    face: NDArray[np.int32]  # (S, S), -1 off the charts
    bary: NDArray[np.float32]  # (S, S, 3)
    mask: NDArray[np.bool_]  # (S, S) on a chart or its margin
    position: NDArray[np.float32]  # (S, S, 3) input units, relative to the bounding box's centre; 0 off the charts
    normal: NDArray[np.float32]  # (S, S, 3) unit normal of the face, 0 off the charts
    chart: NDArray[np.int32]  # (S, S), -1 off the charts

    @property
    def size(self) -> int:
        return len(self.face)


def texel_map(uvmesh: UVMesh, size: int, margin: float = MARGIN) -> TexelMap:
    """The texel map of a size x size texture. ``margin`` in texels, as ``conservative`` of ``rasterise_uv``."""
    face, bary = rasterise_uv(uvmesh.uv, uvmesh.uv_faces, size, size, conservative=margin)
    mask = face >= 0
    vertices = np.asarray(uvmesh.mesh.vertices, np.float64)
    # Centre first: float32 keeps six digits, and a scanned mesh may lie kilometres from the origin.
    centred = vertices - (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    position = np.zeros((size, size, 3), np.float32)
    position[mask] = interpolate(face, bary, centred.astype(np.float32), uvmesh.mesh.faces)
    chart = np.where(mask, np.asarray(uvmesh.charts)[np.maximum(face, 0)], -1).astype(np.int32)
    cross = face_normals(vertices, uvmesh.mesh.faces)
    cross /= np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-300)
    normal = np.zeros((size, size, 3), np.float32)
    normal[mask] = cross[face[mask]]
    return TexelMap(face, bary, mask, position, normal, chart)


def surface_share(uvmesh: UVMesh, texels: TexelMap, chosen: NDArray[np.bool_]) -> float:
    """Share of the surface's area that the texels ``chosen`` (S, S) cover, in [0, 1].

    Each texel of a face counts as an equal part of the face's area, because charts differ in texels per area. Faces
    without a texel are left out.
    """
    face = texels.face[texels.mask]
    count = np.bincount(face, minlength=len(uvmesh.mesh.faces))
    area = face_areas(uvmesh.mesh.vertices, uvmesh.mesh.faces)
    part = np.bincount(face, chosen[texels.mask], len(count)) / np.maximum(count, 1)
    return float((part * area).sum() / max(area[count > 0].sum(), 1e-300))


@dataclass(frozen=True)
class Edges:
    """E mesh edges between two faces, seen from both: ends [:, 0] and [:, 1] are the same vertex on both sides."""

    uv: NDArray[np.float64]  # (E, 2 sides, 2 ends, 2)
    inward: NDArray[np.float64]  # (E, 2 sides, 2) unit vector in UV from the edge into the side's face
    chart: NDArray[np.int32]  # (E, 2 sides)
    length: NDArray[np.float64]  # (E,) on the mesh

    def __len__(self) -> int:
        return len(self.uv)

    def __getitem__(self, index: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Edges:
        return Edges(self.uv[index], self.inward[index], self.chart[index], self.length[index])


def shared_edges(uvmesh: UVMesh) -> tuple[Edges, Edges]:
    """Returns (borders, interior): edges whose two faces lie apart in UV, and those whose faces touch there.

    Leaves out edges of a single face and edges without a direction in UV. If more than two faces share an edge, they
    are paired in the order of their ids.
    """
    faces = np.asarray(uvmesh.mesh.faces, np.int64)
    uv, uv_faces = np.asarray(uvmesh.uv, np.float64), np.asarray(uvmesh.uv_faces, np.int64)
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()  # half-edge h = 3 f + k: corner k to k + 1
    low, high = np.minimum(start, end), np.maximum(start, end)
    order = np.lexsort((high, low))
    same = (low[order][1:] == low[order][:-1]) & (high[order][1:] == high[order][:-1])
    # Within a run of equal edges, take the pairs (0, 1), (2, 3), ...
    run_start = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
    first = np.nonzero(same & ((np.arange(len(order)) - run_start)[:-1] % 2 == 0))[0]
    a, b = order[first], order[first + 1]
    uv_start, uv_end = uv_faces.ravel(), np.roll(uv_faces, -1, axis=1).ravel()
    same_direction = start[a] != start[b]
    side_a = np.stack([uv[uv_start[a]], uv[uv_end[a]]], axis=1)
    side_b = np.stack([uv[uv_start[b]], uv[uv_end[b]]], axis=1)
    side_b = np.where(same_direction[:, None, None], side_b[:, ::-1], side_b)
    ends = np.stack([side_a, side_b], axis=1)  # (E, 2, 2, 2)
    opposite = np.stack([uv[np.roll(uv_faces, -2, axis=1).ravel()[h]] for h in (a, b)], axis=1)
    along = ends[:, :, 1] - ends[:, :, 0]
    span = np.linalg.norm(along, axis=-1)
    normal = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    side = np.sign(np.einsum("esc,esc->es", normal, opposite - ends[:, :, 0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        inward = normal * (side / span)[..., None]
    has_extent = (span > 0).all(axis=1) & (side != 0).all(axis=1)
    charts = np.asarray(uvmesh.charts, np.int32)
    vertices = np.asarray(uvmesh.mesh.vertices, np.float64)
    length = np.linalg.norm(vertices[start[a]] - vertices[end[a]], axis=1)
    edges = Edges(ends, inward, np.stack([charts[a // 3], charts[b // 3]], axis=1), length)
    apart = np.abs(side_a - side_b).max(axis=(1, 2)) > 1e-6
    return edges[has_extent & apart], edges[has_extent & ~apart]


def along_edges(edges: Edges, size: int, most: int = 64) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """About one point per texel along each edge: edge ids (P,) and positions t (P,) in (0, 1)."""
    span = np.linalg.norm(edges.uv[:, :, 1] - edges.uv[:, :, 0], axis=-1).max(axis=1) * size
    count = np.clip(np.ceil(span), 1, most).astype(np.int64)
    edge = np.repeat(np.arange(len(edges)), count)
    within = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    return edge, (within + 0.5) / count[edge]


def edge_points(edges: Edges, edge: NDArray[np.int64], t: NDArray[np.float64], inset: float) -> NDArray[np.float64]:
    """UV (P, 2 sides, 2) of points at ``t`` along edges, ``inset`` (in UV units) inside either face."""
    ends = edges.uv[edge]
    points = ends[:, :, 0] + t[:, None, None] * (ends[:, :, 1] - ends[:, :, 0])
    result: NDArray[np.float64] = points + inset * edges.inward[edge]
    return result
