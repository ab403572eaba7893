"""Sketch-Shape guidance: a loss that makes the density fill a coarse sketch, stronger farther from its surface.

N is the number of points, in the working frame. Source: Latent-NeRF (Metzer et al. 2022), section 4.2, equation 3. The
sum over points is a mean here, so that the weight does not depend on the number of samples of a step.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from pipeline.core.rng import torch_generator
from pipeline.mesh.winding_grid import WindingGrid

# The length over which a density becomes an opacity (the paper's delta), and the bounds of the opacity.
DELTA = 0.2
LEAST = 0.01
# The density whose opacity is one half, which the loss treats as the surface.
SURFACE = math.log(2) / DELTA
# Margin around the sketch's box in which points are drawn, in scene units, so that empty space beside it is guided too.
MARGIN = 0.1


class Sketch:
    """A measured sketch on a torch ``device``, looked up by trilinear interpolation.

    ``sigma_s`` is the paper's sigma_S in scene units: within about that distance of the sketch's surface the
    density is free; smaller is stricter.
    """

    def __init__(self, volume: WindingGrid, sigma_s: float = 0.3, device: torch.device | str = "cpu"):
        self.sigma_s = sigma_s
        self.bound = volume.bound
        winding, distance = torch.tensor(volume.winding), torch.tensor(volume.distance)
        # The winding number jumps at the surface. The signed distance passes linearly through zero there, which locates
        # the surface far better than to half a cell. Across an opening it is the other way round.
        signed = torch.where(winding > 0.5, -distance, distance)
        # (1, 3, R, R, R), in the order z, y, x that grid_sample expects for points (x, y, z).
        self._grid = torch.stack([winding, distance, signed]).permute(0, 3, 2, 1)[None].contiguous().to(device)
        self._near = 1.5 * 2 * volume.bound / (len(volume.winding) - 1)
        box = torch.tensor(volume.box, dtype=torch.float32)
        self._low = (box[0] - MARGIN).clamp(-volume.bound, volume.bound)
        self._high = (box[1] + MARGIN).clamp(-volume.bound, volume.bound)

    @torch.no_grad()
    def sample(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N,) bool whether ``points`` (N, 3) float32 are inside, and (N,) float32 their distances to the surface.

        Points beyond the grid are treated as the nearest point of its border.
        """
        lookups = (points.detach() / self.bound).to(self._grid)[None, None, None]
        values = functional.grid_sample(self._grid, lookups, mode="bilinear", padding_mode="border", align_corners=True)
        winding, distance, signed = values.reshape(3, -1)
        near = distance < self._near
        return torch.where(near, signed < 0, winding > 0.5), torch.where(near, signed.abs(), distance)

    def inside(self, points: torch.Tensor) -> torch.Tensor:
        """(N,) bool for ``points`` (N, 3)."""
        return self.sample(points)[0]

    def distance(self, points: torch.Tensor) -> torch.Tensor:
        """(N,) float32 distance of ``points`` (N, 3) to the sketch's surface."""
        return self.sample(points)[1]

    def loss(self, points: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The mean over N of CE(alpha, inside) (1 - exp(-d^2 / (2 sigma_S^2))), a scalar; 0 without points.

        points (N, 3); sigma (N,) >= 0, the density there, which gets the gradient. The value clamps alpha = 1 -
        exp(-DELTA sigma) to [LEAST, 1 - LEAST]. The gradient is clamped only where the answer is right already. Where
        it is wrong, a clamped gradient would keep empty space inside the sketch empty forever.
        """
        if len(points) == 0:
            return sigma.sum() * 0.0
        inside, distance = self.sample(points)
        weight = 1 - torch.exp(-(distance**2) / (2 * self.sigma_s**2))
        return (cross_entropy(sigma, inside) * weight.to(sigma)).mean()

    def box_points(self, seed: int, step: int, count: int) -> torch.Tensor:
        """(count, 3) float32 points, uniform in the sketch's box and a ``MARGIN`` around it, on the device.

        Equal ``seed`` and ``step`` give equal points on every device. The renderer's own samples lie where density
        exists already; these points let empty space fill.
        """
        uniform = torch.rand((count, 3), generator=torch_generator(seed, "sketch box", step))
        return (self._low + uniform * (self._high - self._low)).to(self._grid.device)


def cross_entropy(sigma: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """(N,) -log of the probability that the density ``sigma`` (N,) assigns to the answer ``inside`` (N,) bool.

    Clamped as in ``Sketch.loss``.
    """
    depth = DELTA * sigma
    filled = -torch.expm1(-depth)
    full = -torch.log(_passing(filled, least=LEAST).clamp(max=1 - LEAST))
    # -log(1 - alpha) is the optical depth itself.
    empty = _passing(depth, most=-math.log(LEAST)).clamp(min=-math.log1p(-LEAST))
    return torch.where(inside, full, empty)


def _passing(values: torch.Tensor, *, least: float | None = None, most: float | None = None) -> torch.Tensor:
    """``values`` clamped, with the gradient of unclamped values."""
    return values + (values.clamp(min=least, max=most) - values).detach()
