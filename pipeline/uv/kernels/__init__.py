"""Loops over texture coordinates: coverage, overlap inside charts, chart masks and their packing.

F faces, C charts. Grids are indexed [row, column], row 0 at the top; coordinates are in cells of the grid. All backends
visit faces and charts in a fixed order on one thread and give the same arrays.

``numba_backend`` is the fast backend, ``numpy_backend`` its plain twin.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.core import backends

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64, UInt8


def coverage(
    corners: Float64[NDArray[np.float64], "faces 3 2"], size: int, *, backend: str = "auto"
) -> UInt8[NDArray[np.uint8], "size size"]:
    """How many faces own the centre of each cell of a (size, size) grid, at most 255.

    ``corners`` (F, 3, 2) in cells. Winding does not matter. Raises BackendError.
    """
    count: NDArray[np.uint8] = _backend(backend).coverage(corners, size)
    return count


def folded_faces(
    corners: Float64[NDArray[np.float64], "faces 3 2"],
    order: Int64[NDArray[np.int64], " faces"],
    starts: Int64[NDArray[np.int64], " offsets"],
    *,
    backend: str = "auto",
) -> Bool[NDArray[np.bool_], " faces"]:
    """Faces that cover, in their own chart, a cell that an earlier face of that chart covers: (F,).

    Without them no chart overlaps itself.

    Args:
        corners: (F, 3, 2) in cells, the lowest corner of each chart at (0, 0).
        order: (F,) face numbers chart by chart, in the order of precedence.
        starts: (C + 1,) where each chart begins in ``order``.
        backend: "numba", "numpy", or "auto".

    Raises BackendError.
    """
    marked: NDArray[np.bool_] = _backend(backend).folded_faces(corners, order, starts)
    return marked


def chart_masks(
    corners: Float64[NDArray[np.float64], "faces 3 2"],
    chart: Int64[NDArray[np.int64], " faces"],
    widths: Int64[NDArray[np.int64], " charts"],
    heights: Int64[NDArray[np.int64], " charts"],
    offsets: Int64[NDArray[np.int64], " charts"],
    reach: float,
    *,
    backend: str = "auto",
) -> UInt8[NDArray[np.uint8], " cells"]:
    """Masks of the cells that come within ``reach`` (square distance) of each chart, flat, one chart after the other.

    Args:
        corners: (F, 3, 2) in cells of the chart's mask, the lowest corner of each chart at (reach, reach).
        chart: (F,) chart numbers.
        widths, heights: (C,) sizes of the masks.
        offsets: (C,) where each mask begins.
        reach: in cells.
        backend: "numba", "numpy", or "auto".

    Raises BackendError.
    """
    masks: NDArray[np.uint8] = _backend(backend).chart_masks(corners, chart, widths, heights, offsets, reach)
    return masks


def pack_masks(
    masks: UInt8[NDArray[np.uint8], " cells"],
    widths: Int64[NDArray[np.int64], " charts"],
    heights: Int64[NDArray[np.int64], " charts"],
    offsets: Int64[NDArray[np.int64], " charts"],
    order: Int64[NDArray[np.int64], " charts"],
    size: int,
    turns: int,
    *,
    backend: str = "auto",
) -> tuple[
    bool, Int64[NDArray[np.int64], " charts"], Int64[NDArray[np.int64], " charts"], Int64[NDArray[np.int64], " charts"]
]:
    """Places masks on a (size, size) grid, each at the highest free place, turned by quarter turns.

    Args:
        masks, widths, heights, offsets: as ``chart_masks`` returns and takes them.
        order: (C,) which chart is placed first.
        size: of the grid, below 32768.
        turns: 1 or 4, how many orientations are tried.
        backend: "numba", "numpy", or "auto".

    Returns (fitted, column, row, turn), the last three (C,); ``fitted`` is False when a mask did not fit. Raises
    BackendError.
    """
    fitted, column, row, turn = _backend(backend).pack_masks(masks, widths, heights, offsets, order, size, turns)
    return bool(fitted), column, row, turn


def _backend(name: str) -> ModuleType:
    return backends.load(__name__, backends.select_backend("uv", name).name)
