"""Covers a surface with a tileable exemplar at one scale, without visible repetition and without loss of contrast.

The exemplar is projected along several directions, and each point blends the directions closest to its normal. The
colour of a point depends on its position and normal alone. So both sides of a chart border get the same colour, and the
pattern does not depend on the texture's size.

* A *stochastic* exemplar (moss, rust, leather) is looked up by hexagonal tiles with random offsets (Heitz and Neyret,
  "High-Performance By-Example Noise using a Histogram-Preserving Blending Operator", 2018). Gaussianised values are
  blended and divided by the norm of the weights, which preserves variance and contrast.
* A *regular* exemplar (bricks, checks, planks) is looked up periodically to keep its period. Neighbouring directions
  share the height coordinate, so courses meet at corners. The bands in which directions blend are narrow.

Shapes: M surface points, D directions, H x W pixels of the exemplar. Positions are in the working frame (+Y up).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from pipeline.core import backends
from pipeline.core.arrays import Float32Array
from pipeline.painting.tiling.layout import TABLE_REACH, TABLE_SIZE, Exemplar, Projectors

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

Layout = Literal["auto", "periodic", "hexagonal"]

# An exemplar is regular if its autocorrelation exceeds this value away from the origin. Measured
# on the embedded prior: bricks 0.73, checks 0.80, scales 0.56; moss 0.27, leather 0.13, leopard 0.11.
REGULAR = 0.45
# Concentration of the weights around the closest direction: exp(k cos) falls to a tenth within a few degrees of the
# border between two directions.
_SHARPNESS = {"periodic": 60.0, "hexagonal": 25.0}


def regularity(image: Float[Float32Array, "height width 3"]) -> float:
    """How regular ``image`` (H, W, 3) is: 1 for a perfect pattern, near 0 for noise, 0 for a plain colour.

    The highest autocorrelation of its luminance at shifts between 6 % and 45 % of its side.
    """
    luminance = image @ np.array([0.299, 0.587, 0.114], np.float32)
    spectrum = np.abs(np.fft.fft2(luminance - luminance.mean())) ** 2
    correlation = np.fft.fftshift(np.fft.ifft2(spectrum).real)
    peak = float(correlation.max())
    if peak <= 1e-9 * luminance.size:
        return 0.0
    height, width = luminance.shape
    rows, columns = np.mgrid[:height, :width]
    shift = np.hypot((rows - height // 2) / height, (columns - width // 2) / width)
    return float(correlation[(shift > 0.06) & (shift < 0.45)].max()) / peak


def prepare_exemplar(image: Float[Float32Array, "height width 3"], layout: Layout = "auto") -> Exemplar:
    """Prepare ``image`` (H, W, 3) in [0, 1], which wraps around at its borders, for ``shade_surface``.

    ``auto`` chooses by ``regularity``.
    """
    layout_kind = layout if layout != "auto" else "periodic" if regularity(image) > REGULAR else "hexagonal"
    pixels = np.asarray(image, np.float64).reshape(-1, 3)
    mean = pixels.mean(axis=0)
    _, _, axes = np.linalg.svd(pixels - mean, full_matrices=False)
    # The sign of a singular vector is arbitrary: fix it, so that any LAPACK gives the same table.
    axes *= np.where(axes[np.arange(3), np.abs(axes).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    components = (pixels - mean) @ axes.T
    ranks = (np.arange(len(pixels)) + 0.5) / len(pixels)
    gaussian = np.empty_like(components)
    table = np.empty((3, TABLE_SIZE))
    quantiles = ndtr(np.linspace(-TABLE_REACH, TABLE_REACH, TABLE_SIZE))
    for channel in range(3):
        order = np.argsort(components[:, channel], kind="stable")
        gaussian[order, channel] = ndtri(ranks)
        table[channel] = np.interp(quantiles, ranks, components[order, channel])
    values = gaussian.reshape(image.shape) if layout_kind == "hexagonal" else image
    return Exemplar(_floats(values), layout_kind, _floats(table), _floats(axes), _floats(mean))


def _floats(values: NDArray[np.floating]) -> Float32Array:
    return np.ascontiguousarray(values, np.float32)


@functools.lru_cache(maxsize=64)
def projectors(layout: Literal["periodic", "hexagonal"], seed: int) -> Projectors:
    """The directions of projection for ``layout``.

    There are eight around the upright axis, the top and the bottom. ``hexagonal`` has eight more at 45 degrees above
    and eight below, which limit the stretching to a fifth. ``seed`` draws the offsets. For ``periodic`` the eight
    upright directions have no vertical offset, so that rows of the pattern continue around the object.
    """
    random = np.random.default_rng([seed, 7331])
    elevations = (0.0,) if layout == "periodic" else (0.0, 45.0, -45.0)
    normals, rights = [], []
    for elevation in elevations:
        for azimuth in range(0, 360, 45):
            phi, theta = math.radians(azimuth), math.radians(elevation)
            normals.append([math.cos(theta) * math.sin(phi), math.sin(theta), math.cos(theta) * math.cos(phi)])
            rights.append([math.cos(phi), 0.0, -math.sin(phi)])
    normals += [[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]
    rights += [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    normal, right = np.array(normals), np.array(rights)
    offset = random.random((len(normal), 2))
    if layout == "periodic":
        offset[:8, 1] = 0
    down = np.cross(right, normal)
    return Projectors(_floats(normal), _floats(right), _floats(down), _floats(offset), _SHARPNESS[layout])


def shade_surface(
    exemplar: Exemplar,
    position: Float[NDArray[np.floating], "points 3"],
    normal: Float[NDArray[np.floating], "points 3"],
    tile: float,
    seed: int,
    *,
    backend: str = "auto",
) -> Float32[Float32Array, "points 3"]:
    """The colours (M, 3) in [0, 1] of surface points.

    Args:
        position: (M, 3), working frame. normal: (M, 3), unit length, outwards.
        tile: side of the exemplar on the surface, in units of ``position``.
        seed: of the random offsets.
        backend: "numba", "numpy", or "auto".

    Raises ValueError for a ``tile`` that is not positive, BackendError.
    """
    if not tile > 0:
        raise ValueError(f"tile is {tile}; it must be positive")
    points = np.ascontiguousarray(np.asarray(position, np.float64) / tile, np.float32)
    normals = np.ascontiguousarray(normal, np.float32)
    directions = projectors(exemplar.layout, seed)
    module = backends.load(__name__, backends.select_backend("tiling", backend).name)
    colours: Float32Array = module.blend(exemplar, directions, points, normals, np.uint32(seed & 0xFFFFFFFF))
    return colours


def tile_maps(
    values: Float[NDArray[np.floating], "height width channels"],
    slopes: Float[NDArray[np.floating], "height width 2"],
    layout: Literal["periodic", "hexagonal"],
    position: Float[NDArray[np.floating], "points 3"],
    normal: Float[NDArray[np.floating], "points 3"],
    tile: float,
    seed: int,
    *,
    backend: str = "auto",
) -> tuple[Float32[Float32Array, "points channels"], Float32[Float32Array, "points 3"]]:
    """Further maps of an exemplar at surface points, projected in the same way as the colours of ``shade_surface``.

    Args:
        values: (H, W, K) any K channels; (H, W, 2) ``slopes`` of its height, to the right and down the picture, as
            height over distance.
        layout: of the prepared exemplar. Other arguments as for ``shade_surface``.

    Hexagonal tiles blend differences from the mean and divide by the norm of the weights, which keeps variance; the
    result stays within a channel's range. Returns the channels (M, K) and the gradient (M, 3) of the height, in the
    frame of ``position``: as a surface gradient (Mikkelsen, "Surface Gradient-Based Bump Mapping Framework", 2020) it
    still has a part along the normal. Raises ValueError for a ``tile`` that is not positive, BackendError.
    """
    if not tile > 0:
        raise ValueError(f"tile is {tile}; it must be positive")
    channels = np.asarray(values, np.float64)
    mean = channels.mean(axis=(0, 1))
    points = np.ascontiguousarray(np.asarray(position, np.float64) / tile, np.float32)
    module = backends.load(__name__, backends.select_backend("tiling", backend).name)
    blended: Float32Array = module.blend_maps(
        _floats(np.concatenate([channels - mean, slopes], axis=2)),
        layout == "hexagonal",
        projectors(layout, seed),
        points,
        np.ascontiguousarray(normal, np.float32),
        np.uint32(seed & 0xFFFFFFFF),
    )
    count = len(mean)
    lowest, highest = channels.min(axis=(0, 1)), channels.max(axis=(0, 1))
    return _floats(np.clip(blended[:, :count] + mean, lowest, highest)), blended[:, count:]
