"""Cameras: where they stand, what the view words say at every border, and how they are drawn."""

import math

import numpy as np
import pytest

from pipeline.core.errors import SettingError
from pipeline.core.rng import numpy_generator
from pipeline.raster import camera


def project(cameras, points):
    """NDC (N, P, 3) of world points (P, 3)."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    clip = np.einsum("nij,pj->npi", cameras.clip_from_world, homogeneous)
    return clip[..., :3] / clip[..., 3:], clip[..., 3]


def test_a_level_camera_in_front_sees_x_to_the_right_and_y_up():
    cameras = camera.orbit(math.pi / 2, 0.0, 2.0, math.radians(60))
    np.testing.assert_allclose(cameras.eye, [[0, 0, 2]], atol=1e-15)
    ndc, w = project(cameras, np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.5]]))
    np.testing.assert_allclose(ndc[0, 0, :2], 0, atol=1e-12)
    assert ndc[0, 1, 0] > 0
    assert abs(ndc[0, 1, 1]) < 1e-12
    assert ndc[0, 2, 1] > 0
    np.testing.assert_allclose(w[0], [2, 2, 2, 1.5])


def test_the_field_of_view_is_vertical_and_aspect_is_width_over_height():
    cameras = camera.orbit(math.pi / 2, 0.0, 2.0, math.radians(90), aspect=2.0)
    ndc, _ = project(cameras, np.array([[0, 2.0, 0], [4.0, 0, 0]]))
    np.testing.assert_allclose(ndc[0, 0, 1], 1)
    np.testing.assert_allclose(ndc[0, 1, 0], 1)


def test_near_and_far_planes_are_at_minus_one_and_one():
    cameras = camera.orbit(math.pi / 2, 0.0, 2.0, 1.0, near=0.5, far=4.0)
    ndc, _ = project(cameras, np.array([[0, 0, 1.5], [0, 0, -2.0]]))
    np.testing.assert_allclose(ndc[0, :, 2], [-1, 1])


@pytest.mark.parametrize("theta", [0.0, 1e-12, 0.3, math.pi / 2, 2.5, math.pi])
@pytest.mark.parametrize("phi", [0.0, 1.0, math.pi, 5.0, -1.0])
def test_view_is_a_rotation_everywhere_even_at_the_poles(theta, phi):
    target = np.array([0.2, -0.1, 0.4])
    cameras = camera.orbit(theta, phi, 1.3, 1.0, target)
    rotation = cameras.view[0, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert rotation[1, 1] >= -1e-12  # never upside down
    ndc, w = project(cameras, target[None])
    np.testing.assert_allclose(ndc[0, 0, :2], 0, atol=1e-12)
    assert w[0, 0] == pytest.approx(1.3)


def test_heading_at_the_pole_continues_the_azimuth():
    at_pole = camera.orbit(0.0, 1.0, 2.0, 1.0).view
    beside = camera.orbit(1e-7, 1.0, 2.0, 1.0).view
    np.testing.assert_allclose(at_pole, beside, atol=1e-6)


def test_angles_invert_directions():
    rng = numpy_generator(1, "angles")
    theta, phi = rng.uniform(0.01, math.pi - 0.01, 200), rng.uniform(0, 2 * math.pi, 200)
    back_theta, back_phi = camera.angles(3 * camera.directions(theta, phi))
    np.testing.assert_allclose(back_theta, theta)
    np.testing.assert_allclose(back_phi, phi)


def expected_word(theta: int, phi: int) -> str:
    """The rule in whole degrees, where borders are exact."""
    if theta <= 30:
        return "overhead"
    if theta >= 150:
        return "bottom"
    phi %= 360
    if phi <= 35 or phi >= 325:
        return "front"
    if 145 <= phi <= 215:
        return "back"
    return "side"


def test_every_whole_degree_has_its_word_over_three_turns():
    theta, phi = (a.ravel() for a in np.meshgrid(np.arange(181), np.arange(-360, 721)))
    words = camera.view_words(np.radians(theta), np.radians(phi))
    assert words == [expected_word(int(t), int(p)) for t, p in zip(theta, phi, strict=True)]
    assert set(words) == {"front", "side", "back", "overhead", "bottom"}


@pytest.mark.parametrize(
    ("theta", "phi", "word"),
    [
        (90, 0, "front"), (90, 360, "front"), (90, 359.999, "front"), (90, -0.001, "front"),
        (90, 35, "front"), (90, 35.001, "side"), (90, 325, "front"), (90, 324.999, "side"),
        (90, 144.999, "side"), (90, 145, "back"), (90, 180, "back"), (90, 215, "back"), (90, 215.001, "side"),
        (90, -180, "back"), (90, 90, "side"), (90, 270, "side"), (90, 720 + 35, "front"),
        (30, 0, "overhead"), (30.001, 0, "front"), (0, 180, "overhead"),
        (150, 0, "bottom"), (149.999, 180, "back"), (180, 90, "bottom"),
    ],
)  # fmt: skip
def test_borders(theta, phi, word):
    assert camera.view_words(math.radians(theta), math.radians(phi)) == [word]


def test_a_half_turn_of_front_leaves_no_side():
    words = camera.view_words(math.pi / 2, np.radians(np.arange(0, 360)), angle_front=math.pi)
    assert set(words) == {"front", "back"}


@pytest.mark.parametrize("angle", [0, -1, 4])
def test_a_meaningless_front_angle_is_refused(angle):
    with pytest.raises(SettingError):
        camera.view_words(1.0, 0.0, angle_front=angle)


def test_whole_views_are_uniform_by_area_and_in_range():
    settings = camera.CameraSettings(close_up=0)
    cameras = camera.sample_paint_cameras(numpy_generator(0, "cameras"), 20_000, settings)
    elevation = math.pi / 2 - cameras.theta
    assert elevation.min() >= settings.elevation_min - 1e-12
    assert elevation.max() <= settings.elevation_max + 1e-12
    low, high = math.sin(settings.elevation_min), math.sin(settings.elevation_max)
    share = np.histogram(np.sin(elevation), bins=10, range=(low, high))[0] / 20_000
    np.testing.assert_allclose(share, 0.1, atol=0.002)
    assert not cameras.close.any()


def test_one_camera_alone_is_uniform_too():
    settings = camera.CameraSettings(close_up=0, elevation_min=-math.pi / 2, elevation_max=math.pi / 2)
    rng = numpy_generator(3, "alone")
    first = [camera.sample_paint_cameras(rng, 4, settings)[np.array([0])] for _ in range(3000)]
    heights = np.concatenate([np.cos(c.theta) for c in first])
    turns = np.concatenate([c.phi for c in first])
    for values, low, high in ((heights, -1, 1), (turns, 0, 2 * math.pi)):
        share = np.histogram(values, bins=8, range=(low, high))[0] / 3000
        np.testing.assert_allclose(share, 0.125, atol=0.02)


def test_a_batch_spreads_around_the_object():
    settings = camera.CameraSettings(close_up=0)
    phi = np.sort(camera.sample_paint_cameras(numpy_generator(5, "batch"), 8, settings).phi)
    assert (np.floor(phi / (2 * math.pi / 8)) == np.arange(8)).all()


def test_whole_views_frame_the_bounding_sphere():
    settings = camera.CameraSettings(close_up=0)
    cameras = camera.sample_paint_cameras(numpy_generator(0, "frame"), 200, settings)
    distance = np.linalg.norm(cameras.eye, axis=1)
    tightest = settings.object_radius / math.sin(settings.fov / 2) / settings.fill[1]
    assert distance.min() >= tightest - 1e-12
    assert distance.min() > settings.object_radius * 1.5


def test_close_ups_look_at_targets_from_outside():
    rng = numpy_generator(2, "close")
    normals = camera.directions(rng.uniform(0.6, 2.4, 500), rng.uniform(0, 2 * math.pi, 500))
    targets = 0.6 * normals
    settings = camera.CameraSettings(close_up=1.0)
    cameras = camera.sample_paint_cameras(rng, 300, settings, targets, normals)
    assert cameras.close.all()
    forward = -cameras.view[:, 2, :3]
    offset = targets[None] - cameras.eye[:, None]
    along = np.einsum("npi,ni->np", offset, forward)
    aside = np.linalg.norm(offset - along[..., None] * forward[:, None], axis=-1)
    hit = np.argmin(aside + (along < 0) * 9, axis=1)
    assert aside[np.arange(300), hit].max() < 1e-9
    looking = np.einsum("ni,ni->n", -forward, normals[hit])
    assert looking.min() >= math.cos(settings.close_angle) - 1e-9
    assert (along[np.arange(300), hit] < 0.6 * settings.close_height[1]).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_close_ups_holds_on_average(share):
    settings = camera.CameraSettings(close_up=share)
    rng = numpy_generator(4, "share")
    close = [camera.sample_paint_cameras(rng, 5, settings, np.zeros((1, 3))).close.mean() for _ in range(600)]
    assert np.mean(close) == pytest.approx(share, abs=0.03)


def test_without_targets_every_view_is_whole():
    cameras = camera.sample_paint_cameras(numpy_generator(0, "x"), 6, camera.CameraSettings(close_up=1.0))
    assert not cameras.close.any()


def test_the_same_stream_gives_the_same_cameras():
    settings = camera.CameraSettings()
    one, two = (
        camera.sample_paint_cameras(numpy_generator(9, "views", 7), 8, settings, np.ones((3, 3))) for _ in range(2)
    )
    assert (one.clip_from_world == two.clip_from_world).all()


def test_surface_samples_follow_the_area():
    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 1.0], [1, 0, 1], [0, 2, 1]])
    faces = np.array([[0, 1, 2], [3, 4, 5], [0, 0, 1]])  # areas 3, 1, 0
    points, normals = camera.sample_surface(numpy_generator(0, "s"), vertices, faces, 8000)
    assert (points[:, 2] == 0).mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(normals, np.tile([0, 0, 1.0], (8000, 1)))
    lower = points[points[:, 2] == 0]
    assert (lower[:, 0] / 3 + lower[:, 1] / 2 <= 1 + 1e-12).all()
    np.testing.assert_allclose(lower.mean(axis=0), [1, 2 / 3, 0], atol=0.05)


def test_a_mesh_without_area_still_gives_points():
    points, normals = camera.sample_surface(numpy_generator(0, "s"), np.eye(3), np.array([[0, 0, 1]]), 4)
    assert np.isfinite(points).all()
    assert np.isfinite(normals).all()


def test_bad_settings_are_refused():
    with pytest.raises(SettingError):
        camera.CameraSettings(elevation_min=1.0, elevation_max=0.5)
    with pytest.raises(SettingError):
        camera.CameraSettings(close_up=1.5)
    with pytest.raises(SettingError):
        camera.orbit(1.0, 0.0, 0.0, 1.0)
    with pytest.raises(SettingError):
        camera.orbit(1.0, 0.0, 1.0, 1.0, near=2.0, far=1.0)
