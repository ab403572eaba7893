"""Which views paint a mesh: those that add most, that overlap little in a group, and no more than are of use."""

from __future__ import annotations

import meshes
import numpy as np

from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.view_planning import choose_groups, point_weights
from pipeline.raster.camera import CameraSettings, orbit


def renderer() -> MeshRenderer:
    ball = meshes.uv_sphere(16, 32, radius=0.6)
    assert ball.uv is not None and ball.uv_faces is not None
    return MeshRenderer(ball.vertices, ball.faces, ball.uv.astype(np.float32), ball.uv_faces, CameraSettings(), seed=0)


def test_points_count_where_a_view_faces_them_away_from_its_border() -> None:
    ball = renderer()
    points = ball.details[0][:2048]
    cameras = orbit(np.pi / 2, [0.0, np.pi], 2.4, np.radians(20))
    front, back = point_weights(ball, cameras, 0.6)
    assert front.min() == 0 and front.max() <= 1
    assert front[points[:, 2] > 0.58].min() > 0.9
    assert front[points[:, 2] < 0].max() == 0 and back[points[:, 2] > 0].max() == 0
    # The image is 0.85 high at the centre, less in front of it: what lies farther out is outside.
    assert front[np.abs(points[:, 0]) > 0.41].max() == 0


def test_groups_are_apart_and_end_where_nothing_new_is_shown() -> None:
    # Twelve views of ten points each: 0 to 3 apart from each other, 4 to 7 half of each of two, the others copies.
    weights = np.zeros((12, 40), np.float32)
    for n in range(4):
        weights[[n, n + 8], 10 * n : 10 * n + 10] = 1
        weights[n + 4, (10 * n + np.arange(5, 15)) % 40] = 1
    known = np.zeros(40, np.float32)
    groups = choose_groups(weights, 4, 3, known)
    assert len(groups) == 1 and sorted(groups[0] % 8) == [0, 1, 2, 3]
    assert known.min() == 1


def test_a_first_group_is_there_whatever_it_shows() -> None:
    (group,) = choose_groups(np.zeros((5, 7), np.float32), 2, 4, np.zeros(7, np.float32))
    assert len(set(group.tolist())) == 2


def test_no_more_groups_than_are_asked_for_and_no_view_twice() -> None:
    weights = np.eye(12, dtype=np.float32)
    groups = choose_groups(weights, 4, 2, np.zeros(12, np.float32))
    assert len(groups) == 2 and len(np.unique(np.concatenate(groups))) == 8
