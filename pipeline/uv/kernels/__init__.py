"""Kernels on texture coordinates: coverage, overlap inside charts, chart masks and their packing.

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
    """Counts the faces that own the centre of each cell of a (size, size) grid, up to 255.

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
    """(F,) bool: faces that cover a cell which an earlier face of the same chart covers.

    Without these faces no chart overlaps itself.

    Args:
        corners: (F, 3, 2) in cells, the lowest corner of each chart at (0, 0).
        order: (F,) face numbers chart by chart, in the order of precedence.
        starts: (C + 1,) start of each chart in ``order``.
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
    """Masks of the cells within ``reach`` (Chebyshev distance) of each chart, flat, one chart after the other.

    Args:
        corners: (F, 3, 2) in cells of the chart's mask, the lowest corner of each chart at (reach, reach).
        chart: (F,) chart numbers.
        widths, heights: (C,) sizes of the masks.
        offsets: (C,) start of each mask.
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
    """Places masks on a (size, size) grid, each at the highest free position, in one of up to four orientations.

    Args:
        masks, widths, heights, offsets: as ``chart_masks`` returns and takes them.
        order: (C,) charts in the order in which they are placed.
        size: side of the grid, below 32768.
        turns: number of orientations that are tried, 1 or 4.
        backend: "numba", "numpy", or "auto".

    Returns (fitted, column, row, turn), the last three (C,). ``fitted`` is False if a mask did not fit. Raises
    BackendError.
    """
    fitted, column, row, turn = _backend(backend).pack_masks(masks, widths, heights, offsets, order, size, turns)
    return bool(fitted), column, row, turn


def _backend(name: str) -> ModuleType:
    return backends.load(__name__, backends.select_backend("uv", name).name)
