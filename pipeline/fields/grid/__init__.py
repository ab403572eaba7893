"""Multiresolution grid encoding of points (Mueller et al., Instant Neural Graphics Primitives, 2022, section 3).

N points, L levels of F features each, T = log2_table. Level l is a grid of ``resolutions[l]``^3 corners over the unit
cube, with F features at each corner. A point gets the trilinear mean of its cell's 8 corners. The levels are side by
side: feature f of level l is column ``l * F + f``.

The layout is that of tiny-cuda-nn (its ``grid.h`` and ``common_device.h``, version 2), so that all backends can use the
same table:

* scale_l = 2^(l log2(per_level_scale)) base - 1 and resolution_l = ceil(scale_l) + 1, in float32;
* position in the grid: fma(scale_l, x, 0.5). The half cell staggers the levels; at x = 1 it reaches one corner
  past the last, which wraps around;
* entries of a level: resolution_l^3, rounded up to a multiple of 8, but at most 2^T ("hash") or base^3 ("tiled";
  T is not used there; nor in "dense", which has no bound);
* corner (x, y, z) is entry (x + y resolution_l + z resolution_l^2) mod entries; where a "hash" level has fewer
  entries than corners, (x xor 2654435761 y xor 805459861 z) mod entries. All in 32 bits without sign;
* the table: level after level, entry after entry, feature after feature.

This layout was read from the source, and the tests pin it by literal numbers. It is NOT verified against the library
on a GPU. There, scale_l comes from the device's ``exp2f``, whose last bit may differ, so a scale next to an integer
could round to another resolution. ``parameter_count`` would show most such cases.

``numba_backend`` is the fast backend on the CPU, ``tinycudann_backend`` on CUDA; ``torch_backend`` is the plain twin
and runs anywhere. Points get no gradient, because cameras are given and normals are finite differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.core import backends
from pipeline.core.errors import SettingError
from pipeline.fields.grid.layout import GridSettings

if TYPE_CHECKING:
    from jaxtyping import Float


def encode(
    points: Float[Tensor, "points 3"],
    table: Float[Tensor, " parameters"],
    settings: GridSettings,
    *,
    backend: str = "auto",
) -> Float[Tensor, "points features"]:
    """Features (N, L F) of ``points``, in the table's dtype; differentiable (once) with respect to ``table`` only.

    Args:
        points: (N, 3) float32 in [0, 1]. A point outside reads an arbitrary entry of the table, which is the same in
            every portable backend.
        table: (parameter_count,) float32, or float64 (numba and torch), on the device of the points.
        backend: "numba" (CPU tensors), "tinycudann" (CUDA tensors), "torch", or "auto".

    The result may be in column-major order; matrix products need no copy of it. Raises SettingError for wrong shapes,
    BackendError for a backend that is unknown, does not work here or does not take tensors of this device.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise SettingError(f"grid: points must have shape (N, 3), not {tuple(points.shape)}")
    if table.shape != (settings.parameter_count,):
        raise SettingError(f"grid: the table must have shape ({settings.parameter_count},), not {tuple(table.shape)}")
    points = points.detach().float()
    module = backends.load(__name__, backend_for(table.device.type, backend))
    encoded: Tensor = module.encode(points, table, settings)
    return encoded


def backend_for(device: str, name: str = "auto") -> str:
    """Name of the backend that ``encode`` uses for tensors on ``device`` ("cpu", "cuda"), for the record.

    "auto" is the first backend that works on this machine and takes tensors of this device.
    """
    return backends.select_for_device("grid", device, name).name
