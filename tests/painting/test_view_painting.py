"""A mesh painted by views: order and noise of the groups, the sampler, painted texels, and checkpoints."""

from __future__ import annotations

import meshes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.scene import FlowScene, Rendering, View
from pipeline.mesh.mesh import face_normals
from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.view_painting import ViewPaintedMesh, ViewPaintingSettings
from pipeline.painting.view_planning import ViewGroup
from pipeline.raster.camera import Cameras, CameraSettings, orbit

SIZE, STEPS = 8, 4
GOAL = torch.tensor([0.9, 0.1, 0.2]).view(3, 1, 1)


class PlainCodec:
    """Latents are the colours of blocks of two by two pixels."""

    device = torch.device("cpu")
    vae_scale_factor = 2

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents, scale_factor=2, mode="nearest")

    def encode(self, rgb: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(rgb, 2)


class RememberingCanvas:
    """A grey texture that records the projected images."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.projected_images: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self.layers = 0

    def add(self, cameras: Cameras, images: NDArray[np.float32], shares: NDArray[np.float32]) -> None:
        self.projected_images.append((images, shares))

    def start_layer(self, sample: NDArray[np.float32] | None = None) -> None:
        self.layers += 1

    def texture(self) -> NDArray[np.float32]:
        texture = np.full((4, 16, 16), 0.5, np.float32)
        # After the first projection the left half counts as painted.
        texture[3] = 0
        texture[3, :, :8] = 1.0 if self.projected_images else 0.0
        return texture


def scene(kinds: str = "cc", seed: int = 0, sample: NDArray[np.float32] | None = None) -> ViewPaintedMesh:
    """A sheet painted by groups of two views: overviews (w) or close-ups (c)."""
    sheet = meshes.plane(4, 1.0)
    assert sheet.uv is not None and sheet.uv_faces is not None
    uv = sheet.uv.astype(np.float32)
    renderer = MeshRenderer(sheet.vertices, sheet.faces, uv, sheet.uv_faces, CameraSettings(), seed)
    cameras = orbit(np.pi / 2, [0.0, 0.1], 1.0, 2 * np.arctan(0.4))
    groups = [
        ViewGroup(cameras, [View("front", kind == "c")] * 2, 0.9 if kind == "w" else 0.7, 0.8, kind == "w")
        for kind in kinds
    ]
    settings = ViewPaintingSettings(SIZE, 3, STEPS, 0.02, 16, True)
    normals = face_normals(sheet.vertices, sheet.faces)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return ViewPaintedMesh(
        renderer, normals, groups, RememberingCanvas(), PlainCodec(), settings, seed, sample=sample, sample_height=0.4
    )


def run_steps(mesh: ViewPaintedMesh, first: int, last: int) -> None:
    """Take steps with a model that predicts GOAL everywhere."""
    for step in range(first, last):
        rendering = mesh.render(step, mesh.steps)
        share = 1.0 if rendering.next_time is None else 0.4
        mesh.follow(rendering, rendering.latents - GOAL, torch.tensor(share))


def projected_images(mesh: ViewPaintedMesh) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    assert isinstance(mesh.canvas, RememberingCanvas)
    return mesh.canvas.projected_images


def test_a_group_starts_from_the_texture_at_its_timestep_and_ends_without_noise() -> None:
    mesh = scene()
    assert isinstance(mesh, FlowScene) and mesh.steps == 2 * STEPS
    renderings = []
    for step in range(STEPS):
        renderings.append(mesh.render(step, mesh.steps))
        run_steps(mesh, step, step + 1)
    assert torch.allclose(renderings[0].latents, torch.full((2, 3, SIZE, SIZE), 0.5), atol=1e-5)
    times = [rendering.time for rendering in renderings]
    assert times[0] == 0.7 and np.all(np.diff(times) < 0) and renderings[-1].next_time is None
    assert all(torch.equal(rendering.noise, renderings[0].noise) for rendering in renderings)
    assert renderings[0].noise is not None and 0.8 < renderings[0].noise.std() < 1.2
    ((images, shares),) = projected_images(mesh)
    np.testing.assert_allclose(images, np.broadcast_to(GOAL, images.shape), atol=1e-5)
    assert shares[:, 4, 4].min() > 0.9 and shares[:, 0].max() < 0.2 and images.shape == (2, 3, 16, 16)


def test_what_is_painted_stays_and_counts_for_the_view_that_painted_it() -> None:
    mesh = scene()
    run_steps(mesh, 0, 2 * STEPS)
    images, shares = projected_images(mesh)[1]
    assert shares[0, 4, 1] == 0 and shares[0, 4, 6] > 0.3
    np.testing.assert_allclose(images[0, :, 8, 1], 0.5, atol=1e-5)
    np.testing.assert_allclose(images[0, :, 8, 14], GOAL[:, 0, 0], atol=1e-4)


def test_close_ups_paint_anew_over_whole_views() -> None:
    mesh = scene("wwc")
    run_steps(mesh, 0, STEPS)
    assert isinstance(mesh.canvas, RememberingCanvas) and mesh.canvas.layers == 0
    run_steps(mesh, STEPS, 2 * STEPS)
    assert mesh.canvas.layers == 1
    assert mesh.render(2 * STEPS, mesh.steps).time == 0.7


def test_the_sampler_is_of_second_order() -> None:
    mesh = scene()
    first = mesh.render(0, mesh.steps)
    mesh.follow(first, first.latents - GOAL, torch.tensor(0.4))
    second = mesh.render(1, mesh.steps)
    np.testing.assert_allclose(second.latents, first.latents + 0.4 * (GOAL - first.latents), atol=1e-5)
    # A clean picture that moves by 0.1 is followed half a step ahead, in logarithms of the noise level.
    mesh.follow(second, second.latents - (GOAL + 0.1), torch.tensor(0.6))
    ahead = np.log1p(-0.6) / (2 * np.log1p(-0.4)) * 0.1
    goal = GOAL + 0.1 + ahead
    third = mesh.render(2, mesh.steps)
    np.testing.assert_allclose(third.latents, second.latents + 0.6 * (goal - second.latents), atol=1e-4)


def test_the_sample_is_behind_close_ups_and_grey_behind_whole_views() -> None:
    sample = np.zeros((8, 8, 3), np.float32)
    sample[:, :4] = 1.0
    close_up = scene("c", sample=sample)
    turned = orbit(np.pi / 2, [0.0, 0.1], 1.0, 2 * np.arctan(1.2))
    group = close_up.groups[0]
    close_up.groups[0] = ViewGroup(turned, group.views, group.start, 2.4, False)
    corner = close_up.render(0, close_up.steps).latents[0, 0, 0]
    assert corner.max() - corner.min() >= 0.5
    overview = scene("w")
    overview.groups[0] = ViewGroup(turned, group.views, group.start, 2.4, True)
    assert abs(float(overview.render(0, overview.steps).latents[0, 0, 0, 0]) - 0.5) == 0.25


@pytest.mark.parametrize("at", [1, STEPS, STEPS + 2])
def test_a_checkpoint_goes_on_as_if_nothing_had_been(at: int) -> None:
    through, close_up, later = scene(), scene(), scene()
    run_steps(through, 0, 2 * STEPS)
    run_steps(close_up, 0, at)
    later.load_state({name: value.clone() for name, value in close_up.state().items()})
    run_steps(later, at, 2 * STEPS)
    for (images, shares), (others, other_shares) in zip(
        projected_images(through), projected_images(later), strict=True
    ):
        assert np.array_equal(images, others) and np.array_equal(shares, other_shares)
    with pytest.raises(ValueError, match="missing"):
        later.load_state({name: value for name, value in close_up.state().items() if name != "made"})
    with pytest.raises(ValueError, match="groups"):
        later.load_state({**close_up.state(), "done": torch.tensor(7)})


def test_only_its_own_renderings_and_steps_are_followed() -> None:
    mesh = scene()
    with pytest.raises(ValueError, match="8 steps, not 9"):
        mesh.render(0, 9)
    latents = mesh.render(0, mesh.steps).latents
    with pytest.raises(TypeError):
        mesh.follow(Rendering(latents, []), latents, torch.tensor(1.0))
