"""Lights materials: normals and occlusion from heights, environments, and a GGX reflection model.

The key light: Cook-Torrance with the GGX distribution, Smith's height-correlated shadowing and Schlick's Fresnel term.
The environment: a sky over a ground and a few soft boxes (spherical Gaussians), blurred by roughness in closed form,
with Karis's fit of the split sum. Multiple reflections are compensated. Colours are linear here; pictures and base
colours are sRGB elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import uniform_filter

from pipeline.core.jit import njit

Array = np.ndarray
Rng = np.random.Generator
_FAST = {"cache": True, "fastmath": True, "nogil": True}


@dataclass
class Light:
    """One lighting. Directions point to the light, in the frame of the normals; colours are linear radiance.

    sky, ground: (3,) the two halves of the environment about ``up`` (3,), which blend over ``blend``. boxes: (K, 7)
    soft boxes: direction, sharpness, colour. key: direction (3,) of a distant lamp, and its colour (3,), which is what
    it adds to a white matt surface that faces it. mirror: share of the environment that dielectrics reflect; below 1,
    as behind a polarising filter, black stays black.
    """

    sky: Array
    ground: Array
    up: Array
    blend: float = 0.6
    boxes: Array = field(default_factory=lambda: np.zeros((0, 7), np.float32))
    key: Array = field(default_factory=lambda: np.array([0, 0, 1, 0, 0, 0], np.float32))
    mirror: float = 1.0


@njit(**_FAST)
def _radiance(light, boxes, x, y, z, alpha, out):
    """The environment in a direction, blurred for a surface of GGX width alpha."""
    t = (x * light[6] + y * light[7] + z * light[8]) / (light[9] + alpha)
    t = min(max(0.5 + 0.5 * t, 0.0), 1.0)
    t = t * t * (3 - 2 * t)
    for c in range(3):
        out[c] = light[3 + c] + (light[c] - light[3 + c]) * t
    lobe = 0.5 / (alpha * alpha + 1e-3)
    for k in range(len(boxes)):
        s = boxes[k, 3]
        d = x * boxes[k, 0] + y * boxes[k, 1] + z * boxes[k, 2]
        w = lobe / (lobe + s) * math.exp(lobe * s / (lobe + s) * (d - 1))
        for c in range(3):
            out[c] += w * boxes[k, 4 + c]


@njit(**_FAST)
def _irradiance(light, boxes, x, y, z, out):
    """The environment's irradiance for a normal, divided by pi."""
    t = 0.5 + 0.42 * (x * light[6] + y * light[7] + z * light[8])
    for c in range(3):
        out[c] = light[3 + c] + (light[c] - light[3 + c]) * t
    for k in range(len(boxes)):
        s = boxes[k, 3]
        d = x * boxes[k, 0] + y * boxes[k, 1] + z * boxes[k, 2]
        soft = 1 / math.sqrt(s + 1)
        lit = max((d + soft) / (1 + soft), 0.0)
        w = 2 / s * (1 - math.exp(-2 * s)) * (lit if soft < 0.3 else lit * lit)
        for c in range(3):
            out[c] += w * boxes[k, 4 + c]


@njit(**_FAST)
def _lamp(nl, nv, nh, vh, alpha, f0):
    """The Cook-Torrance term times n.l, scaled so that a lamp of colour 1 gives n.l on a white matt surface."""
    a2 = alpha * alpha
    d = nh * nh * (a2 - 1) + 1
    distribution = a2 / (d * d)  # over pi: the lamp's colour is irradiance over pi
    smith = 0.5 / (nl * math.sqrt(nv * nv * (1 - a2) + a2) + nv * math.sqrt(nl * nl * (1 - a2) + a2) + 1e-5)
    fresnel = f0 + (1 - f0) * (1 - vh) ** 5
    return distribution * smith * fresnel * nl


