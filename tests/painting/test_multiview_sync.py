"""Patches that are made together: noise that lies on the surface, and views that come to show the same on it."""

from __future__ import annotations

import numpy as np
import torch
from test_painted_mesh import FACES, SQUARE, UV

from pipeline.painting.correlated_noise import correlated_noise
from pipeline.painting.mesh_renderer import GBuffer, MeshRenderer
from pipeline.painting.multiview_sync import sync_correction
from pipeline.raster.camera import CameraSettings, orbit
from pipeline.raster.texture import sample_texture, scatter_texture

SIDE, SUPERSAMPLE, HEIGHT = 16, 4, 0.5
PIXEL = HEIGHT / SIDE


def look(turns: list[float], shifts: list[float]) -> tuple[GBuffer, object]:
    """Views of the middle of the square from in front, turned about the upright axis and shifted to the right."""
    targets = np.array([(shift, 0, 0) for shift in shifts], float)
    cameras = orbit([np.pi / 2] * len(turns), turns, HEIGHT, 2 * np.arctan(0.5), targets)
    return MeshRenderer(SQUARE, FACES, UV, FACES, CameraSettings(), 0).render(cameras, SIDE * SUPERSAMPLE), cameras


def noise(turns: list[float], shifts: list[float], seed: int = 1, channels: int = 4) -> np.ndarray:
    seen, cameras = look(turns, shifts)
    return correlated_noise(seen, cameras, SUPERSAMPLE, channels, PIXEL / 3, seed)  # type: ignore[arg-type]


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_noise_on_a_surface_is_standard_normal_and_white() -> None:
    found = noise([0.0] * 6, [0.0, 0.03, 0.06, 0.3, 0.6, 2.0], channels=16)
    assert found.shape == (6, 16, SIDE, SIDE) and found.dtype == np.float32
    assert abs(found.mean()) < 0.05 and abs(found.std() - 1) < 0.03
    assert abs(alike(found[..., 1:], found[..., :-1])) < 0.05 and abs(alike(found[:, :, 1:], found[:, :, :-1])) < 0.05
    assert abs(alike(found[:, 0], found[:, 1])) < 0.05


def test_a_place_has_the_same_noise_in_every_view() -> None:
    straight, moved, turned = noise([0.0, 0.0, 0.3], [0.0, PIXEL, 0.0])
    assert alike(straight[:, :, 1:], moved[:, :, :-1]) > 0.99
    assert abs(alike(straight, moved)) < 0.1
    middle = slice(4, 12)
    assert alike(straight[:, middle, middle], turned[:, middle, middle]) > 0.3
    assert np.array_equal(noise([0.0], [0.0]), noise([0.0], [0.0]))
    assert abs(alike(noise([0.0], [0.0]), noise([0.0], [0.0], seed=2))) < 0.1


def test_what_is_behind_has_noise_of_its_own_in_each_view() -> None:
    first, second = noise([0.0, 0.0], [9.0, 9.0], seed=3, channels=16)
    assert abs(first.std() - 1) < 0.03 and abs(alike(first, second)) < 0.05


def test_scattering_is_the_adjoint_of_looking_up() -> None:
    g = torch.Generator().manual_seed(1)
    texture, uv, values = (torch.randn(3, 8, 8, generator=g), torch.rand(50, 2, generator=g), torch.randn(50, 3))
    forth = (sample_texture(texture, uv) * values).sum()
    torch.testing.assert_close(forth, (scatter_texture(values, uv, 8) * texture).sum())


def test_views_meet_where_they_show_the_same_and_keep_the_rest() -> None:
    seen, _ = look([0.0, 0.0], [0.0, 8 * PIXEL])
    clean = torch.stack([torch.full((2, SIDE, SIDE), 1.0), torch.full((2, SIDE, SIDE), 3.0)])
    weights = torch.ones(len(seen.uv))
    count = int(seen.covered[0].sum())
    weights[count:] = 3.0
    met = clean + sync_correction(clean, seen, weights, SUPERSAMPLE, 64)
    # Of the first view the right half is in both; there the second one counts three times as much.
    torch.testing.assert_close(met[0, :, :, 10:14], torch.full((2, SIDE, 4), 2.5), atol=0.05, rtol=0)
    torch.testing.assert_close(met[1, :, :, 2:6], torch.full((2, SIDE, 4), 2.5), atol=0.05, rtol=0)
    torch.testing.assert_close(met[0, :, :, :6], clean[0, :, :, :6])
    torch.testing.assert_close(met[1, :, :, 10:], clean[1, :, :, 10:])


def test_a_view_alone_stays_as_it_is_to_the_bit_and_background_is_left_alone() -> None:
    seen, _ = look([0.0], [0.4])
    assert not seen.covered.all()
    clean = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    change = sync_correction(clean, seen, torch.rand(len(seen.uv)) + 0.1, SUPERSAMPLE, 64)
    assert change.shape == clean.shape and not change.any()
    pair, _ = look([0.0, 0.0], [0.4, 0.4])
    change = sync_correction(torch.cat([clean, -clean]), pair, torch.ones(len(pair.uv)), SUPERSAMPLE, 64)
    bare = torch.from_numpy(~pair.covered.reshape(2, SIDE, 4, SIDE, 4).any(axis=(2, 4)))
    assert bare.any() and not change.permute(0, 2, 3, 1)[bare].any() and change.abs().max() > 0.1
