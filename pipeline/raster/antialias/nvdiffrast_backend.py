"""Outlines by nvdiffrast's ``antialias`` (CUDA): a thin layer. Licence: research and evaluation only.

Written against its sources, v0.4.0. It adds to each pixel of a colour image, in no fixed order, a share of the
difference to each of its four neighbours, and spreads the gradient with atomics as well. This layer calls it once per
view, without gradient, on an image that marks each pixel by its column and row, modulo 3. The amount of a neighbour's
mark in a pixel is the share: one sum of one term, so the bits are the same every time. ``antialias.blend_outlines``
then mixes the colours.

The image is bottom-up, face ids are stored plus 1, and the third value of a pixel serves for ordering only: depth.
Edges are identified by vertex indices. Of an edge with three and more faces it keeps any two; ours counts as outline.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from pipeline.core.device import to_device
from pipeline.raster.antialias.layout import Outlines
from pipeline.raster.camera import Cameras
from pipeline.raster.rasterise.layout import Fragments
from pipeline.raster.rasterise.nvdiffrast_backend import clip_positions, stored_ids


def find_outlines(
    fragments: Fragments,
    vertices: NDArray[np.float64],
    faces: NDArray[np.integer],
    cameras: Cameras,
    across: NDArray[np.int64],
) -> Outlines:
    """As ``antialias.find_outlines``, on the current CUDA device. Ignores ``across``: the library computes it."""
    import nvdiffrast.torch as dr

    device = torch.device("cuda", torch.cuda.current_device())
    n, height, width = fragments.face.shape
    if not n or not len(faces):
        none = torch.zeros(n, height, width, device=device)
        return Outlines(none[..., 1:], none[:, 1:])
    clip = clip_positions(np.ascontiguousarray(vertices, np.float64), cameras.clip_from_world, device)
    triangles = torch.from_numpy(np.ascontiguousarray(faces, np.int32)).to(device)
    columns, rows = torch.arange(width, device=device) % 3, torch.arange(height, device=device) % 3
    marks = [one_hot(columns, 3).expand(height, -1, -1), one_hot(rows, 3)[:, None].expand(-1, width, -1)]
    picture = torch.cat(marks, dim=-1).float().expand(n, -1, -1, -1)
    with torch.no_grad():
        smoothed: Tensor = dr.antialias(picture.flip(1).contiguous(), _raster(fragments, device), clip, triangles)
    smoothed = smoothed.flip(1)

    def got(marks: Tensor, of: Tensor) -> Tensor:
        return marks.gather(-1, (of % 3).expand(n, height, width)[..., None])[..., 0]

    by_column, by_row, rows = smoothed[..., :3], smoothed[..., 3:], rows[:, None]
    right = got(by_column, columns + 1)[..., :-1] - got(by_column, columns + 2)[..., 1:]
    below = got(by_row, rows + 1)[:, :-1] - got(by_row, rows + 2)[:, 1:]
    return Outlines(right, below)


def _raster(fragments: Fragments, device: torch.device) -> Tensor:
    """(N, H, W, 4) as from ``rasterize``, but without barycentrics, which are not read, and with depth for z/w."""
    face, depth = (
        to_device(torch.from_numpy(np.ascontiguousarray(x)), device) for x in (fragments.face, fragments.depth)
    )
    nothing = torch.zeros_like(depth)
    return torch.stack([nothing, nothing, torch.where(face >= 0, depth, 0.0), stored_ids(face)], dim=-1).flip(1)
