"""FBX becomes a document that shows the same: against GLB of the same scene, and against files with known numbers."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from converted import (
    FOREIGN,
    at_time,
    corners,
    document_of,
    farthest,
    glb_of,
    image,
    material_named,
    node_named,
    values,
)
from fbx_text import CORNER_UV, POINTS, POLYGONS, FbxText, flag
from PIL import Image

from pipeline.core.errors import MeshError
from pipeline.mesh.convert.to_gltf import to_gltf
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh_hash import mesh_sha256

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))
import validator

BLENDER = sorted(FOREIGN.glob("*.fbx"))


def expected(matrix: np.ndarray) -> np.ndarray:
    """(C, 5) the corners of the flag under a (3, 4) world matrix, in glTF's conventions."""
    vertices = np.array([vertex for polygon in POLYGONS for vertex in polygon])
    points = np.array(POINTS, float) @ matrix[:, :3].T + matrix[:, 3]
    uv = np.array(CORNER_UV)
    return np.concatenate([points[vertices], uv[:, :1], 1 - uv[:, 1:]], axis=1)


def written(folder: Path, fbx: FbxText) -> Path:
    path = folder / "flag.fbx"
    path.write_bytes(fbx.text())
    return path


def rotation(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = c
    matrix[a, b], matrix[b, a] = -s, s
    return matrix


def with_shift(linear: np.ndarray, shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    return np.concatenate([linear, np.array(shift, float)[:, None]], axis=1)


@pytest.mark.parametrize("path", [path for path in BLENDER if path.stem != "rig"], ids=lambda path: path.stem)
def test_an_fbx_of_blender_shows_what_its_glb_shows(path: Path) -> None:
    assert farthest(corners(path), corners(FOREIGN / f"{path.stem.split('_')[0]}.glb")) < 2e-6


AXES = {
    "centimetres": (FbxText(unit=1.0), 0.01),
    "metres": (FbxText(unit=100.0), 1.0),
    "inches": (FbxText(unit=2.54), 0.0254),
    "z up, as of 3ds Max": (FbxText(up=2, front=1, front_sign=-1, unit=2.54), 0.0254),
    "x up": (FbxText(up=0, front=2, coord=1, coord_sign=-1, unit=100.0), 1.0),
    "y down": (FbxText(up_sign=-1, front_sign=-1, unit=100.0), 1.0),
    "front to the left": (FbxText(front=0, coord=2, coord_sign=-1, unit=100.0), 1.0),
    "left-handed": (FbxText(coord_sign=-1, unit=100.0), 1.0),
}


@pytest.mark.parametrize("name", AXES)
def test_axes_and_units_become_those_of_gltf_and_nothing_is_mirrored(name: str, tmp_path: Path) -> None:
    fbx, metres = AXES[name]
    axes = np.zeros((3, 3))
    axes[0, fbx.coord], axes[1, fbx.up], axes[2, fbx.front] = fbx.coord_sign, fbx.up_sign, fbx.front_sign
    path = written(tmp_path, flag(fbx))
    assert farthest(corners(path), expected(with_shift(metres * axes))) < 1e-6
    # One node at the root converts; the artist's nodes keep their numbers.
    document = to_gltf(path)
    assert set(node_named(document, "Flag")) == {"name", "mesh"}
    assert document.json["scenes"][0]["nodes"] == [0]


def test_pivots_and_every_kind_of_transform_end_where_fbx_puts_them(tmp_path: Path) -> None:
    cases = {
        "pre": (
            {"PreRotation": (90, 0, 0), "Lcl_Rotation": (0, 0, 30), "RotationActive": (1,)},
            with_shift(rotation(0, 90) @ rotation(2, 30)),
        ),
        "order": (
            {"Lcl_Rotation": (20, 40, 60), "Lcl_Translation": (1, 2, 3)},
            with_shift(rotation(2, 60) @ rotation(1, 40) @ rotation(0, 20), (1, 2, 3)),
        ),
        "geometric": (
            {"GeometricTranslation": (1, 0, 0), "Lcl_Scaling": (2, 3, 4)},
            with_shift(np.diag([2.0, 3.0, 4.0]), (2, 0, 0)),
        ),
        "mirrored": ({"Lcl_Scaling": (-1, 1, 1)}, with_shift(np.diag([-1.0, 1.0, 1.0]))),
        "pivot": (
            {"RotationPivot": (1, 0, 0), "Lcl_Rotation": (0, 0, 90)},
            with_shift(rotation(2, 90), (1, -1, 0)),
        ),
    }  # fmt: skip
    for name, (properties, matrix) in cases.items():
        path = written(tmp_path, flag(**properties))
        assert farthest(corners(path), expected(matrix)) < 2e-6, name


def test_a_turned_child_of_a_stretched_parent_keeps_its_shear(tmp_path: Path) -> None:
    fbx = FbxText(unit=100.0)
    parent = fbx.model("Stretched", kind="Null", Lcl_Scaling=(3, 1, 1))
    fbx.geometry(fbx.model("Flag", parent, Lcl_Rotation=(0, 0, 45)))
    assert farthest(corners(written(tmp_path, fbx)), expected(with_shift(np.diag([3, 1, 1]) @ rotation(2, 45)))) < 2e-6


def test_names_materials_colours_and_uv_sets_are_kept(tmp_path: Path) -> None:
    fbx = FbxText(unit=100.0)
    node = fbx.model("Flag №1")
    second = [(u + 0.5, v) for u, v in CORNER_UV]
    tints = [(n / 11, 0.5, 0.25, 1.0) for n in range(len(CORNER_UV))]
    fbx.geometry(node, uv_sets={"Main": CORNER_UV, "Light": second}, materials=[0, 1, 1], colours=tints)
    red = fbx.material(node, "Red", DiffuseColor=(1, 0.25, 0))
    fbx.material(node, "Glass", DiffuseColor=(0, 1, 0), Opacity=(0.5,))
    fbx.texture(red, "C:\\\\work\\\\stripes.png", uv_set="Light")
    (tmp_path / "stripes.png").write_bytes((FOREIGN / "stripes.png").read_bytes())
    document = to_gltf(written(tmp_path, fbx))
    assert node_named(document, "Flag №1")["mesh"] == 0
    first, _ = document.json["meshes"][0]["primitives"]
    assert set(first["attributes"]) == {"POSITION", "TEXCOORD_0", "TEXCOORD_1", "COLOR_0"}
    assert document.json["meshes"][0]["extras"]["uvSets"] == ["Main", "Light"]
    texture = material_named(document, "Red")["pbrMetallicRoughness"]["baseColorTexture"]
    assert texture["texCoord"] == 1
    assert image(document, texture) == (FOREIGN / "stripes.png").read_bytes()
    glass = material_named(document, "Glass")
    assert glass["alphaMode"] == "BLEND"
    assert glass["pbrMetallicRoughness"]["baseColorFactor"] == pytest.approx([0, 1, 0, 0.5])
    assert document.losses == ()


def test_an_embedded_texture_comes_along_and_materials_keep_their_numbers() -> None:
    document = to_gltf(FOREIGN / "flag.fbx")
    reference = document_of(FOREIGN / "flag.glb")
    for name in ("Painted", "Plain"):
        ours, theirs = (material_named(d, name)["pbrMetallicRoughness"] for d in (document, reference))
        assert ours["metallicFactor"] == pytest.approx(theirs["metallicFactor"], abs=1e-3)
        assert ours["roughnessFactor"] == pytest.approx(theirs["roughnessFactor"], abs=1e-3)
    plain = material_named(document, "Plain")["pbrMetallicRoughness"]
    assert plain["baseColorFactor"] == pytest.approx([0.2, 0.6, 0.1, 1], abs=1e-3)
    painted = material_named(document, "Painted")["pbrMetallicRoughness"]
    with Image.open(io.BytesIO(image(document, painted["baseColorTexture"]))) as picture:
        assert picture.size == (8, 4)


def test_a_texture_of_another_format_becomes_png(tmp_path: Path) -> None:
    fbx = FbxText(unit=100.0)
    node = fbx.model("Flag")
    fbx.geometry(node)
    fbx.texture(fbx.material(node, "Red"), "sub/stripes.tga")
    with Image.open(FOREIGN / "stripes.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
        (tmp_path / "textures").mkdir()
        picture.convert("RGB").save(tmp_path / "textures" / "Stripes.TGA")
    document = to_gltf(written(tmp_path, fbx))
    texture = material_named(document, "Red")["pbrMetallicRoughness"]["baseColorTexture"]
    with Image.open(io.BytesIO(image(document, texture))) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize("name", ["../secret.png", "/SECRET", "link.png", "gone.png"])
def test_a_texture_outside_the_folder_is_not_opened(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes((FOREIGN / "stripes.png").read_bytes())
    folder = tmp_path / "asset"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    fbx = FbxText(unit=100.0)
    node = fbx.model("Flag")
    fbx.geometry(node)
    fbx.texture(fbx.material(node, "Red"), name.replace("/SECRET", str(secret)))
    document = to_gltf(written(folder, fbx))
    assert "images" not in document.json
    assert len(document.losses) == 1
    assert "neither in the file nor in its folder" in document.losses[0]


def test_the_hash_covers_a_texture_beside_the_file(tmp_path: Path) -> None:
    fbx = FbxText(unit=100.0)
    node = fbx.model("Flag")
    fbx.geometry(node)
    fbx.texture(fbx.material(node, "Red"), "stripes.png")
    path = written(tmp_path, fbx)
    without = mesh_sha256(path)
    (tmp_path / "stripes.png").write_bytes((FOREIGN / "stripes.png").read_bytes())
    assert (with_texture := mesh_sha256(path)) != without
    (tmp_path / "other.png").write_bytes(b"is not named")
    assert mesh_sha256(path) == with_texture
    (tmp_path / "stripes.png").write_bytes(b"other bytes")
    assert mesh_sha256(path) not in (without, with_texture)


def test_the_hash_finds_the_textures_of_a_binary_fbx(tmp_path: Path) -> None:
    path = tmp_path / "flag.fbx"
    path.write_bytes((FOREIGN / "flag_z_up.fbx").read_bytes())
    without = mesh_sha256(path)
    (tmp_path / "stripes.png").write_bytes((FOREIGN / "stripes.png").read_bytes())
    assert mesh_sha256(path) != without


def test_skin_shapes_and_animation_move_as_in_the_glb(tmp_path: Path) -> None:
    ours, theirs = document_of(FOREIGN / "rig.fbx"), document_of(FOREIGN / "rig.glb")
    assert ours.json["meshes"][0]["extras"]["targetNames"] == ["Raise"]
    assert len(ours.json["skins"][0]["joints"]) == 2
    moved = []
    for frame in range(7):
        a, b = (at_time(d, frame / 24, tmp_path / f"{n}.glb") for n, d in (("ours", ours), ("theirs", theirs)))
        assert farthest(corners(a), corners(b)) < 1e-5, frame
        moved.append(corners(a))
    assert farthest(moved[0], moved[6]) > 0.5
    # The file was saved at the last frame.
    assert farthest(corners(FOREIGN / "rig.fbx"), moved[6]) < 1e-5


def test_cameras_lights_instances_and_the_tree_are_kept() -> None:
    document = to_gltf(FOREIGN / "tree.fbx")
    reference = document_of(FOREIGN / "tree.glb")
    leaf, two = node_named(document, "Leaf"), node_named(document, "Leaf two")
    assert leaf["mesh"] == two["mesh"]
    assert len(document.json["meshes"]) == 1
    nodes = document.json["nodes"]
    base = node_named(document, "Base")
    assert [nodes[child]["name"] for child in base["children"]] == ["Leaf"]
    assert [nodes[child]["name"] for child in leaf["children"]] == ["Leaf two"]
    ours, theirs = document.json["cameras"][0]["perspective"], reference.json["cameras"][0]["perspective"]
    assert ours["yfov"] == pytest.approx(theirs["yfov"], rel=1e-3)
    assert ours["znear"] == pytest.approx(theirs["znear"], rel=1e-3)
    for name, holder in (("Eye", "camera"), ("Sun", "extensions")):
        seen = []
        for d in (document, reference):
            worlds = world_matrices(d.json["nodes"])
            (number,) = [n for n, node in enumerate(d.json["nodes"]) if holder in node]
            seen.append(worlds[number])
        # Both look along -Z from the same place.
        assert np.allclose(seen[0][:3, 3], seen[1][:3, 3], atol=1e-5), name
        ours_z, theirs_z = (matrix[:3, 2] / np.linalg.norm(matrix[:3, 2]) for matrix in seen)
        assert np.allclose(ours_z, theirs_z, atol=1e-5), name


def world_matrices(nodes: list[dict]) -> list[np.ndarray]:
    from scipy.spatial.transform import Rotation

    worlds = [np.eye(4) for _ in nodes]

    def place(number: int, parent: np.ndarray) -> None:
        node = nodes[number]
        own = np.eye(4)
        own[:3, :3] = Rotation.from_quat(node.get("rotation", [0, 0, 0, 1])).as_matrix() * node.get("scale", [1, 1, 1])
        own[:3, 3] = node.get("translation", [0, 0, 0])
        worlds[number] = parent @ own
        for child in node.get("children", ()):
            place(child, worlds[number])

    below = {child for node in nodes for child in node.get("children", ())}
    for number in set(range(len(nodes))) - below:
        place(number, np.eye(4))
    return worlds


def test_equal_corners_share_a_vertex(tmp_path: Path) -> None:
    grid = [(x, y, 0) for y in range(11) for x in range(11)]
    quads = [(y * 11 + x, y * 11 + x + 1, y * 11 + x + 12, y * 11 + x + 11) for y in range(10) for x in range(10)]
    uv = [(grid[vertex][0] / 10, grid[vertex][1] / 10) for quad in quads for vertex in quad]
    fbx = FbxText(unit=100.0)
    fbx.geometry(fbx.model("Grid"), grid, quads, {"Main": uv}, normals=[(0, 0, 1)] * len(uv))
    document = to_gltf(written(tmp_path, fbx))
    (primitive,) = document.json["meshes"][0]["primitives"]
    assert len(values(document, primitive["attributes"]["POSITION"])) == 121
    assert len(values(document, primitive["indices"])) == 600


def test_a_normal_without_length_is_replaced(tmp_path: Path) -> None:
    fbx = FbxText(unit=100.0)
    fbx.geometry(fbx.model("Flag"), normals=[(0, 0, 0)] * len(CORNER_UV))
    document = to_gltf(written(tmp_path, fbx))
    normals = values(document, document.json["meshes"][0]["primitives"][0]["attributes"]["NORMAL"])
    assert np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    validator.validate_glb(glb_of(document, tmp_path / "a.glb"), infos=True)


def test_every_converted_fbx_is_valid(tmp_path: Path) -> None:
    paths = [glb_of(to_gltf(path), tmp_path / f"{path.stem}.glb") for path in BLENDER]
    for name, (fbx, _) in AXES.items():
        text = flag(FbxText(**{k: v for k, v in vars(fbx).items() if k not in ("objects", "connections", "_next")}))
        paths.append(glb_of(to_gltf(written(tmp_path, text)), tmp_path / f"{name}.glb"))
    validator.validate_glbs(paths, infos=True)


def test_a_damaged_fbx_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "cut.fbx"
    for data in ((FOREIGN / "flag.fbx").read_bytes()[:9000], b"FBX", b"Kaydara FBX Binary  \0\x1a\0", bytes(300)):
        path.write_bytes(data)
        with pytest.raises(MeshError) as raised:
            load_mesh(path)
        assert raised.value.message.startswith("cut.fbx: ")
        assert ";" in raised.value.message
        assert "\n" not in raised.value.message
