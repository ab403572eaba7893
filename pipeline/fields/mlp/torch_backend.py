"""The network in plain torch: the grid's own backend, then linear layers with ReLU between them, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from pipeline.fields.grid import encode

if TYPE_CHECKING:
    from pipeline.fields.grid.layout import GridSettings


def evaluate(
    points: Tensor, table: Tensor, weights: Sequence[Tensor], settings: GridSettings, grid_backend: str = "auto"
) -> Tensor:
    """As ``mlp.evaluate``: (N, 3) points -> (N, O), in the table's dtype."""
    values = encode(points, table, settings, backend=grid_backend)
    *before, last = weights
    for weight in before:
        values = functional.linear(values, weight).relu_()
    return functional.linear(values, last)
