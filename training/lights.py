"""Random lighting: soft, so that colours match their words, or varied, to learn to separate material from light."""

from __future__ import annotations

import math

import numpy as np

from training.shading import Array, Light, irradiance

Rng = np.random.Generator


def _unit(v: Array) -> Array:
    return np.asarray(v, np.float64) / np.linalg.norm(v)


def _tint(g: Rng, spread: float) -> Array:
    """A random light colour from warm to cool, with a little green or magenta."""
    warm, green = g.normal(0, spread), g.normal(0, 0.25 * spread)
    return np.array([1 + warm, 1 + green, 1 - warm])


def exposed(light: Light, facing: Array, level: float) -> Light:
    """``light`` scaled so that a white matt surface with the normal ``facing`` reflects ``level``."""
    k = level / max(float(irradiance(light, facing).mean()), 1e-3)
    boxes, key = light.boxes.copy(), light.key.copy()
    boxes[:, 4:7] *= k
    key[3:6] *= k
    return Light(light.sky * k, light.ground * k, light.up, light.blend, boxes, key, light.mirror)


def soft(g: Rng, facing: Array, upward: Array, metallic: bool, flat: bool) -> Light:
    """Broad, nearly white lighting without hot spots.

    ``facing`` is the normal of the most visible surface, ``upward`` the direction of the sky. For ``metallic`` surfaces
    sky and ground differ more, so that there is something to mirror.
    """
    up = _unit(np.asarray(upward) + (0.08 if metallic else 0.35) * np.asarray(facing) + g.normal(0, 0.1, 3))
    if metallic:
        sky, ground, blend = g.uniform(1.5, 1.7), g.uniform(0.2, 0.32), g.uniform(0.4, 0.55)
    else:
        sky, ground, blend = g.uniform(1.1, 1.3), g.uniform(0.4, 0.65), g.uniform(0.5, 0.8)
    side = np.cross(upward, facing)
    key = _unit(np.asarray(facing) + side * g.normal(0, 0.6) + np.asarray(upward) * abs(g.normal(0.5, 0.35)))
    strength = 0.0 if metallic and flat else g.uniform(0.12, 0.4) * (0.4 if metallic else 1.0)
    light = Light(sky * _tint(g, 0.02), ground * _tint(g, 0.03), up, blend, mirror=0.35 if flat else 0.7)
    light.key = np.concatenate([key, strength * _tint(g, 0.03)])
    if not flat:
        box = _unit(np.asarray(facing) + side * g.choice([-1, 1]) * g.uniform(0.4, 1.0) + np.asarray(upward) * 0.6)
        light.boxes = np.concatenate([box, [g.uniform(4, 9)], np.full(3, g.uniform(0.3, 0.9))])[None].astype(np.float32)
    return exposed(light, facing, float(g.uniform(1.0, 1.12)))


def varied(g: Rng, facing: Array, upward: Array) -> Light:
    """Random lighting between an overcast sky and one hard lamp, of any warmth and exposure."""
    side = np.cross(upward, facing)
    up = _unit(np.asarray(upward) + g.normal(0, 0.35, 3))
    contrast = math.exp(g.uniform(0.0, 2.2))
    light = Light(contrast**0.5 * _tint(g, 0.1), contrast**-0.5 * _tint(g, 0.14), up, g.uniform(0.15, 0.9))
    boxes = []
    for _ in range(int(g.integers(0, 4))):
        d = _unit(
            np.asarray(facing) * g.uniform(-0.2, 1.2) + side * g.normal(0, 1) + np.asarray(upward) * g.normal(0.3, 0.7)
        )
        sharpness = math.exp(g.uniform(1.0, 4.0))
        boxes.append([*d, sharpness, *(g.uniform(0.3, 1.0) * sharpness**0.6 * _tint(g, 0.12))])
    light.boxes = np.array(boxes, np.float32).reshape(-1, 7)
    key = _unit(
        np.asarray(facing) * g.uniform(0.25, 1.2) + side * g.normal(0, 0.8) + np.asarray(upward) * g.normal(0.3, 0.6)
    )
    strength = math.exp(g.uniform(-1.5, 1.0)) if g.random() < 0.8 else 0.0
    light.key = np.concatenate([key, strength * _tint(g, 0.12)])
    return exposed(light, facing, float(math.exp(g.uniform(-0.6, 0.25))))
