"""The radiance field's scene: how its losses weigh, its grid of occupied cells, its normals, what it bakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.bake.bake import BASE_COLOUR
from pipeline.bake.projection import bake_projected
from pipeline.fields import radiance_field_scene
from pipeline.fields.grid.layout import GridSettings
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.fields.radiance_field import FieldSettings, RadianceField
from pipeline.fields.radiance_field_scene import REFRESH, LossWeights, RadianceFieldScene
from pipeline.fields.sketch import Sketch
from pipeline.mesh.mesh import Mesh
from pipeline.mesh.primitives import combine
from pipeline.mesh.winding_grid import build_winding_grid
from pipeline.optimize.sds import SdsSettings, sds_loss
from pipeline.prior.defaults import GenerateDefaults
from pipeline.prior.load import Prior
from pipeline.raster.camera import orbit
from pipeline.raster.rasterise import rasterise
from pipeline.recipes.generate import bake_cameras, render_picture, scene_settings
from pipeline.recipes.generate_settings import GenerateOptions, resolve_generate
from pipeline.uv.unwrap import unwrap

BALL = [{"shape": "sphere", "position": [0.0, 0.0, 0.0], "rotation": [0.0, 0.0, 0.0], "size": [1.2, 1.2, 1.2]}]
OPTIONS = GenerateOptions(  # type: ignore[call-arg]
    views=2, view_size=8, supersample=1, learning_rate=0.01, samples_step=0.05, background="random",
    radius_min=2.0, radius_max=2.2, fov_min=40, fov_max=48, lambda_sparsity=0, lambda_shape=0,
)  # fmt: skip
SETTINGS = resolve_generate(OPTIONS, vars(GenerateDefaults()))


@pytest.fixture(scope="module")
def ball() -> Sketch:
    return Sketch(build_winding_grid(*combine(BALL), resolution=32), sigma_s=0.1)


def scene(prior: Prior, sketch: Sketch | None = None, views: int = 2, **lambdas: float) -> RadianceFieldScene:
    grid = GridSettings(levels=3, base=16, finest=32, log2_table=10)
    field = RadianceField(FieldSettings(grid=grid, channels=prior.latent_channels), 0)
    settings = replace(scene_settings(SETTINGS), views=views, lambdas=LossWeights(**lambdas))
    return RadianceFieldScene(field, OccupancyGrid(16), settings, prior.latent_rgb, 0, sketch)


def solid(made: RadianceFieldScene, density: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor) -> None:
    """Gives the field a density (N,) of points (N, 3), and ``value`` (C,) as the latents of every point."""
    made.field.density = density  # type: ignore[method-assign]
    made.field.exponent = lambda points: density(points).clamp(min=1e-6).log()  # type: ignore[method-assign]
    made.field.forward = lambda points: (density(points), value.expand(len(points), -1))  # type: ignore[method-assign]
    for step in range(0, 8 * REFRESH, REFRESH):
        made.occupancy.update(density, 0, step)


def round_body(points: torch.Tensor) -> torch.Tensor:
    """Density of a body of radius 0.6 whose border is 0.1 thick."""
    return 60 * ((0.65 - points.norm(dim=1)) / 0.1).clamp(0, 1)


@pytest.mark.parametrize("lambdas", [{"sparsity": 3.0}, {"shape": 3.0}, {"orientation": 3.0}, {"tv": 3.0}])
def test_losses_and_guidance_keep_their_balance_for_any_number_of_views(
    prior: Prior, ball: Sketch, lambdas: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same view many times is the same step: neither the guidance nor a loss may grow with their number."""
    monkeypatch.setattr(
        radiance_field_scene,
        "sample_orbit_cameras",
        lambda rng, views, cameras: orbit(*(np.full(views, value) for value in (1.3, 0.4, 2.1, 0.75))),
    )
    monkeypatch.setattr(radiance_field_scene, "BOX_POINTS", 0)  # of which every step has the same number
    losses, guided = [], []
    for views in (1, 8):
        made = scene(prior, ball, views, **lambdas)
        rendering = made.render(0, 10)
        assert rendering.extra_loss is not None
        losses.append(rendering.extra_loss.item())
        pull = torch.ones_like(rendering.latents[:1]).expand_as(rendering.latents)
        guided.append(torch.autograd.grad(sds_loss(rendering.latents, pull), made.field.table)[0].abs().sum().item())
    assert losses[0] > 1e-4
    assert losses[1] == pytest.approx(losses[0], rel=0.15)  # jitter differs
    assert guided[1] == pytest.approx(guided[0], rel=0.15)


def test_every_loss_reaches_the_field(prior: Prior, ball: Sketch) -> None:
    for name in ("sparsity", "shape", "orientation", "tv"):
        made = scene(prior, ball, **{name: 1.0})
        extra = made.render(0, 10).extra_loss
        assert extra is not None and extra.isfinite()
        (gradient,) = torch.autograd.grad(extra, made.field.table)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name
        more = scene(prior, ball, **{name: 2.0}).render(0, 10).extra_loss
        assert more is not None and more.item() == pytest.approx(2 * extra.item(), rel=1e-4)


