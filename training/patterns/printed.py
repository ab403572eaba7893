"""Plain and printed surfaces: plastic, checks, stripes, dots, camouflage."""

from __future__ import annotations

import numpy as np

from training.noise_arrays import fbm, noise
from training.patterns.surface import Array, Points, Surface, fraction, mix, smooth, surface, tone


def plastic(p: Points, pal: Array, seed: int) -> Surface:
    """A smooth surface of one colour."""
    return surface(tone(pal[0], 0.98 + 0.04 * noise(p.x * 0.3, p.y * 0.3, p.z * 0.3, seed)), 0.0, 0.32)


def checker(p: Points, pal: Array, seed: int) -> Surface:
    """Squares of two colours."""
    odd = (np.floor(p.u) + np.floor(p.v)) % 2
    return surface(mix(tone(pal[0], np.ones_like(odd)), pal[1], odd), 0.0, 0.3)


def stripes(p: Points, pal: Array, seed: int) -> Surface:
    """Horizontal stripes of two colours."""
    second = (fraction(p.v * 0.5) < 0.5) * 1.0
    weave = 0.96 + 0.08 * noise(p.u * 3.0, p.v * 3.0, 1.0, seed)
    return surface(tone(mix(pal[0], pal[1], second), weave), 0.02 * weave, 0.8)


def dots(p: Points, pal: Array, seed: int) -> Surface:
    """Round dots; every other row is shifted by half a step."""
    v = p.v / 1.333
    row = np.floor(v)
    u = p.u / 1.6 + 0.5 * (row % 2)
    r = np.hypot((fraction(u) - 0.5) * 1.6, (v - row - 0.5) * 1.333)
    weave = 0.96 + 0.08 * noise(p.u * 3.0, p.v * 3.0, 1.0, seed)
    return surface(tone(mix(pal[0], pal[1], 1 - smooth(0.42, 0.46, r)), weave), 0.02 * weave, 0.8)


def camouflage(p: Points, pal: Array, seed: int) -> Surface:
    """Patches of four colours with hard edges."""
    x, y, z = p.x * 0.4, p.y * 0.5, p.z * 0.4
    c = tone(pal[0], np.ones_like(x))
    for k, (colour, level) in enumerate(((pal[1], 0.53), (pal[2], 0.58), (pal[1] * 0.36, 0.62))):
        n = fbm(x + 20 * k, y, z, 3, seed + 3 * k, 0.42)
        c = mix(c, colour, smooth(level - 0.008, level + 0.008, n))
    weave = 0.93 + 0.14 * noise(p.u * 3.4, p.v * 3.4, 1.0, seed + 11)
    return surface(tone(c, weave), 0.02 * weave, 0.9)
