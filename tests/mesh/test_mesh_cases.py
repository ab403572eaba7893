"""Meshes as programs write them, kept as files in ``data/meshes``: what each of them is."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import meshes
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.core.errors import MeshError
from pipeline.core.files import path_on_disk
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import face_areas
from pipeline.mesh.outliers import outlier_warning

DATA = Path(__file__).parents[1] / "data" / "meshes"
BOX = ((0, 0, 0), (1, 2, 3), 22.0)
UNIT = ((0, 0, 0), (1, 1, 1), 6.0)

# Of each: (lowest corner, highest corner, area), vertices, faces, what its warnings say.
READ = {
    "frame.obj": (((0, 0, 0), (4, 4, 0), 12.0), 8, 8, []),
    "vnind_used.obj": (BOX, 8, 12, ["some normals are zero or not finite"]),
    "o_merged.off": (BOX, 8, 12, []),
    "tokens.off": (UNIT, 8, 12, []),
    "mixedendhdr.ply": (UNIT, 8, 12, []),
    "p_face0_strips.ply": (BOX, 8, 12, []),
    "s_count0.stl": (BOX, 8, 12, ["its header claims 0 facets; the 12"]),
    "s_countff.stl": (BOX, 8, 12, ["its header claims 4294967295 facets; the 12"]),
    "glb_nul_padded_json.glb": (BOX, 8, 12, []),
    "data_uri_lf.gltf": (BOX, 8, 12, []),
    "data_uri_pct.gltf": (BOX, 8, 12, []),
    "data_uri_upper.gltf": (BOX, 8, 12, []),
    "meshopt_fallback.glb": (BOX, 8, 12, []),
    "three_quantize_draco.glb": (((-1.4, -1, -1), (3.3, 4.4, 1.2), 26.259), 1764, 3520, []),
    "skin_rest.glb": (((-0.5, 0, -0.25), (0.5, 1.8, 0.25), 6.4), 8, 12, []),
    "skin_posed.glb": (((-0.5, 0, -0.25), (0.5, 1.831, 0.543), 6.291), 8, 12, []),
    "tree_alpha_mask.glb": (((-1.502, 0, -1.103), (1.224, 3.414, 1.224), 17.371), 130, 112,
                            ["transparent parts of the material '1' (alphaMode MASK) are painted as surface",
                             "64 of 112 faces have no texture coordinates"]),
    "inverted_doublesided.glb": (((-1, -1, -1), (1, 1, 1), 12.506), 642, 1280, []),
    "sparse.glb": (((-5.05, 0, -5.05), (5.05, 0.1, 5.05), 1.5), 200, 300, []),
}  # fmt: skip
REFUSED = {
    "empty.ply": "empty.ply: it has no vertices",
    "lfs.glb": "lfs.glb: it is a Git LFS pointer, not the file itself; fetch that with: git lfs pull",
    "lfs.obj": "lfs.obj: it is a Git LFS pointer, not the file itself; fetch that with: git lfs pull",
    "lfs.stl": "lfs.stl: it is a Git LFS pointer, not the file itself; fetch that with: git lfs pull",
}


@pytest.mark.parametrize("name", READ)
def test_the_shape_is_what_the_file_means(name: str) -> None:
    (low, high, area), vertices, faces, warnings = READ[name]
    mesh = load_mesh(DATA / name)
    assert (len(mesh.vertices), len(mesh.faces)) == (vertices, faces)
    assert mesh.vertices.min(axis=0) == pytest.approx(low, abs=2e-3)
    assert mesh.vertices.max(axis=0) == pytest.approx(high, abs=2e-3)
    assert face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(area, rel=1e-3)
    assert len(mesh.warnings) == len(warnings)
    for said, wanted in zip(mesh.warnings, warnings, strict=True):
        assert wanted in said


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_mesh_is_told_in_full(name: str) -> None:
    with pytest.raises(MeshError) as caught:
        load_mesh(DATA / name)
    assert caught.value.message == REFUSED[name]


def test_every_kept_file_has_a_test() -> None:
    assert {path.name for path in DATA.iterdir()} == {*READ, *REFUSED}


def test_texture_coordinates_of_quantised_draco_go_from_0_to_1() -> None:
    mesh = load_mesh(DATA / "three_quantize_draco.glb")
    assert mesh.uv is not None
    # As in the file that it was made from.
    assert mesh.uv.min(axis=0) == pytest.approx((0.01634, 0), abs=1e-3)
    assert mesh.uv.max(axis=0) == pytest.approx((1, 1), abs=1e-3)


def test_double_sided_faces_are_marked() -> None:
    marked = load_mesh(DATA / "inverted_doublesided.glb").double_sided
    leaves = load_mesh(DATA / "tree_alpha_mask.glb").double_sided
    assert marked is not None and marked.all()
    assert leaves is not None and int(leaves.sum()) == 48 and len(leaves) == 112
    assert load_mesh(DATA / "frame.obj").double_sided is None


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl", ".off", ".gltf", ".glb"])
def test_a_pointer_of_git_lfs_is_told_in_every_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    shutil.copy(DATA / "lfs.obj", path)
    with pytest.raises(MeshError, match=r"Git LFS pointer.*git lfs pull"):
        load_mesh(path)


def test_a_buffer_that_is_a_pointer_of_git_lfs_is_told(tmp_path: Path) -> None:
    shutil.copy(DATA / "lfs.obj", tmp_path / "data.bin")
    (tmp_path / "a.gltf").write_text(
        '{"asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],'
        '"meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],'
        '"accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],'
        '"bufferViews": [{"buffer": 0, "byteLength": 36}], "buffers": [{"byteLength": 36, "uri": "data.bin"}]}'
    )
    with pytest.raises(MeshError, match=r"^a\.gltf: its buffer data\.bin: it is a Git LFS pointer"):
        load_mesh(tmp_path / "a.gltf")


@pytest.mark.parametrize(("asked", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_the_other_normal_form_is_found(asked: str, on_disk: str, tmp_path: Path) -> None:
    def named(form: str) -> Path:
        return tmp_path / unicodedata.normalize(form, "Möbel") / unicodedata.normalize(form, "Stühle é.obj")

    named(on_disk).parent.mkdir()
    named(on_disk).write_text(meshes.CUBE)
    assert path_on_disk(named(asked)) == named(on_disk)
    assert len(load_mesh(named(asked)).faces) == 12
    manifest = tmp_path / "m.csv"
    row = f"a,{named(asked).relative_to(tmp_path)},a red wooden box\n"
    manifest.write_text(f"id,mesh,prompt\n{row}", encoding="utf-8")
    result = CliRunner().invoke(cli, ["check", str(manifest)])
    assert result.exit_code == 0, result.output
    # What exists is taken as it is, and what does not exist stays as it was asked for.
    assert path_on_disk(named(on_disk)) == named(on_disk)
    assert path_on_disk(tmp_path / "ü.obj") == tmp_path / "ü.obj"


def with_far_triangle(distance: float, size: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    ball = meshes.uv_sphere(24, 48)
    corner = np.array([(distance, 0, 0), (distance + size, 0, 0), (distance, size, 0)])
    faces = np.concatenate([ball.faces, [np.arange(3) + len(ball.vertices)]])
    return np.concatenate([ball.vertices, corner]), faces


@pytest.mark.parametrize(("distance", "told"), [(500.0, "1/145 "), (1e6, "1/28"), (30.0, "1/9 "), (1.5, "")])
def test_a_stray_triangle_far_away_is_told(distance: float, told: str) -> None:
    vertices, faces = with_far_triangle(distance)
    said = outlier_warning(vertices, faces)
    assert (told in said and said.startswith(f"1 of {len(faces)} faces")) if told else said == ""


def test_large_parts_far_apart_are_no_strays() -> None:
    ball = meshes.uv_sphere(12, 24)
    pair = np.concatenate([ball.vertices, ball.vertices + 50.0])
    assert outlier_warning(pair, np.concatenate([ball.faces, ball.faces + len(ball.vertices)])) == ""
    assert outlier_warning(meshes.plane(8).vertices, meshes.plane(8).faces) == ""


def test_check_tells_what_is_odd_about_a_mesh(tmp_path: Path) -> None:
    vertices, faces = with_far_triangle(500.0)
    meshes.write_obj(tmp_path / "a.obj", meshes.make(vertices, faces))
    (tmp_path / "m.csv").write_text("id,mesh,prompt\na,a.obj,a red wooden box\n")
    result = CliRunner().invoke(cli, ["check", str(tmp_path / "m.csv")])
    assert result.exit_code == 0
    assert "m.csv:2: mesh: warning: a.obj: 1 of 2209 faces" in result.output and "1 warning" in result.output
