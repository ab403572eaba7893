"""The working frame: size, place, direction, and that it never mirrors."""

from __future__ import annotations

import meshes
import numpy as np
import pytest

from pipeline.core.errors import SettingError
from pipeline.mesh.normalise import normalise


def test_centres_the_box_and_puts_the_farthest_vertex_at_the_radius() -> None:
    points = np.array([[10.0, 0, 0], [14, 0, 0], [11, 6, 1], [10, 0, 0]])
    placed = normalise(points, radius=0.6).apply(points)
    assert np.allclose(placed.min(axis=0), -placed.max(axis=0))
    assert np.linalg.norm(placed, axis=1).max() == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("up_axis", "front", "up", "forward"),
    [
        ("y", "+z", (0, 1, 0), (0, 0, 1)),
        ("y", "-z", (0, 1, 0), (0, 0, -1)),
        ("y", "+x", (0, 1, 0), (1, 0, 0)),
        ("y", "-x", (0, 1, 0), (-1, 0, 0)),
        ("z", "-y", (0, 0, 1), (0, -1, 0)),
        ("z", "+y", (0, 0, 1), (0, 1, 0)),
        ("z", "+x", (0, 0, 1), (1, 0, 0)),
        ("z", "-x", (0, 0, 1), (-1, 0, 0)),
        ("z", "+z", (0, 0, 1), (0, -1, 0)),  # the default front of a z-up mesh
    ],
)
def test_up_becomes_y_and_front_becomes_z_without_a_mirror(
    up_axis: str, front: str, up: tuple[int, ...], forward: tuple[int, ...]
) -> None:
    frame = normalise(meshes.blob(200).vertices, up_axis=up_axis, front=front)
    assert np.allclose(frame.apply_direction(np.array(up)), (0, 1, 0))
    assert np.allclose(frame.apply_direction(np.array(forward)), (0, 0, 1))
    assert np.linalg.det(frame.matrix[:3, :3]) > 0


def test_the_inverse_leads_back_even_far_from_the_origin() -> None:
    points = meshes.torus().vertices * 3.0 + np.array([1e6, -2e6, 5e5])
    frame = normalise(points, up_axis="z")
    assert np.abs(frame.inverse.apply(frame.apply(points)) - points).max() < 1e-8
    assert np.abs(np.linalg.norm(frame.apply(points), axis=1).max() - 0.6) < 1e-9
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ frame.matrix.T
    assert np.allclose(homogeneous[:, :3], frame.apply(points), atol=1e-8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"front": "+y"}, "same axis"),
        ({"up_axis": "z", "front": "-z"}, "same axis"),
        ({"up_axis": "x"}, "up_axis"),
        ({"front": "z"}, "front"),
    ],
)
def test_settings_that_contradict_are_refused(options: dict[str, str], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        normalise(meshes.cube().vertices, **options)  # type: ignore[arg-type]


def test_a_mesh_without_extent_is_refused() -> None:
    with pytest.raises(SettingError, match="extent"):
        normalise(np.ones((5, 3)))
