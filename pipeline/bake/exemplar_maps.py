"""The maps of a tileable exemplar: an estimator's results, with the row's own values in place of estimates.

The maps wrap around like the exemplar. ``bake.material`` lays them over a mesh; the recipe material writes them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bake.bake import BASE_COLOUR, EMISSIVE, HEIGHT, METALLIC_ROUGHNESS, NORMAL, OCCLUSION
from pipeline.core.arrays import Float32Array
from pipeline.prior.material_estimator import MaterialEstimator
from pipeline.prior.material_folder import needs_estimator

#: Maps that need an estimator, unless the row gives their values.
ESTIMATED = (NORMAL, METALLIC_ROUGHNESS, HEIGHT)
# Slopes are clamped to this: steeper ones are mistakes, and 8 bits represent them poorly.
_STEEPEST = 4.0
# The least roughness. No real surface is smoother.
_SMOOTHEST = 0.04
# Quantiles of the luminance between which an emissive surface begins to glow.
_GLOW = (0.5, 0.9)


@dataclass(frozen=True)
class ExemplarSettings:
    """The requested maps, and the row's values in place of estimates.

    maps: names as in ``bake.bake``. metallic, roughness: one value for the whole surface, or None. roughness_min,
    roughness_max: the values to which the least and the greatest estimated roughness are mapped, or None.
    normal_strength: factor of the height. delight: whether light and shadow are removed from the base colour.
    """

    maps: tuple[str, ...] = ()
    metallic: float | None = None
    roughness: float | None = None
    roughness_min: float | None = None
    roughness_max: float | None = None
    normal_strength: float = 1.0
    delight: bool = True

    @property
    def needs_estimator(self) -> bool:
        """Whether a requested map has values that the row does not give."""
        return needs_estimator(self.maps, given=self.metallic is not None and self.roughness is not None)


@dataclass(frozen=True)
class ExemplarMaps:
    """Maps of one exemplar, float32, which wrap around.

    base_colour: (H, W, 3) sRGB in [0, 1]. roughness, metalness, glow: (H, W) in [0, 1]. height: (H, W) in pixels of the
    exemplar, strength included. slopes: (H, W, 2) of that height, to the right and down. notes: for the record.
    """

    base_colour: Float32Array
    roughness: Float32Array
    metalness: Float32Array
    glow: Float32Array
    height: Float32Array
    slopes: Float32Array
    notes: dict[str, Any]


def exemplar_maps(image: Float32Array, options: ExemplarSettings, estimator: MaterialEstimator | None) -> ExemplarMaps:
    """The maps of ``image`` (H, W, 3) in [0, 1], which wraps around. Raises ValueError if ``options`` need an estimator
    and there is none."""
    plane = np.zeros(image.shape[:2], np.float32)
    colour, rough, metal, height = image, plane + 1, plane, plane
    confidence: dict[str, float] = {}
    if options.needs_estimator:
        if estimator is None:
            raise ValueError("maps: the prior has no network that estimates materials")
        estimates = estimator.estimate(np.ascontiguousarray(image.transpose(2, 0, 1))[None], tileable=True)
        rough, metal, height = estimates.roughness[0, 0], estimates.metalness[0, 0], estimates.height[0, 0]
        if options.delight:
            colour = np.ascontiguousarray(estimates.base_colour[0].transpose(1, 2, 0))
        names = ("base_colour", "roughness_and_metalness", "height")
        means = estimates.confidence[0].mean(axis=(1, 2))
        confidence = {name: round(float(mean), 3) for name, mean in zip(names, means, strict=True)}
    height = (height * np.float32(options.normal_strength)).astype(np.float32)
    name = estimator.identity if estimator is not None and options.needs_estimator else ""
    return ExemplarMaps(
        colour,
        roughness_of(rough, options),
        metal if options.metallic is None else plane + np.float32(options.metallic),
        glow_of(colour),
        height,
        slopes_of(height),
        source_notes(options, name, confidence),
    )


def source_notes(options: ExemplarSettings, estimator: str, confidence: dict[str, float]) -> dict[str, Any]:
    """Notes for the record: the origin of each map, and the mean confidence of ``estimator`` ("" for none)."""
    sources = {BASE_COLOUR: "estimated" if estimator and options.delight else "sampled"}
    sources |= {name: "estimated" for name in options.maps if name in ESTIMATED}
    if METALLIC_ROUGHNESS in options.maps and options.metallic is not None and options.roughness is not None:
        sources[METALLIC_ROUGHNESS] = "given"
    if EMISSIVE in options.maps:
        sources[EMISSIVE] = "derived"
    if OCCLUSION in options.maps:
        sources[OCCLUSION] = "measured"
    return {"map_sources": sources} | ({"estimator": estimator, "confidence": confidence} if estimator else {})


def roughness_of(estimated: Float32Array, options: ExemplarSettings) -> Float32Array:
    """``estimated`` roughness of any shape, replaced or rescaled as the row requests."""
    if options.roughness is not None:
        return np.full_like(estimated, options.roughness)
    low, high = float(estimated.min()), float(estimated.max())
    least = low if options.roughness_min is None else options.roughness_min
    most = max(least, high if options.roughness_max is None else options.roughness_max)
    least = min(least, most)
    share = (estimated - low) / max(high - low, 1e-6)
    result: Float32Array = np.clip(least + share * (most - least), _SMOOTHEST, 1).astype(np.float32)
    return result


def glow_of(colour: Float32Array) -> Float32Array:
    """The share (...) of its colour (..., 3) that each place emits, in [0, 1]: 1 for the bright parts of lava."""
    brightness = colour.max(axis=-1)
    low, high = np.quantile(brightness, _GLOW)
    share = np.clip((brightness - low) / max(float(high - low), 1e-3), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def slopes_of(height: Float32Array) -> Float32Array:
    """Slopes (H, W, 2) of a height (H, W) in pixels that wraps around, to the right and down: central differences."""
    right = (np.roll(height, -1, axis=1) - np.roll(height, 1, axis=1)) / 2
    down = (np.roll(height, -1, axis=0) - np.roll(height, 1, axis=0)) / 2
    slopes = np.stack([right, down], axis=2)
    steep = np.linalg.norm(slopes, axis=2, keepdims=True)
    return np.asarray(slopes * np.minimum(1, _STEEPEST / np.maximum(steep, 1e-9)), np.float32)


def at_size(maps: ExemplarMaps, scale: Callable[[Float32Array], Float32Array], size: int) -> ExemplarMaps:
    """``maps`` scaled to ``size`` pixels a side; ``scale`` scales planes (H, W, C). Heights stay in the exemplar's
    pixels, because slopes do not depend on the size."""
    planes = np.stack([maps.roughness, maps.metalness, maps.glow], axis=2)
    rough, metal, glow = np.clip(scale(planes), 0, 1).transpose(2, 0, 1)
    height = scale(maps.height[..., None])[..., 0]
    slopes = slopes_of((height * np.float32(size / len(maps.height))).astype(np.float32))
    colour = np.clip(scale(maps.base_colour), 0, 1).astype(np.float32)
    return replace(maps, base_colour=colour, roughness=rough, metalness=metal, glow=glow, height=height, slopes=slopes)


def flat_images(maps: ExemplarMaps, names: tuple[str, ...]) -> dict[str, NDArray[np.uint8]]:
    """The exemplar's maps as images, (H, W, 3) uint8, by name: those of ``names`` that a plane can have.

    Normals are those of a plane with its texture upright, +Y up. A plane has no occlusion, so the occlusion channel of
    metallic_roughness is white.
    """
    plain = np.concatenate([-maps.slopes[..., :1], maps.slopes[..., 1:], np.ones_like(maps.slopes[..., :1])], axis=2)
    normal = plain / np.linalg.norm(plain, axis=2, keepdims=True)
    white = np.ones_like(maps.roughness)
    images = {
        "base_colour": to_bytes(maps.base_colour),
        NORMAL: normal_bytes(normal),
        METALLIC_ROUGHNESS: to_bytes(np.stack([white, maps.roughness, maps.metalness], axis=2)),
        EMISSIVE: to_bytes(emitted(maps.base_colour, maps.glow)),
    }
    return {name: image for name, image in images.items() if name in names}


def height_image(height: Float32Array) -> tuple[NDArray[np.uint16], float]:
    """A height (H, W) as 16-bit grey from its lowest to its highest point, and the range of heights in its unit."""
    low, span = float(height.min()), float(np.ptp(height))
    grey = (height - low) / (span or 1.0)
    return np.ascontiguousarray(np.rint(grey * 65535).astype(np.uint16)), span


def emitted(colour: Float32Array, glow: Float32Array) -> Float32Array:
    """The sRGB colour emitted by a surface of ``colour`` (..., 3) sRGB: ``glow`` (...) of its linear colour."""
    return np.asarray(colour * np.maximum(glow, 0)[..., None] ** (1 / 2.4), np.float32)


def to_bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """[0, 1] to uint8, rounded and clamped."""
    return np.ascontiguousarray(np.clip(np.rint(values * 255), 0, 255).astype(np.uint8))


def normal_bytes(normal: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Unit vectors to uint8; a zero is 128."""
    return np.ascontiguousarray(np.clip(np.floor(normal * 127.5 + 128), 0, 255).astype(np.uint8))
