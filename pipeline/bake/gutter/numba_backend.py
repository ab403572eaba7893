"""Compiled loops over chart borders; see ``bake.gutter``."""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# Compiled functions take their types from their arguments.

from __future__ import annotations

import numpy as np

from pipeline.core.jit import njit


@njit(cache=True, nogil=True, error_model="numpy")
def map_across_border(uv, inward, chart, mask, width, source, target):
    """As ``gutter.map_across_border``, but writes to ``source`` (S, S, 2) and ``target`` (S, S)."""
    size = len(mask)
    nearest = np.full((size, size), np.inf)
    for e in range(len(uv)):
        for s in range(2):
            o = 1 - s
            ax, ay = uv[e, s, 0, 0], uv[e, s, 0, 1]
            ex, ey = uv[e, s, 1, 0] - ax, uv[e, s, 1, 1] - ay
            bx, by = uv[e, o, 0, 0], uv[e, o, 0, 1]
            fx, fy = uv[e, o, 1, 0] - bx, uv[e, o, 1, 1] - by
            length = ex * ex + ey * ey
            scale = np.sqrt((fx * fx + fy * fy) / length)
            x0 = int(max(np.floor(min(ax, ax + ex) - width), 0.0))
            x1 = int(min(np.ceil(max(ax, ax + ex) + width), size - 1.0))
            y0 = int(max(np.floor(min(ay, ay + ey) - width), 0.0))
            y1 = int(min(np.ceil(max(ay, ay + ey) + width), size - 1.0))
            for y in range(y0, y1 + 1):
                for x in range(x0, x1 + 1):
                    if mask[y, x]:
                        continue
                    px, py = x + 0.5 - ax, y + 0.5 - ay
                    out = -(px * inward[e, s, 0] + py * inward[e, s, 1])
                    if out <= 0.0 or out > width:
                        continue
                    t = (px * ex + py * ey) / length
                    near = min(max(t, 0.0), 1.0)
                    dx, dy = px - near * ex, py - near * ey
                    d = dx * dx + dy * dy
                    # Beyond the ends of an edge at a convex corner the point leaves the neighbour. Among edges that
                    # are equally near, prefer one with a perpendicular through the texel.
                    d += 1e-3 * abs(t - near) * length
                    if d < nearest[y, x] and d <= width * width:
                        nearest[y, x] = d
                        source[y, x, 0] = bx + t * fx + scale * out * inward[e, o, 0]
                        source[y, x, 1] = by + t * fy + scale * out * inward[e, o, 1]
                        target[y, x] = chart[e, o]


@njit(cache=True, nogil=True, error_model="numpy")
def sample_charts(texels, chart, source, target):
    """As ``gutter.sample_charts``."""
    size, _, channels = texels.shape
    filled = np.zeros((size, size), np.bool_)
    total = np.zeros(channels)
    for y in range(size):
        for x in range(size):
            if target[y, x] < 0:
                continue
            u = min(max(source[y, x, 0] - 0.5, 0.0), size - 1.0)
            v = min(max(source[y, x, 1] - 0.5, 0.0), size - 1.0)
            x0, y0 = int(u), int(v)
            fx, fy = u - x0, v - y0
            weights = 0.0
            total[:] = 0.0
            for j in range(2):
                for i in range(2):
                    xx, yy = min(x0 + i, size - 1), min(y0 + j, size - 1)
                    w = (fx if i else 1.0 - fx) * (fy if j else 1.0 - fy)
                    # Texels of charts are never written here, so the order of texels is irrelevant.
                    if chart[yy, xx] == target[y, x]:
                        weights += w
                        for c in range(channels):
                            total[c] += w * texels[yy, xx, c]
            if weights > 0.2:
                filled[y, x] = True
                for c in range(channels):
                    texels[y, x, c] = total[c] / weights
    return filled
