"""Measures how visible the borders between charts are on the mesh, and removes these seams.

Images are (S, S, 3), float in [0, 1] or uint8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import distance_transform_edt

from pipeline.bake.atlas import Edges, TexelMap, along_edges, edge_points, shared_edges, texel_map
from pipeline.bake.conjugate_gradients import conjugate_gradients
from pipeline.mesh.mesh import UVMesh
from pipeline.raster.bilinear import bilinear_weights, sample_bilinear

Image = NDArray[np.float32]

# A bilinear lookup on a chart's border reads texels at most a diagonal away from the border.
LEVEL_MARGIN = 1.5
# The correction falls to zero over this many texels, and at most over this share of the texture.
_BAND_SHARE, _BAND_MOST, _BAND_LEAST = 1 / 32, 32, 6
# Weights of agreement at the border, relative to smoothness, and of a correction near zero.
_SCREEN = 1e-4
# The sides must agree on the border itself and, with falling weight, at these insets (texels). A correction that agreed
# on the border only would vanish half a texel later and leave a hard line.
_INSETS = (0.0, 0.5, 1.0, 1.5)
_AGREE = (8.0, 4.0, 1.0, 0.5)
_Lookup = tuple[NDArray[np.int64], NDArray[np.float64]]
_MOST_SAMPLES = 400_000


def seam_step(
    image: NDArray[np.floating] | NDArray[np.uint8], uvmesh: UVMesh, inset: float = 0.5
) -> tuple[float, float]:
    """Returns (across, inside): the mean colour step between points ``inset`` texels to either side of mesh edges.

    ``across`` measures edges at chart borders, ``inside`` edges within charts, in the same way: without seams both are
    alike. A step is the mean absolute difference of the channels, in [0, 1]. Edges count by their length on the mesh.
    ``across`` is 0 for a mesh without borders, ``inside`` for one without inner edges.
    """
    borders, interior = shared_edges(uvmesh)
    return _step(image, borders, inset), _step(image, interior, inset)


def seam_ratio(across: float, inside: float) -> float:
    """across / inside. Steps below half a grey level of 8 bits count as half a grey level."""
    floor = 0.5 / 255
    return max(across, floor) / max(inside, floor)


def _step(image: NDArray[np.floating] | NDArray[np.uint8], edges: Edges, inset: float) -> float:
    if len(edges) == 0:
        return 0.0
    size = len(image)
    edge, t = along_edges(edges, size)
    if len(edge) > _MOST_SAMPLES:
        pick = np.linspace(0, len(edge) - 1, _MOST_SAMPLES).astype(np.int64)
        edge, t = edge[pick], t[pick]
    points = edge_points(edges, edge, t, inset / size)
    a, b = (sample_bilinear(image, points[:, side]) for side in (0, 1))
    step = np.abs(a - b).mean(axis=1)
    if image.dtype == np.uint8:
        step = step / 255
    weight = edges.length[edge] / np.bincount(edge, minlength=len(edges))[edge]
    total = weight.sum()
    return float((step * weight).sum() / total) if total > 0 else float(step.mean())


def level_seams(image: Image, uvmesh: UVMesh, texels: TexelMap | None = None, borders: Edges | None = None) -> Image:
    """Makes both sides of every chart border agree by a correction that is smooth inside the charts.

    Minimises the correction's differences between neighbouring texels plus the remaining colour difference along the
    borders. The correction is zero beyond a band along them, so a chart's middle keeps its colours. A difference over a
    long stretch of border (a tint) is spread over the band. A difference from texel to texel dies out within a texel or
    two, as harmonic functions do. Nothing is blurred or copied. Changes only texels that ``texels`` (made with
    ``LEVEL_MARGIN``) marks as surface.
    """
    size = len(image)
    texels = texel_map(uvmesh, size, LEVEL_MARGIN) if texels is None else texels
    borders = shared_edges(uvmesh)[0] if borders is None else borders
    if len(borders) == 0 or not texels.mask.any():
        return image.copy()
    edge, t = along_edges(borders, size)
    pairs = [_border_lookups(borders, edge, t, inset / size, texels.chart) for inset in _INSETS]
    # A sample counts if both sides have texels of their own chart right at the border.
    valid = pairs[0][2]
    if not valid.any():
        return image.copy()
    footprints = [
        (np.concatenate([p[side][0][valid] for p in pairs]), np.concatenate([p[side][1][valid] for p in pairs]))
        for side in (0, 1)
    ]
    near = np.ones((size, size), bool)
    for index, _ in footprints:
        near.ravel()[index] = False
    band = max(_BAND_LEAST, min(_BAND_MOST, size * _BAND_SHARE))
    unknown = texels.mask & (distance_transform_edt(near) <= band)
    number = np.full(size * size, -1, np.int64)
    number[unknown.ravel()] = np.arange(unknown.sum())
    smooth = _smoothness(texels, unknown, number)
    samples, count = len(footprints[0][0]), len(smooth_diagonal := smooth.diagonal())
    rows = np.repeat(np.arange(samples), 8)
    columns = np.concatenate([number[i] for i, _ in footprints], axis=1).ravel()
    entries = np.concatenate([footprints[0][1], -footprints[1][1]], axis=1).ravel()
    used = entries != 0
    gap = sparse.csr_array((entries[used].astype(np.float32), (rows[used], columns[used])), shape=(samples, count))
    # Edges shorter than a texel have too many samples, so weight each sample by the length it stands for.
    span = np.linalg.norm(borders.uv[:, :, 1] - borders.uv[:, :, 0], axis=-1).max(axis=1) * size
    share = (span / np.bincount(edge, minlength=len(borders)).clip(1))[edge][valid].clip(0.05, 1)
    agree = np.concatenate([weight * share for weight in _AGREE]).astype(np.float32)[:, None]
    flat = image.reshape(-1, 3).astype(np.float32)
    known = flat[unknown.ravel()]
    transposed = sparse.csr_array(gap.T)
    target = -(transposed @ (agree * (gap @ known)))
    squared = sparse.csr_array(transposed.multiply(transposed)) @ agree[:, 0]
    correction = conjugate_gradients(
        lambda x: smooth @ x + transposed @ (agree * (gap @ x)), smooth_diagonal + squared, target
    )
    flat[unknown.ravel()] = known + correction
    return np.clip(flat, 0, 1, out=flat).reshape(image.shape)


def _smoothness(texels: TexelMap, unknown: NDArray[np.bool_], number: NDArray[np.int64]) -> sparse.csr_array:
    """Laplacian over neighbouring texels of a chart, with zero just beyond the band, plus a little screening.

    Two flaps of one chart may lie side by side in UV and far apart on the mesh, so links fade with the distance in
    space, measured in texels.
    """
    size, count = texels.size, int(unknown.sum())
    grid = np.arange(size * size).reshape(size, size)
    pairs = [(grid[:, :-1].ravel(), grid[:, 1:].ravel()), (grid[:-1].ravel(), grid[1:].ravel())]
    chart, position = texels.chart.ravel(), texels.position.reshape(-1, 3)
    inside = unknown.ravel()
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    linked = (chart[a] == chart[b]) & (chart[a] >= 0) & (inside[a] | inside[b])
    a, b = a[linked], b[linked]
    gap = np.linalg.norm(position[a] - position[b], axis=1)
    usual = np.median(gap) if len(gap) else 1.0
    weight = (1 / (1 + (gap / max(3 * usual, 1e-30)) ** 4)).astype(np.float32)
    i, j = number[a], number[b]
    diagonal = np.full(count, _SCREEN, np.float32)
    for side in (i, j):
        owned = side >= 0
        diagonal += np.bincount(side[owned], weight[owned], minlength=count).astype(np.float32)
    both = (i >= 0) & (j >= 0)
    i, j, weight = i[both], j[both], weight[both]
    diagonal_index = np.arange(count)
    values = np.concatenate([-weight, -weight, diagonal])
    coordinates = (np.concatenate([i, j, diagonal_index]), np.concatenate([j, i, diagonal_index]))
    return sparse.csr_array((values, coordinates), shape=(count, count))


def _border_lookups(
    borders: Edges, edge: NDArray[np.int64], t: NDArray[np.float64], inset: float, charts: NDArray[np.int32]
) -> tuple[_Lookup, _Lookup, NDArray[np.bool_]]:
    """Lookups on both sides of the borders, ``inset`` (in UV units) inside, and which of them have texels on both
    sides. If one side has none, both weights are 0."""
    points = edge_points(borders, edge, t, inset)
    first, second = (_chart_weights(points[:, s], borders.chart[edge, s], charts) for s in (0, 1))
    valid = (first[1].sum(axis=1) > 0) & (second[1].sum(axis=1) > 0)
    return (first[0], first[1] * valid[:, None]), (second[0], second[1] * valid[:, None]), valid


def _chart_weights(
    uv: NDArray[np.float64], chart: NDArray[np.int32], charts: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """``bilinear_weights`` restricted to texels of each lookup's own chart; all weights are 0 if there is none."""
    index, weight = bilinear_weights(uv, len(charts))
    weight = np.where(charts.ravel()[index] == chart[:, None], weight, 0)
    total = weight.sum(axis=1, keepdims=True)
    return index, np.where(total > 0.05, weight / np.maximum(total, 1e-9), 0)
