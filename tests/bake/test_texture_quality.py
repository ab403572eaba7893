"""The cheap figures of a texture, on textures of which the right figures are known."""

from __future__ import annotations

import numpy as np
import pytest
from meshes import cube

from pipeline.bake.atlas import texel_map
from pipeline.bake.texture_quality import pixels_per_radius, surface_quality, tile_quality
from pipeline.mesh.mesh import UVMesh
from pipeline.raster.camera import orbit
from pipeline.uv.unwrap import unwrap

RADIUS = np.sqrt(3)


@pytest.fixture(scope="module")
def box() -> UVMesh:
    return unwrap(cube(2.0), texture_size=512)


def waves(uvmesh: UVMesh, size: int, length: float, plain: bool = False) -> np.ndarray:
    """Grey waves along x + y + z, ``length`` long in each coordinate; with ``plain`` only where y is above 0."""
    texels = texel_map(uvmesh, size, 3.0)
    along = np.sin(2 * np.pi / length * texels.position.sum(axis=-1))
    if plain:
        along *= texels.position[..., 1] > 0
    grey = np.rint(127 + 100 * along).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def test_figures_are_those_of_the_pattern_whatever_the_size_of_the_texture(box: UVMesh) -> None:
    length = 0.3
    # On a face two coordinates run, so the gradient is sqrt(2) that of one, of which the mean is 2 / pi of the most.
    pixel = RADIUS / 160
    expected = 2 / np.pi * np.sqrt(2) * 100 * 2 * np.pi / length * pixel
    for size in (512, 1024):
        figures = surface_quality(waves(box, size, length), box)
        assert figures["gradient"] == pytest.approx(expected, rel=0.1)
        assert figures["contrast"] == pytest.approx(100 / np.sqrt(2), rel=0.12)
        assert figures["faded"] < 0.03
        assert figures["chart_seam"] < 12


def test_texels_per_radius_follow_the_texture(box: UVMesh) -> None:
    small, large = (surface_quality(waves(box, size, 0.3), box)["texels_per_radius"] for size in (256, 512))
    assert large == pytest.approx(2 * small, rel=0.01)
    area = np.abs(np.diff(box.uv[box.uv_faces], axis=1))
    edge = np.linalg.norm(area, axis=-1).max(axis=1)
    assert large == pytest.approx(np.median(edge) * 512 * RADIUS / (2 * np.sqrt(2)), rel=0.5)


def test_a_plain_half_is_faded_and_a_plain_whole_is_not(box: UVMesh) -> None:
    assert surface_quality(waves(box, 512, 0.3, plain=True), box)["faded"] == pytest.approx(0.5, abs=0.06)
    flat = surface_quality(np.full((256, 256, 3), 90, np.uint8), box)
    assert flat["faded"] == flat["gradient"] == flat["contrast"] == flat["chart_seam"] == 0


def test_a_step_between_charts_is_told_in_eight_bits(box: UVMesh) -> None:
    texels = texel_map(box, 256, 3.0)
    # One chart is lighter by 40 than all others.
    pixels = np.full((256, 256, 3), 100, np.uint8)
    pixels[texels.chart == 0] = 140
    seams = surface_quality(pixels, box)["chart_seam"]
    assert 0 < seams <= 40
    pixels[texels.chart == 0] = 180
    assert surface_quality(pixels, box)["chart_seam"] == pytest.approx(2 * seams, rel=0.02)


def test_a_mesh_without_area_in_the_texture_has_no_figures(box: UVMesh) -> None:
    nothing = UVMesh(box.mesh, np.zeros_like(box.uv), box.uv_faces, "input", "", box.charts)
    assert surface_quality(np.zeros((64, 64, 3), np.uint8), nothing) == {}


def test_a_tile_is_measured_across_its_borders() -> None:
    ramp = np.repeat(np.repeat((np.arange(128) * 1)[None, :, None], 128, 0), 3, 2).astype(np.uint8)
    figures = tile_quality(ramp, 128)
    assert figures["wrap_step"] == 127 and figures["inside_step"] == 1
    wave = np.rint(127 + 100 * np.sin(np.arange(128) * 2 * np.pi / 16))[:, None, None]
    figures = tile_quality(np.broadcast_to(wave, (128, 128, 3)).astype(np.uint8), 128)
    assert figures["wrap_step"] <= 1.3 * figures["inside_step"] * np.pi / 2
    assert figures["contrast"] == pytest.approx(70, rel=0.1) and figures["faded"] == 0
    # Scaled up, the figures are those of the sample.
    large = np.repeat(np.repeat(np.broadcast_to(wave, (128, 128, 3)).astype(np.uint8), 8, 0), 8, 1)
    assert tile_quality(large, 128) == figures


def test_pixels_of_a_picture_to_a_radius(box: UVMesh) -> None:
    fov = np.radians(40)
    cameras = orbit(np.array([np.pi / 2]), np.array([0.3]), 9.0, float(fov), near=1, far=20)
    expected = 256 / (2 * np.tan(fov / 2) * 9) * RADIUS
    assert pixels_per_radius(cameras, 256, box.mesh.vertices) == pytest.approx(expected, rel=0.03)
