"""Texels that nobody set: on the surface where no view reached, in the gutters between charts, and beyond.

Textures are (C, S, S) float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from pipeline.bake.atlas import Edges, TexelMap

Texture = NDArray[np.float32]

# Turning the normal by 90 degrees counts like this many object radii of distance: the far side of a thin wall
# is then farther away than anything nearby on the same side.
_NORMAL_WEIGHT = 0.35


def fill_unreached(texture: Texture, texels: TexelMap, reached: NDArray[np.bool_]) -> Texture:
    """Gives every texel on the surface that is not ``reached`` (S, S) a value from reached ones nearby.

    Taking the nearest value would smear a border's texels over the whole unreached area. Instead each texel
    looks as far *into* the reached surface as it lies outside it, like a mirror along the border, so that the
    filled area has the texture of its surroundings. Distances are in space, with the normal's direction as
    further coordinates. Nothing reached, or nothing to fill: the texture comes back unchanged.
    """
    known, missing = texels.mask & reached, texels.mask & ~reached
    if not known.any() or not missing.any():
        return texture.copy()
    position = texels.position.astype(np.float64)
    radius = np.linalg.norm(position[texels.mask], axis=1).max() or 1.0
    normal = texels.normal.astype(np.float64) * (_NORMAL_WEIGHT * radius)
    points = np.concatenate([position[known], normal[known]], axis=1)
    tree = cKDTree(points)
    query = np.concatenate([position[missing], normal[missing]], axis=1)
    # Unknown texels next to each other share a look into the surface, which spares half of the searches.
    _, nearest = tree.query(query, k=1)
    used, back = np.unique(nearest, return_inverse=True)
    around = min(24, len(points))
    _, neighbours = tree.query(points[used], k=around)
    centre = points[np.asarray(neighbours).reshape(len(used), around)].mean(axis=1)[:, :3]
    into = centre - points[used, :3]
    into /= np.maximum(np.linalg.norm(into, axis=1, keepdims=True), 1e-12 * radius)
    distance = np.linalg.norm(query[:, :3] - points[nearest, :3], axis=1)
    mirrored = points[nearest].copy()
    mirrored[:, :3] += distance[:, None] * into[back]
    count = min(4, len(points))
    gap, source = tree.query(mirrored, k=count)
    gap, source = np.asarray(gap).reshape(-1, count), np.asarray(source).reshape(-1, count)
    weight = 1 / (gap / radius + 1e-6) ** 4
    weight /= weight.sum(axis=1, keepdims=True)
    values = texture[:, known]
    filled = texture.copy()
    filled[:, missing] = sum(values[:, source[:, i]] * weight[:, i].astype(np.float32) for i in range(count))
    return filled


def dilate(texture: Texture, mask: NDArray[np.bool_], radius: float | None = None) -> Texture:
    """Gives texels outside ``mask`` (S, S) the value of the nearest one inside.

    Up to ``radius`` texels away, or all of them when it is None, so that no mip level ever sees an unset texel.
    """
    if mask.all() or not mask.any():
        return texture.copy()
    distance, (row, column) = distance_transform_edt(~mask, return_indices=True)
    grown = texture[:, row, column]
    if radius is not None:
        grown[:, distance > radius] = texture[:, distance > radius]
    return grown


def fill_gutter(texture: Texture, texels: TexelMap, borders: Edges, width: float) -> tuple[Texture, NDArray[np.bool_]]:
    """Gives gutter texels what lies across the border *on the surface*: the neighbour chart goes on there.

    A decoder that runs over the texture in UV space sees a chart's border with its true surroundings then.
    Each texel up to ``width`` texels off a chart is carried over the nearest border edge into the neighbour
    chart and read there. Returns the texture and where it is set now, (S, S) bool; a texel for which there is
    no neighbour is left to ``dilate``.
    """
    from pipeline.bake import fill_numba

    size = texels.size
    source = np.full((size, size, 2), np.nan)
    target = np.full((size, size), -1, np.int32)
    fill_numba.carry_across(borders.uv * size, borders.inward, borders.chart, texels.mask, float(width), source, target)
    texel_first = np.ascontiguousarray(texture.transpose(1, 2, 0))
    filled = fill_numba.read_charts(texel_first, texels.chart, source, target)
    return np.ascontiguousarray(texel_first.transpose(2, 0, 1)), texels.mask | filled
