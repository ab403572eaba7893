"""Compiled loops over texture coordinates; see ``uv.kernels``. They run on one thread and in a fixed order."""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# Compiled functions take their types from their arguments.

from __future__ import annotations

import numpy as np

from pipeline.core.jit import numba
from pipeline.uv.kernels.layout import HINTED_CHARTS, SUBCELL


@numba.njit(cache=True, nogil=True, inline="always")
def _owns_centre(w, dx, dy):
    """Whether a centre belongs to a face by one edge: it lies inside of it, or on it if it is a top or left edge."""
    return w > 0 or (w == 0 and (dy > 0 or (dy == 0 and dx < 0)))


@numba.njit(cache=True, nogil=True)
def _snapped(x):
    return np.int64(np.floor(x * SUBCELL + 0.5))


@numba.njit(cache=True, nogil=True)
def _oriented(corners):
    """((x0, y0, x1, y1, x2, y2) in subcells, anticlockwise; twice the area, signed) of one face's corners (3, 2)."""
    x0, y0 = _snapped(corners[0, 0]), _snapped(corners[0, 1])
    x1, y1 = _snapped(corners[1, 0]), _snapped(corners[1, 1])
    x2, y2 = _snapped(corners[2, 0]), _snapped(corners[2, 1])
    doubled = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    if doubled < 0:
        x1, y1, x2, y2 = x2, y2, x1, y1
    return (x0, y0, x1, y1, x2, y2), doubled


