"""Skins and furs of animals."""

from __future__ import annotations

import numpy as np

from training.noise_arrays import cells, cells2, fbm, hashed, noise
from training.patterns.surface import Array, Points, Surface, fraction, mix, smooth, surface, tone


def _hair(p: Points, seed: int) -> Array:
    """Fine short strands that hang down, [0, 1]."""
    sway = 0.6 * noise(p.u * 0.4, p.v * 0.4, p.z * 0.4, seed + 1)
    return noise(p.u * 4.0 + sway, p.v * 0.8, 2.0, seed + 2)


def fur(p: Points, pal: Array, seed: int) -> Surface:
    """Long fine strands that hang down in wavy locks."""
    bend = fbm(p.u * 0.2, p.v * 0.16, p.z * 0.15, 2, seed + 2) - 0.5
    u, v = p.u + 2.0 * bend, p.v
    lock = fbm(u * 0.7, v * 0.2, 1.0, 2, seed + 3)
    # Tips of locks are light, and the locks below them start in shadow.
    f = fraction(v * 0.3 + 2.6 * noise(u * 0.55, v * 0.12, 4.0, seed + 4) + 0.5 * lock)
    ends = smooth(0.0, 0.3, f) * (1 - smooth(0.55, 1.0, f))
    u = u + 0.5 * (noise(u * 0.9, v * 0.5, 3.0, seed + 5) - 0.5)
    strand = noise(u * 3.1, v * 0.26, 2.0, seed)
    fine = noise(u * 5.6, v * 0.4, 5.0, seed + 7)
    hair = smooth(0.2, 0.8, 0.55 * strand + 0.45 * fine)
    light = 0.55 * hair + 0.45 * smooth(0.25, 0.75, lock)
    c = mix(mix(pal[2], pal[0], smooth(0.1, 0.5, light)), pal[1], smooth(0.45, 0.95, light))
    c = tone(mix(c, pal[2] * 0.55, 0.75 * (1 - ends) * (1 - 0.5 * hair)), 0.72 + 0.5 * hair)
    return surface(c, 0.4 * lock + 0.3 * ends + 0.16 * hair, 0.85)


def scales(p: Points, pal: Array, seed: int) -> Surface:
    """Rounded scales in rows, the upper over the lower."""
    u, v = p.u * 0.75, p.v * 0.75
    d, cell_value = np.full_like(u, 9.0), np.zeros_like(u)
    for k in range(3):
        row = np.floor(v / 0.62) + 1 - k
        q = u + 0.5 * (row % 2)
        column = np.floor(q)
        r = np.hypot(q - column - 0.5, (v - row * 0.62) * 0.92)
        here = (d == 9.0) & (r < 0.68) & ((v - row * 0.62 <= 0.0) | (k > 0))
        d = np.where(here, r, d)
        cell_value = np.where(here, hashed(row, column, 9, seed), cell_value)
    d = np.where(d > 1.0, 0.68, d)
    rim = smooth(0.52, 0.64, d)
    c = mix(tone(pal[0], (0.74 + 0.4 * cell_value) * (1.1 - 0.5 * d)), pal[2], 0.7 * (1 - smooth(0.0, 0.34, d)))
    fine = 0.9 + 0.2 * noise(p.x * 2.5, p.y * 2.5, p.z * 2.5, seed + 1)
    return surface(tone(mix(c, pal[1], rim), fine), 0.5 * (0.7 - d) * (1 - 0.4 * rim), 0.32)


def giraffe(p: Points, pal: Array, seed: int) -> Surface:
    """Brown many-sided patches in a cream net."""
    bent = 0.4 * (noise(p.x * 0.8, p.y * 0.8, p.z * 0.8, seed + 3) - 0.5)
    d, edge, cell_value, *_ = cells(p.x * 0.5 + bent, p.y * 0.5 + bent, p.z * 0.5, 0.8, seed)
    patch = smooth(0.055, 0.09, edge)
    hair = _hair(p, seed + 4)
    c = mix(pal[0], tone(pal[1], 0.8 + 0.3 * cell_value - 0.35 * (0.5 - np.minimum(d, 0.5))), patch)
    return surface(tone(c, 0.84 + 0.32 * hair), 0.06 * hair, 0.85)


def leopard(p: Points, pal: Array, seed: int) -> Surface:
    """Rosettes: broken dark rings around a darker middle."""
    bent = 0.35 * (noise(p.x * 0.9, p.y * 0.9, p.z * 0.9, seed + 5) - 0.5)
    d, _, cell_value, *_ = cells2(p.u * 0.6 + bent, p.v * 0.66 - bent, 0.6, seed)
    n = noise(p.x * 1.1, p.y * 1.1, p.z * 1.1, seed + 3)
    r = d + 0.2 * (n - 0.5)
    size = 0.36 + 0.08 * cell_value
    ring = smooth(size - 0.16, size - 0.12, r) * (1 - smooth(size, size + 0.04, r))
    broken = smooth(0.26, 0.36, noise(p.x * 1.3 + 7, p.y * 1.3, p.z * 1.3, seed + 6))
    hair = _hair(p, seed + 4)
    c = mix(tone(pal[0], np.ones_like(d)), pal[1], 0.85 * (1 - smooth(size - 0.12, size - 0.05, r)))
    c = mix(tone(c, 0.8 + 0.4 * hair), pal[2], ring * broken)
    return surface(c, 0.06 * hair, 0.85)


def zebra(p: Points, pal: Array, seed: int) -> Surface:
    """Upright black and white bands that fork."""
    bent = 2.0 * fbm(p.x * 0.24, p.y * 0.2, p.z * 0.24, 2, seed)
    e = np.sin((p.u * 1.2 + 0.22 * p.v + bent) * np.pi)
    e = e + 0.9 * (noise(p.x * 0.35, p.y * 0.25, p.z * 0.35, seed + 2) - 0.5)
    hair = _hair(p, seed + 4)
    return surface(tone(mix(pal[0], pal[1], smooth(-0.06, 0.08, e)), 0.9 + 0.2 * hair), 0.05 * hair, 0.85)


def tiger(p: Points, pal: Array, seed: int) -> Surface:
    """Tapering black bands over orange, with lighter areas between some."""
    bent = 2.2 * fbm(p.x * 0.3, p.y * 0.3, p.z * 0.3, 2, seed)
    e = np.sin((p.v * 1.25 + bent) * np.pi)
    taper = 2.7 * noise(p.u * 0.34, p.v * 0.6, p.z * 0.34, seed + 5) - 1.0
    band = smooth(0.0, 0.1, e - taper)
    light = 0.75 * smooth(0.55, 0.75, noise(p.x * 0.25, p.y * 0.25, p.z * 0.25, seed + 8))
    hair = _hair(p, seed + 4)
    c = mix(tone(mix(pal[0], pal[2], light), 0.82 + 0.36 * hair), pal[1], band)
    return surface(c, 0.06 * hair, 0.85)
