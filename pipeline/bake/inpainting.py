"""Fills unset texels: surface that no view reached, gutters between charts, and the empty space beyond.

Textures are (C, S, S) float32.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import distance_transform_edt
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from pipeline.bake import gutter
from pipeline.bake.atlas import Edges, TexelMap, along_edges, edge_points
from pipeline.bake.conjugate_gradients import conjugate_gradients

Texture = NDArray[np.float32]

# In distances through space, a normal turned by 90 degrees counts as this many object radii. So the far side of a thin
# wall is farther away than any point nearby on the same side.
_NORMAL_WEIGHT = 0.35
# Missing texels up to this many texels from a covered one take the nearest value.
_GAP = 1.5
# Patches: the sides that are tried in turn, the fewest patches that suffice, and the most that are compared.
_PATCHES = (8, 5)
_FEWEST_PATCHES, _MOST_PATCHES = 8, 512
# Steps of conjugate gradients on the coarsest level, and on finer levels, where they only smooth the coarse level's
# blocks. Textures are coarsened down to a side below four times the last number.
_MEMBRANE_STEPS, _REFINE_STEPS, _COARSEST = 300, 50, 48


def inpaint(texture: Texture, texels: TexelMap, coverage: NDArray[np.bool_], borders: Edges | None = None) -> Texture:
    """Fills every texel on the surface that ``coverage`` (S, S) does not mark, from covered texels nearby.

    First, each missing texel takes the value of the nearest covered one. Distances run along the surface, over
    ``borders`` from chart to chart. Pieces of the surface without covered texels take the nearest in space, with the
    normal as further coordinates. This closes small gaps, but would smear the border's colours over a larger area. So
    texels more than a few texels inside are then quilted with patches of covered texture. Returns the texture unchanged
    if no texel is covered or none is missing.
    """
    known, missing = texels.mask & coverage, texels.mask & ~coverage
    if not known.any() or not missing.any():
        return texture.copy()
    graph, number = surface_graph(texels, borders)
    filled, distance = _copy_nearest(texture, texels, known, missing, graph, number)
    usual = np.median(graph.data) if graph.nnz else 0.0
    depth = np.zeros(missing.shape)
    depth[missing] = distance
    far = depth > _GAP * usual
    for side in _PATCHES:
        if _quilt_patches(filled, texels, known, far, depth, side):
            break
    return filled


def inpaint_smoothly(
    texture: Texture, texels: TexelMap, coverage: NDArray[np.bool_], borders: Edges | None = None
) -> Texture:
    """As ``inpaint``, but for final colours: missing texels become a smooth membrane over the surface.

    Each missing texel becomes the mean of its neighbours, also over ``borders`` from chart to chart. Covered texels
    keep their values, so no border shows. Large textures are filled on every fourth texel first. The solver starts
    from the nearest covered texels; pieces of the surface without covered texels keep those values.
    """
    known, missing = texels.mask & coverage, texels.mask & ~coverage
    if not known.any() or not missing.any():
        return texture.copy()
    graph, number = surface_graph(texels, borders)
    filled, _ = _copy_nearest(texture, texels, known, missing, graph, number)
    steps = _MEMBRANE_STEPS
    if texels.size % 4 == 0 and texels.size >= 4 * _COARSEST:
        steps = _REFINE_STEPS
        coarse = _every_fourth(texels)
        small = inpaint_smoothly(np.ascontiguousarray(texture[:, 2::4, 2::4]), coarse, coverage[2::4, 2::4], borders)
        enlarged, chart = (np.repeat(np.repeat(a, 4, axis=-2), 4, axis=-1) for a in (small, coarse.chart))
        other_chart = missing & (chart == texels.chart) & _is_anchored(texels, known, graph)
        filled[:, other_chart] = enlarged[:, other_chart]
    links = graph + graph.T
    links.data = np.median(links.data) / np.maximum(links.data, 1e-3 * np.median(links.data))
    links = sparse.csr_array(links, dtype=np.float32)
    unknown = number[missing.ravel()]
    rows = links[unknown]
    degree = np.asarray(rows.sum(axis=1), np.float32).ravel() + np.float32(1e-5)
    inner = sparse.csr_array(rows[:, unknown])
    values = np.ascontiguousarray(filled[:, texels.mask].T, np.float32)
    # Solve for the correction of the nearest colours, so that those remain if the steps end early.
    start = values[unknown]
    pull = rows @ values - degree[:, None] * start
    # Only the small term holds pieces without known texels. It must not pull them to black.
    free = ~_has_known(texels, known, graph)[missing]
    pull[free] += np.float32(1e-5) * start[free]
    change = conjugate_gradients(lambda x: degree[:, None] * x - inner @ x, degree, pull, steps=steps)
    filled[:, missing] = (start + change).T
    return filled


def _has_known(texels: TexelMap, known: NDArray[np.bool_], graph: sparse.csr_array) -> NDArray[np.bool_]:
    """(S, S) bool: texels on pieces of the surface that have ``known`` texels."""
    count, piece = connected_components(graph, directed=False)
    at_all = np.zeros(count, bool)
    at_all[piece[known[texels.mask]]] = True
    result = np.zeros_like(known)
    result[texels.mask] = at_all[piece]
    return result


def _is_anchored(texels: TexelMap, known: NDArray[np.bool_], graph: sparse.csr_array) -> NDArray[np.bool_]:
    """(S, S) bool: texels that get a value when only every fourth texel is filled.

    These are texels on pieces of the surface with ``known`` texels among every fourth, and texels on pieces without
    known texels, if any other piece has some.
    """
    fourth = np.zeros_like(known)
    fourth[2::4, 2::4] = True
    count, piece = connected_components(graph, directed=False)
    at_all, anchored = np.zeros(count, bool), np.zeros(count, bool)
    at_all[piece[known[texels.mask]]] = True
    anchored[piece[(known & fourth)[texels.mask]]] = True
    result = np.zeros_like(known)
    result[texels.mask] = (anchored | (~at_all & anchored.any()))[piece]
    return result


def _every_fourth(texels: TexelMap) -> TexelMap:
    """The map of a texture with a quarter of the side."""
    return replace(
        texels, **{f.name: np.ascontiguousarray(getattr(texels, f.name)[2::4, 2::4]) for f in fields(texels)}
    )


def _copy_nearest(
    texture: Texture,
    texels: TexelMap,
    known: NDArray[np.bool_],
    missing: NDArray[np.bool_],
    graph: sparse.csr_array,
    number: NDArray[np.int64],
) -> tuple[Texture, NDArray[np.float64]]:
    """Sets each missing texel to the nearest known one. Returns the texture and the distances, (missing,).

    Distances run along the surface if a path exists, else through space. If all known texels are far away, a missing
    one takes their mean.
    """
    position = texels.position.astype(np.float64)
    nearest, distance = _nearest_on_surface(graph, number, known, missing)
    apart = nearest < 0
    if apart.any():
        radius = np.linalg.norm(position[texels.mask], axis=1).max() or 1.0
        normal = texels.normal.astype(np.float64) * (_NORMAL_WEIGHT * radius)
        points = np.concatenate([position, normal], axis=-1)
        away = _away_from_box(position[missing], position[known])
        near, far = apart & ~(away > 0), apart & (away > 0)
        if near.any():
            distance[near], nearest[near] = cKDTree(points[known]).query(points[missing][near])
        distance[far] = away[far]
    else:
        far = apart
    filled = texture.copy()
    filled[:, missing] = texture[:, known][:, nearest]
    if far.any():
        # All known texels are about equally far away, so a search would have to visit them all.
        gap = np.zeros_like(missing)
        gap[missing] = far
        filled[:, gap] = texture[:, known].mean(axis=1, dtype=np.float64)[:, None]
    return filled, distance


def _away_from_box(points: NDArray[np.float64], box_of: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distances of ``points`` (N, 3) from the bounding box of ``box_of``; 0 up to half its diagonal."""
    low, high = box_of.min(axis=0), box_of.max(axis=0)
    distance = np.linalg.norm(np.maximum(np.maximum(low - points, points - high), 0), axis=1)
    return np.where(distance > np.linalg.norm(high - low) / 2, distance, 0.0)


