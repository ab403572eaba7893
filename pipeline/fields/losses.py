"""Losses beside the guidance. They are means per ray, sample or pixel, so that their weights do not depend on counts.

Every weight (lambda) is relative to the guidance's gradient. That is exactly w(t) (eps_hat - eps) per latent pixel,
summed over a view's pixels and averaged over the views of a step. All terms are added and back-propagated once, without
a loss scaler (docs/method.md, section 1), so their balance holds for any number of views. The published weights of the
same losses went through a loss scaler that began at 65,536 and left out the guidance: a sparsity of 5e-4 there acts
like 33 here.
"""

from __future__ import annotations

import torch

from pipeline.fields.volume.layout import PackedSamples

_EDGE = 1e-5


def sparsity(weight: torch.Tensor) -> torch.Tensor:
    """Mean binary entropy, in bits, of accumulated weights (R,): rays should hit or miss (docs/method.md, section 3).

    Weights are clamped to [1e-5, 1 - 1e-5]; those beyond get no gradient. 0 for no rays.
    """
    if not weight.numel():
        return weight.sum()
    p = weight.clamp(_EDGE, 1 - _EDGE)
    return -(p * p.log2() + (1 - p) * (1 - p).log2()).mean()


def orientation(
    weights: torch.Tensor, normals: torch.Tensor, directions: torch.Tensor, packed: PackedSamples
) -> torch.Tensor:
    """Mean over rays of sum_i w_i max(0, n_i . d)^2: visible surfaces should face the viewer (Ref-NeRF, section 4).

    weights (M,), unit normals (M, 3), unit ray directions (R, 3). The weights get no gradient, because the loss would
    make surfaces vanish instead of turning them.
    """
    facing_away = (normals * directions[packed.rays]).sum(1).clamp(min=0).square()
    return (weights.detach() * facing_away).sum() / max(len(directions), 1)


def total_variation(images: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Mean absolute step between neighbouring pixels of images (V, D, H, W), across plus down.

    ``weight`` (V, 1, H, W) in [0, 1] is the weight of each pixel; a pair has the product. With the accumulated weight,
    total variation of depths leaves out the steps at silhouettes. ``weight`` gets no gradient. 0 without neighbours.
    """
    counts = torch.ones_like(images) if weight is None else weight.detach().expand_as(images)
    total = images.new_zeros(())
    for axis in (-1, -2):
        size = images.shape[axis] - 1
        steps = images.narrow(axis, 1, size) - images.narrow(axis, 0, size)
        pairs = counts.narrow(axis, 1, size) * counts.narrow(axis, 0, size)
        total = total + (pairs * steps.abs()).sum() / pairs.sum().clamp(min=1e-8)
    return total
