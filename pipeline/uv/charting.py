"""Cuts any mesh into flat charts in seconds: the unwrapper that never fails.

Labels each face with the nearest axis direction of its normal, and smooths the labels over the surface, so that borders
are short. Connected faces of one label become a chart. Small charts are merged into a neighbour whose direction suits
them. Each chart is projected on a plane that all its faces face, so it cannot fold locally. If it still covers itself
(a spiral), the covering part becomes its own chart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.mesh import Mesh, face_normals

_DIRECTIONS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float64)
# A face may take a direction only within 81 degrees of its normal when labels are smoothed, and within 84 when a small
# chart is merged. Beyond that, its texels would be stretched too far.
_SMOOTHING_COSINE = 0.15
_ABSORBING_COSINE = 0.1
_SMOOTHING_WEIGHT = 3.0
_SMOOTHING_STEPS = 24
# Radius of the blur of normals before labelling, as a share of the square root of the number of faces. Smaller bumps do
# not become charts.
_BLUR = 0.2
_BLUR_SHARE = 0.8
# Charts below this share of the surface are merged into a neighbour if possible.
_SMALL_SHARE = 2e-3
# Charts longer than this, in units of the square root of the surface's area, are cut. They would limit the scale of
# all charts.
_LONGEST = 0.9
# Cells along the side of a square as large as the surface, for the search for charts that cover themselves.
_FOLD_GRID = 2048
_FOLD_STEPS = 24


def adjacency(faces: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of faces across each edge that exactly two faces share in opposite directions.

    Returns (first face, second face, (E, 2) vertices of the edge). All other edges are borders.
    """
    start = faces.reshape(-1)
    end = faces[:, [1, 2, 0]].reshape(-1)
    low, high = np.minimum(start, end), np.maximum(start, end)
    key = low * (int(faces.max()) + 1) + high
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    length = np.diff(np.r_[first, len(ordered)])
    two = first[length == 2]
    a, b = order[two], order[two + 1]
    opposite = start[a] == end[b]
    a, b = a[opposite], b[opposite]
    return a // 3, b // 3, np.stack([low[a], high[a]], axis=1)


