"""Losses beside the guidance: means per ray, sample or pixel, so that their weights do not depend on how many there
are.

Every weight (lambda) stands against the guidance's gradient, which is exactly w(t) (eps_hat - eps) per latent pixel:
all terms are added and back-propagated once, without a loss scaler (METHOD section 8).
"""

from __future__ import annotations

import torch

from pipeline.scene.volume import Packed

_EDGE = 1e-5


def sparsity(weight: torch.Tensor) -> torch.Tensor:
    """Mean binary entropy, in bits, of accumulated weights (R,): rays are to hit or to miss (METHOD section 3)."""
    p = weight.clamp(_EDGE, 1 - _EDGE)
    return -(p * p.log2() + (1 - p) * (1 - p).log2()).mean()


def orientation(weights: torch.Tensor, normals: torch.Tensor, directions: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Mean over rays of sum_i w_i max(0, n_i . d)^2: what is seen is to face the viewer (Ref-NeRF, section 4).

    weights (M,), unit normals (M, 3), unit ray directions (R, 3). The weights take no gradient: they would rather
    vanish than turn.
    """
    turned = (normals * directions[packed.rays]).sum(1).clamp(min=0).square()
    return (weights.detach() * turned).sum() / max(len(directions), 1)


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute step between neighbouring pixels of images (V, D, H, W), across and down."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return across + down