def _quilt_patches(
    texture: Texture,
    texels: TexelMap,
    known: NDArray[np.bool_],
    far: NDArray[np.bool_],
    depth: NDArray[np.float64],
    side: int,
) -> bool:
    """Covers the texels ``far`` with square patches of known texture, in place. Returns False for too few patches.

    Visits windows from the border of the missing area inwards. Each takes the patch that fits its set texels best.
    Patches are copied in UV space, because the decoder reads the texture there.
    """
    corners = _complete_windows(known, texels.chart, side)
    if not far.any() or len(corners) < _FEWEST_PATCHES:
        return not far.any()
    corners = corners[np.linspace(0, len(corners) - 1, min(len(corners), _MOST_PATCHES)).astype(np.int64)]
    offset = np.arange(side)
    rows, columns = corners[:, 0, None, None] + offset[:, None], corners[:, 1, None, None] + offset
    patches = np.ascontiguousarray(texture[:, rows, columns].transpose(1, 0, 2, 3))  # (N, C, side, side)
    unset = far.copy()
    step = max(2, side * 5 // 8)
    size = texels.size
    starts = [(y, x) for y in range(0, size - 1, step) for x in range(0, size - 1, step)]
    starts = [(min(y, size - side), min(x, size - side)) for y, x in starts]
    windows = [(y, x) for y, x in dict.fromkeys(starts) if far[y : y + side, x : x + side].any()]
    order = np.argsort(
        [depth[y : y + side, x : x + side][far[y : y + side, x : x + side]].min() for y, x in windows],
        kind="stable",
    )
    for y, x in (windows[i] for i in order):
        window = (slice(y, y + side), slice(x, x + side))
        for chart in np.unique(texels.chart[window][unset[window]]):
            in_chart = texels.chart[window] == chart
            fixed, empty = in_chart & ~unset[window], in_chart & unset[window]
            target = texture[(slice(None), *window)]
            misfit = np.square(patches[:, :, fixed] - target[:, fixed]).sum(axis=(1, 2))
            # A window without set texels takes any patch. Vary the choice.
            best = int(misfit.argmin()) if fixed.any() else (7919 * (y * size + x)) % len(patches)
            target[:, empty] = patches[best][:, empty]
            unset[window] &= ~in_chart
    return True


def _complete_windows(known: NDArray[np.bool_], chart: NDArray[np.int32], side: int) -> NDArray[np.int64]:
    """(N, 2) top left corners, on every other row and column, of windows with known texels of one chart only."""
    if len(known) < side:
        return np.zeros((0, 2), np.int64)
    inside = np.lib.stride_tricks.sliding_window_view(known, (side, side))[::2, ::2].all(axis=(2, 3))
    charts = np.lib.stride_tricks.sliding_window_view(chart, (side, side))[::2, ::2]
    inside &= (charts == charts[..., :1, :1]).all(axis=(2, 3))
    corners: NDArray[np.int64] = 2 * np.argwhere(inside)
    return corners


def surface_graph(texels: TexelMap, borders: Edges | None) -> tuple[sparse.csr_array, NDArray[np.int64]]:
    """The graph of the texels: a (M, M) matrix of distances on the mesh, and each texel's number or -1, (S * S,).

    Links join neighbours of the same chart, also diagonal ones, and texels that meet at a chart border.
    """
    size = texels.size
    number = np.full(size * size, -1, np.int64)
    number[texels.mask.ravel()] = np.arange(texels.mask.sum())
    grid = np.arange(size * size).reshape(size, size)
    pairs = [
        (grid[:, :-1], grid[:, 1:]),
        (grid[:-1], grid[1:]),
        (grid[:-1, :-1], grid[1:, 1:]),
        (grid[:-1, 1:], grid[1:, :-1]),
    ]
    chart = texels.chart.ravel()
    a, b = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    linked = (chart[a] == chart[b]) & (chart[a] >= 0)
    a, b = a[linked], b[linked]
    if borders is not None and len(borders):
        edge, t = along_edges(borders, size)
        # Half a texel inside, so that the texel belongs to the chart wherever the chart has one there.
        points = edge_points(borders, edge, t, 0.5 / size)
        cell = np.clip((points * size).astype(np.int64), 0, size - 1)
        side_a, side_b = cell[:, 0, 1] * size + cell[:, 0, 0], cell[:, 1, 1] * size + cell[:, 1, 0]
        meet = (
            (chart[side_a] == borders.chart[edge, 0]) & (chart[side_b] == borders.chart[edge, 1]) & (side_a != side_b)
        )
        a, b = np.concatenate([a, side_a[meet]]), np.concatenate([b, side_b[meet]])
    position = texels.position.reshape(-1, 3).astype(np.float64)
    gap = np.linalg.norm(position[a] - position[b], axis=1)
    # In a sparse matrix a link of length zero would count as no link.
    gap = np.maximum(gap, 1e-9 * (gap.max() if len(gap) else 1.0) + 1e-300)
    pair = np.unique(np.stack([number[a], number[b]], axis=1), axis=0, return_index=True)[1]
    count = int(texels.mask.sum())
    graph = sparse.csr_array((gap[pair], (number[a][pair], number[b][pair])), shape=(count, count))
    return graph, number


def _nearest_on_surface(
    graph: sparse.csr_array,
    number: NDArray[np.int64],
    known: NDArray[np.bool_],
    missing: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The index of the nearest known texel along the surface for each missing one (-1 without a path), and the
    distance to it."""
    is_known = known.ravel()[number >= 0]
    coo = graph.tocoo()
    frontier = np.zeros(len(is_known), bool)  # known texels beside missing ones, where every path starts
    frontier[coo.row[~is_known[coo.col]]] = True
    frontier[coo.col[~is_known[coo.row]]] = True
    start = np.nonzero(frontier & is_known)[0]
    distance = np.full(len(is_known), np.inf)
    source = np.full(len(is_known), -1, np.int64)
    if len(start):
        distance, _, nearest_node = dijkstra(
            graph, directed=False, indices=start, min_only=True, return_predecessors=True
        )
        source = np.where(np.isfinite(distance), nearest_node, -1)
    rank = np.cumsum(is_known) - 1
    missing_nodes = number[missing.ravel()]
    nearest = np.where(source[missing_nodes] >= 0, rank[source[missing_nodes]], -1)
    return nearest, distance[missing_nodes]


def extend_nearest(texture: Texture, mask: NDArray[np.bool_], radius: float | None = None) -> Texture:
    """Gives texels outside ``mask`` (S, S) the value of the nearest one inside.

    Applies to texels up to ``radius`` texels away; with None to all, so that no mip level reads an unset texel.
    """
    if mask.all() or not mask.any():
        return texture.copy()
    distance, (row, column) = distance_transform_edt(~mask, return_indices=True)
    grown = texture[:, row, column]
    if radius is not None:
        grown[:, distance > radius] = texture[:, distance > radius]
    return grown


def dilate(
    texture: Texture,
    texels: TexelMap,
    borders: Edges,
    width: float,
    own_texels: NDArray[np.bool_] | None = None,
) -> tuple[Texture, NDArray[np.bool_]]:
    """Continues each chart into its gutter with the texels of the neighbour chart, as on the surface.

    So a decoder that runs over the texture in UV space finds the true surroundings at a chart's border. Each texel up
    to ``width`` texels off a chart is mapped over the nearest border edge into the neighbour chart and read there.
    ``own_texels`` (S, S) keep their values and may be read; by default these are all texels on the surface. Returns
    the texture and a mask of its set texels, (S, S) bool. ``extend_nearest`` fills texels without a neighbour.
    """
    own_texels = texels.mask if own_texels is None else own_texels
    size = texels.size
    source, target = gutter.map_across_border(
        borders.uv * size, borders.inward, borders.chart, own_texels, float(width)
    )
    texel_first = np.ascontiguousarray(texture.transpose(1, 2, 0))
    charts = np.where(own_texels, texels.chart, -1).astype(np.int32)
    filled = gutter.sample_charts(texel_first, charts, source, target)
    return np.ascontiguousarray(texel_first.transpose(2, 0, 1)), own_texels | filled