@numba.njit(cache=True, nogil=True)
def _centres(corner, width, height):
    """First and last column and row of the cells whose centres a face may cover."""
    x0, y0, x1, y1, x2, y2 = corner
    half = SUBCELL // 2
    left = max((min(x0, x1, x2) - half) // SUBCELL, 0)
    right = min((max(x0, x1, x2) - half) // SUBCELL + 1, width - 1)
    top = max((min(y0, y1, y2) - half) // SUBCELL, 0)
    bottom = min((max(y0, y1, y2) - half) // SUBCELL + 1, height - 1)
    return left, right, top, bottom


@numba.njit(cache=True, nogil=True, inline="always")
def _covers_centre(corner, px, py):
    """Whether a face covers a cell's centre; centres on shared edges belong to one face."""
    x0, y0, x1, y1, x2, y2 = corner
    return (
        _owns_centre((x1 - x0) * (py - y0) - (y1 - y0) * (px - x0), x1 - x0, y1 - y0)
        and _owns_centre((x2 - x1) * (py - y1) - (y2 - y1) * (px - x1), x2 - x1, y2 - y1)
        and _owns_centre((x0 - x2) * (py - y2) - (y0 - y2) * (px - x2), x0 - x2, y0 - y2)
    )


@numba.njit(cache=True, nogil=True)
def coverage(corners, size):
    """As ``uv.kernels.coverage``."""
    count = np.zeros((size, size), np.uint8)
    half = SUBCELL // 2
    for face in range(corners.shape[0]):
        corner, area = _oriented(corners[face])
        if area == 0:
            continue
        left, right, top, bottom = _centres(corner, size, size)
        for row in range(top, bottom + 1):
            py = row * SUBCELL + half
            for column in range(left, right + 1):
                px = column * SUBCELL + half
                if not _covers_centre(corner, px, py):
                    continue
                if count[row, column] < 255:
                    count[row, column] += 1
    return count


@numba.njit(cache=True, nogil=True)
def folded_faces(corners, order, starts):
    """As ``uv.kernels.folded_faces``."""
    marked = np.zeros(corners.shape[0], np.bool_)
    half = SUBCELL // 2
    for chart in range(starts.shape[0] - 1):
        width = height = 0
        for k in range(starts[chart], starts[chart + 1]):
            for c in range(3):
                width = max(width, int(corners[order[k], c, 0]) + 2)
                height = max(height, int(corners[order[k], c, 1]) + 2)
        occupied = np.zeros((height, width), np.bool_)
        for k in range(starts[chart], starts[chart + 1]):
            face = order[k]
            corner, area = _oriented(corners[face])
            if area == 0:
                continue
            left, right, top, bottom = _centres(corner, width, height)
            for write in range(2):
                for row in range(top, bottom + 1):
                    py = row * SUBCELL + half
                    for column in range(left, right + 1):
                        px = column * SUBCELL + half
                        if not _covers_centre(corner, px, py):
                            continue
                        if write == 1:
                            occupied[row, column] = True
                        elif occupied[row, column]:
                            marked[face] = True
                if marked[face]:
                    break
    return marked


@numba.njit(cache=True, nogil=True)
def chart_masks(corners, chart, widths, heights, offsets, reach):
    """As ``uv.kernels.chart_masks``."""
    total = 0
    for c in range(widths.shape[0]):
        total += widths[c] * heights[c]
    masks = np.zeros(total, np.uint8)
    radius = 0.5 + reach
    for face in range(corners.shape[0]):
        c = chart[face]
        width, height, offset = widths[c], heights[c], offsets[c]
        x0, y0 = corners[face, 0, 0], corners[face, 0, 1]
        x1, y1 = corners[face, 1, 0], corners[face, 1, 1]
        x2, y2 = corners[face, 2, 0], corners[face, 2, 1]
        if (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0) < 0:
            x1, y1, x2, y2 = x2, y2, x1, y1
        left = max(int(np.floor(min(x0, x1, x2) - reach)), 0)
        right = min(int(np.floor(max(x0, x1, x2) + reach)), width - 1)
        top = max(int(np.floor(min(y0, y1, y2) - reach)), 0)
        bottom = min(int(np.floor(max(y0, y1, y2) + reach)), height - 1)
        # A square of half side ``radius`` around the centre misses the face if it lies outside of one edge.
        slack0 = radius * (abs(x1 - x0) + abs(y1 - y0))
        slack1 = radius * (abs(x2 - x1) + abs(y2 - y1))
        slack2 = radius * (abs(x0 - x2) + abs(y0 - y2))
        for row in range(top, bottom + 1):
            py = row + 0.5
            for column in range(left, right + 1):
                at = offset + row * width + column
                if masks[at]:
                    continue
                px = column + 0.5
                if (x1 - x0) * (py - y0) - (y1 - y0) * (px - x0) < -slack0:
                    continue
                if (x2 - x1) * (py - y1) - (y2 - y1) * (px - x1) < -slack1:
                    continue
                if (x0 - x2) * (py - y2) - (y0 - y2) * (px - x2) < -slack2:
                    continue
                masks[at] = 1
    return masks


@numba.njit(cache=True, nogil=True)
def _mask_runs(masks, offset, w0, h0, turn):
    """(R, 3) int64 runs (row, first column, last column) of a mask after ``turn`` quarter turns, longest first.

    One turn maps (x, y) of a mask of height h to (h - y, x).
    """
    w, h = (w0, h0) if turn % 2 == 0 else (h0, w0)
    turned = np.zeros((h, w), np.bool_)
    for y in range(h0):
        for x in range(w0):
            if masks[offset + y * w0 + x]:
                if turn == 0:
                    turned[y, x] = True
                elif turn == 1:
                    turned[x, h0 - 1 - y] = True
                elif turn == 2:
                    turned[h0 - 1 - y, w0 - 1 - x] = True
                else:
                    turned[w0 - 1 - x, y] = True
    count = 0
    for y in range(h):
        for x in range(w):
            if turned[y, x] and (x == 0 or not turned[y, x - 1]):
                count += 1
    runs = np.empty((count, 3), np.int64)
    k = 0
    for y in range(h):
        for x in range(w):
            if turned[y, x]:
                if x == 0 or not turned[y, x - 1]:
                    runs[k, 0], runs[k, 1] = y, x
                if x == w - 1 or not turned[y, x + 1]:
                    runs[k, 2] = x
                    k += 1
    longest_first = np.argsort(runs[:, 1] - runs[:, 2], kind="mergesort")
    return runs[longest_first]


@numba.njit(cache=True, nogil=True)
def pack_masks(masks, widths, heights, offsets, order, size, turns):
    """As ``uv.kernels.pack_masks``."""
    count = widths.shape[0]
    columns, rows, turned = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    # For each row and column, the last taken column at or before it, or -1. A run collides if that column lies within
    # the run, and is then moved just behind it.
    taken = np.full((size, size), -1, np.int16)
    # The row at which a box of about this size was placed last. A box that had no room above seldom has it now.
    hints = np.zeros((size // 4 + 1, size // 4 + 1), np.int64)
    for k in range(count):
        c = order[k]
        w0, h0, offset = widths[c], heights[c], offsets[c]
        best_bottom, best_row, best_column, best_turn = size + 1, -1, -1, 0
        best_runs = np.empty((0, 3), np.int64)
        for turn in range(turns):
            w, h = (w0, h0) if turn % 2 == 0 else (h0, w0)
            if w > size or h > size:
                continue
            runs = _mask_runs(masks, offset, w0, h0, turn)
            row = hints[h // 4, w // 4] if count > HINTED_CHARTS else 0
            while row + h <= size and row + h < best_bottom:
                column = 0
                k_run = 0
                while column + w <= size and k_run < runs.shape[0]:
                    met = taken[row + runs[k_run, 0], column + runs[k_run, 2]]
                    if met >= column + runs[k_run, 1]:
                        column = met - runs[k_run, 1] + 1
                        k_run = 0
                    else:
                        k_run += 1
                if column + w <= size:
                    best_bottom, best_row, best_column, best_turn = row + h, row, column, turn
                    best_runs = runs
                    hints[h // 4, w // 4] = max(row - 2, 0)
                    break
                row += 1
        if best_row < 0:
            return False, columns, rows, turned
        for i in range(best_runs.shape[0]):
            row = best_row + best_runs[i, 0]
            first, last = best_column + best_runs[i, 1], best_column + best_runs[i, 2]
            for x in range(first, last + 1):
                taken[row, x] = x
            x = last + 1
            while x < size and taken[row, x] < first:
                taken[row, x] = last
                x += 1
        columns[c], rows[c], turned[c] = best_column, best_row, best_turn
    return True, columns, rows, turned
