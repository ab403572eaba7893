"""Multiresolution grid encoding of points (Mueller et al., Instant Neural Graphics Primitives, 2022, section 3).

N points, L levels of F features each, T = log2_table. Level l is a grid of ``resolutions[l]``^3 corners over the
unit cube, which holds F features at each corner; a point gets the trilinear mean of its cell's 8 corners, levels
side by side: column ``l * F + f``.

The layout is tiny-cuda-nn's (its ``grid.h`` and ``common_device.h``, version 2), so that a table moves between
backends:

* scale_l = 2^(l log2(per_level_scale)) base - 1 and resolution_l = ceil(scale_l) + 1, in float32;
* position in the grid: fma(scale_l, x, 0.5). The half cell staggers the levels; at x = 1 it reaches one corner
  past the last, which wraps around;
* entries of a level: resolution_l^3, rounded up to a multiple of 8, but at most 2^T ("hash") or base^3 ("tiled";
  T is not used there; nor in "dense", which has no bound);
* corner (x, y, z) is entry (x + y resolution_l + z resolution_l^2) mod entries; where a "hash" level has fewer
  entries than corners, (x xor 2654435761 y xor 805459861 z) mod entries. All in 32 bits without sign;
* the table: level after level, entry after entry, feature after feature.

Read from the source, pinned by literal numbers in the tests, and NOT verified against the library on a GPU: there,
scale_l comes from the device's ``exp2f``, whose last bit may differ, and a scale next to a whole number could then
round to another resolution. ``parameter_count`` would show most such cases.

``grid_numba`` is the fast backend on the CPU, ``grid_tcnn`` on CUDA; ``grid_torch`` is the plain twin and runs
anywhere. Points get no gradient: cameras are given, and normals are finite differences.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from pipeline.core import backends
from pipeline.core.errors import BackendError, SettingError

Kind = Literal["hash", "tiled", "dense"]

# Beyond this, resolution^3 does not fit 32 bits and tiny-cuda-nn stops indexing by it.
LARGEST_INDEXED = 1625
_MOST_PARAMETERS = 1 << 30
# The kind of device whose tensors a backend takes; one that is not named takes any.
_DEVICES = {"numba": "cpu", "tinycudann": "cuda"}


@dataclass(frozen=True)
class GridSettings:
    """What the table's layout follows from.

    Attributes:
        levels: L, 1 to 32.
        features: F of each level: 1, 2, 4 or 8.
        base: corners along an axis of the coarsest level.
        finest: of the finest level, up to rounding.
        log2_table: T; a level of kind "hash" has at most 2^T entries.
        kind: what happens to a level that does not fit; see the module.

    Raises SettingError for values without a layout.
    """

    levels: int = 16
    features: int = 2
    base: int = 16
    finest: int = 2048
    log2_table: int = 19
    kind: Kind = "hash"

    def __post_init__(self) -> None:
        if self.features not in (1, 2, 4, 8):
            raise SettingError(f"grid: features is 1, 2, 4 or 8, not {self.features}")
        if not 1 <= self.levels <= 32 or not 3 <= self.log2_table <= 28:
            raise SettingError(
                f"grid: levels is 1 to 32 and log2_table 3 to 28, not {self.levels} and {self.log2_table}"
            )
        if not 2 <= self.base <= self.finest <= 1 << 20:
            raise SettingError(f"grid: 2 <= base <= finest <= 2^20, not base {self.base}, finest {self.finest}")
        if self.kind not in ("hash", "tiled", "dense"):
            raise SettingError(f"grid: kind is hash, tiled or dense, not {self.kind!r}")
        if self.kind != "hash" and max(self.resolutions) > LARGEST_INDEXED:
            raise SettingError(
                f"grid: a {self.kind} level has at most {LARGEST_INDEXED} corners along an axis, not "
                f"{max(self.resolutions)}; lower finest, or use kind hash"
            )
        if self.parameter_count > _MOST_PARAMETERS:
            raise SettingError(
                f"grid: {self.parameter_count} parameters, more than {_MOST_PARAMETERS}; lower finest or levels"
            )

    @property
    def width(self) -> int:
        """Columns of an encoded point: L F."""
        return self.levels * self.features

    @property
    def per_level_scale(self) -> float:
        """Growth of the resolution from one level to the next."""
        if self.levels == 1:
            return 1.0
        return math.exp((math.log(self.finest) - math.log(self.base)) / (self.levels - 1))

    @property
    def scales(self) -> tuple[float, ...]:
        """L float32 values: cells along an axis of the unit cube."""
        return _scales(self)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """L counts of corners along an axis."""
        return tuple(math.ceil(scale) + 1 for scale in self.scales)

    @property
    def offsets(self) -> tuple[int, ...]:
        """L + 1 numbers: the first entry of each level, then the number of all entries."""
        return _offsets(self)

    @property
    def hashed(self) -> tuple[bool, ...]:
        """L flags: whether the level's entries are found by hashing."""
        sizes = np.diff(self.offsets)
        return tuple(
            self.kind == "hash" and int(size) < resolution**3
            for size, resolution in zip(sizes, self.resolutions, strict=True)
        )

    @property
    def parameter_count(self) -> int:
        """Length of the table: all entries times F."""
        return self.offsets[-1] * self.features


