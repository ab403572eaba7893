"""Computes cheap figures of a texture's quality: sharpness, contrast, faded places, density of texels, seams.

``benchmarks/texture_measures.py`` measures the same on pictures of the asset by another renderer. These figures are
taken from the texture itself, weighted by the area that each texel has on the surface, at the benchmark's scale: 160
pixels to the object's radius (the distance of its farthest vertex from the middle of its bounding box). Luminance and
steps are in units of 8 bits, 0 to 255.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.bake.atlas import texel_map
from pipeline.bake.seams import seam_step
from pipeline.core.arrays import Float64Array
from pipeline.mesh.mesh import UVMesh, face_areas, uv_areas
from pipeline.raster.camera import Cameras

# Pixels to a radius at which textures are measured, and the side in pixels of the places whose contrast is taken.
PIXELS, PLACE = 160, 24
_LUMA = np.array([0.299, 0.587, 0.114])
_LEAST_SIDE = 16
# Limit on the factor by which denser texels raise a gradient: on very dense texels it is finer than a pixel.
_MOST_DENSE = 2.0
# A surface whose usual contrast is below half a step is plain, not faded.
_PLAIN = 0.5
# Only a corner of this side is measured in a larger texture.
_MOST_MEASURED = 2048


def surface_quality(pixels: NDArray[np.uint8], uvmesh: UVMesh) -> dict[str, float]:
    """Figures of the texture ``pixels`` (S, S, 3) on ``uvmesh``.

    gradient: mean length of the luminance gradient, 8-bit steps a pixel. contrast: mean standard deviation of the
    luminance within places of the surface. faded: share of the surface whose contrast is below half of the median.
    texels_per_radius: texels along the object's radius, the median over the surface. chart_seam: mean step between
    texels to either side of chart borders. Leaves out figures without a meaning, such as on a mesh without extent.
    """
    radius = _radius(uvmesh.mesh.vertices)
    area, density = _densities(uvmesh, len(pixels))
    usual = _weighted_median(density[area > 0], area[area > 0]) if (area > 0).any() else 0.0
    if not (radius > 0 and usual > 0):
        return {}
    side = min(len(pixels), max(_LEAST_SIDE, round(len(pixels) * PIXELS / (usual * radius))))
    small = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BOX)
    luminance = np.asarray(small, np.float64) @ _LUMA
    texels = texel_map(uvmesh, side, margin=0.0)
    figures = {"texels_per_radius": round(usual * radius, 1)}
    face = texels.face[texels.mask]
    weight = (area / np.maximum(np.bincount(face, minlength=len(area)), 1))[face]
    if weight.sum() > 0:
        scale = density * (side / len(pixels)) * radius / PIXELS
        gradient, inside = _gradient(luminance, texels.chart)
        local = np.minimum(scale, _MOST_DENSE * usual * (side / len(pixels)) * radius / PIXELS)[face]
        counted = weight * inside[texels.mask]
        if counted.sum() > 0:
            figures["gradient"] = round(float((gradient[texels.mask] * local * counted).sum() / counted.sum()), 2)
        places = texels.position[texels.mask].astype(np.float64) * (PIXELS / PLACE / radius)
        figures |= _contrast(luminance[texels.mask], places, weight)
    across, _ = seam_step(pixels, uvmesh)
    return {**figures, "chart_seam": round(across * 255, 2)}


def tile_quality(pixels: NDArray[np.uint8], sample: int) -> dict[str, float]:
    """Figures of a tileable texture ``pixels`` (S, S, 3) that was made from a sample ``sample`` pixels wide.

    gradient, contrast and faded as for a surface, at the sample's pixels. wrap_step: mean step between pixels to either
    side of the border, the greater of the two borders. inside_step: the same between neighbours inside, in the
    direction of that border.
    """
    side = min(len(pixels), max(sample, 1))
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BOX)
    image = np.asarray(resized, np.int16)
    part = image[:_MOST_MEASURED, :_MOST_MEASURED]
    luminance = part.astype(np.float64) @ _LUMA
    rows, columns = np.gradient(luminance)
    count = max(1, round(len(part) / PLACE))
    row, column = (grid.ravel() * (count / len(part)) for grid in np.mgrid[: len(part), : len(part)])
    at: Float64Array = np.stack([row, column], axis=-1)
    borders = ((image[0], image[-1]), (image[:, 0], image[:, -1]))
    across, inside = max(
        (float(np.abs(one - other).mean()), float(np.abs(np.diff(part, axis=axis)).mean()))
        for axis, (one, other) in enumerate(borders)
    )
    return {
        "gradient": round(float(np.hypot(rows, columns).mean()) * side / max(sample, 1), 2),
        **_contrast(luminance.ravel(), at, np.ones(luminance.size), period=count),
        "wrap_step": round(across, 2),
        "inside_step": round(inside, 2),
    }


def pixels_per_radius(cameras: Cameras, side: int, vertices: NDArray[np.floating]) -> float:
    """Pixels of square images, ``side`` pixels wide, along the radius of the object with ``vertices`` (V, 3) in the
    cameras' world, at its usual depth; the median over the cameras."""
    points = np.asarray(vertices, np.float64)
    depth = [float(np.median(-(points @ view[2, :3] + view[2, 3]))) for view in np.asarray(cameras.view, np.float64)]
    height = 2 * np.tan(np.asarray(cameras.fov, np.float64) / 2) * np.maximum(depth, 1e-9)
    return float(np.median(side / height)) * _radius(points)


