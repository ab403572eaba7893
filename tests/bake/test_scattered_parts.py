"""Meshes of parts that lie far apart, are thin or inside out: painted nonetheless, and what no view reached is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import meshes
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.bake.atlas import surface_share, texel_map
from pipeline.bake.bake import BASE_COLOUR
from pipeline.bake.inpainting import inpaint_smoothly
from pipeline.bake.projection import bake_projected
from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.export.record import read_record
from pipeline.mesh.mesh import Mesh
from pipeline.mesh.normals import is_closed
from pipeline.mesh.parts import gathered, outward_signs, part_labels
from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.view_heights import adapt_close_ups, scale_close_ups, visible_share
from pipeline.prior.load import Prior
from pipeline.raster.camera import CameraSettings, orbit
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions
from pipeline.recipes.paintable_mesh import unreached_warning
from pipeline.uv.unwrap import uneven_density, unwrap


def joined(parts: Sequence[tuple[Mesh, Sequence[float]]]) -> Mesh:
    """One mesh of the parts, each moved."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh, _ in parts])
    vertices = np.concatenate([mesh.vertices + np.array(move) for mesh, move in parts])
    return meshes.make(vertices, np.concatenate([m.faces + s for (m, _), s in zip(parts, starts, strict=False)]))


def inverted(mesh: Mesh) -> Mesh:
    return meshes.make(mesh.vertices, mesh.faces[:, ::-1])


def boxes(pitch: float) -> Mesh:
    """25 boxes, 0.1 wide, on a grid."""
    return joined([(meshes.cube(0.1), (pitch * x, 0.0, pitch * z)) for x in range(5) for z in range(5)])


BALL = meshes.uv_sphere(12, 24)
STRAY = meshes.make(np.array([[0.0, 0, 0], [0.01, 0, 0], [0, 0.01, 0]]), np.array([[0, 1, 2]]))