@njit(**_FAST)
def _shade(albedo, normal, view, rough, metal, occlusion, shadow, light, boxes, out):
    env, irr = np.zeros(3), np.zeros(3)
    for i in range(len(albedo)):
        nx, ny, nz = normal[i, 0], normal[i, 1], normal[i, 2]
        vx, vy, vz = view[i, 0], view[i, 1], view[i, 2]
        nv = nx * vx + ny * vy + nz * vz
        rx, ry, rz = 2 * nv * nx - vx, 2 * nv * ny - vy, 2 * nv * nz - vz
        nv = min(max(nv, 0.02), 1.0)
        alpha = rough[i] * rough[i]
        _radiance(light, boxes, rx, ry, rz, alpha, env)
        _irradiance(light, boxes, nx, ny, nz, irr)
        # Karis, 2014: scale and offset of the reflected environment.
        r = rough[i]
        qx, qy, qz, qw = 1 - r, 0.0425 - 0.0275 * r, 1.04 - 0.572 * r, 0.022 * r - 0.04
        a = min(qx * qx, 2.0 ** (-9.28 * nv)) * qx + qy
        scale, offset = -1.04 * a + qz, 1.04 * a + qw
        lx, ly, lz = light[10], light[11], light[12]
        nl = min(max(nx * lx + ny * ly + nz * lz, 0.0), 1.0) * shadow[i]
        hx, hy, hz = lx + vx, ly + vy, lz + vz
        n = 1 / (math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-6)
        nh = min(max((nx * hx + ny * hy + nz * hz) * n, 0.0), 1.0)
        vh = min(max((vx * hx + vy * hy + vz * hz) * n, 0.0), 1.0)
        ao = occlusion[i]
        # Points in a hollow reflect the hollow, not the sky.
        glossy_ao = min(max((nv + ao) ** (2.0 ** (-16 * r - 1)) - 1 + ao, 0.0), 1.0)
        glossy_ao += (1 - glossy_ao) * 0.6 * metal[i]  # hollows of metals reflect themselves
        reflected_share = light[16] + (1 - light[16]) * metal[i]
        for c in range(3):
            base = albedo[i, c]
            f0 = 0.04 + (base - 0.04) * metal[i]
            mirrored = max(f0 * scale + max(offset, 0.0), 0.0)
            # Energy of multiple reflections on rough surfaces, and the remainder for the diffuse part.
            compensation = 1 + f0 * (1 / max(scale + offset, 0.1) - 1)
            matt = base * (1 - metal[i]) * (1 - min(mirrored * compensation, 1.0))
            total = matt * irr[c] * ao + env[c] * mirrored * compensation * glossy_ao * reflected_share
            if nl > 0:
                total += light[13 + c] * (matt * nl + compensation * _lamp(nl, nv, nh, vh, max(alpha, 0.004), f0))
            out[i, c] = total


def shade(
    albedo: Array,
    normal: Array,
    view: Array,
    roughness: Array,
    metalness: Array,
    occlusion: Array,
    shadow: Array,
    light: Light,
) -> Array:
    """Shade N points. Returns linear radiance (N, 3).

    albedo: (N, 3) linear. normal, view: (N, 3) unit vectors, view towards the eye. occlusion, shadow: (N,) visibility
    of the environment and of the key light, 1 if unoccluded.
    """
    packed = np.concatenate([light.sky, light.ground, light.up, [light.blend], light.key, [light.mirror]]).astype(
        np.float64
    )
    out = np.empty_like(albedo)
    _shade(
        albedo, normal, view, roughness, metalness, occlusion, shadow, packed, light.boxes.astype(np.float64), out
    )  # fmt: skip
    return out


def irradiance(light: Light, normal: Array) -> Array:
    """The light (3,) that a white matt surface with a normal (3,) reflects. It sets a picture's exposure."""
    white, one = np.ones((1, 3), np.float32), np.ones(1, np.float32)
    n = np.asarray(normal, np.float32)[None]
    rough, metal = np.ones(1, np.float32), np.zeros(1, np.float32)
    return shade(white, n, n, rough, metal, one, one, light)[0]


def to_linear(c: Array) -> Array:
    """Convert sRGB in [0, 1] to linear light, float32."""
    c = np.asarray(c, np.float32)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_srgb(c: Array) -> Array:
    """Convert linear light to sRGB in [0, 1], float32. Values brighter than white fade into white."""
    c = np.clip(np.asarray(c, np.float32), 0.0, None)
    c = np.where(c > 0.8, 1 - 0.2 * np.exp(-(c - 0.8) / 0.2), c)
    return np.where(c <= 0.0031308, c * 12.92, 1.055 * c ** (1 / 2.4) - 0.055).astype(np.float32)


def occlusion(height: Array, pixel: float, covered: Array | None = None) -> Array:
    """Ambient occlusion (H, W) of a height field, from a point's depth below its surroundings at two ranges.

    height: (H, W) in texture units; pixel: texture units a pixel; covered: (H, W) bool, where there is a surface.
    """
    total = np.ones_like(height)
    weight = None if covered is None else covered.astype(np.float32)
    for reach, strength in ((0.3, 1.6), (1.0, 0.8)):
        size = max(3, int(2 * reach / pixel) | 1)
        if weight is None:
            around = uniform_filter(height, size, mode="nearest")
        else:
            around = uniform_filter(height * weight, size) / np.maximum(uniform_filter(weight, size), 1e-3)
        below = np.maximum(around - height, 0) / reach
        total *= 1 / (1 + strength * below)
    return total


