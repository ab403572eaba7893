"""Mip levels of a texture, looked up trilinearly: what the previews filter their textures with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Float32Array


@dataclass(frozen=True)
class MipPyramid:
    """Mip levels of a texture, concatenated. P texels, L levels. ``repeats``: lookups wrap around."""

    texels: Float32Array  # (P, 3)
    start: NDArray[np.int64]  # (L,) of each level in ``texels``
    width: NDArray[np.int64]  # (L,)
    height: NDArray[np.int64]  # (L,)
    repeats: bool = False


def mip_pyramid(image: NDArray[np.uint8], limit: int, *, repeats: bool = False, data: bool = False) -> MipPyramid:
    """Mip levels of ``image`` (H, W, 3), from the first level of at most ``limit`` on.

    Colours are sRGB and become linear light; with ``data`` the values are numbers, and become shares of 255.
    """
    values = np.asarray(np.arange(256) / 255, np.float32)
    linear = values if data else srgb_to_linear(values)
    if max(image.shape[:2]) > limit and min(image.shape[:2]) > 1:
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        level = linear[image[0::2, 0::2]]
        for y, x in ((0, 1), (1, 0), (1, 1)):
            level += linear[image[y::2, x::2]]
        level *= np.float32(0.25)
    else:
        level = linear[image]
    while max(level.shape[:2]) > limit and min(level.shape[:2]) > 1:
        level = halved(level)
    levels = [level]
    while max(level.shape[:2]) > 1:
        level = halved(level)
        levels.append(level)
    height, width = np.array([entry.shape[:2] for entry in levels], np.int64).T
    count = width * height
    return MipPyramid(
        np.concatenate([entry.reshape(-1, 3) for entry in levels]), np.cumsum(count) - count, width, height, repeats
    )


def halved(level: Float32Array) -> Float32Array:
    """Halves (H, W, 3): each texel is the mean of four. Repeats an odd last row or column."""
    height, width = level.shape[:2]
    if height % 2 or width % 2:
        level = np.pad(level, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return (level[0::2, 0::2] + level[0::2, 1::2] + level[1::2, 0::2] + level[1::2, 1::2]) * np.float32(0.25)


def sample_pyramid(pyramid: MipPyramid, uv: Float32Array, level: Float32Array) -> Float32Array:
    """Trilinear lookup at (M, 2), top-left origin, and fractional levels (M,). Returns (M, 3)."""
    level = np.clip(level, 0, len(pyramid.start) - 1)
    low = level.astype(np.int64)
    high = np.minimum(low + 1, len(pyramid.start) - 1)
    share = (level - low)[:, None].astype(np.float32)
    below = _bilinear(pyramid, uv, low)
    return below + (_bilinear(pyramid, uv, high) - below) * share


def _bilinear(pyramid: MipPyramid, uv: Float32Array, level: NDArray[np.int64]) -> Float32Array:
    """As ``sample_pyramid`` at whole levels, clamped at the border unless the texture repeats."""
    width, height = pyramid.width[level], pyramid.height[level]
    if pyramid.repeats:
        x, y = (uv[:, 0] % 1) * width - 0.5, (uv[:, 1] % 1) * height - 0.5
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        fx, fy = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
        right, bottom = (left + 1) % width, (top + 1) % height
        left, top = left % width, top % height
    else:
        x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
        y = np.clip(uv[:, 1] * height - 0.5, 0, height - 1)
        left, top = x.astype(np.int64), y.astype(np.int64)
        fx, fy = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
        right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    start = pyramid.start[level]
    first, second = start + top * width, start + bottom * width
    texels = pyramid.texels
    upper = texels[first + left] * (1 - fx) + texels[first + right] * fx
    lower = texels[second + left] * (1 - fx) + texels[second + right] * fx
    return np.asarray(upper + (lower - upper) * fy)


def srgb_to_linear(srgb: Float32Array) -> Float32Array:
    """Converts sRGB in [0, 1] to linear light."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear_to_srgb(linear: Float32Array) -> NDArray[np.uint8]:
    """Converts linear light to sRGB bytes."""
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (srgb * 255 + 0.5).astype(np.uint8)
