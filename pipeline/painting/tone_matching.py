"""Restores the colours and the contrast of a material in images that were denoised from a picture of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.core.arrays import Float32Array

# Standard deviation, in pixels, of the blur of the unsharp mask.
_BLUR = 1.0
# Quantiles that are matched.
_QUANTILES = np.linspace(0, 1, 129)


def match_tones(
    images: Float32Array, masks: NDArray[np.bool_], reference: Float32Array, strength: float
) -> Float32Array:
    """Match the colours of ``images`` (N, 3, H, W) to those of ``reference`` (h, w, 3), both RGB in [0, 1].

    Along the principal axis of the reference's colours, quantiles are matched; across it, the mean is. The statistics
    of the images are those of all pixels in ``masks`` (N, H, W) together. ``strength`` in [0, 1] is the share of the
    change that is applied. Returns (N, 3, H, W) float32, which may exceed [0, 1].
    """
    if strength == 0 or not masks.any():
        return images
    colours = reference.reshape(-1, 3).astype(np.float64)
    mean = colours.mean(axis=0)
    covariance = np.cov((colours - mean).T)
    axis = np.linalg.eigh(covariance)[1][:, -1]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    target_quantiles = np.quantile((colours - mean) @ axis, _QUANTILES)
    pixels = images.transpose(0, 2, 3, 1).astype(np.float64)
    along = (pixels - mean) @ axis
    masked = along[masks]
    source_quantiles = np.quantile(masked, _QUANTILES)
    # Make the quantiles strictly increasing, as ``interp`` requires; those of a plain colour coincide.
    source_quantiles = source_quantiles + np.arange(len(source_quantiles)) * 1e-9
    target = np.interp(along, source_quantiles, target_quantiles)
    mean_offset = pixels[masks].mean(axis=0) - mean
    mean_offset = mean_offset - (mean_offset @ axis) * axis
    matched = pixels + strength * ((target - along)[..., None] * axis - mean_offset)
    return np.ascontiguousarray(matched.transpose(0, 3, 1, 2), np.float32)


def sharpen(images: Float32Array, amount: float) -> Float32Array:
    """Sharpen ``images`` (N, 3, H, W) by an unsharp mask of strength ``amount`` and a radius of one pixel."""
    if amount == 0:
        return images
    blurred = gaussian_filter(images, (0, 0, _BLUR, _BLUR), truncate=3.0)
    sharp: Float32Array = images + np.float32(amount) * (images - blurred)
    return sharp
