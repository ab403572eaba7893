"""Gaussian noise that belongs to a surface: views of one place show the same noise, at whatever distance.

Every view by itself is what a diffusion model expects: independent standard normal values. The noise of a latent pixel
is the sum of the noise texels it shows, divided by the square root of their number (the noise transport of
Chang et al., "How I Warped Your Noise", ICLR 2024; on meshes Yan et al., "Consistent Flow Distillation", ICLR 2025).
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.core.rng import numpy_generator, torch_generator
from pipeline.scene.mesh_views import Seen

# Side of the finest noise, in texels; coarser levels are sums of four.
_SIDE = 1024


class SurfaceNoise:
    """Noise over the texture coordinates of one mesh, ``channels`` values a texel, keyed by ``seed``."""

    def __init__(self, seed: int, channels: int):
        self._seed = seed
        finest = torch.randn(channels, _SIDE, _SIDE, generator=torch_generator(seed, "surface noise")).numpy()
        self._levels = [finest]
        while self._levels[-1].shape[-1] > 1:
            fine = self._levels[-1]
            # Four independent values of variance 1 sum to one of variance 4.
            blocks = fine.reshape(channels, fine.shape[1] // 2, 2, fine.shape[2] // 2, 2)
            self._levels.append(blocks.sum(axis=(2, 4)) / 2)

    def views(self, seen: Seen, supersample: int, step: int) -> torch.Tensor:
        """(V, C, h, h) float32 noise of views that are ``supersample`` h pixels a side.

        Behind the mesh there is other noise at every ``step``.
        """
        count, side, _ = seen.covered.shape
        channels = len(self._levels[0])
        rng = numpy_generator(self._seed, "noise behind", step)
        values = rng.standard_normal((count, side, side, channels), dtype=np.float32)
        # What is behind the mesh is of many texels, none of which is shown twice.
        texel = -1 - np.arange(count * side * side).reshape(count, side, side)
        uv = np.zeros((count, side, side, 2), np.float32)
        uv[seen.covered] = seen.uv
        levels = self._levels_of(uv, seen.covered)
        for index, level in enumerate(self._levels):
            here = levels == index
            if not here.any():
                continue
            size = level.shape[-1]
            place = np.clip((uv[here] * size).astype(np.int64), 0, size - 1)
            # No two levels share a number.
            texel[here] = (index * _SIDE + place[:, 1]) * _SIDE + place[:, 0]
            values[here] = level[:, place[:, 1], place[:, 0]].T
        small = side // supersample
        shape = (count, small, supersample, small, supersample)
        shown = texel.reshape(shape).transpose(0, 1, 3, 2, 4).reshape(-1, supersample**2)
        total = values.reshape(*shape, channels).sum(axis=(2, 4)).reshape(-1, channels)
        # A texel that is shown m times adds m^2 to the variance: the pairs of lookups that show the same texel.
        pairs = (shown[:, :, None] == shown[:, None, :]).sum(axis=(1, 2))
        noise = (total / np.sqrt(pairs)[:, None]).astype(np.float32).reshape(count, small, small, channels)
        return torch.from_numpy(np.ascontiguousarray(noise.transpose(0, 3, 1, 2)))

    def _levels_of(self, uv: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """(V, side, side) int64: for each pixel the level of which neighbouring pixels show neighbours; -1 behind.

        Were it finer, another view of the place would hit other texels; were it coarser, pixels would share theirs.
        """
        stride = np.full(covered.shape, np.inf)
        for axis in (1, 2):
            step = np.linalg.norm(np.diff(uv, axis=axis), axis=-1)
            both = np.delete(covered, -1, axis) & np.delete(covered, 0, axis)
            step[~both] = np.inf
            edge = np.full_like(np.take(stride, [0], axis), np.inf)
            # The smaller of both sides: on the border of a chart only one of them stays within it.
            nearest = np.minimum(np.concatenate([edge, step], axis), np.concatenate([step, edge], axis))
            stride = np.minimum(stride, nearest) if axis == 1 else np.sqrt(stride * nearest)
        stride = np.where(np.isfinite(stride), stride, 0) * _SIDE
        level = np.clip(np.round(np.log2(np.maximum(stride, 1.0))), 0, len(self._levels) - 1).astype(np.int64)
        return np.where(covered, level, -1)
