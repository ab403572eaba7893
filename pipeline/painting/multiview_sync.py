"""Views of one surface that are denoised together come to show the same on it.

The clean latents that a model sees in each view are averaged over the surface, as MultiDiffusion (Bar-Tal et al., 2023)
averages the windows of a picture and SyncMVD (Liu et al., 2024) views of a mesh.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.painting.mesh_renderer import GBuffer
from pipeline.raster.texture import sample_texture, scatter_texture

_LEAST = 1e-12


def sync_correction(clean: Tensor, gbuffer: GBuffer, weights: Tensor, supersample: int, texture_size: int) -> Tensor:
    """What has to be added to each view for all to show a place alike, (V, C, h, w).

    Views and mean are compared as textures, and the difference is looked up: a view alone stays as it is, and what is
    finer than the texture is each view's own.

    Args:
        clean: (V, C, h, w) latents of the views.
        gbuffer: the views at ``supersample``^2 samples a latent pixel.
        weights: (M,) above 0, of the covered samples in the mean.
        texture_size: texels a side of the textures that are compared.
    """
    smooth = torch.nn.functional.interpolate(clean, scale_factor=supersample, mode="bilinear", align_corners=False)
    covered = np.nonzero(gbuffer.covered)
    view, row, column = (to_device(torch.from_numpy(i), clean.device) for i in covered)
    uv = to_device(torch.from_numpy(gbuffer.uv), clean.device)
    weighed = torch.cat([smooth[view, :, row, column] * weights[:, None], weights[:, None]], dim=1)
    mean = _mean(scatter_texture(weighed, uv, texture_size))
    change = torch.zeros_like(smooth)
    for start, end in itertools.pairwise(np.searchsorted(covered[0], np.arange(len(clean) + 1)).tolist()):
        one = slice(start, end)
        # Every texel that a view looks up got something from it.
        own = _mean(scatter_texture(weighed[one], uv[one], texture_size))
        change[view[one], :, row[one], column[one]] = sample_texture(mean - own, uv[one])
    return torch.nn.functional.avg_pool2d(change, supersample)


def _mean(sums: Tensor) -> Tensor:
    return sums[:-1] / sums[-1].clamp(min=_LEAST)
