"""Noise over arrays of points: gradient noise, Voronoi cells, and blades scattered over a plane.

All functions take float32 arrays (N,), or numbers that are broadcast against them, in units of one noise cell, and
return float32 arrays (N,). They are pure functions of coordinates and an integer seed.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.core.jit import njit
from training.noise import hash3

Array = np.ndarray
_FAST = {"cache": True, "fastmath": True, "nogil": True}


@njit(**_FAST)
def _bits(ix: int, iy: int, iz: int, seed: int) -> int:
    h = (ix * 374761393 + iy * 668265263 + iz * 1440662683 + seed * 362437) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return (h ^ (h >> 16)) & 0xFFFFFFFF


@njit(**_FAST)
def _corner(ix: int, iy: int, iz: int, seed: int, x: float, y: float, z: float) -> float:
    h = _bits(ix, iy, iz, seed) >> 7 & 15
    a = x if h < 8 else y
    b = y if h < 4 else (x if h == 12 or h == 14 else z)
    return (a if h & 1 == 0 else -a) + (b if h & 2 == 0 else -b)


@njit(**_FAST)
def _gradient_at(x: float, y: float, z: float, seed: int) -> float:
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    ix, iy, iz = int(fx), int(fy), int(fz)
    x, y, z = x - fx, y - fy, z - fz
    wx = x * x * x * (x * (x * 6 - 15) + 10)
    wy = y * y * y * (y * (y * 6 - 15) + 10)
    wz = z * z * z * (z * (z * 6 - 15) + 10)
    total = 0.0
    for dz in range(2):
        az = wz if dz else 1 - wz
        for dy in range(2):
            ay = (wy if dy else 1 - wy) * az
            left = _corner(ix, iy + dy, iz + dz, seed, x, y - dy, z - dz)
            right = _corner(ix + 1, iy + dy, iz + dz, seed, x - 1, y - dy, z - dz)
            total += ay * (left + wx * (right - left))
    return total


@njit(**_FAST)
def _fbm(x, y, z, octaves, gain, seed, out):
    for i in range(len(x)):
        px, py, pz = x[i], y[i], z[i]
        total, weight, amplitude = 0.0, 0.0, 1.0
        for k in range(octaves):
            total += amplitude * _gradient_at(px, py, pz, seed + 17 * k)
            weight += amplitude
            amplitude *= gain
            px, py, pz = px * 2.03 + 5.1, py * 2.03 + 1.7, pz * 2.03 + 9.2
        out[i] = min(max(0.5 + 0.62 * (1.0 + 0.16 * (octaves - 1)) * total / weight, 0.0), 1.0)


@njit(**_FAST)
def _cells(x, y, z, jitter, seed, flat, out):
    low = 0 if flat else -1
    high = 1 if flat else 2
    for i in range(len(x)):
        fx, fy, fz = math.floor(x[i]), math.floor(y[i]), math.floor(z[i])
        ix, iy, iz = int(fx), int(fy), int(fz)
        f1, f2, cell = 9.0, 9.0, 0.0
        ax, ay, az, bx, by, bz = 0.0, 0.0, 0.0, 1.0, 0.0, 0.0
        for dx in range(-1, 2):
            for dy in range(-1, 2):
                for dz in range(low, high):
                    h = hash3(ix + dx, iy + dy, iz + dz, seed)
                    px = dx + 0.5 + jitter * (h - 0.5) - (x[i] - fx)
                    py = dy + 0.5 + jitter * ((h * 97.13) % 1.0 - 0.5) - (y[i] - fy)
                    pz = 0.0 if flat else dz + 0.5 + jitter * ((h * 4523.7) % 1.0 - 0.5) - (z[i] - fz)
                    d = px * px + py * py + pz * pz
                    if d < f1:
                        f2, bx, by, bz = f1, ax, ay, az
                        f1, ax, ay, az = d, px, py, pz
                        cell = (h * 33331.7) % 1.0
                    elif d < f2:
                        f2, bx, by, bz = d, px, py, pz
        gap = math.sqrt((ax - bx) ** 2 + (ay - by) ** 2 + (az - bz) ** 2) + 1e-6
        out[0, i], out[1, i], out[2, i] = math.sqrt(f1), (f2 - f1) / (2 * gap), cell
        out[3, i], out[4, i], out[5, i] = -ax, -ay, -az


@njit(**_FAST)
def _dents(x, y, z, jitter, sharp, seed, out):
    for i in range(len(x)):
        fx, fy, fz = math.floor(x[i]), math.floor(y[i]), math.floor(z[i])
        ix, iy, iz = int(fx), int(fy), int(fz)
        total = 0.0
        for dx in range(-1, 2):
            for dy in range(-1, 2):
                for dz in range(-1, 2):
                    h = hash3(ix + dx, iy + dy, iz + dz, seed)
                    px = dx + 0.5 + jitter * (h - 0.5) - (x[i] - fx)
                    py = dy + 0.5 + jitter * ((h * 97.13) % 1.0 - 0.5) - (y[i] - fy)
                    pz = dz + 0.5 + jitter * ((h * 4523.7) % 1.0 - 0.5) - (z[i] - fz)
                    d = px * px + py * py + pz * pz
                    if d < 1.3:
                        total += math.exp(-sharp * d)
        out[i] = -math.log(total + 1e-6) / sharp


@njit(**_FAST)
def _hashed(a, b, c, seed, out):
    for i in range(len(a)):
        out[i] = hash3(int(a[i]), int(b[i]), int(c[i]), seed)


@njit(**_FAST)
def _stamps(u, v, length, width, angle, spread, layers, shape, seed, out):
    """Topmost blade at each point. A cell of side `length` holds one blade per layer; the later layer lies on top."""
    for i in range(len(u)):
        out[0, i] = -1.0
        for back in range(layers):
            layer = layers - 1 - back
            x, y = u[i] / length + 0.618 * layer, v[i] / length + 0.381 * layer
            fx, fy = math.floor(x), math.floor(y)
            best, covered = -1.0, False
            for dx in range(-1, 2):
                for dy in range(-1, 2):
                    h = hash3(int(fx) + dx, int(fy) + dy, layer, seed)
                    if h <= best:
                        continue
                    turn = angle + spread * (2 * ((h * 517.31) % 1.0) - 1)
                    px = (x - fx) - dx - 0.5 - 0.9 * ((h * 97.13) % 1.0 - 0.5)
                    py = (y - fy) - dy - 0.5 - 0.9 * ((h * 4523.7) % 1.0 - 0.5)
                    along = px * math.cos(turn) + py * math.sin(turn) + 0.5
                    across = py * math.cos(turn) - px * math.sin(turn)
                    if along <= 0.0 or along >= 1.0:
                        continue
                    # A leaf is pointed at both ends and widest behind its middle; a stalk has constant width.
                    half = width * math.sqrt(along) * (1 - along) * 2.6 if shape == 0 else width
                    if abs(across) < half:
                        best, covered = h, True
                        out[0, i], out[1, i], out[2, i] = along, across / half, (h * 33331.7) % 1.0
                        out[3, i] = (layer + h) / layers
                        out[4, i] = turn
            if covered:
                break


@njit(**_FAST)
def _rows(u, v, pitch, rise, spacing, width, lean, layers, seed, out):
    """Foremost blade at each point, for rows of upright blades. Each row is in front of those above it."""
    reach = int(lean * rise / spacing) + 1
    for i in range(len(u)):
        out[0, i] = -1.0
        top = math.floor(v[i] / pitch)
        covered = False
        # The lowest row whose blades reach this high is in front.
        for back in range(layers):
            row = int(top) - layers + 1 + back
            foot = v[i] - row * pitch
            column = math.floor(u[i] / spacing + 0.5 * (row & 1))
            best = -1.0
            for k in range(-reach, reach + 1):
                h = hash3(int(column) + k, row, 3, seed)
                tall = rise * (0.6 + 0.4 * ((h * 97.13) % 1.0))
                t = (foot - 0.5 * pitch * ((h * 771.7) % 1.0)) / tall
                if t <= 0.0 or t >= 1.0 or h <= best:
                    continue
                root = (column + k + 0.5 + 0.9 * (h - 0.5) - 0.5 * (row & 1)) * spacing
                tip = lean * tall * (2 * ((h * 517.31) % 1.0) - 1)
                across = u[i] - root - tip * t * t
                half = width * (1 - t) ** 0.6
                if abs(across) < half:
                    best, covered = h, True
                    out[0, i], out[1, i], out[2, i] = t, across / half, (h * 33331.7) % 1.0
                    out[3, i] = (h * 2713.9) % 1.0
            if covered:
                break


def _same(*parts: Array | float) -> list[Array]:
    arrays = np.broadcast_arrays(*(np.asarray(p, np.float32) for p in parts))
    return [np.ascontiguousarray(a) for a in arrays]


def fbm(x: Array, y: Array, z: Array | float, octaves: int, seed: int, gain: float = 0.5) -> Array:
    """Octaves of gradient noise, stretched to about [0, 1] around 0.5."""
    x, y, z = _same(x, y, z)
    out = np.empty_like(x)
    _fbm(x, y, z, octaves, gain, int(seed), out)
    return out


def noise(x: Array, y: Array, z: Array | float, seed: int) -> Array:
    """One octave of gradient noise, about [0, 1] around 0.5."""
    return fbm(x, y, z, 1, seed)


def cells(x: Array, y: Array, z: Array, jitter: float, seed: int) -> Array:
    """Solid Voronoi cells, (6, N): distance to the centre, distance to the border, random value of the cell, and the
    point's position relative to the centre (x, y, z)."""
    x, y, z = _same(x, y, z)
    out = np.empty((6, len(x)), np.float32)
    _cells(x, y, z, jitter, int(seed), False, out)
    return out


