"""Solid noise for the procedural materials, compiled with numba.

Everything is a pure function of its coordinates and an integer seed, so an image is the same on every machine and
in every process. Values are in [0, 1] unless stated otherwise; distances are in units of one noise cell.
"""

from __future__ import annotations

import math

from pipeline.core.jit import njit

_FAST = {"cache": True, "fastmath": True, "inline": "never", "nogil": True}


@njit(cache=True, nogil=True)
def hash3(ix: int, iy: int, iz: int, seed: int) -> float:
    """Uniform value in [0, 1) for an integer lattice point."""
    h = (ix * 374761393 + iy * 668265263 + iz * 1440662683 + seed * 362437) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 739982445) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFFF) / 1048576.0


@njit(**_FAST)
def smooth(lo: float, hi: float, x: float) -> float:
    """Smoothstep from 0 at lo to 1 at hi."""
    t = (x - lo) / (hi - lo)
    if t <= 0.0:
        return 0.0
    if t >= 1.0:
        return 1.0
    return t * t * (3.0 - 2.0 * t)


@njit(**_FAST)
def value(x: float, y: float, z: float, seed: int) -> float:
    """Trilinear value noise with smoothed weights."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    ix, iy, iz = int(fx), int(fy), int(fz)
    x -= fx
    y -= fy
    z -= fz
    x = x * x * (3.0 - 2.0 * x)
    y = y * y * (3.0 - 2.0 * y)
    z = z * z * (3.0 - 2.0 * z)
    a = hash3(ix, iy, iz, seed) * (1 - x) + hash3(ix + 1, iy, iz, seed) * x
    b = hash3(ix, iy + 1, iz, seed) * (1 - x) + hash3(ix + 1, iy + 1, iz, seed) * x
    c = hash3(ix, iy, iz + 1, seed) * (1 - x) + hash3(ix + 1, iy, iz + 1, seed) * x
    d = hash3(ix, iy + 1, iz + 1, seed) * (1 - x) + hash3(ix + 1, iy + 1, iz + 1, seed) * x
    return (a * (1 - y) + b * y) * (1 - z) + (c * (1 - y) + d * y) * z


@njit(**_FAST)
def fbm(x: float, y: float, z: float, octaves: int, seed: int) -> float:
    """Sum of octaves of value noise, renormalised and stretched to use most of [0, 1]."""
    total, weight, amp = 0.0, 0.0, 1.0
    for i in range(octaves):
        total += amp * value(x, y, z, seed + i * 17)
        weight += amp
        amp *= 0.5
        x, y, z = x * 2.03 + 5.1, y * 2.03 + 1.7, z * 2.03 + 9.2
    t = (total / weight - 0.5) * 1.5 + 0.5
    return min(max(t, 0.0), 1.0)
