"""Which close-ups of a mesh are worth painting next, and how much of each pixel may be kept.

M is the number of covered samples of all views, in row-major order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.painting.mesh_renderer import GBuffer
from pipeline.raster.camera import Cameras, ray_directions

Float32Array = NDArray[np.float32]

# Cosines between the view and the normal: nothing below the first is kept, all above the second.
_FACING = (0.25, 0.6)
# Distance from the image's border, in latent pixels: a convolution sees less there than elsewhere.
_BORDER = (0.5, 3.0)
# Share of a latent pixel of a whole view that the mesh covers: what is mixed with the background is none of the
# surface's. Close-ups have no background.
_PURE = (0.6, 0.97)
# Height of the image at the place, as a multiple of what is asked for: something right before the lens, or far behind
# what the camera looks at, would get a pattern of another scale.
_NEAR, _FAR = (0.55, 0.75), (1.5, 2.0)


def view_weights(
    gbuffer: GBuffer,
    cameras: Cameras,
    normals: NDArray[np.floating],
    heights: tuple[float, float],
    supersample: int,
    two_sided: bool,
) -> Float32Array:
    """How well each covered sample shows its place, (M,) in [0, 1].

    Args:
        normals: (F, 3) unit normals of the faces, in the cameras' world.
        heights: least and greatest height of the image at what the cameras look at.
        supersample: samples a side of a latent pixel.
        two_sided: whether the back of a face counts like its front.
    """
    view, row, column = np.nonzero(gbuffer.covered)
    side = gbuffer.covered.shape[1]
    rays = ray_directions(cameras, side, side)[gbuffer.covered]
    cosine = -np.einsum("mi,mi->m", rays, normals[gbuffer.face])
    facing = smooth_ramp(np.abs(cosine) if two_sided else cosine, _FACING)
    away = smooth_ramp((np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / supersample, _BORDER)
    height = gbuffer.depth * 2 / cameras.projection[view, 1, 1]
    scale = smooth_ramp(height / heights[0], _NEAR) * (1 - smooth_ramp(height / heights[1], _FAR))
    small = side // supersample
    share = gbuffer.covered.reshape(-1, small, supersample, small, supersample).mean(axis=(2, 4))
    pure = np.where(
        cameras.close[view], 1.0, smooth_ramp(share[view, row // supersample, column // supersample], _PURE)
    )
    return (facing * np.minimum(away[row], away[column]) * scale * pure).astype(np.float32)


def select_views(count: int, gbuffer: GBuffer, weights: Float32Array, known: Float32Array) -> NDArray[np.int64]:
    """``count`` of the views of ``gbuffer``, one after the other the one that shows most of what is not known yet.

    Args:
        weights: (M,) quality of the samples.
        known: (s, s) in [0, 1], how far each texel is known.

    Returns view numbers (count,), all different. What a chosen view shows counts as known for the next.
    """
    view = np.nonzero(gbuffer.covered)[0]
    size = len(known)
    texel_index = np.clip((gbuffer.uv * size).astype(np.int64), 0, size - 1)
    texel = texel_index[:, 1] * size + texel_index[:, 0]
    by_now = known.ravel().copy()
    views = len(gbuffer.covered)
    chosen: list[int] = []
    for _ in range(min(count, views)):
        gain = np.bincount(view, weights * np.maximum(weights - by_now[texel], 0), minlength=views)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        mine = view == best
        np.maximum.at(by_now, texel[mine], weights[mine])
    return np.array(chosen, np.int64)


def smooth_ramp(values: NDArray[np.floating], ends: tuple[float, float]) -> NDArray[np.float64]:
    """0 below the first end, 1 above the second, smooth between."""
    x = np.clip((np.asarray(values, np.float64) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    smooth: NDArray[np.float64] = x * x * (3 - 2 * x)
    return smooth