def _radius(vertices: NDArray[np.floating]) -> float:
    points = np.asarray(vertices, np.float64)
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    return float(np.linalg.norm(points - centre, axis=1).max())


def _densities(uvmesh: UVMesh, size: int) -> tuple[Float64Array, Float64Array]:
    """(F,) areas of the faces, and (F,) texels along a unit of length on them."""
    area = face_areas(uvmesh.mesh.vertices, uvmesh.mesh.faces)
    texels = np.abs(uv_areas(uvmesh.uv, uvmesh.uv_faces)) * size**2
    return area, np.sqrt(texels / np.maximum(area, 1e-300)) * (area > 0)


def _weighted_median(values: Float64Array, weights: Float64Array) -> float:
    order = np.argsort(values, kind="stable")
    covered = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(covered, covered[-1] / 2)])


def _gradient(luminance: Float64Array, chart: NDArray[np.int32]) -> tuple[Float64Array, NDArray[np.bool_]]:
    """(S, S) length of the gradient a texel, and where all four neighbours lie on the texel's chart."""
    rows, columns = np.gradient(luminance)
    inside = np.zeros(chart.shape, bool)
    middle = chart[1:-1, 1:-1]
    neighbours = (chart[:-2, 1:-1], chart[2:, 1:-1], chart[1:-1, :-2], chart[1:-1, 2:])
    inside[1:-1, 1:-1] = (middle >= 0) & np.logical_and.reduce([other == middle for other in neighbours])
    return np.hypot(rows, columns), inside


def _contrast(luminance: Float64Array, at: Float64Array, weight: Float64Array, period: int = 0) -> dict[str, float]:
    """``contrast`` and ``faded`` of points with ``luminance`` (M,), at positions ``at`` (M, D) in sides of a place.
    Positions repeat after ``period`` places unless that is 0.

    Places are the cells of two grids, shifted by half a cell, so that a border of one lies in the middle of the other.
    """
    # Subtract the mean, because its square would cost digits.
    luminance = luminance - luminance.mean()
    deviation, share = [], []
    for shift in (0.0, 0.5):
        cell = np.floor(at + shift).astype(np.int64)
        cell = cell % period if period else cell - cell.min(axis=0)
        number = np.zeros(len(cell), np.int64)
        for axis in range(cell.shape[1]):
            number = number * (int(cell[:, axis].max()) + 1) + cell[:, axis]
        _, cell_index = np.unique(number, return_inverse=True)
        total = np.bincount(cell_index, weight)
        occupied = total > 0
        mean = np.bincount(cell_index, weight * luminance)[occupied] / total[occupied]
        square = np.bincount(cell_index, weight * luminance**2)[occupied] / total[occupied]
        deviation.append(np.sqrt(np.maximum(square - mean**2, 0)))
        share.append(total[occupied])
    values: Float64Array = np.concatenate(deviation)
    weights: Float64Array = np.concatenate(share).astype(np.float64)
    usual = _weighted_median(values, weights)
    faded = (values < 0.5 * usual) & (usual > _PLAIN)
    return {
        "contrast": round(float((values * weights).sum() / weights.sum()), 2),
        "faded": round(float(weights[faded].sum() / weights.sum()), 4),
    }


def ball_density(size: int, repeats: int) -> float:
    """Pixels to a ball's radius of a tile of ``size`` pixels that repeats ``repeats`` times from pole to pole."""
    return round(size * repeats / math.pi, 1)
