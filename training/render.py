"""Renders the geometry of training images by sphere tracing primitives.

Conventions are those of `pipeline`: right-handed, +Y up, +Z towards the viewer, angles in radians. Objects lie in the
unit ball. `scene` adds materials and light.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.core.jit import njit
from training.noise import fbm, smooth, value

# Columns of a primitive's row.
KIND, POS, ROT, DIM, SLOT, BLEND, BOUND, ROW = 0, 1, 4, 13, 17, 18, 19, 20
ELLIPSOID, BOX, CYLINDER, CONE, TORUS, CAPSULE = range(6)


@njit(cache=True, fastmath=True, nogil=True)
def _primitive(row, x, y, z):
    """Signed distance of one primitive at a point in its own frame (a bound for ellipsoids)."""
    kind = int(row[KIND])
    a, b, c, d = row[DIM], row[DIM + 1], row[DIM + 2], row[DIM + 3]
    if kind == ELLIPSOID:
        k0 = math.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        k1 = math.sqrt((x / (a * a)) ** 2 + (y / (b * b)) ** 2 + (z / (c * c)) ** 2)
        return k0 * (k0 - 1.0) / k1 if k1 > 1e-9 else -min(a, b, c)
    if kind == BOX:
        qx, qy, qz = abs(x) - a + d, abs(y) - b + d, abs(z) - c + d
        ex, ey, ez = max(qx, 0.0), max(qy, 0.0), max(qz, 0.0)
        return math.sqrt(ex * ex + ey * ey + ez * ez) + min(max(qx, max(qy, qz)), 0.0) - d
    if kind == CYLINDER:
        qx, qy = math.sqrt(x * x + z * z) - a + d, abs(y) - b + d
        ex, ey = max(qx, 0.0), max(qy, 0.0)
        return math.sqrt(ex * ex + ey * ey) + min(max(qx, qy), 0.0) - d
    if kind == CONE:  # a bottom radius, c top radius, b half height
        q = math.sqrt(x * x + z * z)
        k2x, k2y = c - a, 2.0 * b
        cax = q - min(q, a if y < 0.0 else c)
        cay = abs(y) - b
        t = ((c - q) * k2x + (b - y) * k2y) / (k2x * k2x + k2y * k2y)
        t = min(max(t, 0.0), 1.0)
        cbx, cby = q - c + k2x * t, y - b + k2y * t
        s = -1.0 if (cbx < 0.0 and cay < 0.0) else 1.0
        return s * math.sqrt(min(cax * cax + cay * cay, cbx * cbx + cby * cby)) - d
    if kind == TORUS:
        q = math.sqrt(x * x + z * z) - a
        return math.sqrt(q * q + y * y) - b
    yy = y - min(max(y, -b), b)
    return math.sqrt(x * x + yy * yy + z * z) - a


@njit(cache=True, fastmath=True, nogil=True)
def _distance(prims, warp, x, y, z):
    """Signed distance of the assembly, and the slot of the nearest part."""
    best, slot, near = 1e9, 0, 1e9
    for i in range(prims.shape[0]):
        row = prims[i]
        px, py, pz = x - row[POS], y - row[POS + 1], z - row[POS + 2]
        k = row[BLEND]
        reach = best + k + row[BOUND]
        if px * px + py * py + pz * pz > reach * reach and reach > 0.0:
            continue
        lx = row[ROT] * px + row[ROT + 1] * py + row[ROT + 2] * pz
        ly = row[ROT + 3] * px + row[ROT + 4] * py + row[ROT + 5] * pz
        lz = row[ROT + 6] * px + row[ROT + 7] * py + row[ROT + 8] * pz
        d = _primitive(row, lx, ly, lz)
        if d < near:
            near = d
            slot = int(row[SLOT])
        if k > 0.0:
            h = max(k - abs(best - d), 0.0) / k
            best = min(best, d) - h * h * k * 0.25
        else:
            best = min(best, d)
    if warp[0] > 0.0 and best < 0.5:
        f = warp[1]
        best += warp[0] * (value(x * f + 3.1, y * f + 7.7, z * f + 1.9, int(warp[2])) - 0.5) * 2.0
    return best, slot


@njit(cache=True, fastmath=True, nogil=True)
def _march(prims, warp, ox, oy, oz, dx, dy, dz, t, t_end, step, limit, eps):
    """Sphere trace. Returns (hit, t, smallest distance over t seen)."""
    nearest = 1e9
    for _ in range(limit):
        d, _s = _distance(prims, warp, ox + dx * t, oy + dy * t, oz + dz * t)
        if d / t < nearest:
            nearest = d / t
        if d < eps * t:
            return True, t, nearest
        t += d * step
        if t > t_end:
            break
    return False, t, nearest


@njit(cache=True, fastmath=True, nogil=True)
def _background(bg, u, v, out):
    """Plain, gradient or cluttered background at screen coordinates in [-1, 1]."""
    kind = int(bg[0])
    t = 0.0
    if kind == 1:
        t = 0.5 + 0.5 * (u * bg[10] + v * bg[11])
        t = min(max(t, 0.0), 1.0)
    elif kind == 2:
        t = smooth(0.3, 0.7, fbm(u * bg[12] + bg[10], v * bg[12] + bg[11], 0.5, 3, int(bg[13])))
    elif kind == 3:
        t = smooth(-0.04, 0.04, v - bg[10] - bg[11] * u)
    k = 0.0
    if kind >= 2:
        k = smooth(0.55, 0.7, value(u * bg[12] * 1.7 + 40.0, v * bg[12] * 1.7 + bg[11], 0.5, int(bg[13]) + 5))
        k *= bg[14]
    for c in range(3):
        col = bg[1 + c] * (1.0 - t) + bg[4 + c] * t
        out[c] = col * (1.0 - k) + bg[7 + c] * k


@njit(cache=True, fastmath=True, nogil=True)
def _normal(prims, warp, x, y, z, out):
    """Write the unit normal at a point to out[0:3]; returns the part there."""
    e = 0.004
    d1, slot = _distance(prims, warp, x + e, y - e, z - e)
    d2, _ = _distance(prims, warp, x - e, y - e, z + e)
    d3, _ = _distance(prims, warp, x - e, y + e, z - e)
    d4, _ = _distance(prims, warp, x + e, y + e, z + e)
    nx, ny, nz = d1 - d2 - d3 + d4, -d1 - d2 + d3 + d4, -d1 + d2 - d3 + d4
    n = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
    out[0], out[1], out[2] = nx / n, ny / n, nz / n
    return slot


@njit(cache=True, fastmath=True, nogil=True)
def _ray(cam, u, v, out):
    """Write the unit direction through screen coordinates u, v in [-1, 1] to out[0:3]."""
    tan = cam[12]
    for c in range(3):
        out[c] = cam[9 + c] + (cam[3 + c] * u + cam[6 + c] * v) * tan
    n = 1.0 / math.sqrt(out[0] ** 2 + out[1] ** 2 + out[2] ** 2)
    for c in range(3):
        out[c] *= n


@njit(cache=True, fastmath=True, nogil=True)
def _shadow(prims, warp, x, y, z, key):
    """Visibility, in [0, 1], of a lamp in direction ``key`` from a point, with soft shadows."""
    t, visibility = 0.05, 1.0
    for _ in range(14):
        d, _s = _distance(prims, warp, x + key[0] * t, y + key[1] * t, z + key[2] * t)
        visibility = min(visibility, 8.0 * d / t)
        if visibility <= 0.0:
            return 0.0
        t += max(d, 0.06)
        if t > 2.0:
            break
    return min(visibility, 1.0)


_TILE = 8  # side in pixels of the tiles that share a list of primitives


@njit(cache=True, fastmath=True, nogil=True)
def _in_reach(size, cam, prims, warp, left, top, axis, corner):
    """The primitives that rays through a tile can hit, in their order."""
    half = _TILE / size
    u, v = 2 * left / size - 1 + half, 1 - 2 * top / size - half
    _ray(cam, u, v, axis)
    cos = 1.0
    for k in range(4):
        _ray(cam, u + (half if k & 1 else -half), v + (half if k & 2 else -half), corner)
        cos = min(cos, axis[0] * corner[0] + axis[1] * corner[1] + axis[2] * corner[2])
    tan = math.sqrt(max(1 - cos * cos, 0.0)) / cos
    chosen = np.empty(len(prims), np.int64)
    count = 0
    for i in range(len(prims)):
        x, y, z = prims[i, POS] - cam[0], prims[i, POS + 1] - cam[1], prims[i, POS + 2] - cam[2]
        t = x * axis[0] + y * axis[1] + z * axis[2]
        aside = math.sqrt(max(x * x + y * y + z * z - t * t, 0.0))
        radius = prims[i, BOUND] + prims[i, BLEND] + warp[0] + 0.06
        if aside <= radius / cos + max(t, 0.0) * tan:
            chosen[count] = i
            count += 1
    return prims[chosen[:count]]


@njit(cache=True, fastmath=True, nogil=True)
def _trace_pixel(j, i, size, cam, near, prims, warp, key, part, position, normal, depth, open_, lit, ray, n, own):
    """Fill the four samples of a pixel. near: the primitives that its rays can hit."""
    px, tan = 1.0 / size, cam[12]
    step = 0.9 if warp[0] == 0.0 else 0.7
    _ray(cam, 2 * (i + 0.5) * px - 1, 1 - 2 * (j + 0.5) * px, ray)
    # Skip rays that miss the unit ball.
    bb = cam[0] * ray[0] + cam[1] * ray[1] + cam[2] * ray[2]
    near2 = cam[0] ** 2 + cam[1] ** 2 + cam[2] ** 2 - bb * bb
    if near2 >= 1.35 * 1.35:
        return
    half = math.sqrt(1.35 * 1.35 - near2)
    start = max(-bb - half, 0.05)
    hit, t0, aside = _march(
        near, warp, cam[0], cam[1], cam[2], ray[0], ray[1], ray[2], start, -bb + half, step, 48, 0.0015
    )
    if not hit and aside >= 2.2 * tan * px:
        return
    ao, shade, middle = 1.0, 1.0, -1
    x, y, z = 0.0, 0.0, 0.0
    if hit:
        x, y, z = cam[0] + ray[0] * t0, cam[1] + ray[1] * t0, cam[2] + ray[2] * t0
        middle = _normal(near, warp, x, y, z, n)
        d1, _ = _distance(prims, warp, x + 0.06 * n[0], y + 0.06 * n[1], z + 0.06 * n[2])
        d2, _ = _distance(prims, warp, x + 0.2 * n[0], y + 0.2 * n[1], z + 0.2 * n[2])
        ao = min(max(d1 / 0.06, 0.0), 1.0) * (0.35 + 0.65 * min(max(d2 / 0.2, 0.0), 1.0))
        if n[0] * key[0] + n[1] * key[1] + n[2] * key[2] > 0.0:
            shade = _shadow(prims, warp, x + 0.02 * n[0], y + 0.02 * n[1], z + 0.02 * n[2], key)
    for sub in range(4):
        jj, ii = 2 * j + (sub >> 1), 2 * i + (sub & 1)
        _ray(cam, 2 * (i + 0.25 + 0.5 * (sub & 1)) * px - 1, 1 - 2 * (j + 0.25 + 0.5 * (sub >> 1)) * px, ray)
        bb = cam[0] * ray[0] + cam[1] * ray[1] + cam[2] * ray[2]
        start = max(-bb - 1.35, 0.05)
        if hit:
            # Start a little before the tangent plane at the pixel's centre.
            flat = (n[0] * (x - cam[0]) + n[1] * (y - cam[1]) + n[2] * (z - cam[2])) / min(
                n[0] * ray[0] + n[1] * ray[1] + n[2] * ray[2], -0.05
            )
            start = t0 - 0.06 if abs(flat - t0) > 0.05 else flat - 0.015
        there, t, aside = _march(
            near, warp, cam[0], cam[1], cam[2], ray[0], ray[1], ray[2], start, -bb + 1.35, step, 40, 0.0015
        )
        if not there:
            continue
        sx, sy, sz = cam[0] + ray[0] * t, cam[1] + ray[1] * t, cam[2] + ray[2] * t
        _d, slot = _distance(near, warp, sx, sy, sz)
        if slot == middle:
            own[0], own[1], own[2] = n[0], n[1], n[2]
        else:
            _normal(near, warp, sx, sy, sz, own)
        part[jj, ii] = slot
        position[jj, ii, 0], position[jj, ii, 1], position[jj, ii, 2] = sx, sy, sz
        normal[jj, ii, 0], normal[jj, ii, 1], normal[jj, ii, 2] = own[0], own[1], own[2]
        depth[jj, ii], open_[jj, ii], lit[jj, ii] = t, ao, shade


@njit(cache=True, fastmath=True, nogil=True)
def _trace(size, cam, prims, warp, key, part, position, normal, depth, open_, lit):
    """Fill the buffers of `trace`, with two by two samples per pixel."""
    ray, n, own = np.zeros(3), np.zeros(3), np.zeros(3)
    for top in range(0, size, _TILE):
        for left in range(0, size, _TILE):
            near = _in_reach(size, cam, prims, warp, left, top, ray, n)
            if len(near) == 0:
                continue
            for j in range(top, min(top + _TILE, size)):
                for i in range(left, min(left + _TILE, size)):
                    _trace_pixel(
                        j, i, size, cam, near, prims, warp, key, part, position, normal, depth, open_, lit, ray, n, own
                    )


@dataclass
class Geometry:
    """The visible surface, with two by two samples per pixel: arrays of H = W = 2 * size.

    part: int64, slot of the visible part, -1 for background. position, normal: (H, W, 3) float32, object's frame.
    depth: along the ray, 0 for background. open: unoccluded share of the sky. lit: unoccluded share of the key light.
    """

    part: np.ndarray
    position: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    open: np.ndarray
    lit: np.ndarray


def trace(size: int, cam: np.ndarray, prims: np.ndarray, warp: np.ndarray, key: np.ndarray) -> Geometry:
    """Render the geometry of a picture of size x size pixels.

    cam: (14,) eye, right, up, forward, tangent of half the field of view, unused. prims: (P, ROW). warp: (3,)
    amplitude, frequency, seed of a displacement. key: (3,) unit direction to the key light.
    """
    n = 2 * size
    g = Geometry(
        np.full((n, n), -1, np.int64),
        np.zeros((n, n, 3), np.float32),
        np.zeros((n, n, 3), np.float32),
        np.zeros((n, n), np.float32),
        np.ones((n, n), np.float32),
        np.ones((n, n), np.float32),
    )
    key = np.asarray(key, np.float64)
    _trace(size, cam, prims, warp, key, g.part, g.position, g.normal, g.depth, g.open, g.lit)
    return g


@njit(cache=True, fastmath=True, nogil=True)
def _fill_backdrop(bg, img):
    n = len(img)
    out = np.zeros(3)
    for j in range(n):
        for i in range(n):
            _background(bg, 2 * (i + 0.5) / n - 1, 1 - 2 * (j + 0.5) / n, out)
            for c in range(3):
                img[j, i, c] = min(max(out[c], 0.0), 1.0)


def backdrop(size: int, bg: np.ndarray) -> np.ndarray:
    """Draw the background, sRGB float32 (2 * size, 2 * size, 3). bg: (15,), see `_background`."""
    img = np.empty((2 * size, 2 * size, 3), np.float32)
    _fill_backdrop(bg, img)
    return img
