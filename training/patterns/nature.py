"""Plants, weather, water, ice and fire."""

from __future__ import annotations

import numpy as np

from training.noise_arrays import LEAF, cells, cells2, fbm, noise, rows, stamps
from training.patterns.surface import Array, Points, Surface, fraction, line, mix, smooth, surface, tone


def moss(p: Points, pal: Array, seed: int) -> Surface:
    """Cushions of small bright tufts over dark green."""
    cushion = fbm(p.x * 0.28, p.y * 0.28, p.z * 0.28, 3, seed + 4)
    bent = 0.7 * (noise(p.x * 1.3, p.y * 1.3, p.z * 1.3, seed + 1) - 0.5)
    d, _, cell_value, *_ = cells(p.x * 1.3 + bent, p.y * 1.3 + bent, p.z * 1.3 - bent, 1.0, seed)
    tuft = np.clip(1 - 1.15 * d, 0, 1)
    fine = noise(p.x * 4.2, p.y * 4.2, p.z * 4.2, seed + 2)
    lift = smooth(0.1, 0.75, tuft + 0.5 * (fine - 0.5))
    c = mix(pal[1] * 0.42, pal[0], lift)
    c = mix(c, pal[2], smooth(0.5, 0.9, lift) * (0.3 + 0.7 * smooth(0.35, 0.6, cushion)) * (0.4 + 0.6 * cell_value))
    return surface(tone(c, 0.7 + 0.6 * fine), 0.9 * cushion + 0.55 * tuft + 0.1 * fine, 0.95)


def grass(p: Points, pal: Array, seed: int) -> Surface:
    """Upright pointed blades in overlapping rows."""
    along, across, cell_value, level = rows(p.u, p.v, 0.62, 2.9, 0.72, 0.26, 0.42, 6, seed)
    bare = along < 0
    light = (0.66 + 0.4 * level) * (0.34 + 0.85 * along) * (0.82 + 0.4 * cell_value)
    c = mix(
        mix(tone(pal[0], np.ones_like(cell_value)), pal[1], cell_value),
        pal[2],
        (cell_value > 0.8) * 0.75 + 0.25 * along,
    )
    c = tone(c, light * (1.06 - 0.3 * (across > 0) - 0.25 * np.abs(across)))
    height = np.where(bare, 0.0, 0.2 + 0.35 * level + 0.45 * along + 0.08 * (1 - np.abs(across)))
    return surface(mix(c, pal[0] * 0.2, bare * 1.0), height, 0.7)


def leaves(p: Points, pal: Array, seed: int) -> Surface:
    """Pointed leaves that overlap, with midribs and side veins."""
    along, across, cell_value, level, _ = stamps(p.u, p.v, 2.7, 0.27, -np.pi / 2, 1.3, 7, LEAF, seed)
    bare = along < 0
    rib = line(0.045, 0.06, across) * (along < 0.94)
    side = line(0.05, 0.09, fraction(along * 5.5 - np.abs(across) * 0.9) - 0.5) * (1 - rib) * 0.5
    c = mix(
        mix(tone(pal[0], np.ones_like(cell_value)), pal[2], smooth(0.55, 1.0, cell_value)),
        pal[1] * 1.15,
        smooth(0.45, 0.0, cell_value) * 0.7,
    )
    half = np.where(across > 0, 1.08, 0.84)
    rim = smooth(1.0, 0.8, np.abs(across))
    c = tone(c, (0.42 + 0.62 * level) * half * (0.62 + 0.38 * rim))
    c = mix(c, pal[2] * 0.75 + 0.2, 0.62 * np.maximum(rib, side) * (0.4 + 0.6 * level))
    height = np.where(bare, 0.0, 0.9 * level + 0.16 * (1 - across * across) - 0.05 * rib)
    return surface(mix(c, pal[1] * 0.28, bare * 1.0), height, 0.45)


