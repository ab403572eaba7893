"""The example meshes: made by the script beside them, closed, right side out, and of the size they should be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from real.validator import validate_glbs

from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import Mesh, uv_areas

FOLDER = Path(__file__).parents[2] / "manifests" / "meshes"


def script():
    """make_meshes.py as a module."""
    specification = importlib.util.spec_from_file_location("make_meshes", FOLDER / "make_meshes.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["make_meshes"] = module
    specification.loader.exec_module(module)
    return module


MODULE = script()
NAMES = sorted(MODULE.MESHES)


@pytest.fixture(scope="module")
def meshes() -> dict[str, Mesh]:
    return {name: load_mesh(FOLDER / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_script_writes_the_same_bytes_again(name):
    assert MODULE.make(name) == (FOLDER / name).read_bytes()


def test_the_folder_holds_these_and_no_more():
    files = {p.name for p in FOLDER.iterdir() if p.is_file()}
    assert files == {*NAMES, "make_meshes.py"}
    assert sum((FOLDER / name).stat().st_size for name in NAMES) < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_closed_and_right_side_out(meshes, name):
    mesh = meshes[name]
    assert mesh.warnings == []
    assert 2_000 <= len(mesh.faces) <= 12_500
    start, end = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    key = np.minimum(start, end) * len(mesh.vertices) + np.maximum(start, end)
    _, edge, count = np.unique(key, return_inverse=True, return_counts=True)
    assert (count == 2).all(), "every edge has exactly two faces"
    assert (np.bincount(edge, np.sign(end - start)) == 0).all(), "which run along it in opposite directions"
    # Each connected part by itself.
    part = parts(mesh)
    a, b, c = (mesh.vertices - mesh.vertices.mean(axis=0))[mesh.faces].swapaxes(0, 1)
    volume = np.bincount(part, (a * np.cross(b, c)).sum(axis=1) / 6)
    assert (volume[np.unique(part)] > 0).all()


def parts(mesh: Mesh) -> np.ndarray:
    """The connected part of each face."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    start, end = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    size = len(mesh.vertices)
    _, label = connected_components(coo_matrix((np.ones(len(start)), (start, end)), shape=(size, size)))
    return label[mesh.faces[:, 0]]


@pytest.mark.parametrize("name", NAMES)
def test_it_stands_on_the_ground_with_its_up_axis_up(meshes, name):
    low, high = meshes[name].vertices.min(axis=0), meshes[name].vertices.max(axis=0)
    up = 2 if name.endswith(".stl") else 1
    height = high[up] - low[up]
    assert abs(low[up]) < 0.05 * height
    assert all(
        abs(low[axis] + high[axis]) < 0.75 * np.ptp([low, high], axis=0).max() for axis in range(3) if axis != up
    )


@pytest.mark.parametrize("name", ["teapot.obj", "vase.obj"])
def test_own_texture_coordinates_are_good_ones(meshes, name):
    """In the unit square, not mirrored, and nearly all at one scale."""
    mesh = meshes[name]
    assert mesh.uv is not None
    assert mesh.uv_faces is not None
    assert (mesh.uv_faces >= 0).all()
    assert mesh.uv.min() >= 0
    assert mesh.uv.max() <= 1
    flat = uv_areas(mesh.uv, mesh.uv_faces)
    assert (flat > 0).all()
    assert 0.4 < flat.sum() < 1
    corner = mesh.vertices[mesh.faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1) / 2
    scale = np.sqrt(flat / area)
    spread = np.sort(scale)[[len(scale) // 20, -len(scale) // 20]]
    assert spread[1] / spread[0] < 3.5


def test_texture_coordinates_do_not_overlap(meshes):
    from pipeline.raster.rasterise import rasterise_uv

    for name in ("teapot.obj", "vase.obj"):
        mesh = meshes[name]
        size = 512
        face, _ = rasterise_uv(mesh.uv, mesh.uv_faces, size, size)
        covered = (face >= 0).mean()
        # Where faces overlapped, fewer texels would be covered than their areas add up to.
        assert abs(covered - uv_areas(mesh.uv, mesh.uv_faces).sum()) < 0.01


def test_the_others_come_without(meshes):
    assert all(meshes[name].uv is None for name in NAMES if not name.endswith(".obj"))


def test_the_teapots_texture_is_upright(meshes):
    """Higher on the belly is higher in the image."""
    mesh = meshes["teapot.obj"]
    y, v = mesh.vertices[mesh.faces, 1], mesh.uv[mesh.uv_faces, 1]
    belly = (y.min(axis=1) > 2) & (y.max(axis=1) < 9) & (np.abs(mesh.vertices[mesh.faces, 0]).max(axis=1) < 4)
    assert belly.sum() > 50
    rise = y.max(axis=1) - y.min(axis=1)
    drop = np.take_along_axis(v, y.argmin(axis=1)[:, None], 1) - np.take_along_axis(v, y.argmax(axis=1)[:, None], 1)
    assert (drop[belly & (rise > 0.1), 0] > 0).all()


def test_the_demo_manifests_are_good_and_name_every_mesh(tmp_path):
    from pipeline.manifest import load_manifest

    named, prompts, axes = set(), set(), {}
    for name in ("demo.csv", "demo.json", "demo.jsonl"):
        manifest = load_manifest(FOLDER.parent / name)
        assert manifest.problems == []
        assert len(manifest.jobs) == manifest.rows >= 2
        for job in manifest.jobs:
            named.add(job.mesh.name)
            axes[job.mesh.name] = job.settings["up_axis"]
        if name == "demo.csv":
            prompts = {job.prompt for job in manifest.jobs}
            assert len(named) >= 4
            assert len(prompts) >= 6
    assert named == set(NAMES)
    assert {name for name, axis in axes.items() if axis == "z"} == {"mushrooms.stl"}


def test_each_leaves_as_a_valid_asset(meshes, tmp_path):
    from pipeline.export.gltf import BASE_COLOUR, write_glb
    from pipeline.mesh.mesh import UVMesh

    paths = []
    for name, mesh in meshes.items():
        uv, uv_faces = mesh.uv, mesh.uv_faces
        if uv is None:
            uv, uv_faces = np.full((1, 2), 0.5, np.float32), np.zeros_like(mesh.faces)
        painted = UVMesh(mesh, uv, uv_faces, "input", "", np.zeros(len(mesh.faces), np.int32))
        paths.append(tmp_path / f"{name}.glb")
        image = np.full((64, 64, 3), 128, np.uint8)
        write_glb(paths[-1], painted, {BASE_COLOUR: image}, name=name, provenance={})
    validate_glbs(paths)
    for name, path in zip(meshes, paths, strict=True):
        again = load_mesh(path)
        assert len(again.faces) == len(meshes[name].faces)
        np.testing.assert_allclose(
            again.vertices[again.faces], meshes[name].vertices[meshes[name].faces].astype("f4"), rtol=0, atol=0
        )
