"""Volume rendering in plain tensor operations, on any device; the rules are in ``volume``.

Everything up to the choice of samples is float64, with the same operations as in ``numba_backend``, so both choose the
same samples. Every interval of a ray is tested here, occupied or not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.core.device import to_device

if TYPE_CHECKING:
    from pipeline.fields.occupancy import OccupancyGrid
    from pipeline.fields.volume.layout import PackedSamples

# Number of intervals that are tested at once. Each takes some 30 float64 numbers of memory.
_PIECE = 1 << 20
# An optical depth whose exponential is practically 0. Larger values would only cost digits in the sum over all rays.
_OPAQUE = 100.0


def march(
    origins: Tensor,
    directions: Tensor,
    jitter: Tensor,
    occupancy: OccupancyGrid,
    step: float,
    nearest: float,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``volume.march``: points (M, 3), t (M,), delta (M,), start (R + 1,)."""
    o, d, u = origins.double(), directions.double(), jitter.double()
    binary = to_device(torch.from_numpy(occupancy.binary), origins.device) != 0
    near, far = _clip(o, d, occupancy.bound, nearest)
    hit = near < far
    near, far = near.where(hit, 0.0), far.where(hit, 0.0)
    counts = torch.ceil((far - near) / step).long()
    most = int(counts.max()) if len(counts) else 0
    if most == 0:
        return origins.new_empty(0, 3), origins.new_empty(0), origins.new_empty(0), counts.new_zeros(len(counts) + 1)
    rows = max(1, _PIECE // most)
    pieces = [
        _march_piece(*piece, binary, occupancy.bound, step, limit)  # type: ignore[call-arg]
        for piece in zip(*[x.split(rows) for x in (o, d, u, near, far, counts)], strict=True)  # type: ignore[no-untyped-call]  # torch
    ]
    start = counts.new_zeros(len(counts) + 1)
    points, t, delta, sample_counts = (torch.cat(column) for column in zip(*pieces, strict=True))
    torch.cumsum(sample_counts, 0, out=start[1:])
    return points, t, delta, start


def _march_piece(
    o: Tensor,
    d: Tensor,
    u: Tensor,
    near: Tensor,
    far: Tensor,
    counts: Tensor,
    binary: Tensor,
    bound: float,
    step: float,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The samples of some rays, and their number per ray."""
    # Convert to float64 here, because integers times a Python float would be float32.
    k = torch.arange(int(counts.max()), device=o.device, dtype=torch.float64)
    begin = near[:, None] + k * step
    delta = (far[:, None] - begin).clamp(0, step)
    t = begin + u[:, None] * delta
    points = o[:, None] + t[..., None] * d[:, None]  # (rays, intervals, 3)
    resolution = len(binary)
    grid_coordinates = (points + bound) * (resolution / (2 * bound))
    x, y, z = grid_coordinates.clamp(0, resolution - 1).long().unbind(dim=-1)
    keep = binary[x, y, z] & (k < counts[:, None])
    keep &= keep.cumsum(dim=1) <= limit
    # Select once for all three, because on CUDA the host waits for the number of selected samples.
    kept_indices = keep.flatten().nonzero()[:, 0]
    points, t, delta = points.reshape(-1, 3)[kept_indices], t.flatten()[kept_indices], delta.flatten()[kept_indices]
    return points.float(), t.float(), delta.float(), keep.sum(dim=1)


def _clip(o: Tensor, d: Tensor, bound: float, nearest: float) -> tuple[Tensor, Tensor]:
    """The distances at which rays enter and leave the cube, (R,) each; near >= far for rays that miss it."""
    inside = o.abs() <= bound
    still = d == 0
    safe = torch.where(still, torch.ones_like(d), d)
    a, b = (-bound - o) / safe, (bound - o) / safe
    # A ray parallel to a pair of faces lies between them everywhere or nowhere.
    always, never = torch.full_like(d, math.inf), torch.full_like(d, -math.inf)
    low = torch.where(still, torch.where(inside, never, always), torch.minimum(a, b))
    high = torch.where(still, torch.where(inside, always, never), torch.maximum(a, b))
    return low.amax(dim=1).clamp(min=nearest), high.amin(dim=1)


def composite(
    sigma: Tensor, values: Tensor, packed: PackedSamples, stop: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``volume.composite``: values (R, C), weight (R,), depth (R,), weights (M,). Autograd does the backward."""
    from pipeline.fields.volume.layout import FAINT

    t, dtype = packed.t.double(), sigma.dtype
    x = sigma.double() * packed.delta.double()
    capped = x.clamp(max=_OPAQUE)
    before = capped.cumsum(0) - capped
    # The cumulative sum runs on from ray to ray, so subtract its value before the first sample of the ray.
    if len(x):
        before = before - before[packed.start[:-1].clamp(max=len(x) - 1)][packed.rays]
    lit = before.detach() <= (-math.log(stop) if stop > 0 else math.inf)
    weights = torch.where(lit, torch.exp(-before) * -torch.expm1(-x), torch.zeros_like(x))
    columns = torch.cat([values.double(), t[:, None], torch.ones_like(t)[:, None]], dim=1)
    sums = torch.segment_reduce(weights[:, None] * columns, "sum", offsets=packed.start, axis=0, initial=0)
    weight = sums[:, -1]
    depth = sums[:, -2] / weight.clamp(min=FAINT)
    return sums[:, :-2].to(dtype), weight.to(dtype), depth.to(dtype), weights.to(dtype)
