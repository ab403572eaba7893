"""Skinned and morphed glTF meshes stand as the file poses them, held against the formula of the specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_foreign_meshes import BOX, TRIANGLES, Gltf, box

from pipeline.core.errors import MeshError
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import Mesh, face_normals
from pipeline.mesh.readers import gltf_nodes

COUNT = len(BOX)
GENERATOR = np.random.Generator(np.random.Philox(key=4))
JOINTS = GENERATOR.integers(0, 3, (COUNT, 8))
WEIGHTS = GENERATOR.uniform(0.1, 1, (COUNT, 8))
WEIGHTS /= WEIGHTS.sum(axis=1, keepdims=True)
TURN = [0.0, 0.0, np.sin(0.3), np.cos(0.3)]
# A chain of joints under a node that shrinks; the mesh's own node is far away and large.
NODES: list[dict[str, Any]] = [
    {"mesh": 0, "skin": 0, "translation": [100, 0, 0], "scale": [50, 50, 50]},
    {"children": [2], "scale": [0.5, 0.5, 0.5]},
    {"children": [3], "translation": [0, 1, 0], "rotation": TURN},
    {"children": [4], "translation": [0.3, 0.5, 0]},
    {"rotation": TURN, "translation": [0, 0, 1]},
]


def local(node: dict[str, Any]) -> np.ndarray:
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= node.get("scale", (1, 1, 1))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


WORLDS = {1: local(NODES[1])}
for index in (2, 3, 4):
    WORLDS[index] = WORLDS[index - 1] @ local(NODES[index])
INVERSE = np.linalg.inv(np.array([np.eye(4), local(NODES[3]), local({"translation": [1, 2, 3]})]))
MATRICES = np.array([WORLDS[2], WORLDS[3], WORLDS[4]]) @ INVERSE


def expected(points: np.ndarray, joints: np.ndarray = JOINTS, weights: np.ndarray = WEIGHTS) -> np.ndarray:
    placed = []
    for point, which, how in zip(points, joints, weights, strict=True):
        blended = sum(w * MATRICES[j] for j, w in zip(which, how, strict=True)) / how.sum()
        placed.append((blended @ [*point, 1.0])[:3])
    return np.array(placed)


def skinned(weights: np.ndarray = WEIGHTS, component: int = 5126, *, joint_type: str = "u1", **more: Any) -> Gltf:
    made = box()
    made.document["nodes"] = [dict(node) for node in NODES]
    made.document["scenes"] = [{"nodes": [0, 1]}]
    kind = {"u1": 5121, "<u2": 5123}[joint_type]
    for number in range(weights.shape[1] // 4):
        columns = slice(4 * number, 4 * number + 4)
        made.primitive["attributes"][f"JOINTS_{number}"] = made.add(JOINTS[:, columns].astype(joint_type), kind, "VEC4")
        made.primitive["attributes"][f"WEIGHTS_{number}"] = made.add(
            np.ascontiguousarray(weights[:, columns]).astype({5126: "<f4", 5121: "u1", 5123: "<u2"}[component]),
            component, "VEC4", **more,
        )  # fmt: skip
    matrices = made.add(INVERSE.transpose(0, 2, 1).astype("<f4"), 5126, "MAT4")
    made.document["skins"] = [{"joints": [2, 3, 4], "inverseBindMatrices": matrices}]
    return made


def load(made: Gltf, tmp_path: Path) -> Mesh:
    return load_mesh(made.write(tmp_path / "a.glb"))


@pytest.mark.parametrize(
    ("component", "scale", "normalized"),
    [(5126, 1.0, False), (5126, 3.0, False), (5121, 255, True), (5123, 65535, True), (5121, 255, False)],
)
@pytest.mark.parametrize("joint_type", ["u1", "<u2"])
def test_every_set_of_joints_and_weights_counts(
    component: int, scale: float, normalized: bool, joint_type: str, tmp_path: Path
) -> None:
    weights = WEIGHTS * scale if component == 5126 else np.rint(WEIGHTS * scale)
    more = {"normalized": True} if normalized else {}
    mesh = load(skinned(weights, component, joint_type=joint_type, **more), tmp_path)
    assert mesh.vertices == pytest.approx(expected(BOX, weights=weights), abs=1e-5)
    assert mesh.warnings == []


def test_joints_outside_the_scene_and_without_bind_matrices(tmp_path: Path) -> None:
    made = skinned(WEIGHTS[:, :4])
    made.document["scenes"] = [{"nodes": [0]}]
    mesh = load(made, tmp_path)
    assert mesh.vertices == pytest.approx(expected(BOX, JOINTS[:, :4], WEIGHTS[:, :4]), abs=1e-5)
    del made.document["skins"][0]["inverseBindMatrices"]
    made.document["nodes"] = [NODES[0], {}, {}, {}, {"translation": [5, 0, 0]}]
    made.document["skins"][0]["joints"] = [4, 4, 4]
    assert load(made, tmp_path).vertices == pytest.approx(BOX + np.array([5, 0, 0]), abs=1e-5)


def test_a_vertex_without_weight_follows_its_first_joint(tmp_path: Path) -> None:
    weights = WEIGHTS[:, :4].copy()
    weights[2] = 0
    one = np.where(np.arange(COUNT)[:, None] == 2, [1, 0, 0, 0], weights)
    mesh = load(skinned(weights), tmp_path)
    assert mesh.vertices == pytest.approx(expected(BOX, JOINTS[:, :4], one), abs=1e-5)


def test_sparse_weights_are_weights(tmp_path: Path) -> None:
    made = skinned(WEIGHTS[:, :4])
    accessor = made.document["accessors"][made.primitive["attributes"]["WEIGHTS_0"]]
    places = made.add(np.array([1, 6], "<u2"), 5123, "SCALAR")
    values = made.add(np.array([[0, 0, 0, 1], [0, 1, 0, 0]], "<f4"), 5126, "VEC4")
    accessor["sparse"] = {
        "count": 2,
        "indices": {"bufferView": places, "componentType": 5123},
        "values": {"bufferView": values},
    }
    weights = WEIGHTS[:, :4].copy()
    weights[[1, 6]] = [[0, 0, 0, 1], [0, 1, 0, 0]]
    assert load(made, tmp_path).vertices == pytest.approx(expected(BOX, JOINTS[:, :4], weights), abs=1e-5)


@pytest.mark.parametrize("scale", [(1, 1, 1), (-1, 1, 1)])
def test_normals_and_outsides_follow_the_joints(scale: tuple[int, int, int], tmp_path: Path) -> None:
    made = skinned(WEIGHTS[:, :4])
    # One joint moves all, so that the box stays a box.
    made.document["nodes"][1]["scale"] = list(scale)
    made.document["skins"][0] = {"joints": [2, 2, 2]}
    outward = BOX - BOX.mean(axis=0)
    made.primitive["attributes"]["NORMAL"] = made.add(outward.astype("<f4"), 5126, "VEC3")
    mesh = load(made, tmp_path)
    assert mesh.normals is not None and mesh.normal_faces is not None
    corners = mesh.vertices[mesh.faces]
    away = corners - mesh.vertices.mean(axis=0)
    assert (np.einsum("fi,fi->f", face_normals(mesh.vertices, mesh.faces), away.mean(axis=1)) > 0).all()
    direction = away / np.linalg.norm(away, axis=2, keepdims=True)
    assert mesh.normals[mesh.normal_faces] == pytest.approx(direction, abs=1e-5)


def morphed(where: dict[str, Any], *, skin: bool) -> Gltf:
    made = skinned(WEIGHTS[:, :4]) if skin else box()
    up, wide = np.zeros((COUNT, 3), "<f4"), (BOX * (1, 0, 0)).astype("<f4")
    up[:, 1] = 1
    made.primitive["targets"] = [{"POSITION": made.add(up, 5126, "VEC3")}, {"POSITION": made.add(wide, 5126, "VEC3")}]
    made.document["nodes"][0] |= where.get("node", {})
    made.document["meshes"][0] |= where.get("mesh", {})
    return made


@pytest.mark.parametrize("skin", [False, True])
@pytest.mark.parametrize(
    ("where", "up", "wide"),
    [
        ({"mesh": {"weights": [0.5, 2.0]}}, 0.5, 2.0),
        ({"mesh": {"weights": [0.5, 2.0]}, "node": {"weights": [0.0, 1.0]}}, 0.0, 1.0),
        ({"node": {"weights": [-1.0]}}, -1.0, 0.0),
        ({}, 0.0, 0.0),
    ],
)
def test_morph_targets_are_applied_before_the_skin(
    where: dict[str, Any], up: float, wide: float, skin: bool, tmp_path: Path
) -> None:
    moved = BOX * (1 + wide, 1, 1) + np.array([0, up, 0])
    wanted = expected(moved, JOINTS[:, :4], WEIGHTS[:, :4]) if skin else moved
    mesh = load(morphed(where, skin=skin), tmp_path)
    assert mesh.vertices == pytest.approx(wanted, abs=1e-5) and mesh.warnings == []


def test_a_morph_target_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    made = morphed({"mesh": {"weights": [0.5, 2.0]}}, skin=False)
    made.document["accessors"][made.primitive["targets"][0]["POSITION"]]["count"] = COUNT - 1
    mesh = load(made, tmp_path)
    assert mesh.vertices == pytest.approx(BOX * (3, 1, 1), abs=1e-5)
    assert len(mesh.warnings) == 1 and "a morph target was left out" in mesh.warnings[0]


def bend(made: Gltf, how: str) -> None:
    accessors, attributes = made.document["accessors"], made.primitive["attributes"]
    skin, nodes = made.document["skins"][0], made.document["nodes"]
    if how == "joint out of range":
        skin["joints"] = [2, 3]
    elif how == "no such node":
        skin["joints"] = [2, 3, 44]
    elif how == "few matrices":
        accessors[skin["inverseBindMatrices"]]["count"] = 2
    elif how == "weights of another count":
        accessors[attributes["WEIGHTS_0"]]["count"] = 7
    elif how == "pairs of joints":
        accessors[attributes["JOINTS_0"]]["type"] = "VEC2"
    elif how == "negative weights":
        accessors[attributes["WEIGHTS_0"]] |= {"componentType": 5120, "normalized": True}
        made.binary = made.binary.replace(WEIGHTS[:, :4].astype("<f4").tobytes(), b"\x80" * COUNT * 16)
    elif how == "joints in a circle":
        nodes[4]["children"] = [2]
        del nodes[1]["children"]
        made.document["scenes"] = [{"nodes": [0]}]
    elif how == "a word for joints":
        skin["joints"] = "hip"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("joint out of range", r"names joint 2 \(counting from 0\), but there are 2"),
        ("no such node", "names node 44, but there are 5"),
        ("few matrices", "fewer bind matrices than joints"),
        ("weights of another count", "WEIGHTS_0 has 7 entries for 8 positions"),
        ("pairs of joints", "JOINTS_0 does not hold quadruples"),
        ("negative weights", "negative or not a number"),
        ("joints in a circle", "levels deep"),
        ("a word for joints", "joints of skin 0 is not a list"),
    ],
)
def test_a_broken_skin_is_told(how: str, says: str, tmp_path: Path) -> None:
    made = skinned(WEIGHTS[:, :4])
    bend(made, how)
    with pytest.raises(MeshError, match=says) as caught:
        load(made, tmp_path)
    assert caught.value.message.startswith("a.glb: ") and "Error" not in caught.value.message


# -- bounds of the node tree ----------------------------------------------------------------------------------------


def test_nodes_have_a_limit_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = box()
    made.document["nodes"] = [{"mesh": 0}, *({"children": [n + 2]} for n in range(3000)), {}]
    made.document["scenes"] = [{"nodes": [0, 1]}]
    with pytest.raises(MeshError, match="more than 2000 levels deep"):
        load(made, tmp_path)
    monkeypatch.setattr(gltf_nodes, "MAX_NODES", 3000)
    with pytest.raises(MeshError, match=r"it has 3002 nodes, more than can be read \(3000\): join parts"):
        load(made, tmp_path)
    made.document["nodes"] = [{"mesh": 0}]
    made.document["scenes"] = [{"nodes": [0] * 5}]
    with pytest.raises(MeshError, match="node 0 has two parents or is its own ancestor"):
        load(made, tmp_path)


def test_nodes_that_show_endless_empty_parts_are_refused(tmp_path: Path) -> None:
    made = box()
    empty = {"attributes": {"POSITION": 0}, "indices": made.add(np.zeros(2, "<u2"), 5123, "SCALAR")}
    made.document["meshes"].append({"primitives": [empty] * 1000})
    made.document["nodes"] = [{"mesh": 0}, *({"mesh": 1} for _ in range(1000))]
    made.document["scenes"] = [{"nodes": list(range(1001))}]
    with pytest.raises(MeshError, match="more than 100000 parts"):
        load(made, tmp_path)


def test_parts_that_share_a_table_of_vertices_take_their_own(tmp_path: Path) -> None:
    made = Gltf()
    many = np.concatenate([BOX + np.array([10.0 * i, 0, 0]) for i in range(50)]).astype("<f4")
    position = made.add(many, 5126, "VEC3")
    normal = made.add(np.tile(np.eye(3, dtype="<f4")[1], (len(many), 1)), 5126, "VEC3")
    made.document["meshes"][0]["primitives"] = [
        {
            "attributes": {"POSITION": position, "NORMAL": normal},
            "indices": made.add((TRIANGLES + 8 * i).ravel().astype("<u2"), 5123, "SCALAR"),
        }
        for i in (3, 7)
    ]
    mesh = load(made, tmp_path)
    assert len(mesh.vertices) == 16 and len(mesh.faces) == 24 and mesh.warnings == []
    assert mesh.vertices.min(axis=0) == pytest.approx((30, 0, 0)) and mesh.vertices[:, 0].max() == pytest.approx(71)
