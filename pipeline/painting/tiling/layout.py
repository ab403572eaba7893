"""Types of all backends of the tiling: the exemplar and its directions of projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.core.arrays import Float32Array

if TYPE_CHECKING:
    from jaxtyping import Float32

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
    """D directions of projection.

    Attributes:
        normal, right, down: (D, 3) float32 unit vectors; the exemplar's axes as seen from outside.
        offset: (D, 2) float32 offsets of the lookups, in tiles.
        sharpness: exponent k of the weights exp(k cos).
    """

    normal: Float32[Float32Array, "directions 3"]
    right: Float32[Float32Array, "directions 3"]
    down: Float32[Float32Array, "directions 3"]
    offset: Float32[Float32Array, "directions 2"]
    sharpness: float
