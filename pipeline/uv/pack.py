"""Packs charts into the unit square: one scale for all, a stated distance between them, no overlap.

Places charts as bit masks of their true outline on a grid, largest first, each at the highest free position in the best
of four orientations. Small charts fill the gaps between large ones. Bisection finds the largest scale at which all fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The grid of the bit masks. A finer grid packs tighter and takes longer. At 512, a cell is 2 texels of a 1024 texture.
GRID = 512
# With more charts than these, fewer orientations and fewer scales are tried.
MANY_CHARTS = 1500
# Padding is halved while it leaves less than this share of the square to the charts,
MIN_COVERAGE = 0.35
# and while each halving lets the charts grow by this factor.
WORTH_HALVING = 1.1


@dataclass(frozen=True)
class PackedAtlas:
    """uv (T, 2) float32 in [0, 1]; padding in units of the square; coverage: share of it that the faces cover."""

    uv: NDArray[np.float32]
    padding: float
    coverage: float


def pack(
    points: NDArray[np.float64],
    faces: NDArray[np.int64],
    charts: NDArray[np.int64],
    *,
    padding: float,
) -> PackedAtlas:
    """Packs flattened charts.

    points (T, 2), in one unit for all charts, y downwards; faces (F, 3) into them; charts (F,) numbered from 0. Each
    point belongs to one chart only. ``padding`` is the requested distance between charts as a share of the square's
    side. It is halved while the charts would cover less than MIN_COVERAGE of the square; the result states the padding
    that was used.
    """
    charts = np.asarray(charts, np.int64)
    count = int(charts.max()) + 1
    point_chart = np.zeros(len(points), np.int64)
    point_chart[faces.reshape(-1)] = np.repeat(charts, 3)
    points = _upright(np.asarray(points, np.float64), point_chart, count)
    corner = points[faces]
    first, second = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    area = 0.5 * np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).sum()
    extent = np.zeros((count, 2))
    np.maximum.at(extent, point_chart, points)
    if not area > 0:
        area = max(float((extent[:, 0] * extent[:, 1]).sum()), 1e-30)

    grid, best, used_padding, trial_padding = GRID, None, padding, padding
    for _ in range(12):
        layout = _largest_scale(points, corner, charts, point_chart, extent, area, trial_padding * grid, grid)
        if layout is not None and (best is None or layout[0] > best[0] * WORTH_HALVING):
            best, used_padding = layout, trial_padding
        elif best is not None:
            break  # less padding does not help
        if best is not None and (best[0] ** 2 * area >= MIN_COVERAGE * grid**2 or trial_padding * grid < 0.25):
            break
        if trial_padding * grid < 0.25:
            # Even without padding they do not fit, because there are more charts than cells. Refine the grid.
            grid *= 2
        trial_padding /= 2
    if best is None:
        return _tiles(points, point_chart, extent, area, count)
    scale, column, row, turn = best
    uv = _placed(points, point_chart, extent, scale, used_padding * grid, column, row, turn) / grid
    return PackedAtlas(np.clip(uv, 0.0, 1.0).astype(np.float32), used_padding, scale**2 * area / grid**2)


def _upright(points: NDArray[np.float64], point_chart: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Turns each chart so that its box is smallest and wider than high, with its lowest corner at (0, 0)."""
    order = np.argsort(point_chart, kind="stable")
    starts = np.searchsorted(point_chart[order], np.arange(count))
    ordered = points[order]
    angles = np.arange(30) * (np.pi / 2 / 30)
    smallest = np.full(count, np.inf)
    angle = np.zeros(count)
    for candidate in angles:
        c, s = np.cos(candidate), np.sin(candidate)
        x, y = ordered[:, 0] * c - ordered[:, 1] * s, ordered[:, 0] * s + ordered[:, 1] * c
        width = np.maximum.reduceat(x, starts) - np.minimum.reduceat(x, starts)
        height = np.maximum.reduceat(y, starts) - np.minimum.reduceat(y, starts)
        better = width * height < smallest * (1 - 1e-9)
        smallest[better] = (width * height)[better]
        angle[better] = candidate
    c, s = np.cos(angle)[point_chart], np.sin(angle)[point_chart]
    rotated = np.stack([points[:, 0] * c - points[:, 1] * s, points[:, 0] * s + points[:, 1] * c], axis=1)
    low = np.full((count, 2), np.inf)
    np.minimum.at(low, point_chart, rotated)
    result: NDArray[np.float64] = rotated - low[point_chart]
    return result


