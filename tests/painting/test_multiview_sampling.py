"""Painting by patches: which views come next, what of them is kept, and that what is known stays as it is."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from test_painted_mesh import FACES, RGB, SQUARE, UV

from pipeline.core.scene import FlowScene, Rendering
from pipeline.painting.mesh_renderer import GBuffer, MeshRenderer
from pipeline.painting.multiview_sampling import SampledRendering, SampledTextureMesh, schedule
from pipeline.painting.painted_mesh import PaintedMeshSettings, SampledViewSettings
from pipeline.painting.view_selection import select_views, view_weights
from pipeline.raster.camera import Cameras, CameraSettings, orbit

NORMALS = np.array([[0.0, 0.0, 1.0]] * 2)
GOAL = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(4, 1, 1)


def scene(seed: int = 0, steps: int = 60, t_max: float = 0.98, two_sided: bool = True, **changes: object):  # type: ignore[no-untyped-def]
    values = {"views": 3, "view_size": 16, "texture_size": 16, "learning_rate": 0.1, "cameras": CameraSettings()}
    initial_latents = changes.pop("initial_latents", None)
    settings = PaintedMeshSettings(**{**values, **changes})  # type: ignore[arg-type]
    arguments = (SQUARE, FACES, UV, FACES, RGB, settings, seed, torch.device("cpu"))
    return SampledTextureMesh(
        *arguments, steps=steps, t_min=0.02, t_max=t_max, two_sided=two_sided, initial_latents=initial_latents
    )


def run_steps(mesh: SampledTextureMesh, first: int, last: int, steps: int, share: float = 0.3) -> None:
    """Take steps with a model that predicts GOAL everywhere."""
    for step in range(first, last):
        rendering = mesh.render(step, steps)
        step_share = 1.0 if rendering.next_time is None else share
        mesh.follow(rendering, rendering.latents.detach() - GOAL, torch.tensor(step_share))


def render_square(cameras: Cameras, side: int = 64) -> GBuffer:
    return MeshRenderer(SQUARE, FACES, UV, FACES, CameraSettings(), 0).render(cameras, side)


def view_quality(turn: float = 0.0, distance: float = 0.5, two_sided: bool = False) -> np.ndarray:
    """Quality (16, 16) of the latent pixels of a view of the square; its image is 0.5 high at distance 0.5."""
    cameras = orbit(np.pi / 2, turn, distance, 2 * np.arctan(0.5))
    gbuffer = render_square(cameras)
    image = np.zeros(gbuffer.covered.shape)
    image[gbuffer.covered] = view_weights(gbuffer, cameras, NORMALS, (0.4, 0.6), 4, two_sided)
    return image[0].reshape(16, 4, 16, 4).mean(axis=(1, 3))


def test_the_middle_of_a_view_from_in_front_is_worth_most() -> None:
    quality = view_quality()
    assert quality[8, 8] > 0.99 and quality[5:11, 5:11].min() > 0.9
    assert quality[0].max() < 0.2 and quality[:, 15].max() < 0.2


def test_slanted_views_backs_and_other_scales_are_worth_nothing() -> None:
    assert view_quality(np.radians(45))[8, 8] > 0.9
    assert view_quality(np.radians(80))[8, 8] == 0
    assert view_quality(np.pi)[8, 8] == 0 and view_quality(np.pi, two_sided=True)[8, 8] > 0.99
    assert view_quality(distance=0.15)[8, 8] == 0 and view_quality(distance=1.5).max() == 0


def test_pixels_that_mix_with_the_background_are_worth_nothing() -> None:
    cameras = orbit(np.pi / 2, 0.0, 0.5, 2 * np.arctan(0.5), target=(0.4, 0.0, 0.0))  # the edge in the middle
    cameras = dataclasses.replace(cameras, projection=cameras.projection.copy())
    cameras.projection[:, 0, 2] = 1 / 16  # by half a latent pixel
    gbuffer = render_square(cameras)
    image = np.zeros(gbuffer.covered.shape)
    image[gbuffer.covered] = view_weights(gbuffer, cameras, NORMALS, (0.4, 0.6), 4, False)
    covered = gbuffer.covered[0, 32].reshape(16, 4).mean(axis=1)
    mixed = (covered > 0) & (covered < 1)
    assert mixed.sum() == 1
    assert image[0, 32].reshape(16, 4)[mixed].max() < 0.2 and image[0, 32, 20] > 0.9


def test_the_views_that_are_chosen_show_what_is_not_known_and_not_the_same() -> None:
    targets = [(-0.2, 0.2, 0), (-0.2, 0.2, 0), (0.2, -0.2, 0), (0.2, 0.2, 0), (9, 9, 0)]
    cameras = orbit([np.pi / 2] * 5, 0.0, 0.3, np.radians(60), target=np.array(targets, float))
    gbuffer = render_square(cameras)
    value = view_weights(gbuffer, cameras, NORMALS, (0.3, 0.4), 4, False)
    known = np.zeros((16, 16))
    known[:8, 8:] = 1  # top right
    first = select_views(2, gbuffer, value, known)
    assert {1, 2} == {max(1, i) for i in first} and first.dtype == np.int64
    assert sorted(select_views(5, gbuffer, value, known)) == [0, 1, 2, 3, 4]
    known[:] = 1
    known[8:, 8:] = 0
    assert select_views(1, gbuffer, value, known)[0] == 2


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100, 300])
def test_steps_are_shared_out_between_colour_and_patches(steps: int) -> None:
    starts = schedule(steps)
    assert starts == sorted(set(starts)) and 0 <= starts[0] < steps and starts[-1] < steps
    lengths = np.diff([*starts, steps])
    assert lengths.max() - lengths.min() <= 1 and lengths.max() <= 32


def test_the_colour_comes_first_for_all_texels_as_one() -> None:
    mesh = scene()
    assert isinstance(mesh, FlowScene)
    start = mesh.texture.detach()[:, :1, :1].clone()
    rendering = mesh.render(0, 60)
    assert rendering.noise is None and rendering.guidance < 1
    residual = rendering.latents.detach() - GOAL
    # What is said of the background must not matter.
    residual = torch.where(rendering.coverage > 0.5, residual, torch.full_like(residual, 50.0))
    mesh.follow(rendering, residual, torch.tensor(0.6))
    texture = mesh.texture.detach()
    assert torch.equal(texture, texture[:, :1, :1].expand_as(texture))
    torch.testing.assert_close(texture[:, :1, :1], start + 0.6 * (GOAL - start), atol=0.15, rtol=0)
    times = [(r.time, r.next_time) for r in (mesh.render(step, 60) for step in range(schedule(60)[0]))]
    assert times[0][0] == 0.98 and all(a[1] == b[0] for a, b in itertools.pairwise(times))


def test_a_patch_goes_from_noise_to_none_and_is_laid_down_at_its_end() -> None:
    mesh = scene()
    first, second = schedule(60)[:2]
    before = mesh.texture.detach().clone()
    renderings = []
    for step in range(first, second):
        assert torch.equal(mesh.texture, before)
        renderings.append(mesh.render(step, 60))
        run_steps(mesh, step, step + 1, 60)
    assert all(torch.equal(r.noise, renderings[0].noise) and all(v.close for v in r.views) for r in renderings)
    times = [r.time for r in renderings]
    assert times[0] == 0.85 and all(a.next_time == b for a, b in zip(renderings, times[1:], strict=False))
    assert [r.next_time is None for r in renderings] == [False] * (len(times) - 1) + [True]
    known = mesh.state()["known"][0]
    painted = known > 0.99
    assert 10 < painted.sum() < painted.numel() and known.max() <= 1.001
    off = (mesh.texture.detach() - GOAL).abs().amax(dim=0)[painted]
    # Beside the square's edge the next latent pixel shows what is behind as well.
    assert (off < 1e-3).float().mean() > 0.7 and off.max() < 1
    assert torch.equal(mesh.texture[:, known == 0], before[:, known == 0])


def test_later_patches_go_on_from_what_is_known() -> None:
    mesh = scene(views=1)
    first, second, third = schedule(60)[:3]
    run_steps(mesh, first, second, 60)
    painted = mesh.state()["known"][0] > 0.999
    painted_before = mesh.texture.detach()[:, painted].clone()
    for step in range(second, third):
        rendering = mesh.render(step, 60)
        # A model that sees something else everywhere; where all is known it is not heard.
        mesh.follow(rendering, rendering.latents + 7, torch.tensor(1.0))
    assert torch.allclose(mesh.texture.detach()[:, painted], painted_before, atol=1e-3)
    assert mesh.texture.detach()[:, ~painted].min() < -5


def test_what_shows_twice_is_the_work_of_the_first() -> None:
    mesh = scene(steps=200)
    run_steps(mesh, 0, 200, 200)
    patches = mesh.sampled_views()
    groups = len(schedule(200))
    assert patches is not None and len(patches.cameras) == len(patches.latents) == 3 * groups
    assert patches.cameras.close.all() and patches.latents.shape[1:] == (4, 16, 16)
    assert patches.shares.shape == (3 * groups, 16, 16) and 0 <= patches.shares.min() <= patches.shares.max() <= 1
    assert patches.shares[:, 0].max() < 0.2  # at the border
    assert patches.shares[:3].sum() > 5 * patches.shares[-3:].sum()
    assert (mesh.state()["known"] > 0.9).float().mean() > 0.8


def test_the_grey_behind_is_far_from_the_object() -> None:
    quality = []
    for brightness in (-1.0, 1.0):
        mesh = scene(cameras=CameraSettings(close_up=0))
        colour = torch.from_numpy(RGB.invert(np.full(3, 0.5 + 0.4 * brightness)))
        mesh.load_state({**mesh.state(), "colour": colour.float()})
        view = mesh.render(schedule(60)[0], 60).latents[0, :, 0, 0].detach().numpy()
        quality.append(float((view @ RGB.matrix + RGB.bias).mean()))
    assert quality[0] > 0.6 and quality[1] < 0.4


@pytest.mark.parametrize("has_colours", [False, True])
def test_close_ups_have_no_background(has_colours: bool) -> None:
    colours = torch.tensor([0.2, 0.1, -0.3, 0.4])
    mesh = scene(
        views=1, steps=20, initial_latents=colours.view(4, 1, 1).expand(4, 8, 8).clone() if has_colours else None
    )
    first = schedule(20, 0.0)[0] if has_colours else schedule(20)[0]
    run_steps(mesh, 0, first, 20)
    colour = mesh.texture.detach()[:, 0, 0]
    for step in range(first, 20):
        rendering = mesh.render(step, 20)
        if step == first:
            assert torch.allclose(rendering.latents, colour[:, None, None].expand_as(rendering.latents), atol=1e-5)
        mesh.follow(rendering, rendering.latents.detach() - GOAL, torch.tensor(1.0))
    patches = mesh.sampled_views()
    assert patches is not None
    off = (patches.latents - GOAL).abs().amax(dim=1)
    # On the mesh what the model sees, and behind it, too; from given colours something between that and the object's.
    assert (off < 1e-4).any()
    worst = 0.6 * (colour - GOAL[:, 0, 0]).abs().max() if has_colours else 1e-4
    assert off.max() < worst


def test_without_close_ups_patches_are_whole_views() -> None:
    mesh = scene(cameras=CameraSettings(close_up=0), steps=40)
    assert not any(view.close for view in mesh.render(schedule(40)[0], 40).views)
    run_steps(mesh, 0, 40, 40)
    assert mesh.sampled_views() is not None


def test_what_nothing_shows_well_has_no_patches() -> None:
    assert scene().sampled_views() is None
    # Of one latent pixel everything is border.
    mesh = scene(view_size=1, steps=4)
    run_steps(mesh, 0, 4, 4)
    assert mesh.sampled_views() is None


def test_patches_have_a_number_size_and_height_of_their_own() -> None:
    mesh = scene(patches=SampledViewSettings(count=5, size=24, height=1.5))
    assert mesh.render(0, 60).latents.shape == (3, 4, 16, 16)
    first = schedule(60)[0]
    assert mesh.render(first, 60).latents.shape == (5, 4, 24, 24)
    run_steps(mesh, 0, 60, 60)
    patches = mesh.sampled_views()
    assert patches is not None and patches.shares.shape == (5 * len(schedule(60)), 24, 24)
    cameras = patches.cameras
    height = 2 * np.tan(cameras.fov / 2) * np.linalg.norm(cameras.eye, axis=1)
    assert 0.9 * 1.5 * 0.6 < np.median(height) < 2 * 1.5 * 0.6


def test_views_of_a_group_are_drawn_to_each_other_where_they_overlap() -> None:
    """A model that says each view another colour: none of them ends as it was told."""
    mesh = scene(
        views=4, cameras=CameraSettings(elevation_min=0, elevation_max=0), patches=SampledViewSettings(height=1.2)
    )
    first, second = schedule(60)[:2]
    predictions = torch.arange(4.0).view(4, 1, 1, 1)
    for step in range(first, second):
        rendering = mesh.render(step, 60)
        step_share = 1.0 if rendering.next_time is None else 0.3
        mesh.follow(rendering, rendering.latents.detach() - predictions, torch.tensor(step_share))
    patches = mesh.sampled_views()
    assert patches is not None and len(patches.cameras) == 4
    gbuffer = mesh.renderer.render(patches.cameras, 64)
    middle = [i for i in range(4) if gbuffer.covered[i].mean() > 0.3]
    spread = patches.latents[middle, :, 6:10, 6:10].mean(dim=(1, 2, 3))
    assert len(middle) > 1 and (spread - predictions[middle].flatten()).abs().max() > 0.3


def test_it_starts_lower_where_less_noise_is_allowed() -> None:
    mesh = scene(t_max=0.3)
    assert mesh.render(0, 60).time == 0.3 and mesh.render(schedule(60)[0], 60).time == 0.3


def test_given_colours_are_where_patches_begin_and_stay_where_they_are() -> None:
    """Left half one colour, right half another: each close-up begins as what it looks at, and has that behind it."""
    left, right = torch.zeros(4), torch.full((4,), 2.0)
    halves = torch.cat([left.view(4, 1, 1).expand(4, 8, 4), right.view(4, 1, 1).expand(4, 8, 4)], dim=2)
    mesh = scene(initial_latents=halves)
    assert mesh.texture.shape == (4, 32, 32)
    assert torch.equal(mesh.texture[:, :, :12], left.view(4, 1, 1).expand(4, 32, 12))
    assert torch.equal(mesh.texture[:, :, 20:], right.view(4, 1, 1).expand(4, 32, 12))
    first = mesh.render(0, 60)
    assert first.group == 0 and first.time == pytest.approx(0.6) and mesh.render(0, 60).guidance == 1
    run_steps(mesh, 0, 60, 60)
    patches = mesh.sampled_views()
    assert patches is not None
    view = mesh.renderer.render(patches.cameras[: len(first.latents)], 64)
    for image, covered, uv in zip(
        first.latents, view.covered, np.split(view.uv, np.cumsum(view.covered.sum((1, 2)))[:-1]), strict=True
    ):
        shown = 2 * (uv[:, 0] > 0.5).mean()
        assert float(image.mean()) == pytest.approx(shown, abs=0.15), covered.mean()
    assert scene(initial_latents=halves, t_max=0.4).render(0, 60).time == pytest.approx(0.4)


@pytest.mark.parametrize("at", [3, 12, 30])
def test_a_checkpoint_goes_on_as_if_nothing_had_been(at: int) -> None:
    uninterrupted, cut = scene(1), scene(1)
    run_steps(uninterrupted, 0, 60, 60)
    run_steps(cut, 0, at, 60)
    later = scene(1)
    later.load_state({name: value.clone() for name, value in cut.state().items()})
    run_steps(later, at, 60, 60)
    assert torch.equal(later.texture, uninterrupted.texture)
    resumed_views, expected_views = later.sampled_views(), uninterrupted.sampled_views()
    assert resumed_views is not None and expected_views is not None
    assert torch.equal(resumed_views.latents, expected_views.latents) and np.array_equal(
        resumed_views.shares, expected_views.shares
    )
    assert np.array_equal(resumed_views.cameras.view, expected_views.cameras.view)
    assert np.array_equal(later.texel_coverage.coverage, uninterrupted.texel_coverage.coverage)
    with pytest.raises(ValueError, match="known"):
        later.load_state({n: v for n, v in cut.state().items() if n != "known"})


@pytest.mark.parametrize(("name", "value"), [("chosen", 1 << 40), ("chosen", -1), ("done", 99), ("done", -1)])
def test_numbers_of_views_and_groups_that_there_are_not_are_refused(name: str, value: int) -> None:
    mesh = scene()
    state = {key: tensor.clone() for key, tensor in mesh.state().items()}
    with pytest.raises(ValueError, match="checkpoint: "):
        mesh.load_state({**state, name: torch.full_like(state[name], value)})
    assert all(torch.equal(tensor, mesh.state()[key]) for key, tensor in state.items())


def test_only_its_own_renderings_and_steps_are_followed() -> None:
    mesh = scene()
    with pytest.raises(TypeError):
        mesh.follow(Rendering(torch.zeros(1, 4, 2, 2), []), torch.zeros(1, 4, 2, 2), torch.ones(()))
    with pytest.raises(ValueError, match="60 steps"):
        mesh.render(0, 61)
    assert isinstance(mesh.render(0, 60), SampledRendering)


def test_no_background_is_learned_and_adam_moves_nothing() -> None:
    mesh = scene(background="learned")
    (group,) = mesh.parameters()
    assert group["lr"] == 0.0
    one, two = (mesh.render(step, 60).latents[0, :, 0, 0] for step in (0, 1))
    assert not torch.equal(one, two)
