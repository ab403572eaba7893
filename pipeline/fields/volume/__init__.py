"""Volume rendering: packed samples along rays, and their compositing into one value per ray.

R rays, M samples of all rays, C channels. Samples are stored ray after ray, near to far. Ray r has the samples
``start[r]`` to ``start[r + 1]``, possibly none. Lengths are in units of the working frame. Directions have length 1, so
t is the distance from the ray's origin.

A ray is cut into intervals of ``step`` between the points where it enters the cube [-bound, bound]^3 (or its origin, if
that lies inside) and leaves it; the last one is shorter. Each interval has one sample, at the share ``jitter`` of its
length. Samples in unoccupied cells are left out.

Compositing is the quadrature of Max (1995) as in NeRF (Mildenhall et al., 2020, equation 3):
x_i = sigma_i delta_i, T_i = exp(-sum_{j<i} x_j), w_i = T_i (1 - exp(-x_i)). A ray ends at the first sample with
T_i < stop. From there on weights and gradients are 0.

``numba_backend`` is the backend for the CPU; ``torch_backend`` is its plain twin, which also runs on CUDA (not verified
on a GPU).
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.core import backends
from pipeline.core.errors import SettingError
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.fields.volume.layout import STOP, Composite, PackedSamples

if TYPE_CHECKING:
    from jaxtyping import Float

# More intervals than this on the cube's diagonal are certainly a mistake, and would take hours.
_MOST_INTERVALS = 1 << 16
_UNIT = 1e-3


@torch.no_grad()
def march(
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    occupancy: OccupancyGrid,
    *,
    step: float,
    jitter: Float[Tensor, " rays"] | None = None,
    max_samples: int | None = None,
    nearest: float = 0.0,
    backend: str = "auto",
) -> PackedSamples:
    """Samples rays in the occupied cells.

    Args:
        origins, directions: (R, 3) float32, working frame, any device; directions have length 1.
        occupancy: cells and the cube's size.
        step: length of an interval.
        jitter: (R,) in [0, 1), the position of a ray's sample within each interval; None for the middle.
        max_samples: a ray keeps at most this many samples, the first ones; None for all.
        nearest: the least distance of samples from the ray's origin.
        backend: "numba" (CPU), "torch", or "auto".

    Raises SettingError for a step that is 0, negative or far too short, and for rays of wrong shape or length;
    BackendError for a backend that cannot be used.
    """
    step = float(step)
    longest = 2 * math.sqrt(3) * occupancy.bound
    if not longest / _MOST_INTERVALS <= step < math.inf:
        least = longest / _MOST_INTERVALS
        raise SettingError(f"march: the step must be above 0, and at least {least:.2g}, not {step:g} (samples_step)")
    if origins.shape != directions.shape or origins.ndim != 2 or origins.shape[1] != 3:
        raise SettingError(f"march: rays must have shape (R, 3), not {tuple(origins.shape)}, {tuple(directions.shape)}")
    origins, directions = origins.float().contiguous(), directions.float().contiguous()
    lengths = torch.linalg.vector_norm(directions, dim=1)
    # The comparison is written so that NaN fails it.
    if not bool(((lengths - 1).abs() < _UNIT).all() & origins.isfinite().all()):
        raise SettingError("march: rays need finite origins and directions of length 1")
    if jitter is None:
        jitter = torch.full((len(origins),), 0.5, device=origins.device)
    limit = _MOST_INTERVALS if max_samples is None else int(max_samples)
    points, t, delta, start = _backend(origins.device, backend).march(
        origins, directions, jitter.float().contiguous(), occupancy, step, float(nearest), limit
    )
    return PackedSamples(points, t, delta, start)


def composite(
    sigma: Float[Tensor, " samples"],
    values: Float[Tensor, "samples channels"],
    packed: PackedSamples,
    *,
    stop: float = STOP,
    backend: str = "auto",
) -> Composite:
    """Composites samples with densities ``sigma`` (M,) >= 0 per unit length and ``values`` (M, C) along their rays.

    Both, and the result, have the same dtype, float32 or float64; sums are in float64. Differentiable (once) with
    respect to both. Raises SettingError for wrong shapes, BackendError.
    """
    count = len(packed.t)
    if sigma.shape != (count,) or values.ndim != 2 or len(values) != count or sigma.dtype != values.dtype:
        raise SettingError(
            f"composite: {count} samples, but densities {tuple(sigma.shape)} {sigma.dtype} and values "
            f"{tuple(values.shape)} {values.dtype}; they need ({count},) and ({count}, C) of one dtype"
        )
    outputs = _backend(sigma.device, backend).composite(sigma, values, packed, float(stop))
    return Composite(*outputs)


def accumulate(
    weights: Float[Tensor, " samples"], values: Float[Tensor, "samples channels"], packed: PackedSamples
) -> Float[Tensor, "rays channels"]:
    """(R, D) sums of w_i values_i of any ``values`` (M, D) by a composite's ``weights`` (M,), e.g. of normals."""
    weighted = weights[:, None] * values
    return torch.segment_reduce(weighted, "sum", offsets=packed.start, axis=0, initial=0)


def backend_for(device: str, name: str = "auto") -> str:
    """Name of the backend that takes tensors on ``device`` ("cpu", "cuda"), for the record."""
    return backends.select_for_device("volume", device, name).name


def _backend(device: torch.device, name: str) -> ModuleType:
    return backends.load(__name__, backend_for(device.type, name))
