"""Samples of the training streams: pictures with words for the prior, pictures with maps for the material network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.compose import Composition, compose
from training.scene import Picture, flat_picture, view_picture

#: Share of the material network's pictures under varied light. The others are lit like the prior's images.
_ANY_LIGHT = 0.7
#: 8-bit steps per pixel of relief.
RELIEF = 16.0


@dataclass
class Sample:
    """One training image: pixels uint8 (S, S, 3), caption, labels (-1: none or ambiguous)."""

    pixels: np.ndarray
    caption: str
    material: int
    colour: int
    thing: int
    view: int
    close: bool


def picture(c: Composition, size: int) -> Picture:
    """Draw a composition at size x size pixels."""
    return flat_picture(c.scene, size) if c.camera is None else view_picture(c.scene, c.camera, size)


def to_bytes(a: np.ndarray) -> np.ndarray:
    """Convert values in [0, 1] to uint8."""
    return (np.clip(a, 0, 1) * 255 + 0.5).astype(np.uint8)


def make(seed: int, index: int, size: int = 64, finer: float = 0.0) -> Sample:
    """Draw image number ``index`` of stream ``seed`` (`compose`)."""
    c = compose(seed, index, size, finer)
    return Sample(to_bytes(picture(c, size).lit), c.caption, c.material, c.colour, c.thing, c.view, c.close)


def stream(seed: int, start: int = 0, size: int = 64) -> Iterator[Sample]:
    """Yield the samples of a stream endlessly, from index ``start`` on."""
    while True:
        yield make(seed, start, size)
        start += 1


def views(seed: int, index: int, cameras: list[np.ndarray], size: int) -> list[Picture]:
    """Draw the object of image ``index`` from other cameras (`scene.around`), under the same light.

    Raises ValueError if the image shows no object.
    """
    c = compose(seed, index, size)
    if c.camera is None:
        raise ValueError(f"image {index} of stream {seed} is a flat piece, which has no other views")
    return [view_picture(c.scene, camera, size) for camera in cameras]


@dataclass
class MaterialSample:
    """One picture for the material network, uint8.

    lit, albedo: (S, S, 3) sRGB. maps: (S, S, 6): roughness, metalness, relief (128 + `RELIEF` per pixel), the detail
    normal's x and y (128 + 127 n), and the share of the pixel that the subject covers.
    """

    lit: np.ndarray
    albedo: np.ndarray
    maps: np.ndarray


def make_material(seed: int, index: int, size: int = 128) -> MaterialSample:
    """Draw picture number ``index`` of a stream for the material network."""
    g = np.random.default_rng([seed, index, 2])
    c = compose(seed, index, size, any_light=bool(g.random() < _ANY_LIGHT))
    p = picture(c, size)
    maps = [
        p.roughness,
        p.metalness,
        0.5 + p.relief * RELIEF / 255,
        0.5 + p.detail[..., 0] * 127 / 255,
        0.5 + p.detail[..., 1] * 127 / 255,
        p.coverage,
    ]
    return MaterialSample(to_bytes(p.lit), to_bytes(p.albedo), np.stack([to_bytes(m) for m in maps], -1))
