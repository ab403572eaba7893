"""Bilinear lookups in numpy: texel indices, weights and values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sample_bilinear(image: NDArray[np.floating] | NDArray[np.uint8], uv: NDArray[np.float64]) -> NDArray[np.float32]:
    """(P, C) float32 values of an (S, S, C) image at uv (P, 2), clamped at the border."""
    index, weight = bilinear_weights(uv, len(image))
    flat = image.reshape(-1, image.shape[-1])
    result = np.zeros((len(uv), image.shape[-1]), np.float32)
    for k in range(4):
        result += flat[index[:, k]] * weight[:, k, None].astype(np.float32)
    return result


def bilinear_weights(uv: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Flat texel indices (P, 4) and weights (P, 4) of bilinear lookups in an S x S texture."""
    x = np.clip(uv[:, 0] * size - 0.5, 0, size - 1)
    y = np.clip(uv[:, 1] * size - 0.5, 0, size - 1)
    left, top = x.astype(np.int64), y.astype(np.int64)
    fx, fy = x - left, y - top
    right, bottom = np.minimum(left + 1, size - 1), np.minimum(top + 1, size - 1)
    index = np.stack([top * size + left, top * size + right, bottom * size + left, bottom * size + right], axis=1)
    weight = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1)
    return index, weight
