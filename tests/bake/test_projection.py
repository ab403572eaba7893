"""Baking by projection: what a mesh's own pictures show comes back as its texture, and nothing else does."""

from __future__ import annotations

import math
from dataclasses import replace

import meshes
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.bake.atlas import shared_edges, texel_map
from pipeline.bake.bake import BASE_COLOUR, BakedMaps
from pipeline.bake.inpainting import inpaint_smoothly
from pipeline.bake.projection import bake_projected, covering_cameras
from pipeline.core.errors import SettingError
from pipeline.mesh.mesh import UVMesh
from pipeline.raster.camera import Cameras, orbit
from pipeline.raster.rasterise import interpolate, rasterise
from pipeline.uv.unwrap import unwrap

FOV = math.radians(40)
BACKGROUND = (1.0, 0.0, 1.0)  # seen at once where it bleeds in: the patterns have none of it
SIDE, SIZE = 128, 192


def pattern(points: NDArray) -> NDArray[np.float32]:
    """Asymmetric smooth colours (..., 3), in [0.1, 0.6], of points; no reflection of it looks the same."""
    x, y, z = np.moveaxis(points, -1, 0)
    waves = [np.sin(3 * x + y + 0.4), np.cos(4 * y - z + 0.9), np.sin(3 * z + x * y - 0.2)]
    return (0.35 + 0.25 * np.stack(waves, axis=-1)).astype(np.float32)


def ball() -> UVMesh:
    return unwrap(meshes.uv_sphere(24, 48, radius=0.6), texture_size=SIZE, mode="input")


def box() -> UVMesh:
    return unwrap(meshes.cube(0.8), texture_size=SIZE, mode="input")


def pictures(uvmesh: UVMesh, cameras: Cameras, side: int = SIDE, colour=pattern) -> NDArray[np.float32]:
    """(N, 3, side, side) of the mesh in the colours of its points, four samples a pixel."""
    vertices, faces = uvmesh.mesh.vertices, uvmesh.mesh.faces
    seen = rasterise(vertices, faces, cameras, 2 * side, 2 * side)
    images = np.empty((len(cameras), 2 * side, 2 * side, 3), np.float32)
    images[:] = BACKGROUND
    images[seen.mask] = colour(interpolate(seen.face, seen.bary, vertices, faces))
    return images.reshape(-1, side, 2, side, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2)


def around(count: int = 16) -> Cameras:
    return covering_cameras(count, radius=2.4, fov=FOV, elevation_min=math.radians(-80), elevation_max=math.radians(80))


def errors(baked: BakedMaps, uvmesh: UVMesh, colour=pattern) -> NDArray[np.float32]:
    """(M, 3) differences from the true colours on the texels that the surface covers."""
    texels = texel_map(uvmesh, SIZE, margin=0.0)
    truth = colour(interpolate(texels.face, texels.bary, uvmesh.mesh.vertices, uvmesh.mesh.faces))
    return baked.maps[BASE_COLOUR][texels.mask] / np.float32(255) - truth


def psnr(difference: NDArray) -> float:
    return float(-10 * np.log10(np.square(difference).mean()))


@pytest.mark.parametrize("make", [ball, box])
def test_a_texture_comes_back_from_its_own_pictures(make) -> None:
    uvmesh, cameras = make(), around()
    said: list[tuple[str, int, int]] = []
    baked = bake_projected(
        uvmesh, uvmesh.mesh.vertices, cameras, pictures(uvmesh, cameras), SIZE, lambda *a: said.append(a)
    )
    difference = errors(baked, uvmesh)
    assert psnr(difference) > 40
    assert np.abs(difference).max() < 0.1  # no background, nothing from the other side
    assert baked.notes["seam_ratio"] < 1.3
    assert baked.notes["texels_unreached"] < 0.002 * baked.notes["texels_on_surface"]
    assert said[len(cameras) - 1] == ("project", len(cameras), len(cameras))
    assert said[-1] == ("bake", 4, 4)


def test_the_mesh_may_stand_elsewhere_than_the_input() -> None:
    uvmesh, cameras = ball(), around()
    moved = replace(uvmesh, mesh=replace(uvmesh.mesh, vertices=50 * uvmesh.mesh.vertices[:, [2, 0, 1]] + 7))
    baked = bake_projected(moved, uvmesh.mesh.vertices, cameras, pictures(uvmesh, cameras), SIZE)
    assert psnr(errors(baked, uvmesh)) > 40


