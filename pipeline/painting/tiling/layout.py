"""Types that every backend of the tiling shares: the exemplar and the directions it is projected along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from jaxtyping import Float32

Float32Array = NDArray[np.float32]
# Entries of the table from Gaussian values back to the exemplar's, which covers this many standard deviations.
TABLE_SIZE, TABLE_REACH = 1024, 4.0


@dataclass(frozen=True)
class Exemplar:
    """A tileable picture prepared for blending.

    values: (H, W, 3) float32 that lookups read: Gaussianised principal components for ``hexagonal``, else RGB.
    table: (3, TABLE_SIZE) float32 from Gaussian values to principal components; axes (3, 3) and mean (3,) take those
    to RGB. Unused for ``periodic``.
    """

    values: Float32[Float32Array, "height width 3"]
    layout: Literal["periodic", "hexagonal"]
    table: Float32[Float32Array, "3 entries"]
    axes: Float32[Float32Array, "3 3"]
    mean: Float32[Float32Array, " 3"]


@dataclass(frozen=True)
class Projectors:
    """D directions of projection: normal, right and down (D, 3) float32, unit and right-handed as seen from outside;
    offset (D, 2) float32 in tiles; sharpness of the choice between them."""

    normal: Float32[Float32Array, "directions 3"]
    right: Float32[Float32Array, "directions 3"]
    down: Float32[Float32Array, "directions 3"]
    offset: Float32[Float32Array, "directions 2"]
    sharpness: float
