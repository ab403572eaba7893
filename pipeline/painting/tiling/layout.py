"""What every backend of the tiling shares: the exemplar and where it is projected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
# Entries of the table from Gaussian values back to the exemplar's, which covers this many standard deviations.
TABLE_SIZE, TABLE_REACH = 1024, 4.0


@dataclass(frozen=True)
class Exemplar:
    """A tileable picture prepared for blending.

    values: (H, W, 3) float32, what lookups read: Gaussianised principal components where it is blended by
    ``hexagonal`` tiles, else RGB.
    table: (3, TABLE_SIZE) float32 from Gaussian values to principal components; axes (3, 3) and mean (3,) take those
    to RGB. Unused for ``periodic``.
    """

    values: Float32Array
    layout: Literal["periodic", "hexagonal"]
    table: Float32Array
    axes: Float32Array
    mean: Float32Array


@dataclass(frozen=True)
class Projectors:
    """D directions of projection: normal, right and down (D, 3) float32, unit and right-handed as seen from outside;
    offset (D, 2) float32 in tiles; sharpness of the choice between them."""

    normal: Float32Array
    right: Float32Array
    down: Float32Array
    offset: Float32Array
    sharpness: float