def _largest_scale(
    points: NDArray[np.float64],
    corner: NDArray[np.float64],
    charts: NDArray[np.int64],
    point_chart: NDArray[np.int64],
    extent: NDArray[np.float64],
    area: float,
    padding: float,
    grid: int,
) -> tuple[float, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """The largest scale (cells per unit) at which all charts fit, with their positions; None if there is none."""
    many = len(extent) > MANY_CHARTS
    # No layout fits at 95% use. The longest chart is another limit.
    high = min(np.sqrt(0.95 * grid**2 / area), (grid - padding) / max(float(extent.max()), 1e-30))
    scale, low, best = high * 0.9, 0.0, None
    for _ in range(9 if many else 12):
        placed = _try_scale(corner, charts, extent, scale, padding, grid, turns=1 if many else 4)
        if placed is None:
            high = scale
        else:
            best, low = (scale, *placed), scale
        if best is None:
            scale *= 0.8
        elif high / low < (1.03 if many else 1.012):
            break
        else:
            scale = float(np.sqrt(low * high))
    return best


def _try_scale(
    corner: NDArray[np.float64],
    charts: NDArray[np.int64],
    extent: NDArray[np.float64],
    scale: float,
    padding: float,
    grid: int,
    turns: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    from pipeline.uv.kernels import chart_masks, pack_masks

    reach = padding / 2
    sizes = np.floor(extent * scale + padding).astype(np.int64) + 1
    if sizes.max() > grid or (sizes[:, 0] * sizes[:, 1]).sum() > 16 * grid * grid:
        return None
    offsets = np.cumsum(sizes[:, 0] * sizes[:, 1]) - sizes[:, 0] * sizes[:, 1]
    masks = chart_masks(corner * scale + reach, charts, sizes[:, 0], sizes[:, 1], offsets, reach)
    if int(masks.sum()) > grid * grid:
        return None
    order = np.lexsort((np.arange(len(sizes)), sizes[:, 1], sizes[:, 0], -(sizes.max(axis=1) + sizes.min(axis=1))))
    fitted, column, row, turn = pack_masks(masks, sizes[:, 0], sizes[:, 1], offsets, order, grid, turns)
    return (column, row, turn) if fitted else None


def _placed(
    points: NDArray[np.float64],
    point_chart: NDArray[np.int64],
    extent: NDArray[np.float64],
    scale: float,
    padding: float,
    column: NDArray[np.int64],
    row: NDArray[np.int64],
    turn: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(T, 2) points in cells of the grid, turned within their masks and moved to their positions."""
    sizes = (np.floor(extent * scale + padding).astype(np.int64) + 1)[point_chart]
    x, y = (points * scale + padding / 2).T
    quarter = turn[point_chart]
    width, height = sizes[:, 0], sizes[:, 1]
    turned_x = np.select([quarter == 0, quarter == 1, quarter == 2], [x, height - y, width - x], y)
    turned_y = np.select([quarter == 0, quarter == 1, quarter == 2], [y, x, height - y], width - x)
    return np.stack([turned_x + column[point_chart], turned_y + row[point_chart]], axis=1)


def _tiles(
    points: NDArray[np.float64],
    point_chart: NDArray[np.int64],
    extent: NDArray[np.float64],
    area: float,
    count: int,
) -> PackedAtlas:
    """Last resort for more charts than any grid has cells: shrinks each chart into one of equal squares in rows."""
    side = int(np.ceil(np.sqrt(count)))
    scale = 0.8 / np.maximum(extent.max(axis=1), 1e-30)
    local = points * scale[point_chart][:, None] + 0.1
    uv = (local + np.stack([point_chart % side, point_chart // side], axis=1)) / side
    return PackedAtlas(uv.astype(np.float32), 0.0, 0.0)
