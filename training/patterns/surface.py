"""Input and output of a pattern: points of a surface, and the material there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass
class Points:
    """Points of a surface in texture space, each (N,) float32. One unit is `UNIT` pixels of a close-up.

    x, y, z: solid coordinates, y up. u, v: coordinates within the face that the point lies on, v up.
    """

    x: Array
    y: Array
    z: Array
    u: Array
    v: Array


@dataclass
class Surface:
    """A material at N points, float32.

    albedo: (3, N) unlit base colour, sRGB in [0, 1]; the reflectance of metals. height: (N,) in texture units.
    roughness, metalness: (N,) in [0, 1]. emissive: (3, N) emitted light, sRGB, or None.
    """

    albedo: Array
    height: Array
    roughness: Array
    metalness: Array
    emissive: Array | None = None


def surface(
    albedo: Array,
    height: Array | float = 0.0,
    roughness: Array | float = 0.6,
    metalness: Array | float = 0.0,
    emissive: Array | None = None,
) -> Surface:
    """Make a `Surface` from arrays or numbers, clipped to their valid ranges."""
    n = albedo.shape[1]

    def full(a: Array | float, low: float, high: float) -> Array:
        return np.clip(np.broadcast_to(np.asarray(a, np.float32), (n,)), low, high).astype(np.float32)

    return Surface(
        np.clip(albedo, 0.0, 1.0).astype(np.float32),
        full(height, -2.0, 2.0),
        full(roughness, 0.05, 1.0),
        full(metalness, 0.0, 1.0),
        None if emissive is None else np.clip(emissive, 0.0, 1.0).astype(np.float32),
    )


def smooth(low: float, high: float, x: Array) -> Array:
    """Smoothstep from 0 at low to 1 at high."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def line(half: float, soft: float, d: Array) -> Array:
    """1 for distances ``d`` up to ``half``, 0 beyond ``half + soft``."""
    return 1.0 - smooth(half, half + soft, np.abs(d))


def spread(c: Array) -> Array:
    """A colour (3,) as (3, 1), to broadcast over points; (3, N) unchanged."""
    return c[:, None] if c.ndim == 1 else c


def mix(a: Array, b: Array, t: Array) -> Array:
    """Interpolate colours a and b, each (3,) or (3, N), by weights (N,): (3, N)."""
    a, b = spread(a), spread(b)
    return a + (b - a) * np.asarray(t, np.float32)


def tone(c: Array, s: Array) -> Array:
    """Multiply a colour (3,) or (3, N) by brightness (N,)."""
    return spread(c) * s


def tinted(c: Array, t: Array, by: tuple[float, float, float]) -> Array:
    """Colours (3, N): c (3,), each channel changed by its share in ``by`` times t (N,)."""
    return spread(c) * (1 + np.array(by, np.float32)[:, None] * t)


def fraction(x: Array) -> Array:
    """The fractional part of x, in [0, 1)."""
    return x - np.floor(x)


def slab(fu: Array, fv: Array, width: float, height: float, radius: float) -> Array:
    """Distance inwards from the border of a rectangle with round corners; fu in [0, width], fv in [0, height]."""
    du, dv = np.minimum(fu, width - fu), np.minimum(fv, height - fv)
    corner = radius - np.hypot(np.maximum(radius - du, 0), np.maximum(radius - dv, 0))
    return np.where((du < radius) & (dv < radius), corner, np.minimum(du, dv))
