"""Tracks the texels that the optimisation has changed. Baking fills the others, which still hold their random start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Texels whose lookups all had smaller bilinear weights than this count as unchanged.
COVERAGE_WEIGHT = 0.05


class TexelCoverage:
    """Accumulates the texels that bilinear lookups read.

    ``coverage``: (S, S) bool, which checkpoints store and restore in place.
    """

    def __init__(self, size: int):
        self.coverage: NDArray[np.bool_] = np.zeros((size, size), bool)

    def add(self, uv: NDArray[np.floating]) -> None:
        """Add lookups at uv (..., 2) in [0, 1], top-left origin."""
        accumulate_coverage(self.coverage, uv)


def accumulate_coverage(
    coverage: NDArray[np.bool_], uv: NDArray[np.floating], threshold: float = COVERAGE_WEIGHT
) -> None:
    """Mark in ``coverage`` (H, W) the texels to which a lookup at uv (..., 2) gives a weight >= ``threshold``."""
    from pipeline.raster.texture import numba_backend

    numba_backend.mark_coverage(coverage, np.ascontiguousarray(uv).reshape(-1, 2), float(threshold))
