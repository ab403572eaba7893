"""Following the flow: noise that stays with the surface, and texels that go their own way to clean latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_painted_mesh import FACES, RGB, SQUARE, UV

from pipeline.geometry.camera import CameraSettings, orbit
from pipeline.scene.flow_mesh import FlowMesh, with_waves_of
from pipeline.scene.mesh_views import MeshViews
from pipeline.scene.painted_mesh import PaintedMeshSettings
from pipeline.scene.protocol import FlowScene, Rendering
from pipeline.scene.surface_noise import SurfaceNoise


def scene(seed: int = 0, level: float = 10.0, **changes: object) -> FlowMesh:
    values = {"views": 3, "view_size": 16, "texture_size": 32, "learning_rate": 0.1, "cameras": CameraSettings()}
    settings = PaintedMeshSettings(**{**values, **changes})  # type: ignore[arg-type]
    return FlowMesh(SQUARE, FACES, UV, FACES, RGB, settings, seed, torch.device("cpu"), level=level)


def look(distance: float, side: int = 64, turn: float = 0.0, target: tuple[float, float, float] = (0, 0, 0)):  # type: ignore[no-untyped-def]
    cameras = orbit(np.pi / 2, turn, distance, np.radians(40), target=target)
    return MeshViews(SQUARE, FACES, UV, FACES, CameraSettings(), 0).look(cameras, side)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("distance", [0.25, 0.6, 2.5])
def test_noise_of_a_view_is_independent_and_of_variance_one(distance: float) -> None:
    maps = torch.cat([SurfaceNoise(seed, 8).views(look(distance, turn=0.3), 4, 0) for seed in range(12)])
    assert abs(float(maps.mean())) < 0.03
    assert abs(float(maps.var()) - 1) < 0.05
    assert abs(correlation(maps[..., 1:], maps[..., :-1])) < 0.06
    assert abs(correlation(maps[..., 1:, :], maps[..., :-1, :])) < 0.06


def test_the_same_place_has_the_same_noise_from_elsewhere() -> None:
    noise = SurfaceNoise(1, 4)
    head_on = noise.views(look(0.5), 4, 0)
    # By half a latent pixel to the side, pixels share half of their texels; by one, they are the neighbours'.
    pixel = 2 * 0.5 * np.tan(np.radians(20)) / 16
    half = noise.views(look(0.5, target=(pixel / 2, 0.0, 0.0)), 4, 1)
    whole = noise.views(look(0.5, target=(pixel, 0.0, 0.0)), 4, 1)
    assert correlation(head_on, noise.views(look(0.5), 4, 1)) == pytest.approx(1)
    assert 0.3 < correlation(head_on, half) < 0.7
    assert correlation(head_on[..., 1:], whole[..., :-1]) > 0.8
    assert abs(correlation(head_on, SurfaceNoise(2, 4).views(look(0.5), 4, 0))) < 0.1


def test_from_afar_the_noise_is_the_sum_of_what_is_seen_close() -> None:
    noise = SurfaceNoise(3, 4)
    near, far = noise.views(look(0.4), 4, 0), noise.views(look(0.8), 4, 0)
    middle = torch.nn.functional.avg_pool2d(near, 2) * 2
    assert correlation(middle, far[..., 4:12, 4:12]) > 0.7


def test_noise_behind_the_mesh_is_fresh_at_every_step() -> None:
    noise = SurfaceNoise(1, 4)
    one, two = noise.views(look(2.5), 4, 0), noise.views(look(2.5), 4, 1)
    assert torch.equal(one[..., 8, 8], two[..., 8, 8])
    assert abs(correlation(one[..., :3, :], two[..., :3, :])) < 0.15
    assert torch.equal(one, SurfaceNoise(1, 4).views(look(2.5), 4, 0))


def test_colour_comes_with_fresh_noise_and_structure_with_the_surface_s_on_cameras_that_come_back() -> None:
    made = scene(views=8)
    assert all(made.render(step, 100).noise is None for step in (0, 39, 75, 99))
    one, again, other = made.render(40, 100), made.render(44, 100), made.render(45, 100)
    assert one.noise is not None and all(view.close for view in one.views)
    seen = one.reach.detach().sum() > 0  # type: ignore[union-attr]
    assert seen and torch.equal(one.reach, again.reach) and not torch.equal(one.reach, other.reach)  # type: ignore[arg-type]
    whole = scene(cameras=CameraSettings(close_up=0)).render(60, 100)
    assert not any(view.close for view in whole.views)


def test_a_texel_goes_its_share_of_the_way_and_the_rest_waits() -> None:
    made = scene(level=10.0)
    assert isinstance(made, FlowScene)
    goal = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(4, 1, 1)
    start = made.texture.detach().clone()
    rendering = made.render(25, 100)
    made.follow(rendering, rendering.latents.detach() - goal, torch.tensor(4.0))
    moved = made.state()["level"] == 4.0
    assert 0 < moved.sum() < moved.numel()
    expected = start + 0.6 * (goal - start)
    # The texture is still one colour, so views mix it with nothing but the background at its edge.
    inner = torch.zeros_like(moved)
    inner[8:24, 8:24] = True
    assert torch.allclose(made.texture[:, moved & inner], expected[:, moved & inner], atol=0.25)
    assert torch.equal(made.texture[:, ~moved], start[:, ~moved])
    # Nothing goes back to a level that it has passed.
    now = made.texture.detach().clone()
    rendering = made.render(25, 100)
    made.follow(rendering, rendering.latents.detach() - goal, torch.tensor(5.0))
    assert torch.equal(made.texture[:, moved], now[:, moved])


def test_at_first_all_texels_go_as_one_where_the_object_is_seen_purely() -> None:
    made = scene(level=10.0)
    goal = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(4, 1, 1)
    start = made.texture.detach()[:, :1, :1].clone()
    rendering = made.render(0, 100)
    residual = rendering.latents.detach() - goal
    # What is said of the background must not matter.
    residual = torch.where(rendering.reach > 0.5, residual, torch.full_like(residual, 50.0))  # type: ignore[operator]
    made.follow(rendering, residual, torch.tensor(4.0))
    texture = made.texture.detach()
    assert torch.equal(texture, texture[:, :1, :1].expand_as(texture))
    torch.testing.assert_close(texture[:, :1, :1], start + 0.6 * (goal - start), atol=0.15, rtol=0)
    assert bool((made.state()["level"] == 4.0).all())
    # After a fifth of the steps each goes its own way.
    rendering = made.render(20, 100)
    made.follow(rendering, torch.randn(rendering.latents.shape), torch.tensor(3.0))
    assert made.texture.detach().std(dim=(1, 2)).min() > 0


def test_following_to_the_end_arrives() -> None:
    made = scene(level=10.0, views=8)
    goal = torch.linspace(-1, 1, 4).view(4, 1, 1)
    for step in range(60):
        rendering = made.render(step, 60)
        made.follow(rendering, rendering.latents.detach() - goal, torch.tensor(10.0 * 0.9**step))
    seen = torch.from_numpy(made.visibility.reached)
    assert seen.float().mean() > 0.9
    error = (made.texture - goal).abs()[:, seen].mean()
    assert error < 0.12


def test_a_checkpoint_holds_where_every_texel_is() -> None:
    made, copy = scene(1), scene(2)
    rendering = made.render(3, 10)
    made.follow(rendering, torch.randn(rendering.latents.shape), torch.tensor(3.0))
    copy.load_state({name: value.clone() for name, value in made.state().items()})
    assert torch.equal(copy.texture, made.texture) and torch.equal(copy.state()["level"], made.state()["level"])
    with pytest.raises(ValueError, match="level"):
        copy.load_state({n: v for n, v in made.state().items() if n != "level"})


def test_only_its_own_renderings_are_followed() -> None:
    made = scene()
    with pytest.raises(TypeError):
        made.follow(Rendering(torch.zeros(1, 4, 2, 2), []), torch.zeros(1, 4, 2, 2), torch.ones(()))


def test_no_background_is_learned() -> None:
    made = scene(background="learned")
    assert sum(len(group["params"]) for group in made.parameters()) == 1  # type: ignore[arg-type]
    one, two = (made.render(step, 10).latents[0, :, 0, 0] for step in (0, 1))
    assert not torch.equal(one, two)


def test_long_waves_of_one_noise_and_short_ones_of_another_make_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 400, 4, 16, 16, generator=generator)
    made = with_waves_of(own, other, 0.3)
    assert abs(float(made.var()) - 1) < 0.02 and abs(correlation(made[..., 1:], made[..., :-1])) < 0.02
    smooth = torch.nn.functional.avg_pool2d
    assert correlation(smooth(made, 8), smooth(other, 8)) > 0.8
    assert abs(correlation(smooth(made, 8), smooth(own, 8))) < 0.2
    fine = own - torch.nn.functional.interpolate(smooth(own, 4), scale_factor=4)
    assert correlation(made, fine) > 0.8
    assert torch.equal(with_waves_of(own, other, 0.0), own)
    assert torch.allclose(with_waves_of(own, other, 1.0), other, atol=1e-5)
