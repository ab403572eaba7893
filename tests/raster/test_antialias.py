"""Smoothed outlines: shares of a pixel are what an edge really covers, and colours mix linearly."""

from __future__ import annotations

import math

import meshes
import numpy as np
import pytest
import torch

from pipeline.core.rng import numpy_generator, torch_generator
from pipeline.raster import antialias, camera
from pipeline.raster.antialias import adjacent_vertices, blend_outlines, find_outlines
from pipeline.raster.antialias.layout import Outlines
from pipeline.raster.rasterise import rasterise

# Seen from (0, 0, 1) at 90 degrees, the plane z = 0 between -1 and 1 fills the picture.
FRONT = camera.orbit(math.pi / 2, 0.0, 1.0, math.pi / 2)
SIDE = 16


def rectangle(left, right, top, bottom):
    """Corners and faces of a rectangle whose borders lie at these pixels of a picture of SIDE x SIDE."""
    x, y = (np.array([left, right]) / SIDE * 2 - 1), 1 - np.array([top, bottom]) / SIDE * 2
    corners = [[x[0], y[1], 0], [x[1], y[1], 0], [x[1], y[0], 0], [x[0], y[0], 0]]
    return np.array(corners), np.array([[0, 1, 2], [0, 2, 3]])


def coverage(vertices, faces, cameras=FRONT, side=SIDE, smooth=True):
    """(N, side, side): how much of each pixel the mesh covers."""
    seen = rasterise(vertices, faces, cameras, side, side)
    image = torch.from_numpy(seen.mask[:, None].astype(np.float32))
    if smooth:
        found = find_outlines(seen, vertices, faces, cameras, adjacent_vertices(faces), backend="numpy")
        image = blend_outlines(image, found)
    return image[:, 0].numpy()


@pytest.mark.parametrize("border", [3.0, 3.2, 3.5, 3.7, 4.0])
def test_an_upright_border_covers_its_share_of_each_pixel(border):
    columns = coverage(*rectangle(border, 12.4, -5, 25))[0]
    expected = np.clip(np.minimum(np.arange(SIDE) + 1 - border, 12.4 - np.arange(SIDE)), 0, 1)
    np.testing.assert_allclose(columns, np.tile(expected, (SIDE, 1)), atol=1e-3)


def test_a_level_border_too():
    rows = coverage(*rectangle(-5, 25, 2.75, 9.1))[0]
    expected = np.clip(np.minimum(np.arange(SIDE) + 1 - 2.75, 9.1 - np.arange(SIDE)), 0, 1)
    np.testing.assert_allclose(rows, np.tile(expected[:, None], (1, SIDE)), atol=1e-3)


def test_the_nearer_face_decides_between_two():
    """A strip before a wall: the wall's own borders are out of sight, the strip's are smoothed against the wall."""
    wall, faces = rectangle(-20, 40, -20, 40)
    strip, _ = rectangle(5.25, 10.5, -5, 25)
    vertices = np.concatenate([wall * [1, 1, 0] - [0, 0, 0.5], strip])
    both = np.concatenate([faces, faces + 4])
    seen = rasterise(vertices, both, FRONT, SIDE, SIDE)
    found = find_outlines(seen, vertices, both, FRONT, adjacent_vertices(both), backend="numpy")
    red = torch.from_numpy((seen.face >= 2)[:, None].astype(np.float32))
    line = blend_outlines(red, found)[0, 0, 8]
    assert line[4:12].tolist() == pytest.approx([0, 0.75, 1, 1, 1, 1, 0.5, 0], abs=1e-3)


def test_tilted_outlines_come_out_near_the_truth():
    vertices, faces = meshes.cube().vertices * 0.35, meshes.cube().faces
    views = camera.sample_paint_cameras(numpy_generator(5, "views"), 4, camera.CameraSettings(close_up=0.0))
    fine = rasterise(vertices, faces, views, 64 * 16, 64 * 16).mask.reshape(4, 64, 16, 64, 16).mean(axis=(2, 4))
    border = (fine > 0) & (fine < 1)
    drawn, smooth = (
        np.sqrt(np.square(coverage(vertices, faces, views, 64, smooth) - fine)[border].mean())
        for smooth in (False, True)
    )
    assert drawn > 0.25 and smooth < 0.08


