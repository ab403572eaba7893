"""Bricks, tiles, paving and rock."""

from __future__ import annotations

import numpy as np

from training.noise_arrays import cells, cells2, fbm, hashed, noise
from training.patterns.surface import Array, Points, Surface, fraction, line, mix, slab, smooth, surface, tinted, tone


def brick(p: Points, pal: Array, seed: int) -> Surface:
    """Running bond: bricks of equal size, joints of mortar."""
    width = 8.0 / 3.0
    row = np.floor(p.v)
    along = p.u / width + 0.5 * (row % 2)
    column = np.floor(along)
    worn = 0.07 * (noise(p.x * 2.6, p.y * 2.6, p.z * 2.6, seed + 1) - 0.5)
    d = slab((along - column) * width, p.v - row, width, 1.0, 0.14) + worn
    joint = 1.0 - smooth(0.07, 0.12, d)
    cell_value, hue = hashed(row, column, 3, seed), hashed(row, column, 8, seed)
    grain = fbm(p.x * 2.2, p.y * 2.2, p.z * 2.2, 3, seed + 2)
    face = tone(tinted(pal[0], hue - 0.5, (0.0, 0.24, 0.18)), 0.74 + 0.42 * cell_value)
    face = tone(face, 0.72 + 0.56 * grain)
    mortar = tone(pal[1], 0.84 + 0.28 * fbm(p.x * 3, p.y * 3, p.z * 3, 2, seed + 5))
    height = 0.17 * smooth(0.05, 0.2, d) + 0.07 * grain * (1 - joint)
    return surface(mix(face, mortar, joint), height, 0.82 + 0.12 * joint)


def tiles(p: Points, pal: Array, seed: int) -> Surface:
    """Square glazed tiles with grout."""
    u, v = p.u * 0.75, p.v * 0.75
    column, row = np.floor(u), np.floor(v)
    d = slab(u - column, v - row, 1.0, 1.0, 0.06)
    joint = 1.0 - smooth(0.045, 0.075, d)
    cell_value, kind = hashed(row, column, 2, seed), hashed(row, column, 4, seed)
    glaze = 0.9 + 0.2 * fbm(p.x * 0.9, p.y * 0.9, p.z * 0.9, 3, seed + 3)
    face = mix(
        tone(pal[0], (0.72 + 0.46 * cell_value) * glaze), tone(pal[2], 0.9 + 0.2 * cell_value), (kind > 0.72) * 0.85
    )
    grout = tone(pal[1], 0.85 + 0.3 * noise(p.x * 3, p.y * 3, p.z * 3, seed + 5))
    tilt = 0.05 * ((u - column - 0.5) * (cell_value - 0.5) + (v - row - 0.5) * (kind - 0.5))
    return surface(mix(face, grout, joint), 0.12 * smooth(0.03, 0.12, d) + tilt, np.where(joint > 0.5, 0.9, 0.12))


def cobblestone(p: Points, pal: Array, seed: int) -> Surface:
    """Round stones in dark gaps."""
    bent = 0.12 * (noise(p.x, p.y, p.z, seed + 4) - 0.5)
    _, edge, cell_value, *_ = cells2(p.u * 0.62 + bent, p.v * 0.7 - bent, 0.62, seed)
    gap = 1.0 - smooth(0.05, 0.11, edge)
    grain = fbm(p.x * 2.4, p.y * 2.4, p.z * 2.4, 3, seed + 2)
    dome = np.sqrt(np.clip(smooth(0.0, 0.42, edge), 0, 1))
    warm = hashed(np.floor(cell_value * 4096), 1, 1, seed) - 0.5
    stone_ = tone(
        tinted(pal[0], warm, (0.16, 0.03, -0.14)),
        (0.62 + 0.55 * cell_value) * (0.7 + 0.6 * grain) * (0.72 + 0.28 * dome),
    )
    return surface(mix(stone_, tone(pal[1], 0.7 + 0.6 * grain), gap), 0.62 * dome + 0.08 * grain, 0.8 + 0.1 * gap)


def _flags(p: Points, seed: int) -> tuple[Array, Array, Array]:
    """Rows of large flat stones of random width: border distance, random value, row parity."""
    pitch = 2.0
    row = np.floor(p.v / pitch)
    shift = hashed(row, 5, 5, seed)
    q = p.u / 3.2 + shift
    column = np.floor(q)
    # Joints move by up to a quarter of a stone.
    left = column + 0.5 * (hashed(column, row, 6, seed) - 0.5)
    right = column + 1 + 0.5 * (hashed(column + 1, row, 6, seed) - 0.5)
    before, after = q < left, q >= right
    column = column - before + after
    left = column + 0.5 * (hashed(column, row, 6, seed) - 0.5)
    right = column + 1 + 0.5 * (hashed(column + 1, row, 6, seed) - 0.5)
    width = (right - left) * 3.2
    d = slab((q - left) * 3.2, p.v - row * pitch, width, pitch, 0.3)
    return d, hashed(column, row, 7, seed), hashed(column, row, 9, seed)