def test_empty_space_fills_where_the_sketch_is(prior: Prior, ball: Sketch) -> None:
    """With every cell culled no ray has a sample; the points of the sketch's box alone teach the field."""
    made = scene(prior, ball, shape=50.0)
    made.occupancy.load_state({name: torch.zeros_like(value) for name, value in made.occupancy.state().items()})
    centre = torch.zeros(1, 3)
    before = made.field.density(centre).item()
    adam = torch.optim.Adam(made.parameters())
    for _ in range(30):
        rendering = made.render(1, 10)  # a step that does not look for occupied cells
        assert rendering.extra_loss is not None
        adam.zero_grad()
        rendering.extra_loss.backward()
        adam.step()
    assert made.field.density(centre).item() > 2 * before


def test_a_step_that_is_rendered_again_finds_the_same_grid(prior: Prior) -> None:
    once, twice = scene(prior), scene(prior)
    once.render(0, 10)
    first, again = twice.render(0, 10), twice.render(0, 10)
    assert torch.equal(first.latents, again.latents)
    assert all(torch.equal(a, b) for a, b in zip(once.state().values(), twice.state().values(), strict=True))
    # What was restored is looked at anew: the step belongs to another past.
    state = {name: value.clone() for name, value in scene(prior).state().items()}
    twice.load_state(state)
    twice.render(0, 10)
    assert all(torch.equal(a, b) for a, b in zip(once.state().values(), twice.state().values(), strict=True))


def test_normals_of_a_ball_point_away_from_its_centre(prior: Prior) -> None:
    made = scene(prior)
    solid(made, round_body, torch.zeros(prior.latent_channels))
    camera = orbit(np.array([1.1]), np.array([0.6]), np.array([2.2]), np.array([0.7]))
    normals = made.normals(camera, 24)
    assert normals.shape == (1, 3, 24, 24)
    length = normals.norm(dim=1)[0]
    assert length[0, 0] == 0 and length[12, 12] == pytest.approx(1, abs=0.1)
    # The middle of the picture faces the camera, its upper half leans up and its right half to the camera's right.
    eye = torch.from_numpy(camera.eye[0] / np.linalg.norm(camera.eye[0])).float()
    assert float(normals[0, :, 11:13, 11:13].mean((1, 2)) @ eye) > 0.95
    right = torch.from_numpy(camera.view[0, 0, :3].astype(np.float32))
    assert float(normals[0, :, 12, 16] @ right) > 0.2 > -0.2 > float(normals[0, :, 12, 7] @ right)
    assert float(normals[0, 1, 7, 12]) > float(normals[0, 1, 16, 12]) + 0.4


def test_a_baked_texture_shows_what_the_decoder_shows(prior: Prior) -> None:
    """From a view that was not baked the asset looks as the decoded field does there."""
    made = scene(prior)
    latent = torch.from_numpy(prior.latent_rgb.invert(np.array([0.7, 0.3, 0.2]))).float()
    solid(made, round_body, latent)
    vertices, faces = combine(BALL)
    uvmesh = unwrap(Mesh(vertices, faces), texture_size=128)
    corners = uvmesh.mesh.vertices
    cameras = bake_cameras(corners)
    shown = [render_picture(made, cameras[i : i + 1], 16, prior) for i in range(len(cameras))]
    images, depths = (np.concatenate(parts) for parts in zip(*shown, strict=True))
    texture = bake_projected(uvmesh, corners, cameras, images, 128, near_depths=depths).maps[BASE_COLOUR]
    camera = orbit(np.array([1.2]), np.array([1.9]), np.array([2.0]), np.array([0.75]))
    decoded, _ = render_picture(made, camera, 16, prior)
    side = decoded.shape[-1]
    seen = rasterise(corners, uvmesh.mesh.faces, camera, side, side)
    inside = seen.face[0] >= 0
    uv = (uvmesh.uv[uvmesh.uv_faces[seen.face[0][inside]]] * seen.bary[0][inside][..., None]).sum(1)
    at = np.clip((uv * 128).astype(int), 0, 127)
    found = texture[127 - at[:, 1], at[:, 0]] / 255
    wanted = decoded[0].transpose(1, 2, 0)[inside]
    assert -10 * np.log10(((found - wanted) ** 2).mean()) > 25


def test_annealed_time_steps_fall_with_the_root_of_progress() -> None:
    settings = SdsSettings(1.0, t_min=0.02, t_max=0.98, timesteps="annealed")
    assert settings.bounds(0) == (0.02, 0.98)
    assert settings.bounds(0.25) == pytest.approx((0.02, 0.98 - 0.48 * 0.5))
    assert settings.bounds(1) == pytest.approx((0.02, 0.5))
    assert replace(settings, timesteps="uniform").bounds(0.7) == (0.02, 0.98)
