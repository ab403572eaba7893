"""The compiled loops over texture coordinates against their plain twin: the same arrays."""

import numpy as np
import pytest
from compare import compare
from scipy.spatial import Delaunay

from pipeline.core.rng import numpy_generator
from pipeline.uv import kernels


def charts(name, count=6):
    """Triangulated charts with holes that overlap themselves here and there: corners (F, 3, 2) from (0, 0) on, and the
    chart of each face. Half of them have their corners on centres and borders of cells; some faces have no area."""
    rng = numpy_generator(41, name)
    corners, chart = [], []
    for c in range(count):
        points = rng.uniform(0, rng.uniform(4, 14, 2), (14, 2))
        if c % 2:
            points = np.round(points * 2) / 2
        points = np.unique(points, axis=0)
        faces = Delaunay(points).simplices[::2]
        faces = np.concatenate([faces, rng.integers(0, len(points), (3, 3)), [[0, 0, 1]]])
        corners.append(points[faces] - points[faces].min(axis=(0, 1)))
        chart += [c] * len(faces)
    return np.concatenate(corners), np.array(chart)


@pytest.mark.parametrize("size", [1, 9, 24])
def test_coverage(size):
    corners = charts("coverage")[0] * 1.3 - 2.0  # beyond the grid on all sides
    expected = compare("uv", lambda backend: kernels.coverage(corners, size, backend=backend), "numba", "numpy")
    assert expected["value"].max() > (1 if size > 1 else 0)


def test_coverage_ends_at_255():
    corners = np.tile([[[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]], (300, 1, 1))
    expected = compare("uv", lambda backend: kernels.coverage(corners, 4, backend=backend), "numba", "numpy")
    assert expected["value"].max() == 255


def test_folded_faces():
    corners, chart = charts("folded")
    order = numpy_generator(42, "order").permutation(len(chart))
    order = order[np.argsort(chart[order], kind="stable")]
    starts = np.searchsorted(chart[order], np.arange(chart.max() + 2))
    expected = compare(
        "uv", lambda backend: kernels.folded_faces(corners, order, starts, backend=backend), "numba", "numpy"
    )
    assert 0 < expected["value"].sum() < len(chart) / 2


def masks_of(name, count, scale, reach):
    corners, chart = charts(name, count)
    extent = np.array([corners[chart == c].max(axis=(0, 1)) for c in range(count)])
    sizes = np.floor(extent * scale + 2 * reach).astype(np.int64) + 1
    offsets = np.cumsum(sizes.prod(axis=1)) - sizes.prod(axis=1)
    arguments = (corners * scale + reach, chart, sizes[:, 0].copy(), sizes[:, 1].copy(), offsets, reach)
    return arguments, sizes, offsets


@pytest.mark.parametrize("reach", [0.0, 0.5, 1.3])
def test_chart_masks(reach):
    arguments, _, _ = masks_of("masks", 6, 1.0, reach)
    expected = compare("uv", lambda backend: kernels.chart_masks(*arguments, backend=backend), "numba", "numpy")
    assert 0.2 < expected["value"].double().mean() < 1


# Few charts with room, four orientations and one; many, of which the search starts below the top; too many to fit.
@pytest.mark.parametrize(
    ("count", "scale", "size", "turns", "fits"),
    [(12, 1.0, 64, 4, True), (12, 1.0, 64, 1, True), (160, 0.25, 56, 4, True), (12, 1.0, 20, 4, False)],
)
def test_pack_masks(count, scale, size, turns, fits):
    arguments, sizes, offsets = masks_of("pack", count, scale, 0.4)
    masks = kernels.chart_masks(*arguments)
    order = np.argsort(-sizes.prod(axis=1), kind="stable")
    expected = compare(
        "uv",
        lambda backend: kernels.pack_masks(
            masks, sizes[:, 0].copy(), sizes[:, 1].copy(), offsets, order, size, turns, backend=backend
        ),
        "numba",
        "numpy",
    )
    assert bool(expected["0"]) == fits
    if turns == 4 and fits:
        assert len(expected["3"].unique()) > 1
