"""Compiled loops over texture lookups; see ``texture`` for the conventions.

M lookups into texels (H, W, C), channels last so that one lookup reads neighbouring memory.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# Compiled functions take their types from their arguments.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.jit import njit


def sample(texture: Tensor, uv: Tensor, nearest: bool) -> Tensor:
    """Values (M, C) of ``texture`` (C, H, W) at ``uv`` (M, 2), on the CPU; differentiable in ``texture``, once."""
    apply: Any = _Sample.apply
    values: Tensor = apply(texture, uv, nearest)
    return values


class _Sample(torch.autograd.Function):
    """The compiled loop; CPU only."""

    @staticmethod
    def forward(ctx: Any, texture: Tensor, uv: Tensor, nearest: bool) -> Tensor:
        texels = texture.detach().permute(1, 2, 0).contiguous()
        values = torch.empty(len(uv), texture.shape[0], dtype=texture.dtype)
        gather(texels.numpy(), uv.contiguous().numpy(), nearest, values.numpy())
        ctx.save_for_backward(uv)
        ctx.shape, ctx.nearest = texture.shape, nearest
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (uv,) = ctx.saved_tensors
        channels, height, width = ctx.shape
        texels = torch.zeros(height, width, channels, dtype=grad.dtype)
        scatter(texels.numpy(), uv.contiguous().numpy(), ctx.nearest, grad.contiguous().numpy())
        return texels.permute(2, 0, 1).contiguous(), None, None


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _along(t, size):
    """The two texels around coordinate t (in texels) on one axis, and the weight of the second.

    The comparison is written so that NaN becomes 0 instead of an index out of range.
    """
    t = t - 0.5
    if not t > 0.0:
        t = 0.0
    if t > size - 1.0:
        t = size - 1.0
    low = int(t)
    return low, min(low + 1, size - 1), t - low


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _at(t, size):
    """The texel that holds coordinate t on one axis."""
    if not t > 0.0:
        return 0
    if t > size - 1.0:
        return size - 1
    return int(t)


@njit(cache=True, nogil=True, error_model="numpy")
def gather(texels, uv, nearest, values):
    """values (M, C) = texels at uv (M, 2)."""
    height, width, channels = texels.shape
    for i in range(len(uv)):
        u, v = np.float64(uv[i, 0]) * width, np.float64(uv[i, 1]) * height
        if nearest:
            x, y = _at(u, width), _at(v, height)
            for c in range(channels):
                values[i, c] = texels[y, x, c]
            continue
        x0, x1, fx = _along(u, width)
        y0, y1, fy = _along(v, height)
        a, b, c_, d = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
        for c in range(channels):
            values[i, c] = (
                a * texels[y0, x0, c] + b * texels[y0, x1, c] + c_ * texels[y1, x0, c] + d * texels[y1, x1, c]
            )


@njit(cache=True, nogil=True, error_model="numpy")
def scatter(texels, uv, nearest, values):
    """Adds values (M, C) to texels. The transpose of ``gather``."""
    height, width, channels = texels.shape
    for i in range(len(uv)):
        u, v = np.float64(uv[i, 0]) * width, np.float64(uv[i, 1]) * height
        if nearest:
            x, y = _at(u, width), _at(v, height)
            for c in range(channels):
                texels[y, x, c] += values[i, c]
            continue
        x0, x1, fx = _along(u, width)
        y0, y1, fy = _along(v, height)
        a, b, c_, d = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
        for c in range(channels):
            value = values[i, c]
            texels[y0, x0, c] += a * value
            texels[y0, x1, c] += b * value
            texels[y1, x0, c] += c_ * value
            texels[y1, x1, c] += d * value


@njit(cache=True, nogil=True, error_model="numpy")
def mark_coverage(coverage, uv, threshold):
    """Sets ``coverage`` (H, W) at texels whose weight in a bilinear lookup at uv (M, 2) is ``threshold`` or more."""
    height, width = coverage.shape
    for i in range(len(uv)):
        x0, x1, fx = _along(np.float64(uv[i, 0]) * width, width)
        y0, y1, fy = _along(np.float64(uv[i, 1]) * height, height)
        if (1 - fx) * (1 - fy) >= threshold:
            coverage[y0, x0] = True
        if fx * (1 - fy) >= threshold:
            coverage[y0, x1] = True
        if (1 - fx) * fy >= threshold:
            coverage[y1, x0] = True
        if fx * fy >= threshold:
            coverage[y1, x1] = True