def ice(p: Points, pal: Array, seed: int) -> Surface:
    """Clear blue ice with bubbles and long white cracks, frosted on one side."""
    bent = 0.8 * (fbm(p.x * 0.5, p.y * 0.5, p.z * 0.5, 3, seed + 3) - 0.5)
    _, edge, cell_value, *_ = cells(p.x * 0.27 + bent, p.y * 0.27, p.z * 0.27 + bent, 1.0, seed)
    _, fine, *_ = cells(p.x * 0.62 + bent, p.y * 0.62 - bent, p.z * 0.62, 1.0, seed + 9)
    depth = fbm(p.x * 0.3, p.y * 0.3, p.z * 0.3, 4, seed + 5, 0.55)
    frost = (1 - smooth(0.0, 0.2, edge)) * (0.25 + 0.6 * smooth(0.35, 0.7, depth))
    crack = line(0.012, 0.025, edge) + 0.6 * line(0.008, 0.03, fine) * smooth(0.45, 0.6, depth)
    d, *_ = cells2(p.u * 1.1, p.v * 1.1, 1.0, seed + 6)
    bubble = line(0.07, 0.05, d) * smooth(0.56, 0.7, noise(p.x * 0.4, p.y * 0.4, p.z * 0.4, seed + 7))
    c = mix(pal[2], pal[0], smooth(0.25, 0.75, depth + 0.3 * (cell_value - 0.5)))
    c = mix(c, pal[1], np.clip(0.75 * frost + crack + 0.7 * bubble, 0, 0.97))
    return surface(c, -0.05 * np.clip(crack, 0, 1) + 0.15 * depth, 0.1 + 0.35 * frost)


def snow(p: Points, pal: Array, seed: int) -> Surface:
    """Soft drifts, blue hollows, crystals that glint."""
    bent = 1.2 * fbm(p.x * 0.12, p.y * 0.12, p.z * 0.12, 2, seed + 1)
    f = fraction(p.y * 0.26 + 0.1 * p.x + 0.18 * p.z + 2.0 * bent)
    drift = smooth(0.0, 0.7, f) * (1 - smooth(0.72, 1.0, f))
    drift = drift * smooth(0.3, 0.62, noise(p.x * 0.16, p.y * 0.24, p.z * 0.16, seed + 6))
    lump = fbm(p.x * 0.55, p.y * 0.55, p.z * 0.55, 4, seed, 0.5)
    hollow = smooth(0.75, 0.2, 0.5 * drift + 0.75 * lump)
    grain = fbm(p.x * 2.4, p.y * 2.4, p.z * 2.4, 2, seed + 2)
    glint, _, cell_value, *_ = cells(p.x * 1.6, p.y * 1.6, p.z * 1.6, 1.0, seed + 8)
    c = tone(mix(pal[0], pal[2], 0.95 * hollow), 0.88 + 0.2 * grain)
    c = mix(c, pal[1], (1 - smooth(0.1, 0.2, glint)) * (cell_value > 0.45))
    return surface(c, 0.6 * drift + 0.55 * lump + 0.07 * grain, 0.7)


def lava(p: Points, pal: Array, seed: int) -> Surface:
    """Black crust with glowing cracks."""
    bent = 0.9 * (fbm(p.x * 0.5, p.y * 0.5, p.z * 0.5, 3, seed + 7) - 0.5)
    _, edge, cell_value, *_ = cells(p.x * 0.42 + bent, p.y * 0.42 + bent, p.z * 0.42, 1.0, seed)
    grain = fbm(p.x * 1.5, p.y * 1.5, p.z * 1.5, 4, seed + 2)
    wide = edge + 0.06 * (grain - 0.5)
    glow = 1 - smooth(0.03, 0.13, wide)
    heat = 1 - smooth(0.0, 0.06, wide)
    crust = tone(pal[0], (0.6 + 0.7 * cell_value) * (0.5 + 1.0 * grain))
    hot = mix(pal[1], pal[2], heat)
    c = mix(crust, hot, glow)
    return surface(c, 0.5 * smooth(0.0, 0.25, edge) + 0.25 * grain * (1 - glow), 0.9, 0.0, tone(hot, glow))


