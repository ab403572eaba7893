"""The result type of all antialiasing backends: the shares by which neighbouring pixels mix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float32


@dataclass(frozen=True)
class Outlines:
    """Signed shares, in [-1/2, 1/2], of all pairs of neighbours; float32, 0 for pairs that do not mix.

    For a positive share the first pixel of the pair takes that share of the second one's colour; for a negative one the
    second takes it of the first. The colours that are mixed in are those before antialiasing.
    """

    right: Float32[Tensor, "views height columns"]  # (N, H, W - 1): pixel and the one to its right
    below: Float32[Tensor, "views rows width"]  # (N, H - 1, W): pixel and the one below
