"""What every backend of the volume renderer shares: packed samples, and what rays show."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

STOP = 1e-4
"""Transmittance below which a ray ends (docs/method.md, section 3)."""
FAINT = 1e-4
"""Weight below which a ray has met nothing: its depth goes to 0 with its weight, instead of being a mean of nothing."""


@dataclass(frozen=True)
class PackedSamples:
    """The samples of R rays.

    Attributes:
        points: (M, 3) float32, working frame.
        t: (M,) float32 distances from the rays' origins.
        delta: (M,) float32 lengths of the intervals that the samples stand for.
        start: (R + 1,) int64 offsets of the rays' samples.
    """

    points: Tensor
    t: Tensor
    delta: Tensor
    start: Tensor

    @functools.cached_property
    def rays(self) -> Tensor:
        """(M,) int64: the ray of each sample."""
        order = torch.arange(len(self.start) - 1, device=self.start.device)
        return torch.repeat_interleave(order, self.start.diff(), output_size=len(self.t))


@dataclass(frozen=True)
class Composite:
    """What R rays show; all of it differentiable.

    Attributes:
        values: (R, C) sum of w_i values_i: nothing is added for what lies behind.
        weight: (R,) sum of w_i, in [0, 1].
        depth: (R,) mean distance from the origin, sum of w_i t_i over the weight; see FAINT.
        weights: (M,) w_i.
    """

    values: Tensor
    weight: Tensor
    depth: Tensor
    weights: Tensor