def height_normals(height: Array, pixel: float) -> Array:
    """Unit normals (H, W, 3) of a height field seen from above: x right, y up the picture, z to the viewer."""
    dy, dx = np.gradient(height, pixel)
    n = np.stack([-dx, dy, np.ones_like(height)], -1)
    return (n / np.linalg.norm(n, axis=-1, keepdims=True)).astype(np.float32)


@njit(**_FAST)
def _cast(height, pixel, lx, ly, lz, steps, out):
    rows, columns = height.shape
    flat = math.sqrt(lx * lx + ly * ly) + 1e-6
    ux, uy, rise = lx / flat, -ly / flat, lz / flat
    for j in range(rows):
        for i in range(columns):
            lit = 1.0
            step = 1.5
            at = step
            for _ in range(steps):
                x, y = int(i + ux * at + 0.5), int(j + uy * at + 0.5)
                if x < 0 or y < 0 or x >= columns or y >= rows:
                    break
                over = (height[y, x] - height[j, i]) - rise * at * pixel
                lit = min(lit, 1 - 6 * over / (at * pixel + 0.05))
                at += step
                step *= 1.2
            out[j, i] = min(max(lit, 0.0), 1.0)


def cast_shadow(height: Array, pixel: float, direction: Array) -> Array:
    """Visibility (H, W), in [0, 1], of a lamp from a height field, with soft shadows.

    ``direction`` (3,) points to the lamp, in the frame of `height_normals`.
    """
    out = np.empty_like(height)
    lx, ly, lz = (float(v) for v in direction)
    if lz <= 0.02:
        return np.zeros_like(height)
    _cast(height, pixel, lx, ly, lz, 12, out)
    return out


@njit(**_FAST)
def _bump(position, normal, height, part, limit, out):
    rows, columns = height.shape
    for j in range(rows):
        for i in range(columns):
            k = part[j, i]
            for c in range(3):
                out[j, i, c] = normal[j, i, c]
            if k < 0:
                continue
            a = i + 1 if i + 1 < columns and part[j, i + 1] == k else i
            b = i - 1 if i > 0 and part[j, i - 1] == k else i
            d = j + 1 if j + 1 < rows and part[j + 1, i] == k else j
            e = j - 1 if j > 0 and part[j - 1, i] == k else j
            if a == b or d == e:
                continue
            ux, uy, uz = (
                position[j, a, 0] - position[j, b, 0],
                position[j, a, 1] - position[j, b, 1],
                position[j, a, 2] - position[j, b, 2],
            )
            vx, vy, vz = (
                position[d, i, 0] - position[e, i, 0],
                position[d, i, 1] - position[e, i, 1],
                position[d, i, 2] - position[e, i, 2],
            )
            hu, hv = height[j, a] - height[j, b], height[d, i] - height[e, i]
            # Ignore the steps where faces of the box mapping meet.
            lu, lv = math.sqrt(ux * ux + uy * uy + uz * uz), math.sqrt(vx * vx + vy * vy + vz * vz)
            if abs(hu) > limit * lu or abs(hv) > limit * lv:
                hu, hv = min(max(hu, -0.3 * lu), 0.3 * lu), min(max(hv, -0.3 * lv), 0.3 * lv)
            nx, ny, nz = normal[j, i, 0], normal[j, i, 1], normal[j, i, 2]
            # Mikkelsen, 2010: the gradient of the height along the surface from differences in the picture.
            ax, ay, az = vy * nz - vz * ny, vz * nx - vx * nz, vx * ny - vy * nx
            bx, by, bz = ny * uz - nz * uy, nz * ux - nx * uz, nx * uy - ny * ux
            det = ux * ax + uy * ay + uz * az
            s = 1.0 if det > 0 else -1.0
            px = abs(det) * nx - s * (hu * ax + hv * bx)
            py = abs(det) * ny - s * (hu * ay + hv * by)
            pz = abs(det) * nz - s * (hu * az + hv * bz)
            n = math.sqrt(px * px + py * py + pz * pz)
            if n > 1e-12:
                out[j, i, 0], out[j, i, 1], out[j, i, 2] = px / n, py / n, pz / n


def displaced_normals(position: Array, normal: Array, height: Array, part: Array) -> Array:
    """Normals (H, W, 3) of a surface displaced by ``height`` (H, W), in the unit of ``position`` (H, W, 3).

    ``part`` (H, W) int: pixels of different parts, or without one (-1), do not affect each other.
    """
    out = np.empty_like(normal)
    _bump(position, normal, height, part, 3.0, out)
    return out
