"""Converts the material of each texel to the images of an asset's maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bake.bake import EMISSIVE, HEIGHT, METALLIC_ROUGHNESS, NORMAL, OCCLUSION, BakedMaps
from pipeline.bake.exemplar_maps import ExemplarSettings, emitted, height_image, normal_bytes, to_bytes
from pipeline.bake.surface_maps import Surface, occlusion_of_texels, tangent_normals
from pipeline.core.arrays import Float32Array


@dataclass(frozen=True)
class TexelMaterial:
    """The material of M texels, float32.

    Attributes:
        roughness, metalness, glow: (M,) in [0, 1].
        height: (M,) in units of the input mesh.
        gradient: (M, 3) gradient of the height on the surface, working frame.
        colour: (M, 3) sRGB in [0, 1].
    """

    roughness: Float32Array
    metalness: Float32Array
    glow: Float32Array
    height: Float32Array
    gradient: Float32Array
    colour: Float32Array


@dataclass(frozen=True)
class MeshFrame:
    """How the input mesh lies in the working frame.

    Attributes:
        rotation: (3, 3) from the input frame to the working frame: ``working = input @ rotation.T`` for row vectors.
        scale: working units per input unit.
        crease_angle: of the shading normals, radians.
    """

    rotation: NDArray[np.float64]
    scale: float = 1.0
    crease_angle: float = math.radians(60)


def map_images(surface: Surface, material: TexelMaterial, options: ExemplarSettings, frame: MeshFrame) -> BakedMaps:
    """The maps that ``options`` request, except the base colour. The notes give the height map's span."""
    maps: dict[str, NDArray[np.uint8]] = {}
    notes: dict[str, Any] = {}
    if NORMAL in options.maps:
        gradient = material.gradient @ frame.rotation
        vectors = tangent_normals(surface.uvmesh, surface.texels, gradient, frame.crease_angle)
        maps[NORMAL] = surface.spread(normal_bytes(vectors))
    sky = np.ones(len(material.height), np.float32)
    if OCCLUSION in options.maps:
        sky = occlusion_of_texels(surface)
        maps[OCCLUSION] = surface.spread(to_bytes(np.repeat(sky[:, None], 3, axis=1)))
    if METALLIC_ROUGHNESS in options.maps:
        packed = np.stack([sky, material.roughness, material.metalness], axis=1)
        maps[METALLIC_ROUGHNESS] = surface.spread(to_bytes(packed))
    if EMISSIVE in options.maps:
        maps[EMISSIVE] = surface.spread(to_bytes(emitted(material.colour, material.glow)))
    height = None
    if HEIGHT in options.maps:
        height, span = height_image(surface.spread(material.height[:, None])[..., 0])
        notes["height_span"] = float(f"{span:.6g}")
    return BakedMaps(maps, notes, height)
