"""Wood, bark, straw and other plant materials."""

from __future__ import annotations

import numpy as np

from training.noise_arrays import STALK, cells2, fbm, hashed, noise, stamps
from training.patterns.surface import Array, Points, Surface, fraction, line, mix, slab, smooth, surface, tone


def _grain(s: Array, t: Array, k: Array | float, seed: int) -> tuple[Array, Array]:
    """Growth rings and pores of a sawn board. s runs along the grain, t across it, k identifies the board."""
    bend = fbm(s * 0.07, t * 0.16, k, 3, seed)
    ring = t * 1.25 + 3.4 * bend + 0.12 * noise(s * 0.3, t * 1.5, k, seed + 1)
    f = fraction(ring)
    late = smooth(0.2, 0.85, f) * (1 - smooth(0.9, 1.0, f))
    pores = smooth(0.56, 0.74, noise(s * 0.5, t * 4.2, k, seed + 2)) * (0.4 + 0.6 * late)
    return late, pores


def wood(p: Points, pal: Array, seed: int) -> Surface:
    """A sawn face of oak: upright grain in long arches, pores."""
    late, pores = _grain(p.y, p.x + 0.8 * p.z, p.z * 0.15, seed)
    shade = 0.86 + 0.28 * fbm(p.x * 0.5, p.y * 0.12, p.z * 0.5, 3, seed + 5)
    fibre = 0.84 + 0.32 * noise(p.x * 3.4, p.y * 0.25, p.z * 3.4, seed + 6)
    c = tone(mix(pal[0], pal[1], 0.85 * late), shade * fibre)
    c = mix(c, pal[1] * 0.62, 0.6 * pores)
    return surface(c, -0.035 * pores - 0.02 * late, 0.48 + 0.2 * pores)


def _knots(s: Array, t: Array, row: Array, seed: int) -> tuple[Array, Array]:
    """Bulge of the grain around knots, and a point's depth in a knot; two in five sections of a board have one."""
    stretch = np.floor(s / 5.0)
    chance, position = hashed(row, stretch, 11, seed), hashed(row, stretch, 12, seed)
    ds = s - (stretch + 0.25 + 0.5 * position) * 5.0
    dt = t - (0.3 + 0.4 * hashed(row, stretch, 13, seed))
    r = np.hypot(ds * 0.55, dt * 1.5)
    there = (chance < 0.42).astype(np.float32)
    return there * np.exp(-r * r * 3.5) * np.sign(dt), there * (1 - smooth(0.13, 0.24, r))


def planks(p: Points, pal: Array, seed: int) -> Surface:
    """Boards laid side by side: grain along them, knots, nails at the ends, dark gaps."""
    pitch = 2.0
    row = np.floor(p.v / pitch)
    cell_value = hashed(row, 5, 1, seed)
    q = p.u / 9.0 + cell_value
    column = np.floor(q)
    s, t = p.u + 40 * cell_value, (p.v - row * pitch) / pitch
    board = hashed(row, column, 2, seed)
    d = slab((q - column) * 9.0, p.v - row * pitch, 9.0, pitch, 0.05)
    gap = 1 - smooth(0.06, 0.11, d)
    bulge, knot = _knots(s, t, row * 7 + column, seed)
    late, pores = _grain(s, (t + 0.34 * bulge) * 2.4 + 13 * board, board * 40, seed)
    fibre = 0.84 + 0.32 * noise(s * 0.3, t * 9, board * 17, seed + 6)
    base = mix(pal[0], pal[1], 0.35 * hashed(row, column, 3, seed))
    c = tone(mix(base, pal[1], 0.8 * late), (0.72 + 0.5 * board) * fibre)
    c = mix(mix(c, pal[1] * 0.6, 0.5 * pores), pal[2] * 1.2 + 0.03, 0.85 * knot)
    ends = np.abs((q - column) - 0.5) * 9.0
    nail = line(0.1, 0.06, np.hypot(4.1 - ends, (np.abs(t - 0.5) - 0.27) * pitch))
    c = mix(c, np.array([0.2, 0.19, 0.19], np.float32), nail * 0.9)
    height = 0.2 * smooth(0.03, 0.16, d) - 0.03 * late - 0.03 * pores + 0.04 * (board - 0.5)
    return surface(mix(c, pal[2], gap), height, 0.62 + 0.25 * gap, 0.0)