def stone(p: Points, pal: Array, seed: int) -> Surface:
    """A wall of large hewn stones with the grain of granite."""
    ragged = 0.28 * (fbm(p.x * 0.9, p.y * 0.9, p.z * 0.9, 3, seed + 1) - 0.5)
    d, cell_value, other = _flags(p, seed)
    d = d + ragged
    joint = 1.0 - smooth(0.07, 0.15, d)
    rough = fbm(p.x * 0.75, p.y * 0.75, p.z * 0.75 + 9 * cell_value, 4, seed + 2, 0.6)
    speck = noise(p.x * 3.1, p.y * 3.1, p.z * 3.1, seed + 6)
    base = mix(pal[0], pal[1], smooth(0.3, 0.8, other))
    face = tone(base, (0.66 + 0.44 * cell_value) * (0.55 + 0.9 * rough))
    face = tone(face, 1.0 + 0.7 * (speck - 0.5) - 0.3 * smooth(0.66, 0.76, speck))
    height = 0.3 * smooth(0.04, 0.42, d) + 0.4 * rough + 0.05 * speck
    return surface(mix(face, tone(pal[2], 0.8 + 0.5 * speck), joint), height, 0.9)


def marble(p: Points, pal: Array, seed: int) -> Surface:
    """Polished marble: long, branching veins over soft clouds."""
    bend = 0.5 * (fbm(p.x * 0.2, p.y * 0.2, p.z * 0.2, 4, seed + 1, 0.55) - 0.5)
    # Veins run along the diagonal.
    s = p.x * 0.8 + p.y * 0.6 + 0.3 * p.z
    t = (p.y * 0.8 - p.x * 0.6) + 0.5 * p.z
    first = np.abs(noise(s * 0.07 + bend, t * 0.24 + 1.5 * bend, p.z * 0.1, seed) - 0.5)
    second = np.abs(noise(s * 0.16 + 1.4 * bend, t * 0.34 - 1.6 * bend, p.z * 0.2 + 4, seed + 3) - 0.5)
    third = np.abs(fbm(s * 0.5, t * 0.5, p.z * 0.4, 2, seed + 4) - 0.5)
    strong = smooth(0.36, 0.62, noise(p.x * 0.22, p.y * 0.22, p.z * 0.22 + 4, seed + 5))
    vein = (1 - smooth(0.006, 0.03, first)) * (0.5 + 0.5 * strong)
    vein = np.maximum(vein, (1 - smooth(0.004, 0.022, second)) * (0.2 + 0.65 * (1 - strong)))
    vein = np.maximum(vein, 0.5 * (1 - smooth(0.003, 0.03, third)) * (1 - smooth(0.03, 0.14, first)))
    halo = 0.4 * (1 - smooth(0.0, 0.13, first)) * (0.4 + 0.6 * strong)
    cloud = 0.7 * smooth(0.42, 0.8, fbm(p.x * 0.25 + bend, p.y * 0.25, p.z * 0.25, 4, seed + 6))
    c = mix(mix(tone(pal[0], np.ones_like(s)), pal[2], cloud), pal[1] * 0.5 + pal[0] * 0.5, halo)
    return surface(mix(c, pal[1], vein * 0.95), 0.0, 0.12)


def granite(p: Points, pal: Array, seed: int) -> Surface:
    """Polished granite: crystals of three colours."""
    _, edge, cell_value, *_ = cells(p.x * 1.9, p.y * 1.9, p.z * 1.9, 1.0, seed)
    c = mix(
        mix(tone(pal[0], 0.82 + 0.4 * fraction(cell_value * 71.7)), pal[1], (cell_value < 0.3) * 0.95),
        pal[2],
        (cell_value > 0.68) * 0.9,
    )
    return surface(tone(c, 0.85 + 0.15 * smooth(0.0, 0.1, edge)), 0.0, 0.25)


def earth(p: Points, pal: Array, seed: int) -> Surface:
    """Cracked plates of dry mud."""
    bent = 0.5 * (noise(p.x * 1.2, p.y * 1.2, p.z * 1.2, seed + 3) - 0.5)
    _, edge, cell_value, *_ = cells2(p.u * 0.45 + bent, p.v * 0.45 + bent, 1.0, seed)
    crack = line(0.025, 0.03, edge)
    grain = fbm(p.x * 1.8, p.y * 1.8, p.z * 1.8, 3, seed + 1)
    face = tone(mix(tone(pal[0], np.ones_like(cell_value)), pal[2], cell_value * 0.7), 0.7 + 0.55 * grain)
    return surface(mix(face, pal[1], crack), 0.3 * smooth(0.0, 0.14, edge) + 0.12 * grain, 0.95)


def sand(p: Points, pal: Array, seed: int) -> Surface:
    """Wind ripples and grains."""
    r = p.v * 0.9 + 1.5 * noise(p.u * 0.3, p.v * 0.3, p.z * 0.3, seed)
    r += 0.3 * noise(p.u * 1.1, p.v * 1.1, p.z, seed + 1)
    f = fraction(r)
    ridge = smooth(0.0, 0.7, f) * (1 - smooth(0.7, 1.0, f))
    grain = noise(p.x * 4, p.y * 4, p.z * 4, seed + 2)
    return surface(tone(mix(pal[0], pal[1], ridge), 0.8 + 0.4 * grain), 0.3 * ridge + 0.03 * grain, 0.95)
