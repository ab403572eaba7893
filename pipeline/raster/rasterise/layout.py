"""What every backend of the rasteriser shares: the pixel grid's limits and the fragments it returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SUBPIXELS = 4096.0
# Columns and rows are packed into 16 bits each.
LARGEST_IMAGE = 32768


@dataclass(frozen=True)
class Fragments:
    """What N cameras see."""

    face: NDArray[np.int32]  # (N, H, W), -1 where nothing
    bary: NDArray[np.float32]  # (N, H, W, 3) weights of the face's corners, 0 where nothing
    depth: NDArray[np.float32]  # (N, H, W) distance along the view axis, inf where nothing

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(N, H, W) where a face is seen."""
        return self.face >= 0
