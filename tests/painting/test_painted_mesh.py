"""The painted mesh as a scene: what views show, where gradients go, what a checkpoint holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.rng import torch_generator
from pipeline.painting.background import COLUMNS, ROWS, EnvironmentMap
from pipeline.painting.painted_mesh import PaintedMesh, PaintedMeshSettings, upsample, upsample_deterministic
from pipeline.prior.latent_rgb import LatentRgb
from pipeline.raster.camera import CameraSettings, orbit, ray_directions

RGB = LatentRgb(np.random.default_rng(0).normal(0, 0.2, (4, 3)), np.full(3, 0.5))

# A square in the plane z = 0 facing +Z, its texture upright as seen from the front.
SQUARE = np.array([[-0.4, 0.4, 0], [0.4, 0.4, 0], [0.4, -0.4, 0], [-0.4, -0.4, 0]], float)
UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
FACES = np.array([[0, 2, 1], [0, 3, 2]])


def scene(seed: int = 0, **settings: object) -> PaintedMesh:
    values = {"views": 3, "view_size": 16, "texture_size": 32, "learning_rate": 0.1, "cameras": CameraSettings()}
    return PaintedMesh(
        SQUARE, FACES, UV, FACES, RGB, PaintedMeshSettings(**{**values, **settings}), seed, torch.device("cpu")
    )


def leaves(made: PaintedMesh) -> list[torch.Tensor]:
    """What is optimised: the levels of the texture, the finest first, then the background if it is learned."""
    return [leaf for group in made.parameters() for leaf in group["params"]]  # type: ignore[attr-defined]


def test_the_front_view_shows_the_texture_upright() -> None:
    made = scene()
    with torch.no_grad():
        finest = leaves(made)[0].zero_()
        finest[0, :16, :16] = 1.0  # top left
        finest[1, :16, 16:] = 1.0  # top right
        finest[2, 16:, :16] = 1.0  # bottom left
    front = orbit(np.pi / 2, 0.0, 1.0, np.radians(40))
    view = made.render_views(front, 0)[0].detach()
    for channel, (y, x) in enumerate([(5, 5), (5, 10), (10, 5)]):
        assert view[:3, y, x].argmax() == channel and view[channel, y, x] > 0.99


def test_gradients_reach_what_is_seen_and_nothing_else() -> None:
    made = scene()
    detail = orbit(np.pi / 2, 0.0, 0.3, np.radians(40), target=(-0.2, 0.2, 0.0))
    made.render_views(detail, 0).sum().backward()
    touched = leaves(made)[0].grad[0].abs() > 0  # type: ignore[index]
    assert touched[8, 8] and not touched[24, 24]
    assert made.texel_coverage.coverage[8, 8] and not made.texel_coverage.coverage[24, 24]


def test_every_draw_is_keyed_by_seed_and_step() -> None:
    one, two, other = scene(3), scene(3), scene(4)
    assert torch.equal(one.render(5, 10).latents, two.render(5, 10).latents)
    assert not torch.equal(one.render(6, 10).latents, two.render(5, 10).latents)
    assert not torch.equal(one.texture, other.texture)


def test_a_latent_pixel_is_the_mean_over_its_area() -> None:
    fine, coarse = scene(supersample=8, view_size=16), scene(supersample=1, view_size=128)
    front = orbit(np.pi / 2, 0.2, 1.0, np.radians(40))
    mean = torch.nn.functional.avg_pool2d(coarse.render_views(front, 0), 8)
    assert torch.allclose(fine.render_views(front, 0), mean, atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
def test_smoothed_outlines_are_what_the_mesh_covers(antialias: bool) -> None:
    made = scene(supersample=1, antialias=antialias)
    with torch.no_grad():
        for level in leaves(made):
            level.zero_()
        leaves(made)[0][0] = 9.0
    border = (0.4 / (1.5 * np.tan(np.radians(20))) + 1) * 8  # in pixels: 13.86
    front = orbit(np.pi / 2, 0.0, 1.5, np.radians(40))
    view = made.render_views(front, 0)[0, 0]
    behind = view[0, 0].detach()
    covered = ((view - behind) / (9 - behind)).detach()
    assert float(covered[8, 13]) == pytest.approx(border - 13 if antialias else 1.0, abs=0.01)
    assert covered[8, 14] == 0 and covered[8, 8] == 1
    # The gradient reaches the texture with the same weights: in all, the area that is covered.
    view.sum().backward()
    area = float(leaves(made)[0].grad[0].sum())  # type: ignore[index]
    assert area == pytest.approx((2 * (border - 8)) ** 2 if antialias else 12**2, rel=0.01)


def test_close_ups_are_marked_and_share_as_asked() -> None:
    views = [v for step in range(40) for v in scene(cameras=CameraSettings(close_up=0.25)).render(step, 40).views]
    share = np.mean([v.close for v in views])
    assert 0.15 < share < 0.35
    assert {v.direction_word for v in views} >= {"front", "side", "back"}


def test_plain_backgrounds_differ_by_view_and_step() -> None:
    made = scene()
    corners = [made.render(step, 10).latents[:, :, 0, 0].detach() for step in (0, 1)]
    assert not torch.allclose(corners[0][0], corners[0][1]) and not torch.allclose(corners[0], corners[1])
    assert len(made.parameters()) == sum(name.startswith("texture.") for name in made.state())


def test_a_learned_background_has_gradients() -> None:
    made = scene(background="learned")
    assert len(leaves(made)) == len(leaves(scene())) + 1
    made.render(0, 10).latents.sum().backward()
    assert leaves(made)[-1].grad.abs().sum() > 0  # type: ignore[union-attr]


def test_the_sphere_is_read_where_a_ray_goes_and_has_no_seam() -> None:
    values = torch.zeros(1, ROWS, COLUMNS)
    values[0, :, COLUMNS // 4] = 1.0  # around phi = 90 degrees: +X
    sphere = EnvironmentMap(values)
    towards = np.array([[1, 0, 0], [-1, 0, 0], [0, 0, 1.0]])
    seen = sphere.sample(towards)[:, 0].tolist()
    assert seen[0] == pytest.approx(0.5, abs=0.01) and seen[1:] == [0, 0]
    ramp = EnvironmentMap(torch.arange(COLUMNS, dtype=torch.float32).expand(1, ROWS, COLUMNS))
    across = np.array([[np.sin(a), 0, np.cos(a)] for a in (-1e-4, 1e-4)])
    left, right = ramp.sample(across)[:, 0].tolist()
    assert left == pytest.approx(right, abs=0.05)


def test_rays_meet_the_pixels_that_points_fall_on() -> None:
    camera = orbit(1.1, 0.7, 2.0, 0.9)
    rays = ray_directions(camera, 24, 32)[0]
    clip = camera.clip_from_world[0]
    for y, x in [(0, 0), (5, 20), (23, 31)]:
        point = np.append(camera.eye[0] + 1.7 * rays[y, x], 1.0)
        projected = clip @ point
        ndc = projected[:2] / projected[3]
        assert np.allclose([(ndc[0] + 1) / 2 * 32, (1 - ndc[1]) / 2 * 24], [x + 0.5, y + 0.5], atol=1e-6)


def test_the_start_leans_to_the_base_colour() -> None:
    red = scene(base_colour=(0.9, 0.1, 0.1)).texture.detach().mean(dim=(1, 2)).numpy()
    grey = scene().texture.detach().mean(dim=(1, 2)).numpy()
    shift = (red - grey) @ RGB.matrix
    assert shift[0] > 0 > shift[1]


def test_state_goes_round_and_refuses_strangers() -> None:
    one, two = scene(1), scene(2)
    one.render(0, 10)
    two.load_state({name: value.detach().clone() for name, value in one.state().items()})
    assert torch.equal(one.texture, two.texture)
    assert np.array_equal(one.texel_coverage.coverage, two.texel_coverage.coverage)
    with pytest.raises(ValueError, match="texture"):
        two.load_state({**one.state(), "texture.32": torch.zeros(4, 8, 8)})


def test_the_texture_is_the_sum_of_its_levels() -> None:
    made = scene(texture_size=96, view_size=16)
    assert [level.shape[-1] for level in leaves(made)] == [96, 48, 24, 12]
    before = made.texture.detach().clone()
    with torch.no_grad():
        leaves(made)[2][1, 5, 7] = 1.0
    change = (made.texture.detach() - before)[1]
    assert change.max() > 0.5 and change[:16].abs().max() == 0 and abs(float(change.sum()) - 16) < 1e-3
    made.render(0, 10).latents.square().sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in leaves(made))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_what_cuda_enlarges_by_is_interpolation(factor: int) -> None:
    level = torch.randn(3, 5, 5, generator=torch_generator(3, "level"), requires_grad=True)
    weight = torch.randn(3, 5 * factor, 5 * factor, generator=torch_generator(4, "weight"))
    both = (upsample(level, 5 * factor), upsample_deterministic(level, 5 * factor))
    answers = [(made, *torch.autograd.grad((made * weight).sum(), level)) for made in both]
    for mine, torchs in zip(answers[1], answers[0], strict=True):
        torch.testing.assert_close(mine, torchs, atol=1e-5, rtol=1e-5)


def test_the_places_that_cuda_computes_are_the_hosts() -> None:
    cameras = orbit(np.radians([50.0, 95.0]), np.radians([10.0, 200.0]), 1.4, np.radians(50.0))
    sphere = EnvironmentMap(torch.randn(4, ROWS, COLUMNS, generator=torch_generator(5, "sphere")))
    there = sphere.background_on_device(cameras, 12, 20)
    torch.testing.assert_close(there, sphere.background(cameras, 12, 20), atol=1e-5, rtol=1e-5)
