"""The plain twin of ``numba_backend``: the same rules as arithmetic on whole arrays of pixels.

It is meant to be read, to be compared with, and to work where numba does not. It tests every face against every pixel,
in float64 and in the same order of operations as the compiled loops, so that both give the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.raster.rasterise.layout import SUBPIXELS

# Values (triangles x pixels) held at once.
_CHUNK = 1 << 20


def rasterise(
    vertices: NDArray[np.float64],
    faces: NDArray[np.integer],
    matrices: NDArray[np.float64],
    height: int,
    width: int,
    cull: bool,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """``rasterise.rasterise`` with the cameras as clip-from-world matrices (N, 4, 4)."""
    corners = torch.from_numpy(np.asarray(faces, np.int64))
    views = [
        _draw_view(torch.from_numpy(vertices), corners, torch.from_numpy(m), height, width, cull) for m in matrices
    ]
    shape = (len(views), height, width)
    if not views:
        return np.zeros(shape, np.int32), np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    face, bary, depth = (
        torch.stack(arrays).reshape(*shape, *arrays[0].shape[1:]) for arrays in zip(*views, strict=True)
    )
    return face.numpy(), bary.numpy(), depth.numpy()


def rasterise_uv(
    uv: NDArray[np.float64], uv_faces: NDArray[np.integer], height: int, width: int, conservative: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """``rasterise.rasterise_uv``."""
    size = torch.tensor([width, height], dtype=torch.float64)
    points = _snap(torch.from_numpy(uv) * size)[torch.from_numpy(np.asarray(uv_faces, np.int64))]  # (F, 3, 2)
    x, y = _centres(height, width)
    face = torch.full((height * width,), -1, dtype=torch.int32)
    bary = torch.zeros(height * width, 3, dtype=torch.float32)
    step = max(1, _CHUNK // max(1, height * width))
    for start in range(0, len(points), step):
        edges, inside, _ = _edges(points[start : start + step], x, y, cull=False)
        # The first face to cover a texel keeps it.
        order = torch.where(inside, torch.arange(len(inside))[:, None], len(inside)).min(dim=0).values
        new = (order < len(inside)) & (face < 0)
        chosen = edges[order[new], :, new]
        face[new] = (start + order[new]).int()
        bary[new] = (chosen / (chosen[:, 0:1] + chosen[:, 1:2] + chosen[:, 2:3])).float()
    if conservative > 0:
        _draw_margin(points, x, y, conservative, face, bary)
    return face.reshape(height, width).numpy(), bary.reshape(height, width, 3).numpy()


def interpolate(
    face: NDArray[np.int32], bary: NDArray[np.float32], values: NDArray[np.floating], value_faces: NDArray[np.integer]
) -> NDArray[np.floating]:
    """``rasterise.interpolate`` over flat pixels: face (P,), bary (P, 3)."""
    covered = torch.from_numpy(face >= 0)
    corners = torch.from_numpy(np.asarray(value_faces, np.int64))[torch.from_numpy(face)[covered].long()]
    weights = torch.from_numpy(bary)[covered]
    of = torch.from_numpy(values)
    total = weights[:, 0:1] * of[corners[:, 0]] + weights[:, 1:2] * of[corners[:, 1]]
    return np.asarray((total + weights[:, 2:3] * of[corners[:, 2]]).numpy())


def _draw_view(
    vertices: Tensor, faces: Tensor, matrix: Tensor, height: int, width: int, cull: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One view over flat pixels P = H * W: face (P,), bary (P, 3), depth (P,)."""
    m, (vx, vy, vz) = matrix, vertices.T
    clip = torch.stack([m[r, 0] * vx + m[r, 1] * vy + m[r, 2] * vz + m[r, 3] for r in range(4)], dim=1)
    clip, weights, ids = _clipped(clip[faces])
    inverse = 1.0 / clip[..., 3]
    points = _snap(
        torch.stack(
            [
                (0.5 + 0.5 * (clip[..., 0] * inverse)) * width,
                (0.5 - 0.5 * (clip[..., 1] * inverse)) * height,
            ],
            dim=-1,
        )
    )
    x, y = _centres(height, width)
    depth = torch.full((height * width,), torch.inf, dtype=torch.float32)
    face = torch.full((height * width,), -1, dtype=torch.int32)
    bary = torch.zeros(height * width, 3, dtype=torch.float32)
    step = max(1, _CHUNK // max(1, height * width))
    for start in range(0, len(points), step):
        face_range = slice(start, start + step)
        edges, inside, area = _edges(points[face_range], x, y, cull)
        b = edges * inverse[face_range, :, None]
        total = b[:, 0] + b[:, 1] + b[:, 2]
        distance = torch.where(inside, area / total, torch.inf).float()
        nearest = distance.min(dim=0).values
        # The lowest id among equal depths; min() itself promises no order.
        first = torch.where(distance == nearest, torch.arange(len(distance))[:, None], len(distance)).min(dim=0)
        new = nearest < depth
        chosen = first.values[new]
        barycentric = b[chosen, :, new] / total[chosen, new][:, None]  # (M, 3), of the triangle's corners
        w = weights[face_range][chosen]  # (M, 3, 3): those corners on the face
        depth[new] = nearest[new]
        face[new] = ids[face_range][chosen].int()
        bary[new] = (
            barycentric[:, 0:1] * w[:, 0] + barycentric[:, 1:2] * w[:, 1] + barycentric[:, 2:3] * w[:, 2]
        ).float()
    return face, bary, depth


def _clipped(corners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Triangles in clip space (F, 3, 4), cut at the near plane: corners (G, 3, 4), weights, face ids.

    ``weights`` (G, 3, 3) are the barycentrics of the new corners on the old face; ids (G,) ascend.
    """
    inside = corners[..., 2] + corners[..., 3]
    front = (inside > 0) & (corners[..., 3] > 0)
    identity = torch.eye(3, dtype=torch.float64)
    pieces: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for f in torch.nonzero(front.any(dim=1) & ~front.all(dim=1)).flatten().tolist():
        polygon: list[tuple[Tensor, Tensor]] = []
        for k in range(3):
            n = (k + 1) % 3
            if inside[f, k] > 0:
                polygon.append((corners[f, k], identity[k]))
            if (inside[f, k] > 0) != (inside[f, n] > 0):
                i, o = (k, n) if inside[f, k] > 0 else (n, k)
                t = inside[f, i] / (inside[f, i] - inside[f, o])
                point = corners[f, i] + t * (corners[f, o] - corners[f, i])
                polygon.append((point, (1.0 - t) * identity[i] + t * identity[o]))
        pieces[f] = polygon
    unclipped = torch.nonzero(front.all(dim=1)).flatten()
    ids, points = [unclipped], [corners[unclipped]]
    weights = [identity.expand(len(unclipped), 3, 3)]
    for f, polygon in pieces.items():
        for k in range(1, len(polygon) - 1):
            fan = (polygon[0], polygon[k], polygon[k + 1])
            ids.append(torch.tensor([f]))
            points.append(torch.stack([p for p, _ in fan])[None])
            weights.append(torch.stack([w for _, w in fan])[None])
    all_ids = torch.cat(ids)
    order = torch.sort(all_ids, stable=True).indices
    return torch.cat(points)[order], torch.cat(weights)[order], all_ids[order]


def _edges(points: Tensor, x: Tensor, y: Tensor, cull: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Edge values (G, 3, P) of triangles (G, 3, 2) at pixel centres, whether inside (G, P), and their sum."""
    a, b, c = points.unbind(dim=1)
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    sign = torch.where(area > 0, 1.0, -1.0).double()
    values, covers = [], []
    for p, q in ((b, c), (c, a), (a, b)):  # edge k lies opposite corner k
        direction = sign[:, None] * (q - p)
        first = (p[:, 0] < q[:, 0]) | ((p[:, 0] == q[:, 0]) & (p[:, 1] <= q[:, 1]))
        origin = torch.where(first[:, None], p, q)
        (dx, dy), (ox, oy) = direction.T[..., None], origin.T[..., None]
        value = dx * (y - oy) - dy * (x - ox)
        top_left = (dy < 0) | ((dy == 0) & (dx > 0))
        values.append(value)
        covers.append((value > 0) | ((value == 0) & top_left))
    inside = covers[0] & covers[1] & covers[2] & (area != 0)[:, None]
    if cull:
        inside &= (area < 0)[:, None]
    return torch.stack(values, dim=1), inside, values[0] + values[1] + values[2]


def _draw_margin(points: Tensor, x: Tensor, y: Tensor, radius: float, face: Tensor, bary: Tensor) -> None:
    """Gives uncovered texels near a face the nearest point of the nearest face; see ``rasterise_uv``."""
    free = torch.nonzero(face < 0).flatten()
    nearest = torch.full((len(free),), torch.inf, dtype=torch.float64)
    for f in range(len(points)):
        for k in range(3):
            a, b = points[f, k], points[f, (k + 1) % 3]
            direction = b - a
            length = direction[0] * direction[0] + direction[1] * direction[1]
            px, py = x[free] - a[0], y[free] - a[1]
            t = torch.zeros_like(px)
            if length > 0:
                t = ((px * direction[0] + py * direction[1]) / length).clamp(0, 1)
            ex, ey = px - t * direction[0], py - t * direction[1]
            d = ex * ex + ey * ey
            new = (d <= radius * radius) & (d < nearest)
            nearest[new] = d[new]
            texel = free[new]
            face[texel] = f
            bary[texel, k] = (1 - t[new]).float()
            bary[texel, (k + 1) % 3] = t[new].float()
            bary[texel, (k + 2) % 3] = 0


def _centres(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x and y (P,) of all pixel centres, row by row."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) + 0.5,
        torch.arange(width, dtype=torch.float64) + 0.5,
        indexing="ij",
    )
    return x.flatten(), y.flatten()


def _snap(x: Tensor) -> Tensor:
    """To the grid of 1/SUBPIXELS pixel."""
    return torch.floor(x * SUBPIXELS + 0.5) / SUBPIXELS