def test_within_a_smooth_surface_nothing_mixes():
    """Faces of a ball meet at every pixel; only those at its rim fold away."""
    ball = meshes.uv_sphere(12, 24, radius=0.5)
    seen = rasterise(ball.vertices, ball.faces, FRONT, 64, 64)
    found = find_outlines(seen, ball.vertices, ball.faces, FRONT, adjacent_vertices(ball.faces), backend="numpy")
    rim = np.hypot(*(np.indices((64, 64)) - 31.5))
    touched = np.zeros((64, 64), bool)
    touched[:, :-1] |= found.right[0].numpy() != 0
    touched[:-1] |= found.below[0].numpy() != 0
    assert touched.any() and rim[touched].min() > 0.85 * rim[seen.mask[0]].max()


def test_a_seam_in_the_indices_counts_as_an_outline():
    """What the loader welds for good reason: a surface whose faces share no vertex mixes along every edge."""
    vertices, faces = rectangle(2, 14, 2, 14)
    apart, own = vertices[faces].reshape(-1, 3), np.arange(6).reshape(2, 3)
    assert (adjacent_vertices(own) == -1).all()
    mixed = [
        find_outlines(
            rasterise(v, f, FRONT, SIDE, SIDE), v, f, FRONT, adjacent_vertices(f), backend="numpy"
        ).right.count_nonzero()
        for v, f in ((vertices, faces), (apart, own))
    ]
    assert mixed[0] < mixed[1]


def test_faces_across():
    tetrahedron = np.array([[0, 1, 2], [0, 3, 1], [1, 3, 2], [0, 2, 3]])
    assert adjacent_vertices(tetrahedron).tolist() == [[3, 3, 3], [2, 2, 2], [0, 0, 0], [1, 1, 1]]
    # Open at two edges; then three faces on one edge, which has no single other side.
    assert adjacent_vertices(np.array([[0, 1, 2], [2, 1, 3]])).tolist() == [[3, -1, -1], [-1, -1, 0]]
    assert adjacent_vertices(np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]])).tolist() == [[-1] * 3] * 3
    assert adjacent_vertices(np.zeros((0, 3), int)).shape == (0, 3)


def shares(n=2, height=5, width=6):
    generator = torch_generator(9, "shares")
    right = torch.rand(n, height, width - 1, generator=generator)
    below = torch.rand(n, height - 1, width, generator=generator)
    return Outlines(right - 0.5, below - 0.5)


def test_mixing_is_linear_and_its_gradient_is_right():
    image = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch_generator(9, "image"))
    found = shares()
    flat = torch.full_like(image, 0.7)
    torch.testing.assert_close(blend_outlines(flat, found), flat)
    torch.testing.assert_close(blend_outlines(3 * image + flat, found), 3 * blend_outlines(image, found) + flat)
    assert torch.autograd.gradcheck(lambda x: blend_outlines(x, found), image.requires_grad_(True))


def test_a_share_is_taken_by_one_side_of_a_pair():
    none = Outlines(torch.zeros(1, 1, 2), torch.zeros(1, 0, 3))
    line = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    for share, expected in ((0.25, [1.25, 2, 4]), (-0.25, [1, 1.75, 4])):
        right = none.right.clone()
        right[0, 0, 0] = share
        assert blend_outlines(line, Outlines(right, none.below)).flatten().tolist() == expected


def test_views_without_a_mesh_are_left_alone():
    empty = rasterise(np.zeros((0, 3)), np.zeros((0, 3), int), FRONT, 4, 5)
    found = antialias.find_outlines(
        empty, np.zeros((0, 3)), np.zeros((0, 3), int), FRONT, np.zeros((0, 3), np.int64), backend="numpy"
    )
    assert found.right.shape == (1, 4, 4) and found.below.shape == (1, 3, 5)
    assert not found.right.any() and not found.below.any()
