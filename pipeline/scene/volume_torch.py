"""The plain twin of ``volume_numba``: the same functions in torch alone, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.scene.occupancy import OccupancyGrid

# Candidate samples (ray x step) that are looked at together.
_CHUNK = 1 << 22


def march(
    origins: Tensor, directions: Tensor, occupancy: OccupancyGrid, step: float, jitter: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``volume.march``: (points, t, delta, start)."""
    device, bound, resolution = origins.device, occupancy.bound, occupancy.resolution
    binary = torch.from_numpy(occupancy.binary).to(device).bool()
    near, far = _clip(origins, directions, bound)
    longest = int(torch.clamp((far - near).max() / step, min=0).item()) + 2 if len(origins) else 0
    rows = max(_CHUNK // max(longest, 1), 1)
    width = torch.tensor(step, dtype=torch.float32, device=device)
    points, distances, counts = [], [], []
    for a in range(0, len(origins), rows):
        o, d = origins[a : a + rows], directions[a : a + rows]
        index = torch.arange(longest, dtype=torch.float32, device=device)
        t = near[a : a + rows, None] + (index + jitter[a : a + rows, None]) * width
        # Multiplied and added apart, as the compiled twin does: a fused operation would round otherwise.
        p = o[:, None] + t[..., None] * d[:, None]
        cell = ((p + bound) * (resolution / (2 * bound))).floor().long()
        inside = (t < far[a : a + rows, None]) & ((cell >= 0) & (cell < resolution)).all(-1)
        cell = cell.clamp(0, resolution - 1)
        hit = inside & binary[cell[..., 0], cell[..., 1], cell[..., 2]]
        points.append(p[hit])
        distances.append(t[hit])
        counts.append(hit.sum(1))
    start = torch.zeros(len(origins) + 1, dtype=torch.int64, device=device)
    if not points:
        return origins.new_zeros(0, 3), origins.new_zeros(0), origins.new_zeros(0), start
    start[1:] = torch.cat(counts).cumsum(0)
    t = torch.cat(distances)
    return torch.cat(points), t, torch.full_like(t, step), start


def _clip(origins: Tensor, directions: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Distances (R,) at which rays enter and leave the cube, near >= 0; far <= near where they miss."""
    tiny = torch.where(directions < 0, -1e-12, 1e-12)
    inverse = 1 / torch.where(directions.abs() < 1e-12, tiny, directions)
    first, second = (-bound - origins) * inverse, (bound - origins) * inverse
    near = torch.minimum(first, second).amax(1).clamp(min=0)
    return near, torch.maximum(first, second).amin(1)


def composite(sigma: Tensor, values: Tensor, packed: object, stop: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``volume.composite``: (values (R, C), weight (R,), sum of w t (R,), weights (M,))."""
    start, rays = packed.start, packed.rays  # type: ignore[attr-defined]
    tau = sigma * packed.delta.to(sigma.dtype)  # type: ignore[attr-defined]
    # Optical depth in front of each sample: sums over all rays, less what earlier rays brought. In float64, because
    # the sums run over hundreds of thousands of samples.
    total = torch.cat([tau.new_zeros(1, dtype=torch.float64), tau.double().cumsum(0)])
    before = (total[:-1] - total[start[:-1]][rays]).to(sigma.dtype)
    transmittance = torch.exp(-before)
    seen = (transmittance >= stop).to(sigma.dtype)
    weights = transmittance * seen * -torch.expm1(-tau)
    count = len(start) - 1
    rows = torch.cat([weights[:, None] * values, weights[:, None], (weights * packed.t.to(sigma.dtype))[:, None]], 1)  # type: ignore[attr-defined]
    sums = rows.new_zeros(count, rows.shape[1]).index_add(0, rays, rows)
    return sums[:, :-2], sums[:, -2], sums[:, -1], weights
