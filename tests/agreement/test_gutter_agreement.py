"""The compiled loops over chart borders against their plain twin: the same arrays."""

import numpy as np
import torch
from compare import compare

from pipeline.bake import gutter
from pipeline.core.rng import numpy_generator

SIZE = 40


def problem():
    """Two rectangles as charts with their borders in pieces, some at the border of the texture, and a random texture.

    Edge k of one chart meets edge k of the other, whose pieces differ in length.
    """
    rng = numpy_generator(43, "gutter")
    chart = np.full((SIZE, SIZE), -1, np.int32)
    boxes = np.array([[0.0, 3.0, 15.3, 20.7], [20.2, 17.9, 39.0, 40.0]])  # left, top, right, bottom
    centre = np.arange(SIZE) + 0.5
    for number, (left, top, right, bottom) in enumerate(boxes):
        inside = (centre > left) & (centre < right), (centre > top) & (centre < bottom)
        chart[np.ix_(inside[1], inside[0])] = number
    uv, inward, numbers = [], [], []
    for piece in np.linspace(0, 1, 6)[:-1]:
        for side in range(4):
            ends, normals = [], []
            for left, top, right, bottom in boxes:
                corner = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
                start, along = corner[side], corner[(side + 1) % 4] - corner[side]
                ends.append([start + piece * along, start + (piece + 0.2) * along])
                normals.append(np.array([-along[1], along[0]]) / np.linalg.norm(along))
            uv.append(ends)
            inward.append(normals)
            numbers.append([0, 1])
    texels = rng.normal(size=(SIZE, SIZE, 3)).astype(np.float32)
    return np.array(uv), np.array(inward), np.array(numbers, np.int32), chart, texels


def test_the_same_points_across_borders():
    uv, inward, numbers, chart, _ = problem()
    for width in (0.7, 5.0):
        expected = compare(
            "gutter",
            lambda backend, width=width: gutter.map_across_border(
                uv, inward, numbers, chart >= 0, width, backend=backend
            ),
            "numba",
            "numpy",
            dtype=torch.float32,
        )
        assert {0, 1} <= set(expected["1"].unique().tolist())


def test_the_same_texels():
    uv, inward, numbers, chart, texels = problem()
    source, target = gutter.map_across_border(uv, inward, numbers, chart >= 0, 6.0)

    def run(backend):
        written = texels.copy()
        return {"filled": gutter.sample_charts(written, chart, source, target, backend=backend), "texels": written}

    expected = compare("gutter", run, "numba", "numpy", dtype=torch.float32)
    assert expected["filled"].sum() > 100
    assert (expected["texels"].numpy()[chart >= 0] == texels[chart >= 0]).all()
