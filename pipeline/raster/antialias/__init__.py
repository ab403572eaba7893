"""Smooths outlines: mixes neighbouring pixels of different faces by the position of the edge between them.

This is the rule of nvdiffrast (Laine et al., Modular Primitives for High-Performance Differentiable Rendering, 2020,
section 3.5). Of two neighbouring pixels (right or below) that show different faces, take the nearer face, and its edge
that leaves its pixel towards the other. The rule applies if the edge is an outline (no face continues behind it, or one
that folds back under) and runs more across the line between the two centres than along it. It crosses that line at a
distance d in [0, 1] from the nearer face's pixel. At d = 1/2 the pixels stay as drawn. Below, the nearer face's pixel
takes 1/2 - d of the other's colour; above, the other takes d - 1/2 of this one's.

Colours enter linearly and geometry is fixed. So ``find_outlines`` evaluates the geometry once per view (on the CPU in
``numpy_backend``, on CUDA in ``nvdiffrast_backend``), and ``blend_outlines`` is a few sums in a fixed order,
differentiable in the colours.

N views of H x W pixels, F faces, V vertices. Edges between distinct vertices at the same position, and edges of three
and more faces, count as outlines; for faces with corners at or behind the eye the result is undefined. Row 0 is the
top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core import backends
from pipeline.core.device import to_device
from pipeline.raster.antialias.layout import Outlines
from pipeline.raster.camera import Cameras
from pipeline.raster.rasterise.layout import Fragments

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Int64


def find_outlines(
    fragments: Fragments,
    vertices: Float[NDArray[np.float64], "vertices 3"],
    faces: Int[NDArray[np.integer], "faces 3"],
    cameras: Cameras,
    across: Int64[NDArray[np.int64], "faces 3"],
    *,
    backend: str = "auto",
) -> Outlines:
    """Finds the outlines of ``faces`` (F, 3) over world ``vertices`` (V, 3) in the views of ``cameras``.

    ``fragments``: of the same mesh and cameras, by any rasteriser. ``across``: see ``adjacent_vertices``. The result
    is in host memory for "numpy", on the CUDA device for "nvdiffrast". Raises BackendError.
    """
    module = backends.load(__name__, backends.select_backend("antialias", backend).name)
    outlines: Outlines = module.find_outlines(fragments, vertices, faces, cameras, across)
    return outlines


def blend_outlines(
    image: Float[Tensor, "views channels height width"], outlines_: Outlines
) -> Float[Tensor, "views channels height width"]:
    """``image`` (N, C, H, W) with its outlines smoothed; differentiable in ``image``, the same bytes every time."""
    right, below = (_beside(shares, image)[:, None] for shares in (outlines_.right, outlines_.below))
    across, down = image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]
    pad = torch.nn.functional.pad
    changes = (
        pad(right.clamp(min=0) * across, (0, 1)),
        pad(right.clamp(max=0) * across, (1, 0)),
        pad(below.clamp(min=0) * down, (0, 0, 0, 1)),
        pad(below.clamp(max=0) * down, (0, 0, 1, 0)),
    )
    for change in changes:
        image = image + change
    return image


def _beside(shares: Tensor, image: Tensor) -> Tensor:
    return shares if shares.device.type == image.device.type else to_device(shares.cpu(), image.device)


def adjacent_vertices(faces: Int[NDArray[np.integer], "faces 3"]) -> Int64[NDArray[np.int64], "faces 3"]:
    """(F, 3): the third vertex of the only other face at the edge opposite corner k; -1 without such a face."""
    faces = np.asarray(faces, np.int64)
    ends = np.sort(np.stack([faces[:, [1, 2]], faces[:, [2, 0]], faces[:, [0, 1]]], axis=1).reshape(-1, 2), axis=1)
    order = np.lexsort(ends.T)
    new = np.append(True, (np.diff(ends[order], axis=0) != 0).any(axis=1)) if len(order) else np.zeros(0, bool)
    first = np.flatnonzero(new)
    pairs = first[np.diff(np.append(first, len(order))) == 2]
    edge_a, edge_b = order[pairs], order[pairs + 1]
    across = np.full(faces.size, -1, np.int64)
    # An edge has the number of the opposite corner.
    across[edge_a], across[edge_b] = faces.ravel()[edge_b], faces.ravel()[edge_a]
    return across.reshape(-1, 3)
