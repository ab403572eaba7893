"""Noise that lies on a surface, so that views of one place are noised alike and a model lays out the same in them.

As in the integral noise of Chang et al. (How I Warped Your Noise, 2024): noise fills space in small cells, and a pixel
is the mean of the cells it covers, scaled to a variance of 1. Space, not the texture: cells are of one size whatever
the texture coordinates are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.core.rng import numpy_generator
from pipeline.painting.mesh_renderer import GBuffer
from pipeline.raster.camera import Cameras, ray_directions

# Cells have one of so many values.
_VALUES = 1 << 16
# Odd 64-bit factors, one an axis, and the last step of a hash (the finalizer of SplitMix64).
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def correlated_noise(
    gbuffer: GBuffer, cameras: Cameras, supersample: int, channels: int, cell: float, seed: int
) -> NDArray[np.float32]:
    """Standard normal noise (V, channels, h, w) for ``gbuffer`` at supersample^2 samples a pixel.

    Args:
        cell: side of the cells, working frame. A third of what a pixel shows is enough; larger ones than that make
            neighbours alike.
        seed: of the noise on the surface. What is behind it has noise of its own in each view.
    """
    count, side, _ = gbuffer.covered.shape
    small = side // supersample
    keys = _hashed(np.indices(gbuffer.covered.shape, np.int64).transpose(1, 2, 3, 0) - (1 << 40))
    keys[gbuffer.covered] = _hashed(np.floor(_surface_points(gbuffer, cameras) / cell).astype(np.int64))
    keys = keys.reshape(count, small, supersample, small, supersample).swapaxes(2, 3)
    keys = keys.reshape(count, small * small, supersample**2) % np.uint64(_VALUES)
    table = numpy_generator(seed, "surface noise").standard_normal((_VALUES, channels), np.float32)
    noise = np.empty((count, channels, small, small), np.float32)
    for image, cells in zip(noise, keys, strict=True):
        # Of n samples with n_k in cell k the sum has the variance of the sum of n_k squared.
        alike = (cells[:, :, None] == cells[:, None, :]).sum(axis=(1, 2))
        normal_noise = table[cells].sum(axis=1) / np.sqrt(alike, dtype=np.float32)[:, None]
        image[:] = normal_noise.T.reshape(channels, small, small)
    return noise


def _surface_points(gbuffer: GBuffer, cameras: Cameras) -> NDArray[np.float64]:
    """(M, 3) what the covered samples show, working frame."""
    side = gbuffer.covered.shape[1]
    view = np.nonzero(gbuffer.covered)[0]
    rays = ray_directions(cameras, side, side)[gbuffer.covered]
    along = -np.einsum("mi,mi->m", rays, cameras.view[view, 2, :3])
    points: NDArray[np.float64] = cameras.eye[view] + rays * (gbuffer.depth / along)[:, None]
    return points


def _hashed(cells: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(...) a number for each of ``cells`` (..., 3), any bit of which is as good as a coin."""
    key: NDArray[np.uint64] = (cells.astype(np.uint64) * _FACTORS).sum(axis=-1, dtype=np.uint64)
    for factor, shift in zip(_MIX, (30, 27), strict=True):
        key = (key ^ (key >> np.uint64(shift))) * factor
    return key ^ (key >> np.uint64(31))
