"""Texture lookups in plain tensor operations, on any device. The plain twin of ``numba_backend``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.raster.texture.layout import Mode

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64


def sample(texture: Tensor, uv: Tensor, nearest: bool) -> Tensor:
    """Values (M, C) of ``texture`` (C, H, W) at ``uv`` (M, 2); differentiable in ``texture``."""
    return gather_texture(texture, uv, "nearest" if nearest else "bilinear")


def texel_weights(
    uv: Float[Tensor, "lookups 2"], height: int, width: int, mode: Mode = "bilinear"
) -> tuple[Int64[Tensor, "lookups texels"], Float64[Tensor, "lookups texels"]]:
    """The texels that each lookup reads: flat indices (M, K) int64, weights (M, K) float64; K is 4, or 1 if nearest."""
    x, y = uv[:, 0].double() * width, uv[:, 1].double() * height
    if mode == "nearest":
        column = x.floor().nan_to_num().clamp(0, width - 1).long()
        row = y.floor().nan_to_num().clamp(0, height - 1).long()
        return (row * width + column)[:, None], torch.ones_like(x)[:, None]
    x, y = (x - 0.5).nan_to_num().clamp(0, width - 1), (y - 0.5).nan_to_num().clamp(0, height - 1)
    x0, y0 = x.floor(), y.floor()
    fx, fy = x - x0, y - y0
    left, top = x0.long(), y0.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    index = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right], dim=1)
    return index, torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], dim=1)


def gather_texture(
    texture: Float[Tensor, "channels height width"], uv: Float[Tensor, "lookups 2"], mode: Mode = "bilinear"
) -> Float[Tensor, "lookups channels"]:
    """``sample_texture`` of flat ``uv`` (M, 2) in plain tensor operations, on any device."""
    index, weight = texel_weights(uv, texture.shape[1], texture.shape[2], mode)
    apply: Any = _WeightedGather.apply
    values: Tensor = apply(texture, index, weight.to(texture.dtype))
    return values


class _WeightedGather(torch.autograd.Function):
    """Weighted gather whose backward adds in a fixed order."""

    @staticmethod
    def forward(ctx: Any, texture: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.shape = texture.shape
        flat = texture.flatten(1)
        return torch.stack([(flat[c][index] * weight).sum(dim=1) for c in range(len(flat))], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, weight = ctx.saved_tensors
        channels, height, width = ctx.shape
        spread = (grad[:, None] * weight[..., None]).flatten(0, 1)  # (M K, C)
        if grad.device.type == "cpu":
            # bincount adds in order; index_put_ with accumulation may use several threads.
            sums = [torch.bincount(index.flatten(), s, minlength=height * width) for s in spread.T]
            total = torch.stack(sums).to(grad.dtype)
        else:
            # On CUDA this sorts the indices first, so the order of additions is fixed.
            total = grad.new_zeros(height * width, channels)
            total = total.index_put_((index.flatten(),), spread, accumulate=True).T
        return total.reshape(channels, height, width), None, None