def two_plates() -> UVMesh:
    """A small plate 0.3 before a large one; both face +z and are open."""
    front, rear = meshes.plane(4, 0.5), meshes.plane(8, 1.4)
    assert front.uv is not None
    assert rear.uv is not None
    mesh = meshes.make(
        np.concatenate([front.vertices + np.array([0, 0, 0.3]), rear.vertices]),
        np.concatenate([front.faces, rear.faces + len(front.vertices)]),
        np.concatenate([front.uv * 0.46 + 0.02, rear.uv * 0.46 + 0.52]),
    )
    return unwrap(mesh, texture_size=SIZE, mode="input")


def test_what_stands_in_front_leaves_no_print_on_what_is_behind() -> None:
    def colour(points: NDArray) -> NDArray[np.float32]:
        return np.where(points[:, 2:] > 0.15, (0.9, 0.1, 0.1), (0.1, 0.2, 0.9)).astype(np.float32)

    uvmesh = two_plates()
    cameras = orbit(np.radians([90, 60, 90, 120, 90, 50]), np.radians([0, 0, 40, 0, -40, 50]), 2.6, FOV, near=0.1)
    baked = bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, pictures(uvmesh, cameras, colour=colour), SIZE)
    assert np.abs(errors(baked, uvmesh, colour)).max() < 0.15


def test_images_are_not_used_where_they_show_something_else_than_the_mesh() -> None:
    uvmesh = ball()
    cameras = orbit(np.radians([90.0, 90.0]), np.radians([0.0, 35.0]), 2.4, FOV)
    images = pictures(uvmesh, cameras)
    depths = rasterise(uvmesh.mesh.vertices, uvmesh.mesh.faces, cameras, 32, 32).depth
    spoiled = images.copy()
    spoiled[0, :, 40:88, 40:88] = np.array([0.0, 1.0, 0.0])[:, None, None]
    hidden, background = depths.copy(), depths.copy()
    hidden[0, 10:22, 10:22] = 1.0  # something that the mesh lacks, in front of it
    background[0, 10:22, 10:22] = np.inf
    seen = texel_map(uvmesh, SIZE, margin=0.0)
    middle = interpolate(seen.face, seen.bary, uvmesh.mesh.vertices, uvmesh.mesh.faces)[:, 2] > 0.45
    for near in (hidden, background):
        baked = bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, spoiled, SIZE, near_depths=near)
        assert np.abs(errors(baked, uvmesh)[middle]).max() < 0.1
    careless = bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, spoiled, SIZE, near_depths=depths)
    assert np.abs(errors(careless, uvmesh)[middle]).max() > 0.4


def test_what_no_view_sees_is_filled_smoothly_from_around() -> None:
    uvmesh = ball()
    cameras = orbit(np.radians([90.0, 60.0, 110.0]), np.radians([0.0, 40.0, -40.0]), 2.4, FOV)
    baked = bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, pictures(uvmesh, cameras), SIZE)
    assert baked.notes["texels_unreached"] > 0.2 * baked.notes["texels_on_surface"]
    image = baked.maps[BASE_COLOUR].astype(int)
    assert image.min() > 15  # no texel unset, no background colour (its green is 0)
    steps = np.abs(np.diff(image[8:-8], axis=1)).max(), np.abs(np.diff(image[8:-8], axis=0)).max()
    assert max(steps) < 24
    assert baked.notes["seam_ratio"] < 1.3


def test_views_that_differ_in_tint_leave_no_steps() -> None:
    uvmesh, cameras = ball(), around()
    tints = 0.5 + 0.08 * np.random.default_rng(0).normal(size=(len(cameras), 3, 1, 1))
    images = np.broadcast_to(tints, (len(cameras), 3, SIDE, SIDE)).astype(np.float32)
    baked = bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, images, SIZE)
    image = baked.maps[BASE_COLOUR].astype(int)[12:-12]  # at the poles a texel is no longer than a hair
    assert np.abs(np.diff(image, axis=1)).max() <= 6
    assert np.abs(np.diff(image, axis=0)).max() <= 6


