"""OBJ and PLY: what our own readers, and another program's, find in them is the asset. Depth and normal sheets."""

from __future__ import annotations

import io
from pathlib import Path

import meshes
import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.errors import ExportError
from pipeline.export.gltf import BASE_COLOUR
from pipeline.export.obj import obj_files
from pipeline.export.ply import ply_files
from pipeline.export.preview import render_views
from pipeline.export.turntable import render_shape, turntable_files
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import Mesh, UVMesh
from pipeline.mesh.normalise import normalise
from pipeline.uv.unwrap import unwrap


def image(size: int = 64) -> NDArray[np.uint8]:
    """Asymmetric: red grows to the right, green downwards, blue marks the top left."""
    ramp = np.arange(size) * 255 // (size - 1)
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[None, :], ramp[:, None]
    pixels[: size // 4, : size // 4, 2] = 200
    return pixels


def asset(kind: str) -> UVMesh:
    mesh = {"cube": meshes.cube(2.0), "ball": meshes.uv_sphere(12, 24, radius=1 / 3)}[kind]
    return unwrap(mesh, texture_size=64, mode="input")


def written(folder: Path, files: dict[str, bytes]) -> list[str]:
    """Puts ``files`` into ``folder``; their names in the order of the files."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return list(files)


def corners(mesh: Mesh | UVMesh) -> tuple[NDArray, NDArray]:
    """Positions (F, 3, 3) and texture coordinates (F, 3, 2) of the corners, in the order of the file."""
    surface = mesh.mesh if isinstance(mesh, UVMesh) else mesh
    assert mesh.uv is not None
    assert mesh.uv_faces is not None
    return surface.vertices[surface.faces], mesh.uv[mesh.uv_faces]


@pytest.mark.parametrize("kind", ["cube", "ball"])
def test_an_obj_reads_back_as_the_same_mesh(tmp_path: Path, kind: str) -> None:
    uvmesh = asset(kind)
    names = written(tmp_path, obj_files("asset", uvmesh, {BASE_COLOUR: image()}, name="two words"))
    assert names == ["asset_base_colour.png", "asset.mtl", "asset.obj"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    back = load_mesh(tmp_path / "asset.obj")
    for found, expected in zip(corners(back), corners(uvmesh), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(back.vertices, uvmesh.mesh.vertices)
    assert back.warnings == []
    assert back.normals is not None
    assert back.normal_faces is not None
    towards = back.vertices[back.faces].mean(axis=1)
    assert (np.einsum("fi,fci->fc", towards, back.normals[back.normal_faces]) > 0).all()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / names[0])), image())
    assert f"map_Kd {names[0]}" in (tmp_path / "asset.mtl").read_text()
    assert "mtllib asset.mtl" in (tmp_path / "asset.obj").read_text()


def test_another_program_finds_the_colours_of_an_obj_in_their_places(tmp_path: Path) -> None:
    uvmesh = asset("cube")
    written(tmp_path, obj_files("asset", uvmesh, {BASE_COLOUR: image()}, name="cube", image_format="png"))
    loaded = trimesh.load(tmp_path / "asset.obj", process=False, force="mesh")
    theirs = loaded.visual.to_color().vertex_colors[:, :3].astype(int)
    uv = np.stack([loaded.visual.uv[:, 0], 1 - loaded.visual.uv[:, 1]], axis=1)
    expected = image()[np.clip((uv[:, 1] * 64).astype(int), 0, 63), np.clip((uv[:, 0] * 64).astype(int), 0, 63)]
    assert np.abs(theirs - expected).max() <= 12
    assert len(loaded.faces) == 12


@pytest.mark.parametrize("kind", ["cube", "ball"])
def test_a_ply_with_a_texture_reads_back_as_the_same_mesh(tmp_path: Path, kind: str) -> None:
    uvmesh = asset(kind)
    names = written(tmp_path, ply_files("a", uvmesh, {BASE_COLOUR: image()}, texture=True, image_format="jpeg"))
    assert names == ["a_base_colour.jpg", "a.ply"]
    back = load_mesh(tmp_path / "a.ply")
    for found, expected in zip(corners(back), corners(uvmesh), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert back.normals is not None
    assert f"comment TextureFile {names[0]}\n".encode() in (tmp_path / "a.ply").read_bytes()


@pytest.mark.parametrize("kind", ["cube", "ball"])
def test_a_ply_with_vertex_colours_holds_the_textures(tmp_path: Path, kind: str) -> None:
    uvmesh = asset(kind)
    assert written(tmp_path, ply_files("a", uvmesh, {BASE_COLOUR: image()})) == ["a.ply"]
    back = load_mesh(tmp_path / "a.ply")
    np.testing.assert_array_equal(back.vertices, uvmesh.mesh.vertices)
    np.testing.assert_array_equal(back.faces, uvmesh.mesh.faces)
    theirs = trimesh.load(tmp_path / "a.ply", process=False)
    np.testing.assert_array_equal(theirs.vertices, uvmesh.mesh.vertices)
    colours = np.asarray(theirs.visual.vertex_colors)[:, :3].astype(float)
    for vertex in range(0, len(uvmesh.mesh.vertices), 7):
        places = uvmesh.uv[uvmesh.uv_faces[uvmesh.mesh.faces == vertex]]
        # Red and green of the image are the coordinates themselves.
        mean = np.unique(places, axis=0).mean(axis=0)
        np.testing.assert_allclose(colours[vertex, :2] / 255, mean, atol=0.02)
    assert (np.einsum("vi,vi->v", np.asarray(theirs.vertex_normals), uvmesh.mesh.vertices) > 0).all()


def test_coordinates_that_float_cannot_hold_are_kept(tmp_path: Path) -> None:
    mesh = meshes.make(meshes.cube().vertices / 3 + 1e7, meshes.cube().faces, meshes.cube().uv, meshes.cube().uv_faces)
    uvmesh = unwrap(mesh, texture_size=64, mode="input")
    written(tmp_path, ply_files("a", uvmesh, {BASE_COLOUR: image()}))
    written(tmp_path, obj_files("a", uvmesh, {BASE_COLOUR: image()}, name=""))
    for name in ("a.ply", "a.obj"):
        np.testing.assert_array_equal(load_mesh(tmp_path / name).vertices, mesh.vertices)


def test_the_same_asset_gives_the_same_bytes(tmp_path: Path) -> None:
    uvmesh, maps = asset("ball"), {BASE_COLOUR: image()}
    for folder in ("one", "two"):
        written(tmp_path / folder, obj_files("a", uvmesh, maps, name="a"))
        written(tmp_path / folder, ply_files("a", uvmesh, maps))
        written(tmp_path / folder, ply_files("b", uvmesh, maps, texture=True))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="image_format 'gif' is unknown"):
        written(tmp_path, obj_files("a", asset("cube"), {BASE_COLOUR: image()}, name="a", image_format="gif"))
    with pytest.raises(ExportError, match="blanks"):
        written(tmp_path, obj_files("a b", asset("cube"), {BASE_COLOUR: image()}, name="a"))
    assert list(tmp_path.iterdir()) == []


def test_depth_is_bright_where_near_and_black_where_nothing() -> None:
    mesh = meshes.uv_sphere(24, 48)
    depth, _ = render_shape(mesh, normalise(mesh.vertices), views=4, size=64)
    for view in depth[..., 0].astype(int):
        assert view[32, 32] == view.max() > 250
        assert (view[[0, -1]] == 0).all()
        row = view[32][view[32] > 0]
        assert (np.diff(row[: len(row) // 2]) >= 0).all()
        assert row[2] < 170


def test_normals_are_those_of_the_camera() -> None:
    mesh = meshes.uv_sphere(24, 48)
    _, normal = render_shape(mesh, normalise(mesh.vertices), views=8, size=64)
    for view in normal.astype(int):
        np.testing.assert_allclose(view[32, 32], (128, 128, 255), atol=6)  # towards the viewer
        assert view[32, 52, 0] > 190 > 70 > view[32, 12, 0]  # +X to the right
        assert view[12, 32, 1] > 190 > 70 > view[52, 32, 1]  # +Y up
        assert (view[0, 0] == 128).all()


def test_tiles_show_what_the_previews_show() -> None:
    uvmesh = asset("cube")
    frame = normalise(uvmesh.mesh.vertices)
    preview = render_views(uvmesh, np.full((64, 64, 3), (250, 0, 0), np.uint8), frame, size=64)
    depth, _ = render_shape(uvmesh.mesh, frame, size=64)
    seen = (preview[..., 0].astype(int) - preview[..., 1]) > 60
    assert ((depth[..., 0] > 40) == seen).mean() > 0.99


def test_sheets_are_png_of_all_tiles_and_deterministic() -> None:
    mesh = meshes.torus()
    files = turntable_files(mesh, normalise(mesh.vertices), size=32)
    assert sorted(files) == ["depth.png", "normal.png"]
    assert all(Image.open(io.BytesIO(data)).size == (128, 64) for data in files.values())
    assert turntable_files(mesh, normalise(mesh.vertices), size=32) == files
    five = turntable_files(mesh, normalise(mesh.vertices), size=32, views=5)["normal.png"]
    assert (np.asarray(Image.open(io.BytesIO(five)))[32:, 32:] == 128).all()
