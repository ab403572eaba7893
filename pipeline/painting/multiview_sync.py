"""Makes views of one surface agree while they are denoised together.

The clean latents that the model predicts for each view are averaged on the surface. MultiDiffusion (Bar-Tal et al.,
2023) does so with the windows of a picture, SyncMVD (Liu et al., 2024) with views of a mesh.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.painting.mesh_renderer import GBuffer
from pipeline.raster.texture import sample_texture, scatter_texture

_EPSILON = 1e-12


def sync_correction(clean: Tensor, gbuffer: GBuffer, weights: Tensor, supersample: int, texture_size: int) -> Tensor:
    """The correction (V, C, h, w) to add to each view so that all views agree on the surface.

    Each view and the mean of all views are written to textures. The correction is the difference of these textures,
    looked up in the view. So a single view does not change, and each view keeps details finer than a texel.

    Args:
        clean: (V, C, h, w) clean latents of the views.
        gbuffer: the surface in the views, at ``supersample``^2 samples per latent pixel.
        weights: (M,) weight of each covered sample in the mean, above 0.
        texture_size: side of the compared textures in texels.
    """
    smooth = torch.nn.functional.interpolate(clean, scale_factor=supersample, mode="bilinear", align_corners=False)
    covered = np.nonzero(gbuffer.covered)
    view, row, column = (to_device(torch.from_numpy(i), clean.device) for i in covered)
    uv = to_device(torch.from_numpy(gbuffer.uv), clean.device)
    weighted = torch.cat([smooth[view, :, row, column] * weights[:, None], weights[:, None]], dim=1)
    mean = _mean(scatter_texture(weighted, uv, texture_size))
    change = torch.zeros_like(smooth)
    for start, end in itertools.pairwise(np.searchsorted(covered[0], np.arange(len(clean) + 1)).tolist()):
        in_view = slice(start, end)
        view_mean = _mean(scatter_texture(weighted[in_view], uv[in_view], texture_size))
        change[view[in_view], :, row[in_view], column[in_view]] = sample_texture(mean - view_mean, uv[in_view])
    return torch.nn.functional.avg_pool2d(change, supersample)


def _mean(sums: Tensor) -> Tensor:
    return sums[:-1] / sums[-1].clamp(min=_EPSILON)
