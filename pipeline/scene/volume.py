"""Volume rendering along rays: samples in occupied space only, and their compositing.

R rays, M samples of all rays together, packed ray after ray. Positions in the scene's cube [-bound, bound]^3,
distances in its units. ``volume_numba`` is the fast backend on the CPU; ``volume_torch`` is its plain twin and runs
on any device.

A sample stands for the interval of length delta around it: alpha = 1 - exp(-sigma delta), T_i the product of the
(1 - alpha) before it, weight w_i = T_i alpha_i. A ray ends where T falls below ``stop``: what lies behind has neither
weight nor gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.core import backends
from pipeline.core.errors import BackendError, SettingError
from pipeline.scene.occupancy import OccupancyGrid

STOP = 1e-4
"""Transmittance below which a ray is over (METHOD section 3)."""


@dataclass(frozen=True)
class Packed:
    """Samples of R rays: ray r owns samples start[r] .. start[r + 1]."""

    points: Tensor  # (M, 3) float32
    t: Tensor  # (M,) float32, distance from the ray's origin
    delta: Tensor  # (M,) float32, length of the sample's interval
    start: Tensor  # (R + 1,) int64

    @property
    def rays(self) -> Tensor:
        """(M,) int64: the ray of each sample."""
        counts = self.start[1:] - self.start[:-1]
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


@dataclass(frozen=True)
class Composite:
    """What rays show.

    values (R, C) and depth (R,) are weighted means times the accumulated weight and the weighted mean distance:
    values = sum_i w_i v_i, depth = sum_i w_i t_i / max(weight, 1e-6). weight (R,) in [0, 1]; weights (M,).
    """

    values: Tensor
    weight: Tensor
    depth: Tensor
    weights: Tensor


def march(
    origins: Tensor,
    directions: Tensor,
    occupancy: OccupancyGrid,
    *,
    step: float,
    jitter: Tensor | None = None,
    backend: str = "auto",
) -> Packed:
    """Samples every ``step`` along rays through the cube, in occupied cells only.

    Args:
        origins, directions: (R, 3) float32; unit directions. Origins may lie inside the cube or outside.
        jitter: (R,) in [0, 1), in steps: where in its first interval each ray begins. None: in the middle.

    Sample i of a ray stands at t = near + (i + jitter) step. No gradient. Raises SettingError for wrong shapes or a
    step that is not positive, BackendError for a backend that cannot be had.
    """
    if origins.shape != directions.shape or origins.ndim != 2 or origins.shape[1] != 3:
        raise SettingError(f"march: rays have shape (R, 3), not {tuple(origins.shape)}, {tuple(directions.shape)}")
    if not step > 0:
        raise SettingError(f"march: the step must be above 0, got {step}")
    if jitter is None:
        jitter = torch.full((len(origins),), 0.5, device=origins.device)
    with torch.no_grad():
        chosen = _backend(origins, backend)
        return Packed(*chosen.march(origins.float(), directions.float(), occupancy, float(step), jitter.float()))


def composite(sigma: Tensor, values: Tensor, packed: Packed, *, stop: float = STOP, backend: str = "auto") -> Composite:
    """Composites densities (M,) >= 0 and values (M, C) of the samples; differentiable in both.

    float32 or float64 (for gradient checks). Raises SettingError where the shapes do not fit the samples.
    """
    if sigma.shape != packed.t.shape or values.ndim != 2 or len(values) != len(sigma):
        raise SettingError(
            f"composite: {len(packed.t)} samples do not fit densities {tuple(sigma.shape)} and values {tuple(values.shape)}"
        )
    shown, weight, distance, weights = _backend(sigma, backend).composite(sigma, values, packed, float(stop))
    return Composite(shown, weight, distance / weight.clamp(min=1e-6), weights)


def _backend(tensor: Tensor, name: str) -> Any:
    """The module that computes with ``tensor``. numba knows CPU tensors only; torch takes all."""
    chosen = backends.choose("volume", name).name
    if chosen == "numba" and tensor.device.type != "cpu":
        if name != "auto":
            raise BackendError(f"volume: numba takes cpu tensors only, these are on {tensor.device.type}; use torch")
        chosen = "torch"
    if chosen == "numba":
        from pipeline.scene import volume_numba

        return volume_numba
    from pipeline.scene import volume_torch

    return volume_torch
