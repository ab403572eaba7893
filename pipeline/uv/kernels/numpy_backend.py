"""The UV kernels on whole arrays of cells. The plain twin: tests compare ``numba_backend`` with it.

Each function takes and returns the same as the function of that name in ``uv.kernels``. Edge tests use the same
integers or the same float64 operations as the fast backend, so both give the same arrays.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from pipeline.uv.kernels.layout import HINTED_CHARTS, SUBCELL

# Rows and columns of a grid, and a mask of the cells in them.
_Cells = tuple[slice, slice, NDArray[np.bool_]]


def coverage(corners: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """As ``uv.kernels.coverage``."""
    count = np.zeros((size, size), np.int64)
    for triangle in corners:
        rows, columns, owned = _owned_cells(triangle, size, size)
        count[rows, columns] += owned
    return np.minimum(count, 255).astype(np.uint8)


def folded_faces(
    corners: NDArray[np.float64], order: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """As ``uv.kernels.folded_faces``."""
    marked = np.zeros(len(corners), np.bool_)
    for first, end in itertools.pairwise(starts):
        members = order[first:end]
        if not len(members):
            continue
        width, height = corners[members].max(axis=(0, 1)).astype(np.int64) + 2
        occupied = np.zeros((height, width), np.bool_)
        for face in members:
            rows, columns, owned = _owned_cells(corners[face], height, width)
            marked[face] = bool((occupied[rows, columns] & owned).any())
            if not marked[face]:
                occupied[rows, columns] |= owned
    return marked


def chart_masks(
    corners: NDArray[np.float64],
    chart: NDArray[np.int64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    offsets: NDArray[np.int64],
    reach: float,
) -> NDArray[np.uint8]:
    """As ``uv.kernels.chart_masks``."""
    masks = np.zeros(int((widths * heights).sum()), np.uint8)
    radius = 0.5 + reach
    for triangle, c in zip(corners, chart, strict=True):
        mask = masks[offsets[c] : offsets[c] + widths[c] * heights[c]].reshape(heights[c], widths[c])
        low = np.maximum(np.floor(triangle.min(axis=0) - reach).astype(np.int64), 0)
        high = np.floor(triangle.max(axis=0) + reach).astype(np.int64)
        columns = np.arange(low[0], min(high[0], widths[c] - 1) + 1)
        rows = np.arange(low[1], min(high[1], heights[c] - 1) + 1)
        px, py = columns + 0.5, (rows + 0.5)[:, None]
        near = np.ones((len(rows), len(columns)), np.bool_)
        for (x0, y0), (x1, y1) in _edges(triangle):
            # A square of half side ``radius`` around the centre misses the face if it lies outside of one edge.
            slack = radius * (abs(x1 - x0) + abs(y1 - y0))
            near &= ~((x1 - x0) * (py - y0) - (y1 - y0) * (px - x0) < -slack)
        mask[np.ix_(rows, columns)] |= near
    return masks


def pack_masks(
    masks: NDArray[np.uint8],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    offsets: NDArray[np.int64],
    order: NDArray[np.int64],
    size: int,
    turns: int,
) -> tuple[bool, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """As ``uv.kernels.pack_masks``."""
    count = len(widths)
    columns, rows, turned = (np.zeros(count, np.int64) for _ in range(3))
    occupied = np.zeros((size, size), np.bool_)
    # The row at which the search starts, by a quarter of the box's height and width.
    hints: dict[tuple[int, int], int] = {}
    for c in order:
        flat = masks[offsets[c] : offsets[c] + widths[c] * heights[c]]
        upright = flat.reshape(heights[c], widths[c]).astype(np.bool_)
        best_bottom = size + 1
        best: tuple[int, int, int, NDArray[np.bool_]] | None = None
        for turn in range(turns):
            mask = np.rot90(upright, -turn)
            height, width = mask.shape
            hint = (height // 4, width // 4)
            first_row = hints.get(hint, 0) if count > HINTED_CHARTS else 0
            position = _highest_place(occupied, mask, first_row, best_bottom - 1)
            if position is not None:
                best_bottom, best = position[0] + height, (*position, turn, mask)
                hints[hint] = max(position[0] - 2, 0)
        if best is None:
            return False, columns, rows, turned
        row, column, turn, mask = best
        occupied[row : row + mask.shape[0], column : column + mask.shape[1]] |= mask
        columns[c], rows[c], turned[c] = column, row, turn
    return True, columns, rows, turned


def _highest_place(
    occupied: NDArray[np.bool_], mask: NDArray[np.bool_], first_row: int, lowest_bottom: int
) -> tuple[int, int] | None:
    """The first free (row, column), row by row, at which ``mask`` ends at ``lowest_bottom`` or above."""
    height, width = mask.shape
    size = len(occupied)
    if width > size:
        return None
    for row in range(first_row, min(size, lowest_bottom) - height + 1):
        windows = np.lib.stride_tricks.sliding_window_view(occupied[row : row + height], width, axis=1)
        free = np.flatnonzero(~(windows & mask[:, None]).any(axis=(0, 2)))
        if len(free):
            return row, int(free[0])
    return None


def _owned_cells(triangle: NDArray[np.float64], height: int, width: int) -> _Cells:
    """The cells of a grid (height, width) whose centres belong to ``triangle`` (3, 2), snapped to parts of a cell.

    A centre belongs to the triangle if it lies inside, or on a top or left edge. A triangle without area owns no cell.
    """
    half = SUBCELL // 2
    snapped = np.floor(triangle * SUBCELL + 0.5).astype(np.int64)
    low = np.maximum((snapped.min(axis=0) - half) // SUBCELL, 0)
    high = np.minimum((snapped.max(axis=0) - half) // SUBCELL + 1, [width - 1, height - 1])
    columns, rows = np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1)
    px, py = columns * SUBCELL + half, (rows * SUBCELL + half)[:, None]
    owned = np.full((len(rows), len(columns)), _doubled_area(snapped) != 0)
    for (x0, y0), (x1, y1) in _edges(snapped):
        dx, dy = x1 - x0, y1 - y0
        side = dx * (py - y0) - dy * (px - x0)
        top_or_left = dy > 0 or (dy == 0 and dx < 0)
        owned &= (side > 0) | ((side == 0) & top_or_left)
    return slice(low[1], low[1] + len(rows)), slice(low[0], low[0] + len(columns)), owned


def _doubled_area(triangle: NDArray[np.int64]) -> float:
    """Twice the signed area of ``triangle`` (3, 2)."""
    (x0, y0), (x1, y1), (x2, y2) = triangle
    result: float = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    return result


def _edges(triangle: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The three edges (start, end) of ``triangle`` (3, 2), in the order in which its inside has positive side."""
    a, b, c = triangle if _doubled_area(triangle) >= 0 else triangle[[0, 2, 1]]
    return [(a, b), (b, c), (c, a)]
