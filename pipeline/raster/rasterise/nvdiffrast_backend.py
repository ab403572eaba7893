"""The rasteriser by nvdiffrast (CUDA): a thin layer that converts our conventions to nvdiffrast's and back.

Its licence allows research and evaluation only. Nothing needs it: ``warp_backend`` is used if it is not installed.
Written against its sources, v0.3.3 to v0.4.0 (before v0.3.2 image sides had to be multiples of 8; since then it pads
inside). Its conventions, as its ``rasterize`` documents and its kernels compute:

* Positions are clip-space float32 (N, V, 4) for N views of one index buffer ("instanced"), or (V', 4) with a
  range of triangles for each view ("range mode", the ranges in host memory), which is how culling is done here:
  it draws both sides of every face.
* Indices are int32 (F, 3). Everything else is contiguous and on the context's own device; empty arrays are errors.
* The image is bottom-up: row 0 is the lowest. Ours are top-down.
* A pixel holds (u, v, z/w, id + 1): u and v weigh the first two corners, 0 means nothing is there, and ids beyond
  2^24 are bit patterns, see ``face_ids``.
* It clips at the far plane, which our rules do not: ``_without_far_plane`` moves that plane to infinity.

It snaps corners to 1/16 pixel (ours: 1/4096), so ids differ if a pixel's centre lies within about 1/32 pixel of an
edge. Its derivatives with respect to positions are not used, because geometry is fixed here. The antialiasing's
``nvdiffrast_backend`` uses it to find outlines.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.raster.backface_culling import front_faces

# Texels are rasterised in host memory, once per asset, so these functions stay with the compiled loops.
from pipeline.raster.rasterise.numba_backend import interpolate, rasterise_uv

__all__ = ["interpolate", "rasterise", "rasterise_uv"]

# The largest id that a float32 counts exactly, and what nvdiffrast adds to the bits of larger ones.
_EXACT = 1 << 24
_ID_BITS = 0x4A800000


def rasterise(
    vertices: NDArray[np.float64],
    faces: NDArray[np.integer],
    matrices: NDArray[np.float64],
    height: int,
    width: int,
    cull: bool,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """``rasterise.rasterise`` with the cameras as clip-from-world matrices (N, 4, 4), on the current CUDA device."""
    shape = (len(matrices), height, width)
    empty = np.full(shape, -1, np.int32), np.zeros((*shape, 3), np.float32), np.full(shape, np.inf, np.float32)
    if not len(matrices) or not len(faces):
        return empty
    device = torch.device("cuda", torch.cuda.current_device())
    clip = clip_positions(vertices, matrices, device)
    triangles = torch.from_numpy(np.ascontiguousarray(faces, np.int32)).to(device)
    if cull:
        frontface_ids = [front_faces(vertices, faces, matrix) for matrix in matrices]
        raster, face, depth = _draw_ranges(clip, triangles, frontface_ids, height, width)
    else:
        raster, depth = _draw(clip, triangles, (height, width))
        face = face_ids(raster[..., 3])
    covered = face >= 0
    weights = torch.cat([raster[..., :2], 1.0 - raster[..., :1] - raster[..., 1:2]], dim=-1)
    bary = torch.where(covered[..., None], weights, 0.0)
    depth = torch.where(covered, depth, torch.inf)
    # Bottom-up to top-down.
    return face.flip(1).cpu().numpy(), bary.flip(1).cpu().numpy(), depth.flip(1).cpu().numpy()


def clip_positions(vertices: NDArray[np.float64], matrices: NDArray[np.float64], device: torch.device) -> Tensor:
    """(N, V, 4) float32, computed in float64, so that only the last rounding loses precision."""
    transforms = torch.from_numpy(np.stack([_without_far_plane(matrix) for matrix in matrices])).to(device)
    points = torch.from_numpy(vertices).to(device)
    clip = points @ transforms[:, :, :3].transpose(1, 2) + transforms[:, None, :, 3]
    return clip.float().contiguous()


def _without_far_plane(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A clip-from-world matrix (4, 4) with the same near plane (z = -w) and the far plane at infinity.

    A projection's z grows with depth w at a constant rate a, so z + w = (1 + a)(w - near): 2 (z + w) / (1 + a) - w
    = w - 2 near equals -w at the near plane and stays below w everywhere.
    """
    z, w = matrix[2], matrix[3]
    rate = (z[:3] @ w[:3]) / (w[:3] @ w[:3])
    endless = matrix.copy()
    endless[2] = 2.0 / (1.0 + rate) * (z + w) - w
    return endless


def _draw_ranges(
    clip: Tensor, triangles: Tensor, frontface_ids: list[NDArray[np.int64]], height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Each view with its own faces: image (N, H, W, 4), bottom-up, face ids (N, H, W) into ``triangles``, and depth."""
    views, count = clip.shape[:2]
    # A view that sees no face draws the first one and ignores it, because an empty range may not be allowed.
    blank = np.array([not len(visible_ids) for visible_ids in frontface_ids])
    frontface_ids = [visible_ids if len(visible_ids) else np.zeros(1, np.int64) for visible_ids in frontface_ids]
    lengths = np.array([len(visible_ids) for visible_ids in frontface_ids])
    ids = torch.from_numpy(np.concatenate(frontface_ids)).to(clip.device)
    # One list has the vertices of all views, view after view; shift the indices accordingly.
    vertex_offset = torch.from_numpy(np.repeat(np.arange(views, dtype=np.int32) * count, lengths)).to(clip.device)
    view_triangles = (triangles[ids] + vertex_offset[:, None]).contiguous()
    ranges = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1).astype(np.int32)
    raster, depth = _draw(clip.reshape(-1, 4), view_triangles, (height, width), torch.from_numpy(ranges))
    range_index = face_ids(raster[..., 3])
    known = (range_index >= 0) & ~torch.from_numpy(blank).to(clip.device)[:, None, None]
    return raster, torch.where(known, ids[range_index.clamp(min=0).long()].int(), -1), depth


def _draw(
    clip: Tensor, triangles: Tensor, size: tuple[int, int], ranges: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The image (N, H, W, 4) and depth (N, H, W), 0 where nothing is; both bottom-up, without gradients.

    Depth is clip-space w, interpolated: it is linear on a face, and keeps seven digits at any distance, which z/w
    would not.
    """
    import nvdiffrast.torch as dr

    with torch.no_grad():
        image: Tensor = dr.rasterize(_context(clip.device), clip, triangles, size, ranges=ranges, grad_db=False)[0]
        depth: Tensor = dr.interpolate(clip[..., 3:].contiguous(), image, triangles)[0]
    return image, depth[..., 0]


@functools.cache
def _context(device: torch.device) -> Any:
    """One context per device. It holds buffers that grow to the largest image drawn."""
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext(device=device)


def stored_ids(face: Tensor) -> Tensor:
    """The fourth channel (float32) for ids (int32, -1 for none); see ``face_ids``."""
    number = face + 1
    return torch.where(number <= _EXACT, number.float(), (number + _ID_BITS).view(torch.float32))


def face_ids(stored: Tensor) -> Tensor:
    """Ids (int32, -1 for none) from the fourth channel: id + 1 as a number, or, beyond 2^24, as moved bits."""
    counted = stored.clamp(max=_EXACT).int()
    bits = stored.contiguous().view(torch.int32) - _ID_BITS
    return torch.where(stored <= _EXACT, counted, bits) - 1
