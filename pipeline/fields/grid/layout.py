"""The layout of the table, which all backends of the grid encoding share."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.core.errors import SettingError

GridKind = Literal["hash", "tiled", "dense"]
# Beyond this, resolution^3 does not fit 32 bits and tiny-cuda-nn stops indexing by it.
LARGEST_INDEXED = 1625
_MOST_PARAMETERS = 1 << 30


@dataclass(frozen=True)
class GridSettings:
    """The settings that determine the table's layout.

    Attributes:
        levels: L, 1 to 32.
        features: F, features of each level: 1, 2, 4 or 8.
        base: corners along an axis of the coarsest level.
        finest: corners along an axis of the finest level, up to rounding.
        log2_table: T; a level of kind "hash" has at most 2^T entries.
        kind: "hash", "tiled" or "dense": how a level with too many corners is stored; see the module.

    Raises SettingError for values for which there is no layout.
    """

    levels: int = 16
    features: int = 2
    base: int = 16
    finest: int = 2048
    log2_table: int = 19
    kind: GridKind = "hash"

    def __post_init__(self) -> None:
        if self.features not in (1, 2, 4, 8):
            raise SettingError(f"grid: features must be 1, 2, 4 or 8, not {self.features}")
        if not 1 <= self.levels <= 32 or not 3 <= self.log2_table <= 28:
            raise SettingError(
                f"grid: levels must be 1 to 32 and log2_table 3 to 28, not {self.levels} and {self.log2_table}"
            )
        if not 2 <= self.base <= self.finest <= 1 << 20:
            raise SettingError(f"grid: 2 <= base <= finest <= 2^20, not base {self.base}, finest {self.finest}")
        if self.kind not in ("hash", "tiled", "dense"):
            raise SettingError(f"grid: kind must be hash, tiled or dense, not {self.kind!r}")
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
    def feature_count(self) -> int:
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
        """L flags: whether the level's entries are hashed."""
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
    # Compute each operation in float64 and round it to float32: the result of correctly rounded float32 functions.
    # numpy's own float32 exp2 differs between processors in its last bit, and the layout would differ too.
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