@pytest.mark.parametrize("mesh", [boxes(2.5), joined([(BALL, (0, 0, 0)), (STRAY, (40, 0, 0))])])
def test_parts_far_apart_are_gathered_and_keep_their_shapes(mesh: Mesh) -> None:
    moved = gathered(mesh.vertices, mesh.faces, 0.6)
    assert moved is not None
    assert np.linalg.norm(moved, axis=1).max() == pytest.approx(0.6)
    part = part_labels(mesh.faces, len(mesh.vertices))
    scales = []
    for number in range(int(part.max()) + 1):
        used = np.unique(mesh.faces[part == number])
        before, after = mesh.vertices[used], moved[used]
        steps = [points - points.mean(axis=0) for points in (before, after)]
        scales.append(np.abs(steps[1]).max() / np.abs(steps[0]).max())
        np.testing.assert_allclose(steps[1], scales[-1] * steps[0], atol=1e-9)
    np.testing.assert_allclose(scales, scales[0])
    # In the working frame, where all of it lies within 0.6, a part would be smaller by far.
    reach = np.linalg.norm(mesh.vertices - (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2, axis=1).max()
    assert scales[0] > 2 * 0.6 / reach


@pytest.mark.parametrize("mesh", [BALL, boxes(0.15), joined([(BALL, (0, 0, 0)), (BALL, (3, 0, 0))])])
def test_a_compact_mesh_stays_as_it_is(mesh: Mesh) -> None:
    assert gathered(mesh.vertices, mesh.faces, 0.6) is None


def test_very_many_parts_are_gathered_too() -> None:
    rng = np.random.default_rng(0)
    places = np.concatenate([rng.uniform(0, 1, (3000, 3)), rng.uniform(0, 1, (3000, 3)) + np.array([200, 0, 0])])
    mesh = joined([(STRAY, place) for place in places])
    moved = gathered(mesh.vertices, mesh.faces, 0.6)
    assert moved is not None and np.ptp(moved, axis=0).min() > 0.1


def test_parts_that_are_inside_out_are_known() -> None:
    small = meshes.uv_sphere(8, 16, radius=0.4)
    assert (outward_signs(BALL.vertices, BALL.faces) == 1).all()
    assert (outward_signs(BALL.vertices, BALL.faces[:, ::-1]) == -1).all()
    beside = joined([(BALL, (0, 0, 0)), (inverted(small), (2, 0, 0))])
    signs = outward_signs(beside.vertices, beside.faces)
    assert (signs[: len(BALL.faces)] == 1).all() and (signs[len(BALL.faces) :] == -1).all()
    # The wall of a cavity looks inwards, and rightly so.
    hollow = joined([(BALL, (0, 0, 0)), (inverted(small), (0, 0, 0))])
    assert (outward_signs(hollow.vertices, hollow.faces) == 1).all()
    bowl = meshes.make(BALL.vertices, BALL.faces[len(BALL.faces) // 3 :, ::-1])
    assert (outward_signs(bowl.vertices, bowl.faces) == -1).all()
    sheet = meshes.plane()
    assert (outward_signs(sheet.vertices, sheet.faces) == 1).all()


def test_a_surface_with_a_part_inside_out_is_shown_from_both_sides() -> None:
    small = meshes.uv_sphere(8, 16, radius=0.4)
    assert is_closed(joined([(BALL, (0, 0, 0)), (small, (2, 0, 0))]))
    assert not is_closed(joined([(BALL, (0, 0, 0)), (inverted(small), (2, 0, 0))]))
    assert is_closed(joined([(BALL, (0, 0, 0)), (inverted(small), (0, 0, 0))]))


def test_close_ups_of_an_inside_out_mesh_stand_outside() -> None:
    cameras = CameraSettings(close_up=1.0)
    turned = BALL.faces[:, ::-1]
    views = MeshRenderer(BALL.vertices * 0.6, turned, BALL.uv, BALL.uv_faces, cameras, 0)
    points, normals = views.details
    assert (np.einsum("pi,pi->p", points, normals) > 0).all()


def views_of(vertices: NDArray, faces: NDArray) -> MeshRenderer:
    return MeshRenderer(vertices, faces, np.zeros((1, 2), np.float32), np.zeros_like(faces), CameraSettings(), 0)


def test_close_ups_come_nearer_where_the_object_is_thin() -> None:
    asked = CameraSettings(close_up=1.0, close_height=(1.4, 1.7), close_angle=0.3, fov=math.radians(30))
    round_one = views_of(BALL.vertices * 0.6, BALL.faces)
    assert adapt_close_ups(round_one, asked, 12) == asked
    ring = meshes.torus(96, 8, radius=0.59, thickness=0.01)
    thin = views_of(ring.vertices, ring.faces)
    found = adapt_close_ups(thin, asked, 12)
    assert found.close_height[1] < 0.6 * asked.close_height[1] and found.near < asked.near
    assert visible_share(thin, found, 12) > visible_share(thin, asked, 12) + 0.1
    never = CameraSettings(close_up=0.0)
    assert adapt_close_ups(thin, never, 12) == never


def test_close_ups_lean_where_parts_stand_close_together() -> None:
    asked = CameraSettings(close_up=1.0, close_height=(1.4, 1.7), close_angle=0.3, fov=math.radians(30))
    mesh = boxes(2.5)
    moved = gathered(mesh.vertices, mesh.faces, 0.6)
    assert moved is not None
    views = views_of(moved, mesh.faces)
    found = adapt_close_ups(views, asked, 24)
    assert found.close_angle > asked.close_angle
    assert visible_share(views, found, 24) > 0.9
    assert scale_close_ups(asked, 0.5).close_height == (0.7, 0.85)


def test_the_coarse_pass_takes_no_colour_away() -> None:
    """All known texels lie between those that a fill of every fourth texel looks at."""
    uvmesh = unwrap(meshes.uv_sphere(24, 48), texture_size=384, mode="input")
    texels = texel_map(uvmesh, 384)
    reached = np.zeros_like(texels.mask)
    reached[100:300:4, 100:300:4] = texels.mask[100:300:4, 100:300:4]
    texture = np.where(reached, 0.5, 0.0)[None].repeat(3, axis=0).astype(np.float32)
    filled = inpaint_smoothly(texture, texels, reached)
    np.testing.assert_allclose(filled[:, texels.mask], 0.5, atol=0.02)


def test_parts_without_a_known_texel_take_the_objects_colour() -> None:
    places = np.random.default_rng(3).uniform(-8, 8, (20, 3))
    mesh = joined([(BALL, (0, 0, 0)), *((meshes.cube(0.1), place) for place in places)])
    uvmesh = unwrap(mesh, texture_size=256, mode="box")
    texels = texel_map(uvmesh, 256)
    reached = texels.mask & (texels.face < len(BALL.faces))
    texture = np.where(reached, 0.5, 0.0)[None].repeat(3, axis=0).astype(np.float32)
    filled = inpaint_smoothly(texture, texels, reached)
    np.testing.assert_allclose(filled[:, texels.mask], 0.5, atol=0.02)


def test_a_mesh_that_no_view_sees_has_one_colour_and_says_so() -> None:
    uvmesh = unwrap(meshes.cube(0.8), texture_size=64, mode="input")
    away = orbit(math.pi / 2, 0.0, 2.0, math.radians(40), target=(0, 0, -10))
    colour = np.array([0.2, 0.4, 0.6])
    baked = bake_projected(uvmesh, uvmesh.mesh.vertices, away, np.zeros((1, 3, 32, 32)), 64, otherwise=colour)
    assert (baked.maps[BASE_COLOUR] == np.rint(colour * 255)).all()
    assert baked.notes["unreached_share"] == 1.0
    assert "100% of the surface" in unreached_warning(baked.notes)
    assert unreached_warning({"unreached_share": 0.1}) == unreached_warning({}) == ""


def test_shares_are_of_the_surface_not_of_the_texture() -> None:
    # Two squares of one size, one with nine times the texels of the other.
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    corner = square[:, :2]
    uv = np.concatenate([0.6 * corner, 0.75 + 0.2 * corner]).astype(np.float32)
    mesh = meshes.make(np.concatenate([square, square + np.array([0, 0, 1])]), faces, uv, faces)
    uvmesh = unwrap(mesh, texture_size=256, mode="input")
    texels = texel_map(uvmesh, 256)
    assert surface_share(uvmesh, texels, texels.face < 2) == pytest.approx(0.5, abs=0.01)


def test_uneven_coordinates_are_told_and_not_used_unless_asked_for() -> None:
    ball = meshes.uv_sphere(24, 48)
    assert uneven_density(ball) == ""
    assert unwrap(ball, texture_size=256).method == "input"
    # A tenth of the sheet's width has a hundredth of the texture's.
    sheet = meshes.plane(20)
    assert sheet.uv is not None
    uv = sheet.uv.copy()
    uv[:, 0] = np.where(uv[:, 0] < 0.1, 0.02 * uv[:, 0], 0.002 + (uv[:, 0] - 0.1) / 0.9 * 0.998)
    narrow = meshes.make(sheet.vertices, sheet.faces, uv, sheet.uv_faces)
    assert "5% of the surface has at most 13% of the usual texels" in uneven_density(narrow)
    assert unwrap(narrow, texture_size=256, mode="input").method == "input"
    anew = unwrap(narrow, texture_size=256)
    assert anew.method != "input" and "uneven" in anew.reason


@pytest.mark.parametrize("unwrapping", ["auto", "input"])
def test_a_row_tells_of_uneven_coordinates(prior: Prior, tmp_path: Path, unwrapping: str) -> None:
    sheet = meshes.plane(20)
    assert sheet.uv is not None
    uv = sheet.uv.copy()
    uv[:, 0] = np.where(uv[:, 0] < 0.1, 0.02 * uv[:, 0], 0.002 + (uv[:, 0] - 0.1) / 0.9 * 0.998)
    path = meshes.write_obj(tmp_path / "m.obj", meshes.make(sheet.vertices, sheet.faces, uv, sheet.uv_faces))
    outcome = painted(path, prior, tmp_path, unwrap=unwrapping)
    assert any("uneven" in warning for warning in outcome.warnings)


def painted(path: Path, prior: Prior, tmp_path: Path, **settings: object):  # type: ignore[no-untyped-def]
    values = {"steps": 12, "preview": False, "distillation": "patches", **settings}
    resolved = PaintOptions(**values).model_dump(mode="json")  # type: ignore[arg-type]
    job = Job("one", "paint", "a red brick cube", "", 0, InputFile(path), resolved, RowLocation("m.csv", 2))
    (outcome,) = paint([job], prior, tmp_path / "out", fingerprints=["print"], lockstep=1)
    return outcome


@pytest.mark.parametrize("mesh", [boxes(2.5), joined([(BALL, (0, 0, 0)), (STRAY, (40, 0, 0))])])
def test_a_scattered_mesh_is_painted(prior: Prior, tmp_path: Path, mesh: Mesh) -> None:
    path = meshes.write_obj(tmp_path / "m.obj", mesh)
    outcome = painted(path, prior, tmp_path, texture_size=128, patch_views=16, patch_size=16)
    assert outcome.state == "done", outcome.message
    record = read_record(tmp_path / "out/one")
    assert record is not None
    share = record["bake"]["unreached_share"]
    assert share < 0.6
    told = [w for w in record["warnings"] if "parts lie far apart" in w or "lies far from the rest" in w]
    assert len(told) == 1
    assert (share > 0.1) == any("no view shows" in warning for warning in record["warnings"])
