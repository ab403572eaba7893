"""Draws a scene: materials on a flat piece or a shape, under a light, with the maps of the materials.

Maps are averaged over each pixel first, and then lit. So the maps that a network has to estimate explain the picture
exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from training import render
from training.noise_arrays import fbm
from training.patterns import TABLE, VARIANTS, Points, Surface
from training.patterns.surface import smooth
from training.shading import (
    Array,
    Light,
    cast_shadow,
    displaced_normals,
    height_normals,
    occlusion,
    shade,
    to_linear,
    to_srgb,
)

#: Width in pixels of a texture unit in views of a full object, relative to close-ups.
WHOLE = 0.6
_OVER = 2


@dataclass
class Slot:
    """A material on a part: pattern, palette (3, 3) sRGB, texture units per unit of the scene, rotation, offset and
    seed.

    In flat pieces the unit of the scene is a pixel.
    """

    pattern: str
    palette: Array
    frequency: float
    turn: Array = field(default_factory=lambda: np.eye(3))
    offset: Array = field(default_factory=lambda: np.zeros(3))
    seed: int = 1

    def at(self, position: Array, normal: Array) -> Surface:
        """The material at positions (3, N) with normals (3, N), or (3, 1) if all are the same."""
        turn = self.turn.astype(np.float32)
        across = turn * np.float32(self.frequency)
        x, y, z = (
            across[c, 0] * position[0]
            + across[c, 1] * position[1]
            + across[c, 2] * position[2]
            + np.float32(self.offset[c])
            for c in range(3)
        )
        m = np.abs(turn @ normal)
        # Box mapping that prefers the sides, so that courses stay level around a round shape.
        above = (0.8 * m[1] > m[0]) & (0.8 * m[1] > m[2])
        front = ~above & (m[2] >= m[0])
        u = np.where(above | front, x, z + np.float32(17.3))
        v = np.where(above, z, y)
        pattern = TABLE.get(self.pattern) or VARIANTS[self.pattern]
        return pattern(Points(x, y, z, u, v), self.palette.astype(np.float32), self.seed)


@dataclass
class Cover:
    """Patches of another material over slots.

    share: of the surface. frequency: patches per unit of the scene. upward: preference for upward faces.
    """

    slot: Slot
    share: float
    frequency: float
    upward: float = 0.0
    only: int = -1


@dataclass
class Scene:
    """Materials by slot, a shape (None: a flat piece), patches, light, and a background row (15,)."""

    slots: dict[int, Slot]
    light: Light
    prims: Array | None = None
    warp: Array = field(default_factory=lambda: np.zeros(3))
    cover: Cover | None = None
    background: Array = field(default_factory=lambda: np.zeros(15))


@dataclass
class Picture:
    """A rendered picture and its maps, float32, (S, S) or (S, S, 3).

    lit: sRGB in [0, 1]. albedo: unlit sRGB in [0, 1], including the background. roughness, metalness: in [0, 1].
    relief: height in pixels, 0 on average. detail: normal of the relief, z away from the surface, x right and y up in
    the picture. normal: shading normal in the camera's frame (x right, y up, z to the viewer). depth: along the ray
    from the eye in units of the scene, 0 for background. coverage: share of the pixel that the subject fills.
    """

    lit: Array
    albedo: Array
    roughness: Array
    metalness: Array
    relief: Array
    detail: Array
    normal: Array
    depth: Array
    coverage: Array


def _pool_samples(a: Array) -> Array:
    """Average samples over pixels: (..., 2 S, 2 S) to (..., S, S)."""
    rows = a[..., 0::2, :] + a[..., 1::2, :]
    return (rows[..., 0::2] + rows[..., 1::2]) * np.float32(0.25)


def _channels_last(a: Array) -> Array:
    """Move channels last: (3, S, S) to (S, S, 3)."""
    return np.ascontiguousarray(np.moveaxis(a, 0, -1))


def _units(n: Array) -> Array:
    return (n / np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-6)).astype(np.float32)


def _blend(a: Surface, b: Surface, t: Array) -> Surface:
    """Blend b over a by weights (N,)."""
    glow = None
    if a.emissive is not None or b.emissive is not None:
        none = np.zeros_like(a.albedo)
        glow = (none if a.emissive is None else a.emissive) * (1 - t) + (none if b.emissive is None else b.emissive) * t
    return Surface(
        a.albedo * (1 - t) + b.albedo * t,
        a.height * (1 - t) + (b.height + 0.1) * t,
        a.roughness * (1 - t) + b.roughness * t,
        a.metalness * (1 - t) + b.metalness * t,
        glow,
    )


def _slot_material(scene: Scene, k: int, position: Array, normal: Array) -> Surface:
    """The material of slot k with its patches at positions (3, N); heights are in units of the scene."""
    slot, cover = scene.slots[k], scene.cover
    s = slot.at(position, normal)
    if cover is not None and cover.only in (-1, k):
        q = position * np.float32(cover.frequency)
        level = fbm(q[0] + 11, q[1] + 5, q[2] + 3, 4, cover.slot.seed + 77) + cover.upward * normal[1]
        s = _blend(s, cover.slot.at(position, normal), smooth(0.0, 0.06, level - 1 + cover.share))
    s.height = s.height / np.float32(slot.frequency)
    return s


def _materials(scene: Scene, part: Array, position: Array, normal: Array) -> Surface:
    """The materials at N points that belong to parts (N,)."""
    n = len(part)
    out = Surface(np.zeros((3, n), np.float32), *(np.zeros(n, np.float32) for _ in range(3)))
    for k in scene.slots:
        i = np.flatnonzero(part == k)
        if not len(i):
            continue
        s = _slot_material(scene, k, position[:, i], normal[:, i])
        out.albedo[:, i], out.height[i] = s.albedo, s.height
        out.roughness[i], out.metalness[i] = s.roughness, s.metalness
        if s.emissive is not None:
            if out.emissive is None:
                out.emissive = np.zeros((3, n), np.float32)
            out.emissive[:, i] = s.emissive
    return out


def _glow(lit: Array, emissive: Array | None) -> Array:
    """Add emission, sRGB (S, S, 3), to linear light."""
    if emissive is None:
        return lit
    return lit * (1 - emissive.max(-1, keepdims=True)) + to_linear(emissive)


def _light_up(p: Picture, view: Array, open_: Array, shadow: Array, light: Light, emissive: Array | None) -> Array:
    """Light a picture's maps: linear radiance (S, S, 3)."""
    flat = [np.ascontiguousarray(a.reshape(-1, a.shape[-1]) if a.ndim == 3 else a.ravel()) for a in (
        to_linear(p.albedo), p.normal, view, p.roughness, p.metalness, open_, shadow)]  # fmt: skip
    return _glow(shade(*flat, light).reshape(p.albedo.shape), emissive)


