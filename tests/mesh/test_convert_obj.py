"""OBJ with MTL becomes a document: one node for each object or group, MTL's materials, textures of its folder only."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from converted import FOREIGN, corners, farthest, glb_of, image, material_named, node_named, values

from pipeline.core.errors import MeshError
from pipeline.mesh.convert.references import files_beside
from pipeline.mesh.convert.to_gltf import to_gltf

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))
import validator

QUADS = "".join(f"v {x} {y} {x * y * 0.25}\n" for y in range(3) for x in range(4)) + "".join(
    f"vt {x / 10} {y / 7}\n" for y in range(3) for x in range(4)
)


def face(x: int, y: int) -> str:
    corner = [y * 4 + x + 1, y * 4 + x + 2, y * 4 + x + 6, y * 4 + x + 5]
    return "f " + " ".join(f"{n}/{n}" for n in corner) + "\n"


def written(folder: Path, text: str, mtl: str = "", name: str = "a.obj") -> Path:
    (folder / "a.mtl").write_text(mtl)
    path = folder / name
    path.write_text(text)
    return path


def test_the_document_shows_what_the_obj_shows(tmp_path: Path) -> None:
    path = FOREIGN / "flag.obj"
    document = to_gltf(path)
    converted = glb_of(document, tmp_path / "a.glb")
    assert farthest(corners(path), corners(converted)) < 1e-6
    assert farthest(corners(FOREIGN / "flag.glb"), corners(converted)) < 2e-6
    texture = material_named(document, "Painted")["pbrMetallicRoughness"]["baseColorTexture"]
    assert image(document, texture) == (FOREIGN / "stripes.png").read_bytes()
    plain = material_named(document, "Plain")["pbrMetallicRoughness"]
    assert plain["baseColorFactor"] == pytest.approx([0.2, 0.6, 0.1, 1])
    validator.validate_glb(converted, infos=True)


def test_objects_and_groups_become_nodes_and_keep_their_materials(tmp_path: Path) -> None:
    text = (
        "mtllib a.mtl\n" + QUADS + "o Body\ng lower\nusemtl Red\n" + face(0, 0) + "g upper\nusemtl Blue\n" + face(0, 1)
        + "o Head\nusemtl Red\n" + face(1, 0) + "usemtl Blue\n" + face(1, 1) + "o Body\ng lower\n" + face(2, 0)
    )  # fmt: skip
    document = to_gltf(written(tmp_path, text, "newmtl Red\nKd 1 0 0\nnewmtl Blue\nKd 0 0 1\nd 0.5\n"))
    nodes = document.json["nodes"]
    body = node_named(document, "Body")
    assert [nodes[n]["name"] for n in body["children"]] == ["lower", "upper"]
    assert "mesh" not in body
    lower = document.json["meshes"][node_named(document, "lower")["mesh"]]
    # Blue goes on into the second part of "lower".
    used = [document.json["materials"][p["material"]]["name"] for p in lower["primitives"]]
    assert used == ["Red", "Blue"]
    head = document.json["meshes"][node_named(document, "Head")["mesh"]]
    assert len(head["primitives"]) == 2
    assert material_named(document, "Blue")["alphaMode"] == "BLEND"
    assert len(document.json["scenes"][0]["nodes"]) == 2


def test_groups_without_objects_are_nodes_at_the_top(tmp_path: Path) -> None:
    text = QUADS + "g left\n" + face(0, 0) + "g right side\n" + face(2, 0) + "g default\n" + face(2, 1)
    document = to_gltf(written(tmp_path, text))
    names = [document.json["nodes"][n]["name"] for n in document.json["scenes"][0]["nodes"]]
    assert names == ["left", "right side", "a"]


def test_a_part_takes_only_its_own_vertices(tmp_path: Path) -> None:
    document = to_gltf(written(tmp_path, QUADS + "o A\n" + face(0, 0) + "o B\n" + face(2, 1)))
    for mesh, x in ((0, 0.0), (1, 2.0)):
        (primitive,) = document.json["meshes"][mesh]["primitives"]
        positions = values(document, primitive["attributes"]["POSITION"])
        assert len(positions) == 4
        assert positions[:, 0].min() == x


def test_every_statement_of_a_material_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "my maps").mkdir()
    picture = (FOREIGN / "stripes.png").read_bytes()
    (tmp_path / "my maps" / "a b.png").write_bytes(picture)
    mtl = (
        "newmtl Full metal # comment\nPr 0.3\nPm 0.9\nKe 2 1 0\nTr 0.25\n"
        "map_Kd -clamp on -s 2 3 1 -o 0.25 0.5 my maps\\a b.png\nmap_Bump -bm 0.5 my maps/wall_normal.png\n"
        "map_Ks my maps/a b.png\nnewmtl Old\nNs 98\nKd 0.5 0.25 0.125\nbump my maps/a b.png\n"
    )
    (tmp_path / "my maps" / "wall_normal.png").write_bytes(picture)
    text = "mtllib a.mtl\n" + QUADS + "usemtl Full metal # comment\n" + face(0, 0) + "usemtl Old\n" + face(1, 0)
    path = written(tmp_path, text.replace(" # comment", ""), mtl)
    document = to_gltf(path)
    full, old = material_named(document, "Full metal"), material_named(document, "Old")
    factors = full["pbrMetallicRoughness"]
    assert (factors["roughnessFactor"], factors["metallicFactor"]) == (0.3, 0.9)
    assert factors["baseColorFactor"] == [1, 1, 1, 0.75]
    assert full["emissiveFactor"] == [1, 0.5, 0]
    assert full["extensions"]["KHR_materials_emissive_strength"]["emissiveStrength"] == 2
    transform = factors["baseColorTexture"]["extensions"]["KHR_texture_transform"]
    assert transform["scale"] == pytest.approx([2, 3])
    assert transform["offset"] == pytest.approx([0.25, -2.5])
    assert "normalTexture" in full
    assert old["pbrMetallicRoughness"]["roughnessFactor"] == pytest.approx(np.sqrt(0.02))
    assert len(document.losses) == 2
    assert {loss.split(" of ")[0] for loss in document.losses} == {"the texture map_ks", "the bump map"}
    assert {file.name for file in files_beside(path)} == {"a.mtl", "a b.png", "wall_normal.png"}
    # No format here brings tangents, so viewers make them for a normal map.
    (report,) = validator.reports([glb_of(document, tmp_path / "a.glb")])
    issues = report["issues"]["messages"]
    assert {i["code"] for i in issues if i["severity"] < 2} == {"MESH_PRIMITIVE_GENERATED_TANGENT_SPACE"}


@pytest.mark.parametrize("name", ["../a.mtl", "/etc/passwd", "link.mtl"])
def test_a_library_outside_the_folder_is_not_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.mtl").write_text("newmtl Red\nKd 1 0 0\n")
    folder = tmp_path / "asset"
    folder.mkdir()
    (folder / "link.mtl").symlink_to(tmp_path / "secret.mtl")
    path = folder / "a.obj"
    path.write_text(f"mtllib {name.replace('../a', '../secret')}\n" + QUADS + "usemtl Red\n" + face(0, 0))
    document = to_gltf(path)
    assert material_named(document, "Red")["pbrMetallicRoughness"]["baseColorFactor"] == [1, 1, 1, 1]
    assert "which is not in the file's folder" in document.losses[0]


def test_vertex_colours_normals_and_faces_without_coordinates(tmp_path: Path) -> None:
    text = (
        "v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 1 2 0 0 0 1\nv 0 2 1 1 1 1\nvn 0 0 1\nvt 0.5 0.25\n"
        "f 1//1 2//1 3//1\nf -4/-1/-1 -2/-1/-1 -1/-1/-1\n"
    )
    document = to_gltf(written(tmp_path, text))
    (primitive,) = document.json["meshes"][0]["primitives"]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0", "COLOR_0"}
    assert {tuple(row) for row in values(document, primitive["attributes"]["COLOR_0"]).tolist()} == {
        (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)
    }  # fmt: skip
    assert [0.5, 0.75] in values(document, primitive["attributes"]["TEXCOORD_0"]).tolist()
    validator.validate_glb(glb_of(document, tmp_path / "a.glb"), infos=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v 0 0 0\n", "it has no faces"),
        ("hello\n", "it has no vertices"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "vertex 9, but there are 3"),
        ("v 0 0 0\nv 1 0 0\nv 0 nan 0\nf 1 2 3\n", "NaN or infinite"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 -9\n", "out of range"),
    ],
)
def test_a_bad_obj_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=message) as raised:
        to_gltf(written(tmp_path, text))
    assert raised.value.message.startswith("a.obj: ")
    assert "\n" not in raised.value.message