def clouds(p: Points, pal: Array, seed: int) -> Surface:
    """White clouds in a blue sky, grey below."""
    x, y, z = p.x * 0.22, p.y * 0.3, p.z * 0.22
    bent = 0.5 * (fbm(x * 1.5, y * 1.5, z * 1.5, 3, seed + 3) - 0.5)
    n = fbm(x + bent, y, z - bent, 5, seed, 0.55)
    above = fbm(x + bent, y + 0.22, z - bent, 3, seed, 0.55)
    cover = smooth(0.46, 0.6, n)
    under = smooth(0.0, 0.22, above - 0.46 + 0.5 * (n - 0.5)) * 0.7
    white = tone(mix(pal[1], pal[2] * 0.82, under), 0.94 + 0.12 * above)
    sky = tone(pal[0], 0.9 + 0.25 * noise(x * 0.7, y, z, seed + 5))
    return surface(mix(sky, white, cover), 0.0, 1.0)


def _net(x: Array, y: Array, z: Array, seed: int) -> Array:
    """Bright lines where refracted light crosses: the borders of moving cells, rounded and of varying width."""
    bent = 0.55 * (fbm(x * 0.9, y * 0.9, z * 0.9, 2, seed + 3) - 0.5)
    d, edge, *_ = cells(x + bent, y - bent, z, 0.9, seed)
    return np.exp(-edge * 13) * (0.4 + 0.8 * smooth(0.3, 0.8, d))


def water(p: Points, pal: Array, seed: int) -> Surface:
    """A pool: a bright net of light on blue, waves above."""
    net = _net(p.x * 0.36, p.y * 0.44, p.z * 0.36, seed) + 0.5 * _net(p.x * 0.62 + 9, p.y * 0.7, p.z * 0.62, seed + 31)
    deep = fbm(p.x * 0.16, p.y * 0.16, p.z * 0.16, 3, seed + 6)
    c = mix(pal[0], pal[2], smooth(0.25, 0.75, deep))
    c = mix(c, pal[1], np.clip(1.25 * net - 0.12, 0, 1))
    wave = fbm(p.x * 0.4, p.y * 0.75, p.z * 0.4, 3, seed + 8)
    return surface(c, 0.22 * wave, 0.06)


def galaxy(p: Points, pal: Array, seed: int) -> Surface:
    """Luminous mist and stars."""
    n = fbm(p.x * 0.3, p.y * 0.3, p.z * 0.3, 4, seed)
    d, _, cell_value, *_ = cells2(p.u * 0.8, p.v * 0.8, 0.9, seed + 3)
    star = (1 - smooth(0.04 + 0.1 * cell_value.mean(), 0.14, d)) * (cell_value > 0.35)
    c = mix(tone(pal[0], 0.6 + 0.8 * n), pal[1], smooth(0.45, 0.85, n))
    light = mix(c * 0.3, pal[2], star)
    return surface(mix(c, pal[2], star), 0.0, 0.9, 0.0, light)


def crystal(p: Points, pal: Array, seed: int) -> Surface:
    """Facets with bright edges."""
    _, edge, cell_value, dx, dy, _ = cells(p.x * 0.5, p.y * 0.5, p.z * 0.5, 1.0, seed)
    slope = (fraction(cell_value * 71) - 0.5) * dx + (fraction(cell_value * 131) - 0.5) * dy
    c = mix(tone(pal[0], 0.45 + 0.9 * cell_value), pal[2], (cell_value > 0.75) * 0.6)
    return surface(mix(c, pal[1], line(0.015, 0.03, edge)), 1.2 * slope, 0.08)
