"""The light of the previews: soft light that shows a base colour as it is, and reflections for metals and gloss.

All colours are linear. Directions point away from the surface; "camera" space has +X right, +Y up, +Z to the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.core.arrays import Float32Array

# Diffuse light, as factors of the colour. The key light is at the upper left behind the viewer (camera space).
_KEY_FROM = np.array([-0.46, 0.56, 0.69], np.float32) / np.float32(np.linalg.norm([-0.46, 0.56, 0.69]))
_KEY, _SKY, _GROUND = 0.70, 0.42, 0.27
_WRAP = 0.25
# What mirrors show: a bright sky and a dark ground, which meet at a soft horizon, and soft boxes in camera space,
# each with direction, sharpness (of a spherical Gaussian) and radiance.
_SKY_SEEN, _GROUND_SEEN, _HORIZON = 0.85, 0.18, 0.30
_BOXES = (
    (np.array([-0.55, 0.62, 0.56], np.float32), 14.0, 2.4),
    (np.array([0.85, 0.30, 0.43], np.float32), 9.0, 1.1),
    (np.array([0.05, -0.15, 0.99], np.float32), 4.0, 0.45),
)
# Reflectance of dielectrics at normal incidence (glTF 2.0, appendix B).
_DIELECTRIC = 0.04


@dataclass(frozen=True)
class Surface:
    """What is seen in M places of a picture, in linear light.

    Attributes:
        base_colour: (M, 3) linear.
        normal: (M, 3) unit, +Y up. in_camera: the same in camera space.
        view: (M, 3) unit, from the surface to the eye, in camera space.
        up: (3,) the world's +Y axis in camera space.
        roughness, metalness, occlusion: (M,) in [0, 1], as in glTF.
        emission: (M, 3) linear.
    """

    base_colour: Float32Array
    normal: Float32Array
    in_camera: Float32Array
    view: Float32Array
    up: Float32Array
    roughness: Float32Array
    metalness: Float32Array
    occlusion: Float32Array
    emission: Float32Array


def diffuse_light(normal: Float32Array, in_camera: Float32Array) -> Float32Array:
    """Light factors (M,) at unit normals (M, 3), given in world and in camera space."""
    key = np.maximum((in_camera @ _KEY_FROM + _WRAP) / (1 + _WRAP), 0)
    sky = 0.5 + 0.5 * normal[:, 1]
    return np.asarray(_KEY * key + _GROUND + (_SKY - _GROUND) * sky, np.float32)


def shade(surface: Surface) -> Float32Array:
    """Linear radiance (M, 3) towards the viewer: metallic-roughness as in glTF 2.0, appendix B, under the environment.

    The reflected environment is blurred by roughness in closed form, and weighted by Karis's fit of the split sum
    (2014), "Physically Based Shading on Mobile".
    """
    metal = surface.metalness[:, None]
    facing = np.clip(np.einsum("mi,mi->m", surface.in_camera, surface.view), 0.02, 1)
    scale, offset = _split_sum(facing, surface.roughness)
    normal_reflectance = _DIELECTRIC + (surface.base_colour - _DIELECTRIC) * metal
    mirrored = normal_reflectance * scale[:, None] + offset[:, None]
    reflected = 2 * facing[:, None] * surface.in_camera - surface.view
    environment = _environment(reflected, surface.up, surface.roughness)
    # A hollow mirrors the hollow, not the sky (Lagarde and de Rousiers, 2014).
    openness = np.clip(
        (facing + surface.occlusion) ** np.exp2(-16 * surface.roughness - 1) - 1 + surface.occlusion, 0, 1
    )
    matt = surface.base_colour * (1 - metal) * diffuse_light(surface.normal, surface.in_camera)[:, None]
    radiance = matt * surface.occlusion[:, None] + mirrored * (environment * openness)[:, None] + surface.emission
    return np.asarray(radiance, np.float32)


def _split_sum(facing: Float32Array, roughness: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Scale and offset (M,) of the reflectance at normal incidence, for cosines and roughness (M,)."""
    x = 1 - roughness
    falloff = np.minimum(x * x, np.exp2(-9.28 * facing)) * x + 0.0425 - 0.0275 * roughness
    scale = -1.04 * falloff + 1.04 - 0.572 * roughness
    offset = np.maximum(1.04 * falloff + 0.022 * roughness - 0.04, 0)
    return scale.astype(np.float32), offset.astype(np.float32)


def _environment(direction: Float32Array, up: Float32Array, roughness: Float32Array) -> Float32Array:
    """Grey radiance (M,) of the environment in camera-space directions (M, 3), blurred as by ``roughness`` (M,)."""
    alpha = roughness * roughness
    height = np.clip(0.5 + 0.5 * (direction @ up) / (_HORIZON + alpha), 0, 1)
    radiance = _GROUND_SEEN + (_SKY_SEEN - _GROUND_SEEN) * height * height * (3 - 2 * height)
    lobe = 0.5 / (alpha * alpha + 1e-3)
    for towards, sharpness, strength in _BOXES:
        # The product of two spherical Gaussians: the box, and the lobe of the reflection.
        both = lobe * sharpness / (lobe + sharpness)
        cosine = direction @ (towards / np.linalg.norm(towards))
        radiance = radiance + strength * lobe / (lobe + sharpness) * np.exp(both * (cosine - 1))
    return np.asarray(radiance, np.float32)
