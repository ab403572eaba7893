"""The types that all backends of the volume renderer share: packed samples and composited rays."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

STOP = 1e-4
"""Transmittance below which a ray ends (docs/method.md, section 3)."""
FAINT = 1e-4
"""Below this weight a ray counts as having met nothing: its depth goes to 0 with its weight."""


@dataclass(frozen=True)
class PackedSamples:
    """The samples of R rays.

    Attributes:
        points: (M, 3) float32, working frame.
        t: (M,) float32 distances from the rays' origins.
        delta: (M,) float32 lengths of the samples' intervals.
        start: (R + 1,) int64 offsets of the rays' samples.
    """

    points: Float[Tensor, "samples 3"]
    t: Float[Tensor, " samples"]
    delta: Float[Tensor, " samples"]
    start: Int64[Tensor, " offsets"]

    @functools.cached_property
    def rays(self) -> Int64[Tensor, " samples"]:
        """(M,) int64: the ray of each sample."""
        order = torch.arange(len(self.start) - 1, device=self.start.device)
        return torch.repeat_interleave(order, self.start.diff(), output_size=len(self.t))


@dataclass(frozen=True)
class Composite:
    """Composited values of R rays, all differentiable.

    Attributes:
        values: (R, C) sum of w_i values_i, without a background.
        weight: (R,) sum of w_i, in [0, 1].
        depth: (R,) mean distance from the origin, sum of w_i t_i over the weight; see FAINT.
        weights: (M,) w_i.
    """

    values: Float[Tensor, "rays channels"]
    weight: Float[Tensor, " rays"]
    depth: Float[Tensor, " rays"]
    weights: Float[Tensor, " samples"]
