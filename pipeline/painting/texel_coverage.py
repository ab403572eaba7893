"""Which texels the optimisation has touched: the others still hold their random start and must be filled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A texel that was only ever weighed less than this got next to no say in what it should be.
COVERAGE_WEIGHT = 0.05


class TexelCoverage:
    """Accumulates texels reached by bilinear lookups.

    ``coverage`` (S, S) bool may be stored and restored in place.
    """

    def __init__(self, size: int):
        self.coverage: NDArray[np.bool_] = np.zeros((size, size), bool)

    def add(self, uv: NDArray[np.floating]) -> None:
        """Counts lookups at uv (..., 2), top-left origin: every texel one of them weighs enough is reached."""
        accumulate_coverage(self.coverage, uv)


def accumulate_coverage(
    coverage: NDArray[np.bool_], uv: NDArray[np.floating], threshold: float = COVERAGE_WEIGHT
) -> None:
    """Sets, in place, every texel of ``coverage`` (H, W) that a lookup at uv (..., 2) weighs >= threshold."""
    from pipeline.raster.texture import numba_backend

    numba_backend.mark_coverage(coverage, np.ascontiguousarray(uv).reshape(-1, 2), float(threshold))
