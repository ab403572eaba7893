"""Cloth and leather."""

from __future__ import annotations

import numpy as np

from training.noise_arrays import cells, fbm, noise
from training.patterns.surface import Array, Points, Surface, fraction, line, mix, smooth, surface, tone


def knit(p: Points, pal: Array, seed: int) -> Surface:
    """Columns of V-shaped stitches of twisted yarn."""
    u = p.u * 0.8
    fu = fraction(u)
    side = np.where(fu < 0.5, fu, 1.0 - fu)  # 0 between columns, 0.5 in the middle of one
    r = p.v * 1.0 - side * 1.5
    f = fraction(r)
    across, along = (side - 0.25) / 0.25, (f - 0.5) / 0.5
    tube = np.clip(1 - across * across * 0.85 - along * along * 0.9, 0, 1)
    lump = np.sqrt(tube)
    twist = 0.5 + 0.5 * np.sin((f * 1.5 + side * 5) * 2 * np.pi)
    fibre = noise(p.u * 3, p.v * 3, 1.0, seed + 1)
    row = noise(np.floor(u) * 7.7, np.floor(r) * 3.3, 2.0, seed + 2)
    c = tone(pal[0], (0.34 + 0.66 * lump) * (0.88 + 0.14 * twist) * (0.9 + 0.2 * fibre) * (0.9 + 0.2 * row))
    return surface(c, 0.42 * lump + 0.03 * twist, 0.95)


def denim(p: Points, pal: Array, seed: int) -> Surface:
    """Twill, faded, with a stitched seam."""
    r = fraction((p.u + p.v) * 1.6)
    fade = smooth(0.4, 0.75, fbm(p.x * 0.25, p.y * 0.25, p.z * 0.25, 3, seed))
    rib = smooth(0.1, 0.5, r) * (1 - smooth(0.7, 1.0, r))
    f = fraction(p.u / 9.0 + 0.3) * 9.0
    dash = fraction(p.v * 0.9)
    stitch = line(0.1, 0.06, f - 4.5) * (dash < 0.66)
    thread = 0.8 + 0.4 * noise(p.u * 4, p.v * 4, 1.0, seed + 3)
    c = tone(mix(pal[0], pal[1], 0.45 * fade + 0.4 * rib), thread)
    return surface(mix(c, pal[2], stitch), 0.08 * rib + 0.2 * line(0.02, 0.4, f - 5.0), 0.95)


def plaid(p: Points, pal: Array, seed: int) -> Surface:
    """Tartan: broad bands crossed, thin bright lines."""
    fu, fv = fraction(p.u * 0.25), fraction(p.v * 0.25)
    bands = 0.5 * (fu < 0.45) + 0.5 * (fv < 0.45)
    lines = np.maximum(np.abs(fu - 0.72) < 0.04, np.abs(fv - 0.72) < 0.04) * 0.85
    weave = 0.86 + 0.28 * (fraction((p.u + p.v) * 2) > 0.5)
    c = mix(mix(tone(pal[0], np.ones_like(fu)), pal[1], bands), pal[2], lines)
    return surface(tone(c, weave), 0.03 * weave, 0.95)


def leather(p: Points, pal: Array, seed: int) -> Surface:
    """Pebbled grain between fine creases, worn lighter in places."""
    bent = 0.3 * (noise(p.x * 1.2, p.y * 1.2, p.z * 1.2, seed + 5) - 0.5)
    _, edge, cell_value, *_ = cells(p.x * 1.7 + bent, p.y * 1.7 - bent, p.z * 1.7 + bent, 0.75, seed)
    fold = 1 - smooth(0.004, 0.03, np.abs(fbm(p.x * 0.22, p.y * 0.22, p.z * 0.22, 3, seed + 3) - 0.5))
    fold = fold * smooth(0.5, 0.68, noise(p.x * 0.3, p.y * 0.3, p.z * 0.3, seed + 7))
    worn = smooth(0.35, 0.75, fbm(p.x * 0.3, p.y * 0.3, p.z * 0.3, 3, seed + 4))
    pebble = smooth(0.0, 0.34, edge)
    c = tone(mix(pal[0], pal[2], 0.8 * worn), (0.88 + 0.2 * cell_value) * (0.86 + 0.2 * pebble))
    c = mix(c, pal[1], np.clip(0.36 * (1 - smooth(0.0, 0.13, edge)) + 0.6 * fold, 0, 0.92))
    return surface(c, 0.11 * np.sqrt(pebble) - 0.12 * fold, 0.36 + 0.22 * (1 - pebble))