def components(
    count: int, first: NDArray[np.int64], second: NDArray[np.int64], label: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(count,) ids of faces connected through pairs of equal label, numbered by their first face."""
    same = label[first] == label[second]
    graph = sparse.coo_matrix((np.ones(int(same.sum()), np.int8), (first[same], second[same])), (count, count))
    return _renumbered(connected_components(graph, directed=False)[1])


def _renumbered(label: NDArray[np.integer]) -> NDArray[np.int64]:
    """Labels numbered from 0 by first appearance."""
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    result: NDArray[np.int64] = rank[inverse.reshape(-1)]
    return result


def flat_charts(mesh: Mesh, *, smooth: bool = True) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Cuts ``mesh`` into charts and flattens them.

    Returns (points (T, 2) in units of the mesh, each chart with its area on the mesh; uv_faces (F, 3); charts (F,)
    int64). ``smooth`` False gives the plain box projection, without smoothing of labels.
    """
    normals = face_normals(mesh.vertices, mesh.faces)
    doubled = np.linalg.norm(normals, axis=1)
    area = doubled / 2
    unit = normals / np.maximum(doubled, 1e-300)[:, None]
    first, second, edges = adjacency(mesh.faces)
    length = np.linalg.norm(mesh.vertices[edges[:, 0]] - mesh.vertices[edges[:, 1]], axis=1)
    facing = unit @ _DIRECTIONS.T  # (F, 6)
    label = np.argmax(facing, axis=1)
    if smooth:
        label = _smoothed(facing, first, second, length)
    label = _absorbed(label, facing, area, first, second, length)
    label = components(len(label), first, second, label)
    # The direction with the best worst face. It is at least as good as the chart's label.
    worst = np.full((int(label.max()) + 1, facing.shape[1]), np.inf)
    np.minimum.at(worst, label, facing)
    return _flatten(mesh, label, _DIRECTIONS[np.argmax(worst, axis=1)], unit, area, first, second)


def _smoothed(
    facing: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    length: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Labels that agree with the faces' normals and with their neighbours, weighted by the length of shared edges."""
    count = len(facing)
    weight = sparse.coo_matrix(
        (np.r_[length, length], (np.r_[first, second], np.r_[second, first])), (count, count)
    ).tocsr()
    total = np.asarray(weight.sum(axis=1)).reshape(-1)
    average = sparse.diags(1.0 / np.where(total > 0, total, 1.0)) @ weight
    blurred = facing
    for _ in range(int(_BLUR * count**0.5)):
        blurred = 0.5 * blurred + 0.5 * (average @ blurred)
    blurred = blurred / np.maximum(np.abs(blurred).max(axis=1, keepdims=True), 1e-9)
    direction_score = (1.0 - _BLUR_SHARE) * facing + _BLUR_SHARE * blurred
    allowed = facing > np.minimum(_SMOOTHING_COSINE, facing.max(axis=1, keepdims=True) - 1e-9)
    direction_score = np.where(allowed, direction_score, -np.inf)
    share = np.eye(facing.shape[1])[np.argmax(direction_score, axis=1)]
    for _ in range(_SMOOTHING_STEPS):
        # Use shares instead of hard labels, with which neighbours that change together would swap forever.
        score = direction_score + _SMOOTHING_WEIGHT * (average @ share)
        sharp = np.exp(8.0 * (score - score.max(axis=1, keepdims=True)))
        share = sharp / sharp.sum(axis=1, keepdims=True)
    result: NDArray[np.int64] = np.argmax(share, axis=1)
    return result


def _absorbed(
    label: NDArray[np.int64],
    facing: NDArray[np.float64],
    area: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    length: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Gives each small chart the label of the neighbour with the longest common border, if its faces can take it."""
    kinds = facing.shape[1]
    for _ in range(8):
        chart = components(len(label), first, second, label)
        count = int(chart.max()) + 1
        size = np.bincount(chart, area, count)
        small = size < _SMALL_SHARE * area.sum()
        worst = np.full((count, kinds), np.inf)
        np.minimum.at(worst, chart, facing)
        across = chart[first] != chart[second]
        a = np.r_[chart[first[across]], chart[second[across]]]
        b = np.r_[chart[second[across]], chart[first[across]]]
        border = np.r_[length[across], length[across]]
        # Merge only into larger charts (by number if equal), so that no two take each other's label.
        up = (size[b] > size[a]) | ((size[b] == size[a]) & (b > a))
        of_chart = np.zeros(count, np.int64)
        of_chart[chart] = label
        gain = np.zeros((count, kinds))
        np.add.at(gain, (a[up], of_chart[b[up]]), border[up])
        gain[worst < _ABSORBING_COSINE] = 0.0
        chosen = np.argmax(gain, axis=1)
        reassigned = small & (gain[np.arange(count), chosen] > 0) & (chosen != of_chart)
        if not reassigned.any():
            break
        of_chart[reassigned] = chosen[reassigned]
        label = of_chart[chart]
    return label


def _flatten(
    mesh: Mesh,
    chart: NDArray[np.int64],
    plane: NDArray[np.float64],
    unit: NDArray[np.float64],
    area: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Projects charts on planes, cuts long charts, and separates parts that cover others. plane: (C, 3) normals."""
    surface = float(area.sum())
    direction = plane[chart]  # per face, so that it survives cutting
    # The mean normal is a better plane than an axis if no face looks away from it.
    mean = np.stack([np.bincount(chart, area * unit[:, i]) for i in range(3)], axis=1)
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1), 1e-300)[:, None]
    worst = np.full(len(mean), np.inf)
    np.minimum.at(worst, chart, np.einsum("fi,fi->f", unit, mean[chart]))
    axis_worst = np.full(len(mean), np.inf)
    np.minimum.at(axis_worst, chart, np.einsum("fi,fi->f", unit, direction))
    use_mean = worst > np.minimum(0.2, axis_worst - 1e-12)
    direction = np.where(use_mean[chart][:, None], mean[chart], direction)
    # A basis of each plane. With u to the right and v downwards, seen from outside, charts are not mirrored.
    helper = np.where(np.abs(direction[:, 1:2]) < 0.9, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])
    right = np.cross(helper, direction)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down = -np.cross(direction, right)
    corner = mesh.vertices[mesh.faces] - mesh.vertices.mean(axis=0)
    flat = np.stack(
        [np.einsum("fci,fi->fc", corner, right), np.einsum("fci,fi->fc", corner, down)], axis=2
    )  # (F, 3, 2)

    chart = _cut_long(flat, chart, surface**0.5 * _LONGEST, first, second)
    depth = np.einsum("fci,fi->f", corner, direction)
    chart = _unfolded(flat, chart, depth, surface, first, second)

    # Scale each chart to its area on the mesh. Slanted faces would otherwise get fewer texels.
    edge1, edge2 = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    projected = 0.5 * np.abs(edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0])
    stretch = np.sqrt(np.bincount(chart, area) / np.maximum(np.bincount(chart, projected), 1e-300))
    flat = flat * np.clip(stretch, 1.0, 4.0)[chart][:, None, None]

    # One point per chart and vertex.
    key = np.repeat(chart, 3) * len(mesh.vertices) + mesh.faces.reshape(-1)
    _, first_corner, uv_faces = np.unique(key, return_index=True, return_inverse=True)
    return flat.reshape(-1, 2)[first_corner], uv_faces.reshape(-1, 3), chart


