"""Restores the colours and the contrast that pictures of a material lose while they are denoised from a given start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Float32Array = NDArray[np.float32]

# Standard deviation, in pixels, of the blur that sharpening takes away.
_BLUR = 1.0
# Quantiles that are compared.
_QUANTILES = np.linspace(0, 1, 129)


def match_tones(
    images: Float32Array, masks: NDArray[np.bool_], reference: Float32Array, strength: float
) -> Float32Array:
    """``images`` (N, 3, H, W) with the distribution of colours of ``reference`` (h, w, 3), both in [0, 1].

    The quantiles along the reference's principal colour axis, of all pixels of ``masks`` (N, H, W) together, are moved
    to the reference's by the share ``strength``; across that axis colours move with their mean. Returns values that may
    leave [0, 1].
    """
    if strength == 0 or not masks.any():
        return images
    own = reference.reshape(-1, 3).astype(np.float64)
    mean = own.mean(axis=0)
    covariance = np.cov((own - mean).T)
    axis = np.linalg.eigh(covariance)[1][:, -1]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    goal = np.quantile((own - mean) @ axis, _QUANTILES)
    pixels = images.transpose(0, 2, 3, 1).astype(np.float64)
    along = (pixels - mean) @ axis
    inside = along[masks]
    source = np.quantile(inside, _QUANTILES)
    # Quantiles that coincide (a plain colour) would make a step of nothing.
    source = source + np.arange(len(source)) * 1e-9
    wanted = np.interp(along, source, goal)
    across = pixels[masks].mean(axis=0) - mean
    across = across - (across @ axis) * axis
    moved = pixels + strength * ((wanted - along)[..., None] * axis - across)
    return np.ascontiguousarray(moved.transpose(0, 3, 1, 2), np.float32)


def sharpen(images: Float32Array, amount: float) -> Float32Array:
    """``images`` (N, 3, H, W) with ``amount`` of what a blur of a pixel takes away added once more."""
    if amount == 0:
        return images
    blurred = gaussian_filter(images, (0, 0, _BLUR, _BLUR), truncate=3.0)
    sharp: Float32Array = images + np.float32(amount) * (images - blurred)
    return sharp
