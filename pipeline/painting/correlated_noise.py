"""Noise that is fixed to a surface: views of the same point get the same noise, so a model draws the same there.

Follows the integral noise of Chang et al. ("How I Warped Your Noise", 2024): cubic cells fill space, each with its own
noise, and a pixel is the mean of the cells that it covers, scaled to a variance of 1. The cells lie in space, not in
the texture, so their size does not depend on the texture coordinates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.core.rng import numpy_generator
from pipeline.painting.mesh_renderer import GBuffer
from pipeline.raster.camera import Cameras, ray_directions

# Number of different noise values. Each cell takes one of them by its hash.
_TABLE_SIZE = 1 << 16
# An odd 64-bit factor for each axis, and the factors of SplitMix64's finaliser.
_AXIS_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_MIX_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def correlated_noise(
    gbuffer: GBuffer, cameras: Cameras, supersample: int, channels: int, cell: float, seed: int
) -> NDArray[np.float32]:
    """Standard normal noise (V, channels, h, w) float32 for the V views of ``gbuffer``.

    Args:
        supersample: samples of ``gbuffer`` along a side of a pixel.
        cell: side of the cells in the working frame. A third of a pixel's side on the surface suffices; larger cells
            correlate neighbouring pixels.
        seed: seed of the noise. Pixels of the background have independent noise in each view.
    """
    count, side, _ = gbuffer.covered.shape
    pixels = side // supersample
    keys = _hash_cells(np.indices(gbuffer.covered.shape, np.int64).transpose(1, 2, 3, 0) - (1 << 40))
    keys[gbuffer.covered] = _hash_cells(np.floor(_surface_points(gbuffer, cameras) / cell).astype(np.int64))
    keys = keys.reshape(count, pixels, supersample, pixels, supersample).swapaxes(2, 3)
    keys = keys.reshape(count, pixels * pixels, supersample**2) % np.uint64(_TABLE_SIZE)
    table = numpy_generator(seed, "surface noise").standard_normal((_TABLE_SIZE, channels), np.float32)
    noise = np.empty((count, channels, pixels, pixels), np.float32)
    for view_noise, cells in zip(noise, keys, strict=True):
        # If n_k samples fall into cell k, the variance of their sum is the sum of n_k squared.
        variance = (cells[:, :, None] == cells[:, None, :]).sum(axis=(1, 2))
        normal_noise = table[cells].sum(axis=1) / np.sqrt(variance, dtype=np.float32)[:, None]
        view_noise[:] = normal_noise.T.reshape(channels, pixels, pixels)
    return noise


def _surface_points(gbuffer: GBuffer, cameras: Cameras) -> NDArray[np.float64]:
    """(M, 3) surface points of the covered samples, in the working frame."""
    side = gbuffer.covered.shape[1]
    view = np.nonzero(gbuffer.covered)[0]
    rays = ray_directions(cameras, side, side)[gbuffer.covered]
    along = -np.einsum("mi,mi->m", rays, cameras.view[view, 2, :3])
    points: NDArray[np.float64] = cameras.eye[view] + rays * (gbuffer.depth / along)[:, None]
    return points


def _hash_cells(cells: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hashes (...) of the integer coordinates ``cells`` (..., 3); all bits are uniformly distributed."""
    key: NDArray[np.uint64] = (cells.astype(np.uint64) * _AXIS_FACTORS).sum(axis=-1, dtype=np.uint64)
    for factor, shift in zip(_MIX_FACTORS, (30, 27), strict=True):
        key = (key ^ (key >> np.uint64(shift))) * factor
    return key ^ (key >> np.uint64(31))