def dents(x: Array, y: Array, z: Array, jitter: float, seed: int, sharp: float = 9.0) -> Array:
    """Adjacent bowls with rounded rims: about the squared distance to the nearest cell centre."""
    x, y, z = _same(x, y, z)
    out = np.empty_like(x)
    _dents(x, y, z, jitter, sharp, int(seed), out)
    return out


def cells2(u: Array, v: Array, jitter: float, seed: int) -> Array:
    """Voronoi cells of a plane, with the rows of `cells`."""
    u, v = _same(u, v)
    out = np.empty((6, len(u)), np.float32)
    _cells(u, v, np.zeros_like(u), jitter, int(seed), True, out)
    return out


def hashed(a: Array, b: Array | float, c: Array | float, seed: int) -> Array:
    """A pseudo-random value in [0, 1) for each triple of integers."""
    a, b, c = _same(a, b, c)
    out = np.empty_like(a)
    _hashed(a, b, c, int(seed), out)
    return out


LEAF, STALK = 0, 1


def rows(
    u: Array, v: Array, pitch: float, rise: float, spacing: float, width: float, lean: float, layers: int, seed: int
) -> Array:
    """Rows of upright, pointed blades, the lower rows in front. Returns (4, N) values of the foremost blade.

    Lengths are in units of u and v: ``pitch`` between rows, ``rise`` of a blade, ``spacing`` of the roots in a row, and
    ``width``, half the width of a blade at its root. ``lean`` is the sideways offset of a tip as a share of the length.
    The values are: position along the blade (0 root, 1 tip; -1 without a blade), position across it (-1 to 1), and two
    random values of the blade.
    """
    u, v = _same(u, v)
    out = np.zeros((4, len(u)), np.float32)
    _rows(u, v, pitch, rise, spacing, width, lean, layers, int(seed), out)
    return out


def stamps(
    u: Array, v: Array, length: float, width: float, angle: float, spread: float, layers: int, shape: int, seed: int
) -> Array:
    """Blades scattered over a plane in layers. Returns (5, N) values of the topmost blade.

    ``length`` of a blade is in units of u and v, ``width`` is half its width as a share of the length. Blades point
    along ``angle`` plus or minus ``spread``, radians. The values are: position along the blade (0 root, 1 tip; -1
    without a blade), position across it (-1 to 1), random value of the blade, its layer (0 to 1), direction in radians.
    """
    u, v = _same(u, v)
    out = np.zeros((5, len(u)), np.float32)
    _stamps(u, v, length, width, angle, spread, layers, shape, int(seed), out)
    return out
