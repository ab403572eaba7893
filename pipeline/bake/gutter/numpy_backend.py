"""The gutter's kernels on whole arrays of texels. The plain twin: tests compare ``numba_backend`` with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A texel is filled if the target chart has more than this share of the lookup's weights.
_LEAST_WEIGHT = 0.2
# A texel beyond an edge's ends counts as farther away, by this share of its squared distance along the edge.
_BEYOND_ENDS = 1e-3


def map_across_border(
    uv: NDArray[np.float64],
    inward: NDArray[np.float64],
    chart: NDArray[np.int32],
    mask: NDArray[np.bool_],
    width: float,
    source: NDArray[np.float64],
    target: NDArray[np.int32],
) -> None:
    """As ``gutter.map_across_border``, but writes to ``source`` (S, S, 2) and ``target`` (S, S)."""
    size = len(mask)
    nearest = np.full((size, size), np.inf)
    for ends, normals, charts in zip(uv, inward, chart, strict=True):
        for side, other in ((0, 1), (1, 0)):
            start, start_there = ends[side, 0], ends[other, 0]
            along, along_there = ends[side, 1] - start, ends[other, 1] - start_there
            length = along[0] * along[0] + along[1] * along[1]
            scale = np.sqrt((along_there[0] * along_there[0] + along_there[1] * along_there[1]) / length)
            low = np.maximum(np.floor(np.minimum(start, start + along) - width), 0).astype(np.int64)
            high = np.minimum(np.ceil(np.maximum(start, start + along) + width), size - 1).astype(np.int64)
            y, x = np.mgrid[low[1] : high[1] + 1, low[0] : high[0] + 1]
            px, py = x + 0.5 - start[0], y + 0.5 - start[1]
            outwards = -(px * normals[side, 0] + py * normals[side, 1])
            t = (px * along[0] + py * along[1]) / length
            on_edge = np.clip(t, 0.0, 1.0)
            dx, dy = px - on_edge * along[0], py - on_edge * along[1]
            # Beyond the ends of an edge at a convex corner the point leaves the neighbour. Among edges that are equally
            # near, prefer one with a perpendicular through the texel.
            distance = dx * dx + dy * dy + _BEYOND_ENDS * np.abs(t - on_edge) * length
            better = ~mask[y, x] & (outwards > 0) & (outwards <= width)
            better &= (distance < nearest[y, x]) & (distance <= width * width)
            row, column = y[better], x[better]
            nearest[row, column] = distance[better]
            for axis in range(2):
                point = start_there[axis] + t * along_there[axis] + scale * outwards * normals[other, axis]
                source[row, column, axis] = point[better]
            target[row, column] = charts[other]


def sample_charts(
    texels: NDArray[np.float32], chart: NDArray[np.int32], source: NDArray[np.float64], target: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """As ``gutter.sample_charts``."""
    size = len(texels)
    filled = np.zeros((size, size), np.bool_)
    row, column = np.nonzero(target >= 0)
    target_chart = target[row, column]
    u, v = np.clip(source[row, column] - 0.5, 0.0, size - 1.0).T
    x0, y0 = u.astype(np.int64), v.astype(np.int64)
    fx, fy = u - x0, v - y0
    total, weights = np.zeros((len(row), texels.shape[2])), np.zeros(len(row))
    for j in range(2):
        for i in range(2):
            x, y = np.minimum(x0 + i, size - 1), np.minimum(y0 + j, size - 1)
            weight = (fx if i else 1.0 - fx) * (fy if j else 1.0 - fy) * (chart[y, x] == target_chart)
            weights += weight
            total += weight[:, None] * texels[y, x]
    is_filled = weights > _LEAST_WEIGHT
    filled[row[is_filled], column[is_filled]] = True
    texels[row[is_filled], column[is_filled]] = total[is_filled] / weights[is_filled, None]
    return filled
