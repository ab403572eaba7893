"""The rasteriser as compiled loops: one z-buffer, faces in order, no threads, so always the same result.

See ``rasterise`` for the rules. All values are float64 until they are stored. The order of operations is that of
``torch_backend``, without fast-math, so both give the same bits.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# Compiled functions take their types from their arguments.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.core.jit import njit

# The same as rasterise.SUBPIXELS; compiled code takes it as a constant.
_SUBPIXELS = 4096.0
_BEHIND = np.uint32(0xFFFFFFFF)
_COLUMN = np.uint32(0xFFFF)


def rasterise(
    vertices: NDArray[np.float64],
    faces: NDArray[np.integer],
    matrices: NDArray[np.float64],
    height: int,
    width: int,
    cull: bool,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """``rasterise.rasterise`` with the cameras as clip-from-world matrices (N, 4, 4)."""
    n = len(matrices)
    face = np.full((n, height, width), -1, np.int32)
    bary = np.zeros((n, height, width, 3), np.float32)
    depth = np.full((n, height, width), np.inf, np.float32)
    screen = np.empty((len(vertices), 3))
    pixel = np.empty(len(vertices), np.uint32)
    for i in range(n):
        _draw_view(vertices, faces, matrices[i], cull, screen, pixel, face[i], bary[i], depth[i])
    return face, bary, depth


def rasterise_uv(
    uv: NDArray[np.float64], uv_faces: NDArray[np.integer], height: int, width: int, conservative: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """``rasterise.rasterise_uv``."""
    face = np.full((height, width), -1, np.int32)
    bary = np.zeros((height, width, 3), np.float32)
    _draw_texels(uv, uv_faces, face, bary)
    if conservative > 0:
        covered = face >= 0
        nearest = np.full((height, width), np.inf)
        _draw_margin(uv, uv_faces, covered, conservative, nearest, face, bary)
    return face, bary


def interpolate(
    face: NDArray[np.int32], bary: NDArray[np.float32], values: NDArray[np.floating], value_faces: NDArray[np.integer]
) -> NDArray[np.floating]:
    """``rasterise.interpolate`` over flat pixels: face (P,), bary (P, 3)."""
    result = np.empty((int(np.count_nonzero(face >= 0)), values.shape[1]), values.dtype)
    _interpolate(face, bary, values, value_faces, result)
    return result


@njit(cache=True, nogil=True, error_model="numpy")
def _interpolate(face, bary, values, value_faces, result):
    row = 0
    for i in range(len(face)):
        f = face[i]
        if f >= 0:
            a, b, c = value_faces[f, 0], value_faces[f, 1], value_faces[f, 2]
            for d in range(values.shape[1]):
                result[row, d] = bary[i, 0] * values[a, d] + bary[i, 1] * values[b, d] + bary[i, 2] * values[c, d]
            row += 1


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _snap(x):
    return np.floor(x * _SUBPIXELS + 0.5) / _SUBPIXELS


@njit(cache=True, nogil=True, error_model="numpy")
def _draw_view(vertices, faces, matrix, cull, screen, pixel, face, bary, depth):
    """Draws one view. Scratch arrays per vertex: ``screen`` (V, 3), x and y in pixels and 1/w; ``pixel`` (V,), the
    first column and row (times 2^16) whose pixel centres are not left of or above the vertex, within the image; all
    bits set behind the near plane.

    A face whose corners have the same column, or the same row, covers no pixel centre. One comparison of integers
    detects this for most faces of a fine mesh, and also for faces that lie behind the near plane.
    """
    height, width = face.shape
    m = matrix
    for i in range(len(vertices)):
        x, y, z = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        cz = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
        cw = m[3, 0] * x + m[3, 1] * y + m[3, 2] * z + m[3, 3]
        if cz + cw > 0.0 and cw > 0.0:
            cx = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
            cy = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
            inverse = 1.0 / cw
            screen[i, 0] = _snap((0.5 + 0.5 * (cx * inverse)) * width)
            screen[i, 1] = _snap((0.5 - 0.5 * (cy * inverse)) * height)
            screen[i, 2] = inverse
            column = np.uint32(np.ceil(min(max(screen[i, 0] - 0.5, 0.0), width)))
            row = np.uint32(np.ceil(min(max(screen[i, 1] - 0.5, 0.0), height)))
            pixel[i] = column | (row << np.uint32(16))
        else:
            pixel[i] = _BEHIND
    identity = np.eye(3)
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        pa, pb, pc = pixel[a], pixel[b], pixel[c]
        differ = (pa ^ pb) | (pa ^ pc)
        if ((differ & _COLUMN) == 0) | ((differ >> np.uint32(16)) == 0):
            continue
        if (pa == _BEHIND) | (pb == _BEHIND) | (pc == _BEHIND):
            _draw_clipped(f, a, b, c, vertices, m, cull, face, bary, depth)
        else:
            ax, bx, cx = np.int64(pa & _COLUMN), np.int64(pb & _COLUMN), np.int64(pc & _COLUMN)
            ay, by, cy = (
                np.int64(pa >> np.uint32(16)),
                np.int64(pb >> np.uint32(16)),
                np.int64(pc >> np.uint32(16)),
            )
            x0, x1 = min(ax, bx, cx), max(ax, bx, cx)
            y0, y1 = min(ay, by, cy), max(ay, by, cy)
            _draw_triangle(
                f, screen[a, 0], screen[a, 1], screen[a, 2], screen[b, 0], screen[b, 1], screen[b, 2],
                screen[c, 0], screen[c, 1], screen[c, 2], x0, x1, y0, y1, identity, False, cull,
                face, bary, depth,
            )  # fmt: skip


@njit(cache=True, nogil=True, error_model="numpy")
def _draw_clipped(f, a, b, c, vertices, m, cull, face, bary, depth):
    """Draws the part of a face in front of the near plane that it crosses: one or two triangles."""
    height, width = face.shape
    clip = np.empty((3, 4))
    inside = np.empty(3)
    for k in range(3):
        i = a if k == 0 else (b if k == 1 else c)
        x, y, z = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        for r in range(4):
            clip[k, r] = m[r, 0] * x + m[r, 1] * y + m[r, 2] * z + m[r, 3]
        inside[k] = clip[k, 2] + clip[k, 3]
    corner = np.zeros((4, 3))
    point = np.zeros((4, 3))
    count = 0
    for k in range(3):
        n = (k + 1) % 3
        if inside[k] > 0.0:
            corner[count, k] = 1.0
            _to_screen(clip[k, 0], clip[k, 1], clip[k, 3], height, width, point[count])
            count += 1
        if (inside[k] > 0.0) != (inside[n] > 0.0):
            # Cut from the inner to the outer end, so that both faces of an edge cut it at the same point.
            i, o = (k, n) if inside[k] > 0.0 else (n, k)
            t = inside[i] / (inside[i] - inside[o])
            corner[count, i] = 1.0 - t
            corner[count, o] = t
            x = clip[i, 0] + t * (clip[o, 0] - clip[i, 0])
            y = clip[i, 1] + t * (clip[o, 1] - clip[i, 1])
            w = clip[i, 3] + t * (clip[o, 3] - clip[i, 3])
            _to_screen(x, y, w, height, width, point[count])
            count += 1
    for k in range(1, count - 1):
        weights = np.empty((3, 3))
        weights[0] = corner[0]
        weights[1] = corner[k]
        weights[2] = corner[k + 1]
        x0, x1 = _span(point[0, 0], point[k, 0], point[k + 1, 0], width)
        y0, y1 = _span(point[0, 1], point[k, 1], point[k + 1, 1], height)
        _draw_triangle(
            f, point[0, 0], point[0, 1], point[0, 2], point[k, 0], point[k, 1], point[k, 2],
            point[k + 1, 0], point[k + 1, 1], point[k + 1, 2], x0, x1, y0, y1, weights, True, cull,
            face, bary, depth,
        )  # fmt: skip


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _to_screen(x, y, w, height, width, out):
    inverse = 1.0 / w
    out[0] = _snap((0.5 + 0.5 * (x * inverse)) * width)
    out[1] = _snap((0.5 - 0.5 * (y * inverse)) * height)
    out[2] = inverse


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _span(a, b, c, size):
    """First and end of the pixels whose centres lie in [min, max) of three coordinates, within the image.

    The interval is half open, because the top-left rule never covers the rightmost or lowest point of a triangle.
    """
    low = np.ceil(min(max(min(a, b, c) - 0.5, 0.0), size))
    high = np.ceil(min(max(max(a, b, c) - 0.5, 0.0), size))
    return int(low), int(high)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _edge(px, py, qx, qy, sign):
    """Origin, direction and top-left flag of the edge p -> q; the origin does not depend on the direction.

    E(x, y) = dx (y - oy) - dy (x - ox) is positive inside. Both faces of an edge use the same origin, so their values
    are exact negatives, even if coordinates are too large for exact products.
    """
    dx, dy = sign * (qx - px), sign * (qy - py)
    first = (px < qx) | ((px == qx) & (py <= qy))  # no short-circuit: unpredictable branches cost more
    ox = px if first else qx
    oy = py if first else qy
    return ox, oy, dx, dy, (dy < 0.0) | ((dy == 0.0) & (dx > 0.0))


@njit(cache=True, nogil=True, error_model="numpy")
def _draw_triangle(f, ax, ay, aw, bx, by, bw, cx, cy, cw, x0, x1, y0, y1, weights, clipped, cull, face, bary, depth):
    """Tests the pixels of columns x0 .. x1 - 1 and rows y0 .. y1 - 1 against one triangle."""
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if area == 0.0 or (cull and area > 0.0):  # y points down: a front face has a negative area
        return
    sign = 1.0 if area > 0.0 else -1.0
    # Edge k lies opposite corner k.
    ox0, oy0, dx0, dy0, tl0 = _edge(bx, by, cx, cy, sign)
    ox1, oy1, dx1, dy1, tl1 = _edge(cx, cy, ax, ay, sign)
    ox2, oy2, dx2, dy2, tl2 = _edge(ax, ay, bx, by, sign)
    for y in range(y0, y1):
        py = y + 0.5
        r0, r1, r2 = dx0 * (py - oy0), dx1 * (py - oy1), dx2 * (py - oy2)
        entered = False
        for x in range(x0, x1):
            px = x + 0.5
            e0 = r0 - dy0 * (px - ox0)
            e1 = r1 - dy1 * (px - ox1)
            e2 = r2 - dy2 * (px - ox2)
            if (
                ((e0 > 0.0) | ((e0 == 0.0) & tl0))
                & ((e1 > 0.0) | ((e1 == 0.0) & tl1))
                & ((e2 > 0.0) | ((e2 == 0.0) & tl2))
            ):
                entered = True
                b0, b1, b2 = e0 * aw, e1 * bw, e2 * cw
                total = b0 + b1 + b2
                d = np.float32((e0 + e1 + e2) / total)
                if d < depth[y, x]:
                    depth[y, x] = d
                    face[y, x] = f
                    b0, b1, b2 = b0 / total, b1 / total, b2 / total
                    if clipped:
                        for k in range(3):
                            bary[y, x, k] = b0 * weights[0, k] + b1 * weights[1, k] + b2 * weights[2, k]
                    else:
                        bary[y, x, 0] = b0
                        bary[y, x, 1] = b1
                        bary[y, x, 2] = b2
            elif entered:
                break


@njit(cache=True, nogil=True, error_model="numpy")
def _draw_texels(uv, uv_faces, face, bary):
    """Draws texels whose centre a face covers. The first face keeps the texel."""
    height, width = face.shape
    for f in range(len(uv_faces)):
        a, b, c = uv_faces[f, 0], uv_faces[f, 1], uv_faces[f, 2]
        ax, ay = _snap(uv[a, 0] * width), _snap(uv[a, 1] * height)
        bx, by = _snap(uv[b, 0] * width), _snap(uv[b, 1] * height)
        cx, cy = _snap(uv[c, 0] * width), _snap(uv[c, 1] * height)
        x0, x1 = _span(ax, bx, cx, width)
        y0, y1 = _span(ay, by, cy, height)
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if y0 >= y1 or x0 >= x1 or area == 0.0:
            continue
        sign = 1.0 if area > 0.0 else -1.0
        ox0, oy0, dx0, dy0, tl0 = _edge(bx, by, cx, cy, sign)
        ox1, oy1, dx1, dy1, tl1 = _edge(cx, cy, ax, ay, sign)
        ox2, oy2, dx2, dy2, tl2 = _edge(ax, ay, bx, by, sign)
        for y in range(y0, y1):
            py = y + 0.5
            for x in range(x0, x1):
                px = x + 0.5
                e0 = dx0 * (py - oy0) - dy0 * (px - ox0)
                e1 = dx1 * (py - oy1) - dy1 * (px - ox1)
                e2 = dx2 * (py - oy2) - dy2 * (px - ox2)
                if (
                    face[y, x] < 0
                    and (e0 > 0.0 or (e0 == 0.0 and tl0))
                    and (e1 > 0.0 or (e1 == 0.0 and tl1))
                    and (e2 > 0.0 or (e2 == 0.0 and tl2))
                ):
                    total = e0 + e1 + e2
                    face[y, x] = f
                    bary[y, x, 0] = e0 / total
                    bary[y, x, 1] = e1 / total
                    bary[y, x, 2] = e2 / total


@njit(cache=True, nogil=True, error_model="numpy")
def _draw_margin(uv, uv_faces, covered, radius, nearest, face, bary):
    """Gives texels just outside the nearest point of the nearest face within ``radius`` texels.

    The nearest point of a face to an uncovered centre lies on one of the face's edges, so only edges are measured.
    """
    height, width = face.shape
    for f in range(len(uv_faces)):
        for k in range(3):
            i, j = uv_faces[f, k], uv_faces[f, (k + 1) % 3]
            ax, ay = _snap(uv[i, 0] * width), _snap(uv[i, 1] * height)
            bx, by = _snap(uv[j, 0] * width), _snap(uv[j, 1] * height)
            dx, dy = bx - ax, by - ay
            length = dx * dx + dy * dy
            y0 = np.ceil(max(min(ay, by) - radius - 0.5, 0.0))
            y1 = np.floor(min(max(ay, by) + radius - 0.5, height - 1.0))
            x0 = np.ceil(max(min(ax, bx) - radius - 0.5, 0.0))
            x1 = np.floor(min(max(ax, bx) + radius - 0.5, width - 1.0))
            for y in range(int(y0), int(y1) + 1):
                for x in range(int(x0), int(x1) + 1):
                    if covered[y, x]:
                        continue
                    px, py = x + 0.5 - ax, y + 0.5 - ay
                    t = 0.0
                    if length > 0.0:
                        t = min(max((px * dx + py * dy) / length, 0.0), 1.0)
                    ex, ey = px - t * dx, py - t * dy
                    d = ex * ex + ey * ey
                    if d <= radius * radius and d < nearest[y, x]:
                        nearest[y, x] = d
                        face[y, x] = f
                        bary[y, x, k] = 1.0 - t
                        bary[y, x, (k + 1) % 3] = t
                        bary[y, x, (k + 2) % 3] = 0.0
