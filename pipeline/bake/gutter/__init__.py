"""Fills gutter texels with the texels across the nearest chart border on the surface.

S x S texels, B border edges with two sides each, C channels. UV is in texels here: texel (x, y) has its centre at
(x + 0.5, y + 0.5). ``numba_backend`` is the fast backend, ``numpy_backend`` its plain twin; both give the same arrays.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.core import backends

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Float64, Int32


def map_across_border(
    uv: Float64[NDArray[np.float64], "edges 2 2 2"],
    inward: Float64[NDArray[np.float64], "edges 2 2"],
    chart: Int32[NDArray[np.int32], "edges 2"],
    mask: Bool[NDArray[np.bool_], "size size"],
    width: float,
    *,
    backend: str = "auto",
) -> tuple[Float64[NDArray[np.float64], "size size 2"], Int32[NDArray[np.int32], "size size"]]:
    """Finds, for gutter texels within ``width`` of a border edge, the point in the neighbour chart, and that chart.

    The nearest edge decides. The similarity that joins the ends of the edge's two sides maps one side to the other.

    Args:
        uv: (B, 2, 2, 2) ends (x, y) of both sides of each edge. No edge has length 0.
        inward: (B, 2, 2) unit vectors from both sides into their charts.
        chart: (B, 2) chart numbers of both sides.
        mask: (S, S) texels that have their own values.
        width: in texels.
        backend: "numba", "numpy", or "auto".

    Returns source (S, S, 2), the point (x, y), NaN if there is none, and target (S, S), the chart or -1. Raises
    BackendError.
    """
    size = len(mask)
    source, target = np.full((size, size, 2), np.nan), np.full((size, size), -1, np.int32)
    _backend(backend).map_across_border(uv, inward, chart, mask, width, source, target)
    return source, target


def sample_charts(
    texels: Float32[NDArray[np.float32], "size size channels"],
    chart: Int32[NDArray[np.int32], "size size"],
    source: Float64[NDArray[np.float64], "size size 2"],
    target: Int32[NDArray[np.int32], "size size"],
    *,
    backend: str = "auto",
) -> Bool[NDArray[np.bool_], "size size"]:
    """Sets ``texels`` (S, S, C) with a target chart to the bilinear value at ``source``, read from that chart only.

    ``chart`` (S, S) is the chart of each texel that may be read, else -1. Texels that may be read have no target.
    ``source`` and ``target`` as ``map_across_border`` returns them. Returns the texels that were set, (S, S). Raises
    BackendError.
    """
    filled: NDArray[np.bool_] = _backend(backend).sample_charts(texels, chart, source, target)
    return filled


def _backend(name: str) -> ModuleType:
    return backends.load(__name__, backends.select_backend("gutter", name).name)