@functools.cache
def _scales(settings: GridSettings) -> tuple[float, ...]:
    # Each operation is done in float64 and rounded to float32, which is what correctly rounded float32 functions
    # give. numpy's own float32 exp2 differs between processors in its last bit, and the layout would with it.
    log2_scale = np.float32(math.log2(np.float32(settings.per_level_scale)))
    scales = []
    for level in range(settings.levels):
        exponent = np.float32(float(log2_scale) * level)
        growth = np.float32(2.0 ** float(exponent))
        scales.append(float(np.float32(np.float32(float(growth) * settings.base) - np.float32(1))))
    return tuple(scales)


@functools.cache
def _offsets(settings: GridSettings) -> tuple[int, ...]:
    offsets = [0]
    for resolution in settings.resolutions:
        entries = -(-(resolution**3) // 8) * 8
        if settings.kind == "hash":
            entries = min(entries, 1 << settings.log2_table)
        elif settings.kind == "tiled":
            entries = min(entries, settings.base**3)
        offsets.append(offsets[-1] + entries)
    return tuple(offsets)


def encode(points: Tensor, table: Tensor, settings: GridSettings, *, backend: str = "auto") -> Tensor:
    """Features (N, L F) of ``points``, in the table's dtype, differentiable in ``table`` (once) and in nothing else.

    Args:
        points: (N, 3) float32 in [0, 1]. What lies outside reads some entry of the table, the same one in every
            portable backend.
        table: (parameter_count,) float32, or float64 (numba and torch), on the device of the points.
        backend: "numba" (CPU tensors), "tinycudann" (CUDA tensors), "torch", or "auto".

    The result's memory may run column by column; matrix products take it as it is.
    Raises SettingError for wrong shapes, BackendError for a backend that is unknown, does not work here or does not
    take tensors of this device.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise SettingError(f"grid: points have shape (N, 3), not {tuple(points.shape)}")
    if table.shape != (settings.parameter_count,):
        raise SettingError(f"grid: the table has shape ({settings.parameter_count},), not {tuple(table.shape)}")
    points = points.detach().float()
    name = backend_for(table.device.type, backend)
    if name == "numba":
        from pipeline.scene import grid_numba

        return grid_numba.encode(points, table, settings)
    if name == "tinycudann":
        from pipeline.scene import grid_tcnn

        encoded: Tensor = grid_tcnn.encode(points, table, settings)
        return encoded
    from pipeline.scene import grid_torch

    return grid_torch.encode(points, table, settings)


def backend_for(device: str, name: str = "auto") -> str:
    """Name of the backend that ``encode`` uses for tensors on ``device`` ("cpu", "cuda"): what a record states.

    "auto" is what suits the machine, and where that does not take tensors of this device, the next that does.
    """
    chosen = backends.select_backend("grid", name).name
    if _takes(chosen, device):
        return chosen
    if name != "auto":
        raise BackendError(f"grid: {chosen} takes {_DEVICES[chosen]} tensors only, these are on {device}; use torch")
    for backend in backends.BACKENDS:
        if backend.operation == "grid" and _takes(backend.name, device) and not backends.unavailable_reason(backend):
            return backend.name
    raise BackendError(f"grid: no backend works here on {device} tensors")


def _takes(name: str, device: str) -> bool:
    return _DEVICES.get(name, device) == device