def _cut_long(
    flat: NDArray[np.float64],
    chart: NDArray[np.int64],
    longest: float,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Cuts charts longer than ``longest`` into equal lengths across their long axis."""
    centre = flat.mean(axis=1)
    count = int(chart.max()) + 1
    members = np.bincount(chart, minlength=count)
    mean = np.stack([np.bincount(chart, centre[:, i]) for i in range(2)], axis=1) / members[:, None]
    offset = centre - mean[chart]
    xx, xy, yy = (np.bincount(chart, offset[:, i] * offset[:, j]) for i, j in ((0, 0), (0, 1), (1, 1)))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    along = flat[:, :, 0] * np.cos(angle)[chart][:, None] + flat[:, :, 1] * np.sin(angle)[chart][:, None]
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, chart, along.min(axis=1))
    np.maximum.at(high, chart, along.max(axis=1))
    pieces = np.maximum(np.ceil((high - low) / longest), 1)
    if (pieces == 1).all():
        return chart
    step = (high - low) / pieces
    piece = np.floor((along.mean(axis=1) - low[chart]) / step[chart]).astype(np.int64)
    piece = np.clip(piece, 0, pieces[chart].astype(np.int64) - 1)
    return components(len(chart), first, second, chart * (int(pieces.max()) + 1) + piece)


def _unfolded(
    flat: NDArray[np.float64],
    chart: NDArray[np.int64],
    depth: NDArray[np.float64],
    surface: float,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Splits charts that cover themselves: faces behind other faces become their own charts."""
    from pipeline.uv.kernels import folded_faces

    # The sheet in front keeps its chart. The face number decides ties.
    precedence = np.lexsort((np.arange(len(depth)), -depth))
    scale = _FOLD_GRID / surface**0.5
    for step in range(_FOLD_STEPS):
        count = int(chart.max()) + 1
        order = precedence[np.argsort(chart[precedence], kind="stable")]
        starts = np.searchsorted(chart[order], np.arange(count + 1))
        low = np.full((count, 2), np.inf)
        np.minimum.at(low, chart, flat.min(axis=1))
        folded = folded_faces((flat - low[chart][:, None]) * scale, order, starts)
        if not folded.any():
            return chart
        if step == _FOLD_STEPS - 1:
            # If it still covers itself, each face becomes a chart: a single face cannot.
            alone = np.cumsum(folded) + count
            return _renumbered(np.where(folded, alone, chart))
        chart = components(len(chart), first, second, 2 * chart + folded)
    return chart
