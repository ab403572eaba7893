"""Plain twin of the grid encoding: whole-tensor operations and torch's own gradients, on any device.

See ``grid`` for the layout. N points, 8 corners, E entries in a level, F features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from pipeline.fields.grid.layout import GridSettings

_PRIMES = (1, 2654435761, 805459861)
_MASK = 0xFFFFFFFF


def encode(points: Tensor, table: Tensor, settings: GridSettings) -> Tensor:
    """As ``grid.encode``: (N, 3) float32 points, (parameter_count,) table -> (N, L F)."""
    entries = table.reshape(-1, settings.features)
    levels = []
    for level in range(settings.levels):
        index, weight = corners(points, settings, level)
        first, end = settings.offsets[level : level + 2]
        # Unlike that of indexing, the gradient of an embedding is summed in a fixed order for any number of threads.
        values = functional.embedding(index, entries[first:end])  # (N, 8, F)
        levels.append((values * weight.to(table.dtype)[..., None]).sum(dim=1))
    return torch.cat(levels, dim=1)


def corners(points: Tensor, settings: GridSettings, level: int) -> tuple[Tensor, Tensor]:
    """Entries within the level (N, 8) int64 of the corners around ``points`` (N, 3), and their weights (N, 8).

    Weights are float32. Corner c lies at the cell's upper end along x, y, z if bit 0, 1, 2 of c is set.
    """
    scale, resolution = settings.scales[level], settings.resolutions[level]
    size = settings.offsets[level + 1] - settings.offsets[level]
    # The product of two float32 numbers is exact in float64, so there is one rounding, as in a fused multiply-add.
    position = (points.double() * scale + 0.5).float()
    cell = position.floor()
    fraction = position - cell
    bits = torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)], device=points.device)
    corner = (cell.long()[:, None] + bits) & _MASK  # (N, 8, 3), 32 bits without sign
    x, y, z = corner.unbind(dim=-1)
    if settings.hashed[level]:
        index = x ^ (y * _PRIMES[1] & _MASK) ^ (z * _PRIMES[2] & _MASK)
    else:
        index = (x + y * resolution + z * resolution**2) & _MASK
    sides = torch.where(bits.bool(), fraction[:, None], 1 - fraction[:, None])  # (N, 8, 3)
    return index % size, sides[..., 0] * sides[..., 1] * sides[..., 2]