def flat_picture(scene: Scene, size: int) -> Picture:
    """Draw a flat piece from the front, filling the picture. The light is in the picture's frame."""
    n = size * _OVER
    c = (np.arange(n, dtype=np.float32) + 0.5) / _OVER - size / 2
    x, y = (a.ravel() for a in np.meshgrid(c, -c))
    position = np.stack([x, y, np.zeros_like(x)])
    s = _slot_material(scene, 0, position, np.array([[0], [0], [1]], np.float32))
    fine = s.height.reshape(n, n)
    fine = fine - fine.mean()
    relief = _pool_samples(fine)
    detail = _units(_channels_last(_pool_samples(np.moveaxis(height_normals(fine, 1 / _OVER), -1, 0))))
    unit = 1 / scene.slots[0].frequency
    albedo = _channels_last(_pool_samples(s.albedo.reshape(3, n, n)))
    rough, metal = (_pool_samples(a.reshape(n, n)) for a in (s.roughness, s.metalness))
    glow = None if s.emissive is None else _channels_last(_pool_samples(s.emissive.reshape(3, n, n)))
    full = np.ones((size, size), np.float32)
    out = Picture(albedo, albedo, rough, metal, relief, detail, detail, full, full)
    # Use a slight perspective, so that a flat mirror shows more than one tone.
    q = (np.arange(size, dtype=np.float32) + 0.5 - size / 2) / 64 * 0.1
    vx, vy = np.meshgrid(-q, q)
    view = _units(np.stack([vx, vy, np.ones_like(vx)], -1))
    shadow = cast_shadow(relief, 1.0, scene.light.key[:3])
    out.lit = to_srgb(_light_up(out, view, occlusion(relief / unit, 1 / unit), shadow, scene.light, glow))
    return out


