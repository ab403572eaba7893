"""Rates how well views show a surface, and selects the views to paint next.

M is the number of covered samples of all views, in row-major order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Float32Array
from pipeline.painting.mesh_renderer import GBuffer
from pipeline.raster.camera import Cameras, ray_directions

# Quality rises from 0 to 1 over this range of the cosine between view and normal.
_FACING = (0.25, 0.6)
# The same for the distance from the image's border in latent pixels: convolutions see less context there.
_BORDER = (0.5, 3.0)
# The same for the share of a latent pixel that the mesh covers, in overviews: other pixels mix in the
# background. Close-ups have no background.
_PURITY = (0.6, 0.97)
# Quality rises over the first range and falls over the second: of the image's height at the point, relative to the
# smallest and to the largest requested height. Nearer and farther points would get a pattern of another scale.
_NEAR, _FAR = (0.55, 0.75), (1.5, 2.0)


def view_weights(
    gbuffer: GBuffer,
    cameras: Cameras,
    normals: NDArray[np.floating],
    heights: tuple[float, float],
    supersample: int,
    two_sided: bool,
) -> Float32Array:
    """Quality (M,) in [0, 1] with which each covered sample shows the surface.

    Args:
        normals: (F, 3) unit normals of the faces, working frame.
        heights: smallest and largest height of the image at the cameras' target, working frame.
        supersample: samples along a side of a latent pixel.
        two_sided: whether the back of a face counts like its front.
    """
    view, row, column = np.nonzero(gbuffer.covered)
    side = gbuffer.covered.shape[1]
    rays = ray_directions(cameras, side, side)[gbuffer.covered]
    cosine = -np.einsum("mi,mi->m", rays, normals[gbuffer.face])
    facing = smooth_ramp(np.abs(cosine) if two_sided else cosine, _FACING)
    border_weight = smooth_ramp((np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / supersample, _BORDER)
    height = gbuffer.depth * 2 / cameras.projection[view, 1, 1]
    scale = smooth_ramp(height / heights[0], _NEAR) * (1 - smooth_ramp(height / heights[1], _FAR))
    pixels = side // supersample
    pixel_coverage = gbuffer.covered.reshape(-1, pixels, supersample, pixels, supersample).mean(axis=(2, 4))
    purity = np.where(
        cameras.close[view], 1.0, smooth_ramp(pixel_coverage[view, row // supersample, column // supersample], _PURITY)
    )
    return (facing * np.minimum(border_weight[row], border_weight[column]) * scale * purity).astype(np.float32)


def select_views(count: int, gbuffer: GBuffer, weights: Float32Array, painted: Float32Array) -> NDArray[np.int64]:
    """Select ``count`` views of ``gbuffer`` greedily, each the one that shows most unpainted surface.

    Args:
        weights: (M,) quality of the samples, as returned by ``view_weights``.
        painted: (s, s) in [0, 1], how far each texel is painted.

    Returns distinct view indices (count,); fewer if there are fewer views. A selected view counts as painted for the
    next selection.
    """
    view = np.nonzero(gbuffer.covered)[0]
    size = len(painted)
    texel_index = np.clip((gbuffer.uv * size).astype(np.int64), 0, size - 1)
    texel = texel_index[:, 1] * size + texel_index[:, 0]
    coverage = painted.ravel().copy()
    views = len(gbuffer.covered)
    chosen: list[int] = []
    for _ in range(min(count, views)):
        gain = np.bincount(view, weights * np.maximum(weights - coverage[texel], 0), minlength=views)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        in_best_view = view == best
        np.maximum.at(coverage, texel[in_best_view], weights[in_best_view])
    return np.array(chosen, np.int64)


def smooth_ramp(values: NDArray[np.floating], ends: tuple[float, float]) -> NDArray[np.float64]:
    """The cubic smoothstep of ``values``: 0 below ``ends[0]``, 1 above ``ends[1]``."""
    t = np.clip((np.asarray(values, np.float64) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    smooth: NDArray[np.float64] = t * t * (3 - 2 * t)
    return smooth