def bark(p: Points, pal: Array, seed: int) -> Surface:
    """Upright ridges between dark furrows."""
    bent = 0.9 * fbm(p.x * 0.4, p.y * 0.25, p.z * 0.4, 3, seed + 4)
    n = np.abs(noise((p.x + bent) * 0.9, p.y * 0.22, (p.z + bent) * 0.9, seed) - 0.5) * 2
    n = np.minimum(n, np.abs(noise(p.x * 0.8 + 5, p.y * 0.45 + bent, p.z * 0.8, seed + 1) - 0.5) * 3)
    furrow = 1 - smooth(0.06, 0.24, n)
    grain = fbm(p.x * 2.4, p.y * 0.9, p.z * 2.4, 3, seed + 3)
    c = tone(mix(pal[0], pal[2], 0.8 * smooth(0.35, 0.8, n)), 0.6 + 0.7 * grain)
    return surface(mix(c, pal[1], furrow), 0.6 * smooth(0.0, 0.5, n) + 0.12 * grain, 0.95)


def straw(p: Points, pal: Array, seed: int) -> Surface:
    """Overlapping, nearly upright stalks."""
    along, across, cell_value, level, _ = stamps(p.u, p.v, 3.0, 0.035, np.pi / 2, 0.5, 9, STALK, seed)
    bare = along < 0
    c = tone(mix(pal[0], pal[1], cell_value), (0.62 + 0.4 * level) * (1 - 0.45 * across * across))
    height = np.where(bare, 0.0, 0.3 * level + 0.1 * (1 - across * across))
    return surface(mix(c, pal[2], bare * 1.0), height, 0.8)


def wicker(p: Points, pal: Array, seed: int) -> Surface:
    """Basket weave of flat strips."""
    iu, iv = np.floor(p.u), np.floor(p.v)
    fu, fv = p.u - iu, p.v - iv
    vertical = ((iu + iv) % 2) > 0
    s, t = np.where(vertical, fv, fu), np.where(vertical, fu, fv)
    over = np.sin(np.pi * s)
    gap = 1 - smooth(0.04, 0.12, np.minimum(t, 1 - t))
    fibre = 0.8 + 0.4 * noise(t * 7, s * 0.8 + iu * 3.3, iv * 1.7, seed)
    c = tone(pal[0], fibre * (0.7 + 0.35 * over))
    return surface(mix(c, pal[1], gap), 0.25 * over * (1 - gap) + 0.02 * fibre, 0.6)


def honeycomb(p: Points, pal: Array, seed: int) -> Surface:
    """Six-sided cells of wax."""
    q, w = p.u / 1.2, p.v / 1.2 / 1.732
    au, av = q - np.floor(q) - 0.5, (w - np.floor(w) - 0.5) * 1.732
    bu, bv = fraction(q + 0.5) - 0.5, (fraction(w + 0.5) - 0.5) * 1.732
    other = au * au + av * av > bu * bu + bv * bv
    x, y = np.where(other, bu, au), np.where(other, bv, av)
    cell_value = hashed(np.where(other, np.floor(q + 0.5), np.floor(q) + 99), np.floor(w + 0.5 * other), other, seed)
    d = 0.5 - np.maximum(np.abs(x), np.abs(x) * 0.5 + np.abs(y) * 0.866)
    wall = 1 - smooth(0.06, 0.1, d)
    c = tone(mix(pal[0], pal[2], (cell_value > 0.6) * 0.7), 0.7 + 0.4 * cell_value)
    return surface(mix(c, pal[1], wall), -0.45 * smooth(0.05, 0.2, d), 0.45)


def cheese(p: Points, pal: Array, seed: int) -> Surface:
    """Round holes in a smooth face."""
    d, _, cell_value, *_ = cells2(p.u * 0.5, p.v * 0.5, 0.8, seed)
    r = 0.16 + 0.2 * cell_value
    hole = 1 - smooth(r - 0.02, r + 0.02, d)
    c = mix(tone(pal[0], 0.95 + 0.1 * noise(p.x, p.y, p.z, seed + 1)), tone(pal[1], 0.7 + 0.5 * d / r), hole)
    return surface(c, -0.5 * np.sqrt(np.clip(1 - (d / r) ** 2, 0, 1)) * hole, 0.5)