def test_detail_survives_views_that_are_a_pixel_off() -> None:
    """Fine stripes, and half of the views shifted by a pixel: blending all views alike would grey them out."""

    def stripes(points: NDArray) -> NDArray[np.float32]:
        return np.repeat(0.5 + 0.3 * np.sin(50 * points[..., :1] + 20 * points[..., 1:2]), 3, axis=-1).astype(
            np.float32
        )

    uvmesh, cameras = ball(), around()
    images = pictures(uvmesh, cameras, colour=stripes)
    images[::2] = np.roll(images[::2], 2, axis=-1)
    baked = bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, images, SIZE)
    texels = texel_map(uvmesh, SIZE, margin=0.0)
    contrast = baked.maps[BASE_COLOUR][texels.mask].astype(float).std() / 255
    assert contrast > 0.75 * 0.3 / math.sqrt(2)


def test_views_count_by_their_shares() -> None:
    uvmesh = ball()
    cameras = orbit([np.pi / 2] * 2, 0.0, 2.4, FOV)
    images = np.zeros((2, 3, SIDE, SIDE), np.float32)
    images[0, 0] = images[1, 2] = 1.0  # one red, one blue
    shares = np.ones((2, 8, 8))
    shares[0, :, :4] = shares[1, :, 4:] = 0
    image = bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, images, SIZE, shares=shares).maps[BASE_COLOUR]
    texels = texel_map(uvmesh, SIZE, margin=0.0)
    points = interpolate(texels.face, texels.bary, uvmesh.mesh.vertices, uvmesh.mesh.faces)
    image = image[texels.mask]
    facing = points[..., 2] > 0.5
    left, right = facing & (points[..., 0] < -0.3), facing & (points[..., 0] > 0.3)
    assert image[left][:, 2].min() > 240 and image[left][:, 0].max() < 15
    assert image[right][:, 0].min() > 240 and image[right][:, 2].max() < 15


def test_the_same_pictures_give_the_same_bytes() -> None:
    uvmesh, cameras = box(), around(8)
    images = pictures(uvmesh, cameras, 64)
    one, two = (bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, images, 96) for _ in range(2))
    assert one.maps[BASE_COLOUR].tobytes() == two.maps[BASE_COLOUR].tobytes()


def test_what_cannot_be_baked_is_told() -> None:
    uvmesh, cameras = box(), around(4)
    images = pictures(uvmesh, cameras, 64)
    with pytest.raises(SettingError, match="4 square RGB images"):
        bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, images[:3], 64)
    with pytest.raises(SettingError, match="depth images"):
        bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, images, 64, near_depths=np.zeros((3, 8, 8)))
    with pytest.raises(SettingError, match="4 square shares"):
        bake_projected(uvmesh, uvmesh.mesh.vertices, cameras, images, 64, shares=np.zeros((4, 8, 7)))
    away = orbit(math.pi / 2, 0.0, 2.0, FOV, target=(0, 0, -10))
    with pytest.raises(SettingError, match="no view sees the mesh"):
        bake_projected(uvmesh, uvmesh.mesh.vertices, away, images[:1], 64)


def test_covering_cameras_stand_all_around() -> None:
    cameras = covering_cameras(40, radius=2.0, fov=FOV)
    np.testing.assert_allclose(np.linalg.norm(cameras.eye, axis=1), 2.0)
    elevation = np.degrees(np.pi / 2 - cameras.theta)
    assert elevation[0] == elevation.max() > 65
    assert elevation.min() > -55
    points = np.random.default_rng(1).normal(size=(500, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points = points[np.abs(points[:, 1]) < 0.7]
    nearest = (points @ (cameras.eye / 2).T).max(axis=1)
    assert np.degrees(np.arccos(nearest.min())) < 30


def test_a_membrane_between_known_texels_crosses_chart_borders() -> None:
    uvmesh = ball()
    texels = texel_map(uvmesh, 96)
    borders, _ = shared_edges(uvmesh)
    height = texels.position[..., 1]
    reached = texels.mask & (np.abs(height) > 0.3)
    texture = np.where(reached, np.sign(height), 7.0)[None].repeat(3, axis=0).astype(np.float32)
    filled = inpaint_smoothly(texture, texels, reached, borders)
    assert (filled[:, reached] == texture[:, reached]).all()
    unknown = texels.mask & ~reached
    # On a sphere the membrane between two rings is harmonic: linear in log tan(theta / 2), alike all around.
    y = height / 0.6
    theory = np.arctanh(np.clip(y, -0.9, 0.9)) / np.arctanh(0.5)
    assert np.abs(filled[0] - theory)[unknown].max() < 0.12