def _rotated(n: Array, base: Array) -> Array:
    """Apply to directions n (..., 3) the shortest rotation that takes the unit vectors ``base`` (..., 3) to +z."""
    both = base + np.array([0, 0, 1], np.float32)
    k = (both * n).sum(-1, keepdims=True) / np.maximum(1 + base[..., 2:3], 1e-3)
    out = n - k * both
    out[..., 2:3] += 2 * (base * n).sum(-1, keepdims=True)
    return out


def view_picture(scene: Scene, cam: Array, size: int) -> Picture:
    """Draw the scene's shape from a camera (14,) (`render.trace`). The light is in the object's frame."""
    g = render.trace(size, cam, scene.prims, scene.warp, scene.light.key[:3])
    n = size * _OVER
    visible = g.part >= 0
    i = np.flatnonzero(visible.ravel())
    s = _materials(scene, g.part.ravel()[i], *(a.reshape(-1, 3)[i].T for a in (g.position, g.normal)))

    def put(a: Array) -> Array:
        """Scatter values of the visible points, (N,) or (3, N), to a picture."""
        full = np.zeros((*a.shape[:-1], n * n), np.float32)
        full[..., i] = a
        return full.reshape(*a.shape[:-1], n, n)

    coverage = _pool_samples(visible.astype(np.float32))
    share = np.maximum(coverage, 1e-6)

    def inside(a: Array) -> Array:
        """Average over the covered samples of each pixel, (S, S) or (S, S, 3)."""
        return _pool_samples(a) / share if a.ndim == 2 else _channels_last(_pool_samples(a) / share)

    height = put(s.height)
    normal = displaced_normals(g.position, g.normal, height, g.part)
    turn = np.stack([cam[3:6], cam[6:9], -cam[9:12]]).astype(np.float32)
    shading, base = (_units(inside(np.moveaxis(a, -1, 0))) for a in (normal * visible[..., None], g.normal))
    # Pixels per unit of the scene, at the distance of its centre.
    pixels = size / 2 / (cam[12] * np.linalg.norm(cam[:3]))
    in_view = shading @ turn.T
    albedo = inside(put(s.albedo))
    rough, metal = inside(put(s.roughness)), inside(put(s.metalness))
    glow = None if s.emissive is None else inside(put(s.emissive))
    relief = inside(height) * np.float32(pixels)
    relief -= (relief * coverage).sum() / max(coverage.sum(), 1e-6)
    depth, open_, lit = inside(g.depth), inside(g.open * visible), inside(g.lit * visible)
    frequency = scene.slots[0].frequency
    unit = pixels / frequency
    open_ = open_ * occlusion(relief / unit, 1 / unit, coverage > 0.5)
    eye = _units(cam[:3].astype(np.float32) - inside(np.moveaxis(g.position, -1, 0)))
    out = Picture(
        albedo,
        albedo,
        rough,
        metal,
        relief * (coverage > 0),
        _rotated(in_view, base @ turn.T),
        shading,
        depth,
        coverage,
    )
    light = to_srgb(_light_up(out, eye, open_, lit, scene.light, glow))
    k = coverage[..., None]
    back = _channels_last(_pool_samples(np.moveaxis(render.backdrop(size, scene.background), -1, 0)))
    out.lit = light * k + back * (1 - k)
    out.albedo = albedo * k + back * (1 - k)
    out.normal = in_view
    return out


def camera(eye: Array, half: float, distance: float | None = None, look: Array | None = None) -> Array:
    """A camera row (14,) at the point ``eye`` (3,) that sees ``half`` to each side of the centre, +Y up."""
    eye = np.asarray(eye, np.float64)
    forward = (np.zeros(3) if look is None else np.asarray(look, np.float64)) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    far = float(np.linalg.norm(eye)) if distance is None else distance
    return np.concatenate([eye, right, np.cross(right, forward), forward, [half / far, 1.0]])


def around(polar: float, azimuths: Array, half: float = 1.35, fov: float = 0.8) -> list[Array]:
    """Cameras around the object: polar angle from +Y and azimuths from +Z, radians, as in `pipeline`."""
    far = half / math.tan(fov / 2)
    return [
        camera(far * np.array([math.sin(polar) * math.sin(a), math.cos(polar), math.sin(polar) * math.cos(a)]), half)
        for a in azimuths
    ]
