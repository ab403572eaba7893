"""Metals. The base colour is their reflectance; no light is painted in."""

from __future__ import annotations

import numpy as np

from training.noise_arrays import dents, fbm, noise
from training.patterns.surface import Array, Points, Surface, mix, smooth, surface, tone

_PATINA = np.array([0.40, 0.69, 0.60], np.float32)


def gold(p: Points, pal: Array, seed: int) -> Surface:
    """Hammered gold: many small dents that mirror different directions."""
    bent = 0.2 * (noise(p.x * 0.9, p.y * 0.9, p.z * 0.9, seed + 4) - 0.5)
    dent = dents(p.x * 0.8 + bent, p.y * 0.8 - bent, p.z * 0.8 + bent, 0.8, seed, 22.0)
    grain = noise(p.x * 2.4, p.y * 2.4, p.z * 2.4, seed + 2)
    wave = fbm(p.x * 0.2, p.y * 0.2, p.z * 0.2, 2, seed + 3)
    c = tone(mix(pal[1], pal[0], 0.5 * smooth(0.3, 0.7, wave)), 0.97 + 0.06 * grain)
    return surface(c, 0.55 * dent + 0.5 * wave + 0.006 * grain, 0.18 + 0.1 * grain, 1.0)


def metal(p: Points, pal: Array, seed: int) -> Surface:
    """Brushed metal: long horizontal lines."""
    lines = noise(p.u * 0.1, p.v * 2.7, p.z * 0.1, seed) * 0.6 + 0.4 * noise(p.u * 0.22, p.v * 4.8, 3.0, seed + 1)
    broad = fbm(p.u * 0.08, p.v * 0.7, p.z * 0.1, 2, seed + 2)
    streak = smooth(0.3, 0.7, lines)
    c = tone(mix(pal[0], pal[1], streak), 0.86 + 0.28 * broad)
    return surface(c, 0.035 * lines, 0.3 + 0.16 * broad, 1.0)


def copper(p: Points, pal: Array, seed: int) -> Surface:
    """A slightly uneven copper sheet with fine horizontal lines and no patina."""
    wave = fbm(p.x * 0.13, p.y * 0.2, p.z * 0.13, 2, seed + 3)
    brush = 0.6 * noise(p.x * 0.12, p.y * 2.6, p.z * 0.12, seed + 4) + 0.4 * noise(p.x * 0.25, p.y * 4.6, 2.0, seed + 5)
    c = tone(mix(pal[1], pal[0], 0.42 * smooth(0.3, 0.75, brush)), 0.94 + 0.12 * brush)
    return surface(c, 1.1 * wave + 0.022 * brush, 0.22 + 0.12 * brush, 1.0)


def patinated(p: Points, pal: Array, seed: int) -> Surface:
    """Copper under patches of green patina."""
    bare = copper(p, pal, seed)
    n = fbm(p.x * 0.42, p.y * 0.42, p.z * 0.42, 4, seed + 7, 0.6)
    cover = smooth(0.48, 0.56, n)
    grain = fbm(p.x * 1.8, p.y * 1.8, p.z * 1.8, 3, seed + 8)
    green = tone(
        mix(_PATINA, _PATINA * 0.62, smooth(0.4, 0.7, noise(p.x * 0.7, p.y * 0.7, p.z * 0.7, seed + 9))),
        0.7 + 0.6 * grain,
    )
    height = bare.height + 0.12 * cover * (0.5 + grain)
    rough = bare.roughness * (1 - cover) + 0.9 * cover
    return surface(mix(bare.albedo, green, cover), height, rough, 1 - cover)


def rust(p: Points, pal: Array, seed: int) -> Surface:
    """Orange crust with dark pits, flaked off the bare metal."""
    n = fbm(p.x * 0.5, p.y * 0.5, p.z * 0.5, 5, seed, 0.6)
    flake = fbm(p.x * 0.36 + 9, p.y * 0.36, p.z * 0.36, 4, seed + 5, 0.6)
    bare = smooth(0.60, 0.63, flake)
    grain = fbm(p.x * 2.2, p.y * 2.2, p.z * 2.2, 3, seed + 3)
    crust = tone(mix(pal[0], pal[1], smooth(0.44, 0.6, n)), 0.55 + 0.9 * grain)
    crust = mix(crust, pal[1] * 0.4, 0.8 * smooth(0.66, 0.78, noise(p.x * 1.6, p.y * 1.6, p.z * 1.6, seed + 8)))
    steel = tone(pal[2], 0.85 + 0.3 * noise(p.x * 0.4, p.y * 3, p.z * 0.4, seed + 9))
    height = (0.22 + 0.16 * n + 0.18 * grain) * (1 - bare)
    return surface(mix(crust, steel, bare), height, 0.92 * (1 - bare) + 0.36 * bare, bare)
