"""Renderer of training images: sphere-traced primitives with procedural surfaces, one numba kernel.

Conventions are the program's: right-handed, +Y up, +Z towards the viewer, angles in radians.
Objects live in the unit ball; textures are evaluated in object space, so they follow the shape.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.core.jit import njit
from training.noise import fbm, smooth, value
from training.patterns import pattern

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
    """Signed distance of the assembly and the slot of the nearest part."""
    best, slot, near = 1e9, 0, 1e9
    for i in range(prims.shape[0]):
        row = prims[i]
        px, py, pz = x - row[POS], y - row[POS + 1], z - row[POS + 2]
        k = row[BLEND]
        far = math.sqrt(px * px + py * py + pz * pz) - row[BOUND]
        if far > best + k:
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
def _surface(kinds, freq, rot, off, pal, seeds, slot, x, y, z, nx, ny, nz, out):
    """Albedo of slot at an object-space point into out[0:3], gloss into out[3]."""
    r = rot[slot]
    px = r[0] * x + r[1] * y + r[2] * z
    py = r[3] * x + r[4] * y + r[5] * z
    pz = r[6] * x + r[7] * y + r[8] * z
    mx = r[0] * nx + r[1] * ny + r[2] * nz
    my = r[3] * nx + r[4] * ny + r[5] * nz
    mz = r[6] * nx + r[7] * ny + r[8] * nz
    f = freq[slot]
    px, py, pz = px * f + off[slot, 0], py * f + off[slot, 1], pz * f + off[slot, 2]
    # Box mapping with a bias to the sides: courses stay level around a round shape.
    ax, ay, az = abs(mx), abs(my) * 0.8, abs(mz)
    if ay > ax and ay > az:
        u, v = px, pz
    elif az >= ax:
        u, v = px, py
    else:
        u, v = pz + 17.3, py
    a, b, s, g = pattern(kinds[slot], px, py, pz, u, v, nx, ny, nz, seeds[slot])
    p = pal[slot]
    for c in range(3):
        col = p[0, c] * (1.0 - a) + p[1, c] * a
        col = col * (1.0 - b) + p[2, c] * b
        out[c] = col * s
    out[3] = g


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
    out[3] = 0.0


@njit(cache=True, fastmath=True, nogil=True)
def render(size, flat, cam, light, prims, warp, kinds, freq, rot, off, pal, seeds, overlay, bg):
    """Render one image.

    size: pixels a side. flat: True for a flat close-up (slot 0 on the plane z = 0).
    cam: (14,) eye, right, up, forward, tangent of half the field of view, half width of a flat view.
    light: (5,) direction, key strength, ambient. prims: (P, ROW). warp: (3,) amplitude, frequency, seed.
    kinds (S,), freq (S,), rot (S, 9), off (S, 3), pal (S, 3, 3), seeds (S,): one surface per slot.
    overlay: (5,) slot or -1, amount, frequency, up bias, slot it covers or -1 for all.
    bg: (15,) see `_background`.  Returns float64 image (size, size, 3) in [0, 1].
    """
    img = np.zeros((size, size, 3))
    out = np.zeros(4)
    over = np.zeros(4)
    px = 1.0 / size
    tan = cam[12]
    reach = math.sqrt(cam[0] ** 2 + cam[1] ** 2 + cam[2] ** 2)
    for j in range(size):
        for i in range(size):
            hit = False
            check = True
            t0 = 0.0
            nx, ny, nz, ao = 0.0, 0.0, 1.0, 1.0
            slot = 0
            if not flat:
                u, v = (2 * (i + 0.5) * px - 1) * tan, (1 - 2 * (j + 0.5) * px) * tan
                dx = cam[9] + cam[3] * u + cam[6] * v
                dy = cam[10] + cam[4] * u + cam[7] * v
                dz = cam[11] + cam[5] * u + cam[8] * v
                n = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
                dx, dy, dz = dx * n, dy * n, dz * n
                # Skip what cannot meet the unit ball.
                bb = cam[0] * dx + cam[1] * dy + cam[2] * dz
                near2 = reach * reach - bb * bb
                if near2 < 1.35 * 1.35:
                    half = math.sqrt(1.35 * 1.35 - near2)
                    start = max(-bb - half, 0.05)
                    step = 0.9 if warp[0] == 0.0 else 0.7
                    hit, t0, near = _march(
                        prims, warp, cam[0], cam[1], cam[2], dx, dy, dz, start, -bb + half, step, 48, 0.0015
                    )
                    check = hit or near < 2.2 * tan * px
                else:
                    check = False
                if hit:
                    hx, hy, hz = cam[0] + dx * t0, cam[1] + dy * t0, cam[2] + dz * t0
                    e = 0.004
                    d1, slot = _distance(prims, warp, hx + e, hy - e, hz - e)
                    d2, _ = _distance(prims, warp, hx - e, hy - e, hz + e)
                    d3, _ = _distance(prims, warp, hx - e, hy + e, hz - e)
                    d4, _ = _distance(prims, warp, hx + e, hy + e, hz + e)
                    nx, ny, nz = d1 - d2 - d3 + d4, -d1 - d2 + d3 + d4, -d1 + d2 - d3 + d4
                    n = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
                    nx, ny, nz = nx / n, ny / n, nz / n
                    d5, _ = _distance(prims, warp, hx + 0.16 * nx, hy + 0.16 * ny, hz + 0.16 * nz)
                    ao = 0.8 + 0.2 * min(max(d5 / 0.16, 0.0), 1.0)
            for sub in range(4):
                su, sv = 0.25 + 0.5 * (sub & 1), 0.25 + 0.5 * (sub >> 1)
                u, v = 2 * (i + su) * px - 1, 1 - 2 * (j + sv) * px
                h2 = flat
                x, y, z = u * cam[13], v * cam[13], 0.0
                dx, dy, dz = 0.0, 0.0, -1.0
                s2 = slot
                if not flat and check:
                    dx = cam[9] + (cam[3] * u + cam[6] * v) * tan
                    dy = cam[10] + (cam[4] * u + cam[7] * v) * tan
                    dz = cam[11] + (cam[5] * u + cam[8] * v) * tan
                    n = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
                    dx, dy, dz = dx * n, dy * n, dz * n
                    bb = cam[0] * dx + cam[1] * dy + cam[2] * dz
                    start = t0 - 0.06 if hit else max(-bb - 1.35, 0.05)
                    step = 0.9 if warp[0] == 0.0 else 0.7
                    h2, t, near = _march(
                        prims, warp, cam[0], cam[1], cam[2], dx, dy, dz, start, -bb + 1.35, step, 40, 0.0015
                    )
                    if h2:
                        x, y, z = cam[0] + dx * t, cam[1] + dy * t, cam[2] + dz * t
                        if not hit:
                            e = 0.004
                            d1, slot = _distance(prims, warp, x + e, y - e, z - e)
                            d2, _ = _distance(prims, warp, x - e, y - e, z + e)
                            d3, _ = _distance(prims, warp, x - e, y + e, z - e)
                            d4, _ = _distance(prims, warp, x + e, y + e, z + e)
                            nx, ny, nz = d1 - d2 - d3 + d4, -d1 - d2 + d3 + d4, -d1 + d2 - d3 + d4
                            n = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
                            nx, ny, nz = nx / n, ny / n, nz / n
                            ao = 1.0
                            s2 = slot
                        else:
                            _, s2 = _distance(prims, warp, x, y, z)
                if not h2:
                    _background(bg, u, v, out)
                    for c in range(3):
                        img[j, i, c] += 0.25 * min(max(out[c], 0.0), 1.0)
                    continue
                _surface(kinds, freq, rot, off, pal, seeds, s2, x, y, z, nx, ny, nz, out)
                if overlay[0] >= 0.0 and (overlay[4] < 0.0 or int(overlay[4]) == s2):
                    f = overlay[2]
                    m = fbm(x * f + 11.0, y * f + 5.0, z * f + 3.0, 3, int(seeds[0]) + 77) + overlay[3] * ny
                    m = smooth(0.0, 0.08, m - 1.0 + overlay[1])
                    if m > 0.0:
                        _surface(kinds, freq, rot, off, pal, seeds, int(overlay[0]), x, y, z, nx, ny, nz, over)
                        for c in range(4):
                            out[c] = out[c] * (1.0 - m) + over[c] * m
                lam = max(nx * light[0] + ny * light[1] + nz * light[2], 0.0)
                lit = (light[4] + 0.1 * ny + light[3] * lam) * ao
                # Blinn highlight, small: a painted texture must not carry much of it.
                vx, vy, vz = light[0] - dx, light[1] - dy, light[2] - dz
                n = 1.0 / (math.sqrt(vx * vx + vy * vy + vz * vz) + 1e-9)
                sp = max((nx * vx + ny * vy + nz * vz) * n, 0.0) ** 24 * 0.3 * out[3]
                if flat:
                    sp = 0.0
                for c in range(3):
                    img[j, i, c] += 0.25 * min(max(out[c] * lit + sp, 0.0), 1.0)
    return img
