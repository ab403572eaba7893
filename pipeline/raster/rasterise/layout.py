"""What the backends of the rasteriser share: the limits of the pixel grid, and the fragments that they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int32

SUBPIXELS = 4096.0
# Columns and rows are packed into 16 bits each.
LARGEST_IMAGE = 32768


@dataclass(frozen=True)
class Fragments:
    """The visible surface in the images of N cameras."""

    face: Int32[NDArray[np.int32], "views height width"]  # (N, H, W), -1 where nothing
    bary: Float32[
        NDArray[np.float32], "views height width 3"
    ]  # (N, H, W, 3) weights of the face's corners, 0 where nothing
    depth: Float32[
        NDArray[np.float32], "views height width"
    ]  # (N, H, W) distance along the view axis, inf where nothing

    @property
    def mask(self) -> Bool[NDArray[np.bool_], "views height width"]:
        """(N, H, W) where a face is seen."""
        return self.face >= 0
