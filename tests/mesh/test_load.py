"""Reading meshes: what is kept through each format, and one clear line for each way a file can be bad."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import meshes
import numpy as np
import pytest
import trimesh

from pipeline.core.errors import MeshError
from pipeline.core.hashing import sha256_file
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import Mesh, face_areas, face_normals, unique_rows
from pipeline.mesh.mesh_hash import FORMATS, mesh_sha256

# One quad of an L-shaped, asymmetric sheet: the corner at the top left of the picture is at (-1, 1, 0).
SHEET = meshes.plane(2)


def corner_uv(mesh: Mesh, position: tuple[float, float, float]) -> np.ndarray:
    """The texture coordinates at a position; all corners there must agree."""
    assert mesh.uv is not None and mesh.uv_faces is not None
    at = np.abs(mesh.vertices[mesh.faces] - position).max(axis=2) < 1e-3
    assert at.any()
    found = mesh.uv[mesh.uv_faces[at]]
    assert np.ptp(found, axis=0).max() < 2e-3
    return found[0]


def volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return float(np.einsum("fi,fi->f", a, np.cross(b, c)).sum() / 6)


# -- writers for formats, small and independent of the readers ----------------------------------------------------


def ply_text(mesh: Mesh, encoding: str = "ascii", per_face_uv: bool = False) -> bytes:
    assert mesh.uv is not None and mesh.uv_faces is not None
    uv = mesh.uv.astype(float)
    header = [b"ply", f"format {encoding} 1.0".encode(), b"comment made by a test"]
    header += [f"element vertex {len(mesh.vertices)}".encode()]
    header += [b"property float x", b"property float y", b"property float z"]
    vertex_uv = np.zeros((len(mesh.vertices), 2))
    vertex_uv[mesh.faces.reshape(-1)] = uv[mesh.uv_faces.reshape(-1)]
    if not per_face_uv:
        header += [b"property float s", b"property float t"]
    header += [f"element face {len(mesh.faces)}".encode(), b"property list uchar int vertex_indices"]
    if per_face_uv:
        header += [b"property list uchar float texcoord"]
    out = b"\n".join([*header, b"end_header\n"])
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(encoding, "")

    def row(kinds: str, values: list) -> bytes:
        if not order:
            return (" ".join(repr(v) for v in values) + "\n").encode()
        return struct.pack(order + kinds, *values)

    for position, (u, v) in zip(mesh.vertices.tolist(), vertex_uv.tolist(), strict=True):
        out += row("fff", position) if per_face_uv else row("fffff", [*position, u, 1 - v])
    for face, corner in zip(mesh.faces.tolist(), uv[mesh.uv_faces].tolist(), strict=True):
        values, kinds = [3, *face], "Biii"
        if per_face_uv:
            values += [6] + [x for u, v in corner for x in (u, 1 - v)]
            kinds += "Bffffff"
        out += row(kinds, values)
    return out


def draco_glb(mesh: Mesh) -> bytes:
    import DracoPy

    assert mesh.uv is not None and mesh.uv_faces is not None
    points = mesh.vertices[mesh.faces.reshape(-1)]
    uv = mesh.uv[mesh.uv_faces.reshape(-1)].astype(np.float64)
    data = DracoPy.encode(
        points.astype(np.float32),
        np.arange(len(points), dtype=np.uint32).reshape(-1, 3),
        tex_coord=uv,
        quantization_bits=16,
        preserve_order=True,
    )
    decoded = DracoPy.decode(data)
    ids = {a["attribute_type"]: a["unique_id"] for a in decoded.attributes}
    count = len(decoded.points)
    document = {
        "asset": {"version": "2.0"},
        "extensionsUsed": ["KHR_draco_mesh_compression"],
        "extensionsRequired": ["KHR_draco_mesh_compression"],
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {
                "primitives": [
                    {
                        "attributes": {"POSITION": 0, "TEXCOORD_0": 1},
                        "indices": 2,
                        "extensions": {
                            "KHR_draco_mesh_compression": {
                                "bufferView": 0,
                                "attributes": {"POSITION": ids[0], "TEXCOORD_0": ids[3]},
                            }
                        },
                    }
                ]
            }
        ],
        "accessors": [
            {"componentType": 5126, "count": count, "type": "VEC3"},
            {"componentType": 5126, "count": count, "type": "VEC2"},
            {"componentType": 5125, "count": decoded.faces.size, "type": "SCALAR"},
        ],
        "bufferViews": [{"buffer": 0, "byteLength": len(data)}],
        "buffers": [{"byteLength": len(data)}],
    }
    return meshes.glb_bytes(json.dumps(document).encode(), data)


def gltf_document(tmp_path: Path, mesh: Mesh) -> tuple[dict, bytes]:
    """(JSON, buffer) of a plain GLB of ``mesh``, to be bent by a test."""
    data = meshes.write_glb(tmp_path / "plain.glb", mesh).read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def sheet_file(kind: str, folder: Path) -> Path:
    """SHEET in a format that holds texture coordinates."""
    if kind == "obj":
        return meshes.write_obj(folder / "a.obj", SHEET)
    if kind == "glb":
        return meshes.write_glb(folder / "a.glb", SHEET)
    if kind == "draco":
        return write(folder / "a.glb", draco_glb(SHEET))
    if kind == "gltf":
        document, binary = gltf_document(folder, SHEET)
        (folder / "data").mkdir()
        write(folder / "data" / "a b.bin", binary)
        document["buffers"][0]["uri"] = "data/a%20b.bin"
        return write(folder / "a.gltf", json.dumps(document))
    if kind == "gltf-inline":
        document, binary = gltf_document(folder, SHEET)
        document["buffers"][0]["uri"] = "data:application/gltf-buffer;base64," + base64.b64encode(binary).decode()
        return write(folder / "a.gltf", json.dumps(document))
    if kind == "ply-faces":
        return write(folder / "a.ply", ply_text(SHEET, "binary_little_endian", per_face_uv=True))
    if kind == "off":
        assert SHEET.uv is not None
        uv = np.zeros((len(SHEET.vertices), 2))
        uv[SHEET.faces.reshape(-1)] = SHEET.uv[SHEET.uv_faces.reshape(-1)]
        lines = [f"STOFF\n# a comment\n{len(uv)} {len(SHEET.faces)} 0"]
        lines += [f"{x} {y} {z} {u} {1 - v}" for (x, y, z), (u, v) in zip(SHEET.vertices, uv, strict=True)]
        lines += [f"3 {a} {b} {c}" for a, b, c in SHEET.faces]
        return write(folder / "a.off", "\n".join(lines))
    return write(folder / "a.ply", ply_text(SHEET, kind))


@pytest.mark.parametrize(
    "kind",
    [
        "obj", "glb", "gltf", "gltf-inline", "draco", "ascii", "binary_little_endian", "binary_big_endian",
        "ply-faces", "off",
    ],
)  # fmt: skip
def test_each_format_keeps_shape_and_the_orientation_of_texture_coordinates(kind: str, tmp_path: Path) -> None:
    path = sheet_file(kind, tmp_path)
    mesh = load_mesh(path)
    assert mesh.faces.shape == SHEET.faces.shape and mesh.vertices.shape == SHEET.vertices.shape
    assert face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(4.0, rel=1e-3)
    assert (face_normals(mesh.vertices, mesh.faces)[:, 2] > 0).all()
    # An asymmetric picture: its top left is at -x +y, its top right at +x +y.
    assert corner_uv(mesh, (-1, 1, 0)) == pytest.approx((0, 0), abs=2e-3)
    assert corner_uv(mesh, (1, 1, 0)) == pytest.approx((1, 0), abs=2e-3)
    assert corner_uv(mesh, (-1, -1, 0)) == pytest.approx((0, 1), abs=2e-3)
    assert corner_uv(mesh, (0, 1, 0)) == pytest.approx((0.5, 0), abs=2e-3)
    assert mesh.warnings == []
    assert mesh.source_format == path.suffix[1:] and mesh.source_sha256 == mesh_sha256(path)


@pytest.mark.parametrize("kind", ["stl", "stl_ascii", "off", "ply", "obj", "glb"])
def test_reads_what_trimesh_writes_as_trimesh_reads_it(kind: str, tmp_path: Path) -> None:
    ours = meshes.blob(600)
    twin = trimesh.Trimesh(ours.vertices, ours.faces, process=False)
    path = tmp_path / f"a.{kind.split('_')[0]}"
    twin.export(path, file_type=kind)
    mesh = load_mesh(path)
    theirs = trimesh.load(path, force="mesh")
    assert mesh.faces.shape == ours.faces.shape and mesh.vertices.shape == ours.vertices.shape
    assert volume(mesh) == pytest.approx(float(theirs.volume), rel=1e-5)
    assert volume(mesh) > 0
    assert np.allclose(mesh.vertices.min(axis=0), theirs.bounds[0], atol=1e-6)


# -- details of the formats ---------------------------------------------------------------------------------------


def test_obj_with_texture_coordinates_on_some_faces_keeps_them(tmp_path: Path) -> None:
    text = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nf 1/1 2/2 3/3\nf 1 3 4\n"
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    assert mesh.uv_faces is not None and (mesh.uv_faces[0] >= 0).all() and (mesh.uv_faces[1] == -1).all()
    assert corner_uv(Mesh(mesh.vertices, mesh.faces[:1], mesh.uv, mesh.uv_faces[:1]), (1, 0, 0)) == pytest.approx(
        (1, 1)
    )
    assert mesh.warnings == ["1 of 2 faces have no texture coordinates"]


def test_obj_seams_share_positions_and_normals_stay_per_corner(tmp_path: Path) -> None:
    text = (
        "# comment\r\nmtllib ../../../etc/passwd\r\no thing\r\n"
        "v 0 0 0 1 0 0\r\nv 1 0 0 1 0 0\r\nv 1 1 0 1 0 0\r\nv 0 1 0 1 0 0\r\n"
        "vt 0 0\r\nvt 0.4 0\r\nvt 0.4 1 0\r\nvt 0.6 0\r\nvt 1 1\r\nvt 0.6 1\r\n"
        "vn 0 0 2\r\nvn 0 1 0\r\nusemtl x\r\ns 1\r\n"
        "f 1/1/1 2/2/1 3/3/1\r\nf -4/4/2 -2/-2/2 -1/6/2 # last\r\n"
    )
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    assert len(mesh.vertices) == 4 and mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.uv is not None and mesh.uv_faces is not None
    assert mesh.uv[mesh.uv_faces[0, 0]] == pytest.approx((0.0, 1.0))
    assert mesh.uv[mesh.uv_faces[1, 0]] == pytest.approx((0.6, 1.0))
    assert mesh.uv[mesh.uv_faces[1, 1]] == pytest.approx((1.0, 0.0))
    assert mesh.normals is not None and mesh.normal_faces is not None
    assert mesh.normals[mesh.normal_faces[0]] == pytest.approx(np.tile([0.0, 0.0, 1.0], (3, 1)))
    assert mesh.normals[mesh.normal_faces[1]] == pytest.approx(np.tile([0.0, 1.0, 0.0], (3, 1)))


def test_polygons_of_any_shape_are_cut_without_folds(tmp_path: Path) -> None:
    # A quad, a concave quad (an arrow head), and a concave polygon of eight corners (an L with notches), in xz.
    text = (
        "v 0 0 0\nv 0 0 1\nv 1 0 1\nv 1 0 0\n"
        "v 5 0 0\nv 4 0 2\nv 5 0 1\nv 6 0 2\n"
        "v 10 0 0\nv 10 0 3\nv 13 0 3\nv 13 0 2\nv 12 0 2\nv 12 0 1\nv 11 0 1\nv 11 0 0\n"
        "f 1 2 3 4\nf 5 6 7 8\nf 9 10 11 12 13 14 15 16\n"
    )
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    assert len(mesh.faces) == 2 + 2 + 6
    assert (face_normals(mesh.vertices, mesh.faces)[:, 1] > 0).all()
    assert face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(1 + 1 + 6)


def test_ply_with_triangles_and_quads_mixed(tmp_path: Path) -> None:
    header = (
        "ply\nformat {} 1.0\nelement vertex 5\nproperty double x\nproperty double y\nproperty double z\n"
        "element face 2\nproperty list uchar int vertex_index\nproperty uchar red\nend_header\n"
    )
    points = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (2, 0, 0)]
    binary = header.format("binary_big_endian").encode() + b"".join(struct.pack(">ddd", *p) for p in points)
    binary += struct.pack(">BiiiB", 3, 1, 4, 2, 9) + struct.pack(">BiiiiB", 4, 0, 1, 2, 3, 9)
    text = header.format("ascii") + "".join(f"{x} {y} {z}\n" for x, y, z in points) + "3 1 4 2 9\n4 0 1 2 3 9\n"
    for content in (binary, text.encode()):
        mesh = load_mesh(write(tmp_path / "a.ply", content))
        assert len(mesh.faces) == 3
        assert face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(1.5)


def test_gltf_transforms_are_applied_and_a_mirror_turns_the_winding(tmp_path: Path) -> None:
    matrix = np.diag([2.0, -1.0, 1.0, 1.0])
    matrix[:3, 3] = (10, 0, 0)
    source = meshes.cube()
    mesh = load_mesh(meshes.write_glb(tmp_path / "a.glb", source, matrix=matrix))
    assert volume(mesh) == pytest.approx(2 * volume(source))
    assert mesh.vertices[:, 0].min() == pytest.approx(8) and mesh.vertices[:, 0].max() == pytest.approx(12)


def test_gltf_with_instances_strips_quantised_and_sparse_values(tmp_path: Path) -> None:
    positions = np.array([[0, 0, 0], [0, 0, 0], [127, 0, 0], [127, 127, 0]], "<i1")
    packed = np.zeros((4, 4), "<i1")
    packed[:, :3] = positions
    binary = packed.tobytes() + struct.pack("<BBBB", 1, 0, 0, 0) + struct.pack("<bbbb", 0, 127, 0, 0)
    document = {
        "asset": {"version": "2.0"},
        "nodes": [
            {"children": [1, 2], "scale": [2, 2, 2]},
            {"mesh": 0},
            {"mesh": 0, "translation": [0, 0, 1], "rotation": [0, 0, 0.7071067811865476, 0.7071067811865476]},
        ],
        "scenes": [{"nodes": [0]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 5}]}],
        "accessors": [
            {
                "bufferView": 0, "componentType": 5120, "normalized": True, "count": 4, "type": "VEC3",
                "sparse": {
                    "count": 1,
                    "indices": {"bufferView": 1, "componentType": 5121},
                    "values": {"bufferView": 2},
                },
            }
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": 16, "byteStride": 4},
            {"buffer": 0, "byteOffset": 16, "byteLength": 4},
            {"buffer": 0, "byteOffset": 20, "byteLength": 4},
        ],
        "buffers": [{"byteLength": 24}],
    }  # fmt: skip
    mesh = load_mesh(write(tmp_path / "a.glb", meshes.glb_bytes(json.dumps(document).encode(), binary)))
    assert len(mesh.faces) == 4 and len(mesh.vertices) == 8
    assert mesh.vertices.max(axis=0) == pytest.approx((2, 2, 2)) and mesh.vertices.min() == pytest.approx(-2)
    # The first instance is the unit square times two, the second turned by 90 degrees about z.
    assert face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(8)


def test_gltf_takes_the_coordinates_that_the_base_colour_uses(tmp_path: Path) -> None:
    document, binary = gltf_document(tmp_path, SHEET)
    primitive = document["meshes"][0]["primitives"][0]
    primitive["attributes"] = {"POSITION": 0, "TEXCOORD_0": 2, "TEXCOORD_1": 1}
    primitive["material"] = 0
    document["accessors"].append({"componentType": 5126, "count": document["accessors"][1]["count"], "type": "VEC2"})
    document["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0, "texCoord": 1}}}]
    mesh = load_mesh(write(tmp_path / "b.glb", meshes.glb_bytes(json.dumps(document).encode(), binary)))
    assert corner_uv(mesh, (1, 1, 0)) == pytest.approx((1, 0), abs=1e-6)


def test_a_skinned_mesh_stands_as_its_joints_put_it(tmp_path: Path) -> None:
    document, binary = gltf_document(tmp_path, SHEET)
    # The joints agree on moving everything by 5 along y; the mesh's own node (far away) has no say.
    inverse = np.tile(np.eye(4, dtype="<f4"), (2, 1, 1))
    inverse[1, 1, 3] = -2.0
    start = len(binary)
    binary += inverse.transpose(0, 2, 1).tobytes()
    document["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [100, 0, 0]},
        {"translation": [0, 5, 0], "children": [2]},
        {"translation": [0, 2, 0]},
    ]
    document["scenes"] = [{"nodes": [0, 1]}]
    document["bufferViews"].append({"buffer": 0, "byteOffset": start, "byteLength": 128})
    document["accessors"].append({"bufferView": 2, "componentType": 5126, "count": 2, "type": "MAT4"})
    document["skins"] = [{"joints": [1, 2], "inverseBindMatrices": 2}]
    document["buffers"][0]["byteLength"] = len(binary)
    mesh = load_mesh(write(tmp_path / "b.glb", meshes.glb_bytes(json.dumps(document).encode(), binary)))
    assert mesh.vertices.mean(axis=0) == pytest.approx((0, 5, 0))


def test_repairs_are_told(tmp_path: Path) -> None:
    text = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 0\nv 9 9 9\nf 1 2 3\nf 5 3 4\nf 1 2 2\nf 3 1 2\nf 1 2\n"
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    assert len(mesh.vertices) == 4 and len(mesh.faces) == 2
    told = " | ".join(mesh.warnings)
    for word in ("1 duplicate vertices", "1 of 4 faces were degenerate", "1 repeated", "fewer than three"):
        assert word in told


def test_bad_normals_are_left_aside(tmp_path: Path) -> None:
    text = "v 0 0 0\nv 1 0 0\nv 1 1 0\nvn 0 0 0\nf 1//1 2//1 3//1\n"
    mesh = load_mesh(write(tmp_path / "a.obj", text))
    assert mesh.normals is None and "normals" in mesh.warnings[0]


def test_the_digest_covers_the_buffers_of_a_gltf(tmp_path: Path) -> None:
    path = sheet_file("gltf", tmp_path)
    before = mesh_sha256(path)
    binary = tmp_path / "data" / "a b.bin"
    binary.write_bytes(binary.read_bytes()[:-1] + b"\1")
    assert mesh_sha256(path) != before
    single = meshes.write_obj(tmp_path / "b.obj", SHEET)
    assert mesh_sha256(single) == sha256_file(single)


def test_unique_rows_keeps_the_order_of_first_occurrence() -> None:
    rows = np.array([[3.0, 1], [0.0, 2], [3, 1], [-0.0, 2], [1, 1]])
    first, number = unique_rows(rows)
    assert first.tolist() == [0, 1, 4] and number.tolist() == [0, 1, 0, 1, 2]


# -- bad files ----------------------------------------------------------------------------------------------------

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
PLY = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
STL = "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"

BAD = {
    "empty": ("a.obj", "", "empty"),
    "unknown ending": ("a.blend", "x", "ending .blend is unknown"),
    "no ending": ("mesh", "x", "unknown"),
    "points only": ("a.obj", TRIANGLE, "point cloud"),
    "no vertices": ("a.obj", "hello\n", "no vertices"),
    "binary garbage": ("a.obj", bytes(range(256)) * 9, "not text .byte 1 is NUL"),
    "nan": ("a.obj", TRIANGLE + "v nan 0 0\nf 1 2 3\nf 1 2 4\n", "1 of 4 vertices are NaN or infinite.*number 4"),
    "infinite": ("a.obj", TRIANGLE + "v 1e999 0 0\nf 1 2 4\n", "NaN or infinite"),
    "huge": ("a.obj", TRIANGLE + "v 1e200 0 0\nf 1 2 4\n", "scale the mesh down"),
    "index beyond": ("a.obj", TRIANGLE + "f 1 2 9\n", "out of range"),
    "index zero": ("a.obj", TRIANGLE + "f 0 1 2\n", "out of range"),
    "relative beyond": ("a.obj", TRIANGLE + "f -1 -2 -9\n", "out of range"),
    "no number": ("a.obj", TRIANGLE + "v 1 x 2\nf 1 2 3\n", "vertex 4 holds"),
    "no index": ("a.obj", TRIANGLE + "f 1 2 3\nf 1 b 3\n", "face 2 holds"),
    "short vertex": ("a.obj", TRIANGLE + "v 1 2\nf 1 2 3\n", "vertex 4 has 2 numbers"),
    "degenerate": ("a.obj", "v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\nf 1 1 2\n", "all 2 faces are degenerate"),
    "too many": ("a.obj", TRIANGLE + "f 1 2 3\n" * 101, "more than max_faces = 100"),
    "ply points": ("a.ply", PLY + "end_header\n0 0 0\n1 0 0\n0 1 0\n", "point cloud"),
    "ply no header end": ("a.ply", PLY, "header has no end"),
    "ply claims much": ("a.ply", PLY.replace("vertex 3", "vertex 99999999999") + "end_header\n0 0 0\n", "end early"),
    "ply truncated": (
        "a.ply",
        PLY + "element face 2\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n3 0",
        "end early",
    ),
    "ply is something else": ("a.ply", TRIANGLE, "does not begin with ply"),
    "ply out of range": (
        "a.ply",
        PLY + "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n",
        "out of range",
    ),
    "ply endless nothing": (
        "a.ply",
        PLY.replace("ascii", "binary_little_endian").replace("element v", "element none 999999999999\nelement v")
        + "end_header\n",
        "end early",
    ),
    "ply unknown type": ("a.ply", PLY + "property quad w\nend_header\n", "cannot be understood"),
    "stl text truncated": ("a.stl", STL, "truncated"),
    "stl text cut in a facet": ("a.stl", STL[:60], "truncated"),
    "stl short": ("a.stl", "abc", "too few"),
    "stl binary truncated": ("a.stl", b"\1" * 80 + struct.pack("<I", 9) + b"\0" * 200, "truncated"),
    "stl claims many": ("a.stl", b"\1" * 80 + struct.pack("<I", 2**32 - 2) + b"\0" * 200, "truncated"),
    "stl without facets": ("a.stl", b"\1" * 80 + struct.pack("<I", 0), "no vertices|no faces"),
    "off truncated": ("a.off", "OFF\n3 5 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "truncated"),
    "off garbage": ("a.off", "nothing", "does not begin with OFF"),
    "off binary": ("a.off", b"OFF BINARY\n\0\0\0", "binary"),
    "off no counts": ("a.off", "OFF\n", "counts"),
    "off short face": ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n4 0 1 2\n", "fewer indices"),
    "glb is text": ("a.glb", "hello world, this is no GLB", "does not begin with glTF"),
    "glb version 1": ("a.glb", b"glTF" + struct.pack("<II", 1, 20) + b"\0" * 8, "version 1"),
    "glb chunk beyond": ("a.glb", b"glTF" + struct.pack("<III", 2, 24, 9999) + b"JSON" + b"{}  ", "beyond"),
    "gltf no json": ("a.gltf", "{", "cannot be parsed"),
    "gltf deep": ("a.gltf", "[" * 200_000, "cannot be parsed|too deeply"),
    "gltf a list": ("a.gltf", "[]", "not a glTF document"),
    "gltf nodes no list": ("a.gltf", '{"asset": {"version": "2.0"}, "nodes": 3}', "not valid glTF"),
    "gltf without meshes": ("a.gltf", '{"asset": {"version": "2.0"}}', "no faces"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_each_bad_file_has_its_message(case: str, tmp_path: Path) -> None:
    name, content, says = BAD[case]
    path = write(tmp_path / name, content)
    with pytest.raises(MeshError, match=says) as caught:
        load_mesh(path, max_faces=100)
    assert caught.value.message.startswith(f"{name}: ") and "\n" not in caught.value.message
    assert caught.value.stage == "load"


def bend(document: dict, how: str) -> None:
    """Breaks a good document in one way."""
    view, accessor = document["bufferViews"][0], document["accessors"][0]
    if how == "count":
        accessor["count"] = 10**9 * 3
    elif how == "zeros":
        del accessor["bufferView"]
        accessor["count"] = 10**8 * 3
        document["meshes"][0]["primitives"][0]["indices"] = 1
        document["accessors"][1] = {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"}
    elif how == "offset":
        accessor["byteOffset"] = 10**7
    elif how == "negative":
        view["byteOffset"] = -4
    elif how == "view":
        view["byteLength"] = 10**9
    elif how == "type":
        accessor["type"] = "VEC2"
    elif how == "component":
        accessor["componentType"] = 1
    elif how == "missing accessor":
        document["meshes"][0]["primitives"][0]["attributes"]["POSITION"] = 77
    elif how == "text for a number":
        accessor["count"] = "9"
    elif how == "cycle":
        document["nodes"] = [{"mesh": 0, "children": [1]}, {"children": [0]}]
    elif how == "bomb":
        document["nodes"] = [{"mesh": 0} for _ in range(5000)]
        document["scenes"] = [{"nodes": list(range(5000))}]
    elif how == "nan transform":
        document["nodes"][0]["translation"] = [1e400, 0, 0]
    elif how == "meshopt":
        packed = {"buffer": 0, "byteLength": 64, "byteStride": 16, "count": 10**9, "mode": "ATTRIBUTES"}
        document["buffers"].append(
            {"byteLength": 16 * 10**9, "extensions": {"EXT_meshopt_compression": {"fallback": True}}}
        )
        view |= {"buffer": 1, "extensions": {"EXT_meshopt_compression": packed}}
    elif how == "not draco":
        primitive = document["meshes"][0]["primitives"][0]
        primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    elif how == "points":
        document["meshes"][0]["primitives"][0]["mode"] = 0


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("count", "max_faces"),
        ("zeros", "too many"),
        ("offset", "truncated"),
        ("negative", "not a count"),
        ("view", "truncated"),
        ("type", "not triples"),
        ("component", "unknown type"),
        ("missing accessor", "accessor 77"),
        ("text for a number", "not a count"),
        ("cycle", "ancestor"),
        ("bomb", "max_faces"),
        ("nan transform", "not finite"),
        ("meshopt", "meshopt data claim 1000000000 entries"),
        ("not draco", "Draco"),
        ("points", "no faces"),
    ],
)
def test_bent_gltf_is_refused_before_anything_is_allocated(how: str, says: str, tmp_path: Path) -> None:
    document, binary = gltf_document(tmp_path, SHEET)
    bend(document, how)
    path = write(tmp_path / "b.glb", meshes.glb_bytes(json.dumps(document).encode(), binary))
    with pytest.raises(MeshError, match=says):
        load_mesh(path, max_faces=10_000)


def number(value: int) -> bytes:
    """As Draco writes it: seven bits at a time, the lowest first."""
    pieces = bytearray()
    while value > 127:
        pieces.append(value & 127 | 128)
        value >>= 7
    return bytes([*pieces, value])


def draco_claiming(faces: int, vertices: int, *, sequential: bool) -> bytes:
    """A Draco mesh of some 700 faces whose header claims other numbers, as the decoder believes them."""
    import DracoPy

    from pipeline.mesh.readers.draco import varint

    rows, columns = np.divmod(np.arange(400, dtype=np.uint32), 20)
    corner = np.flatnonzero((rows < 19) & (columns < 19))
    quads = np.concatenate(
        [np.stack([corner, corner + 1, corner + 20], 1), np.stack([corner + 1, corner + 21, corner + 20], 1)]
    )
    points = np.stack([rows, columns, 0 * rows], axis=1).astype(np.float32)
    data = DracoPy.encode(points, quads.astype(np.uint32), compression_level=0 if sequential else 5)
    if sequential:
        return data[:11] + number(faces) + number(vertices) + data[varint(data, varint(data, 11)[1])[1] :]
    at = varint(data, varint(data, 12)[1])[1] + 1
    # The third of them is how many steps the walk over the faces has.
    return (
        data[:12] + number(vertices) + number(faces) + data[at - 1 : at] + number(faces) + data[varint(data, at)[1] :]
    )


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    ("faces", "vertices", "indices", "says"),
    [
        (100_000_000, 20_000, 2166, "claim 100000000 faces where its JSON says 722"),
        (722, 90_000_000, 2166, "claim 90000000 vertices"),
        (100_000_000, 20_000, 300_000_000, "max_faces"),
        (722, 400, 2166, ""),
    ],
)
def test_what_draco_data_claim_is_bounded_before_they_are_decoded(
    sequential: bool,
    faces: int,
    vertices: int,
    indices: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import DracoPy

    decoded = []
    monkeypatch.setattr(DracoPy, "decode", lambda data, now=DracoPy.decode: decoded.append(data) or now(data))
    data = draco_claiming(faces, vertices, sequential=sequential)
    extension = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "extensions": extension}]}],
        "accessors": [
            {"componentType": 5126, "count": 400, "type": "VEC3"},
            {"componentType": 5125, "count": indices, "type": "SCALAR"},
        ],
        "bufferViews": [{"buffer": 0, "byteLength": len(data)}],
        "buffers": [{"byteLength": len(data)}],
    }
    path = write(tmp_path / "b.glb", meshes.glb_bytes(json.dumps(document).encode(), data))
    if says:
        with pytest.raises(MeshError, match=says):
            load_mesh(path)
        assert not decoded
    else:
        assert len(load_mesh(path).faces) == 722 and decoded


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"DARCO" + data[5:], "do not begin"),
        (lambda data: data[:6] + b"\x01" + data[7:], "version 2.1"),
        (lambda data: data[:7] + b"\x00" + data[8:], "points, not a mesh"),
        (lambda data: data[:8] + b"\x07" + data[9:], "method 7"),
        (lambda data: data[:10] + b"\x80" + data[11:], "metadata"),
        (lambda data: data[:12], "truncated"),
        (lambda data: data[:12] + b"\xff" * 9, "damaged"),
    ],
)
def test_draco_data_that_are_not_what_gltf_allows(change: Any, says: str) -> None:
    from pipeline.mesh.readers.draco import draco_claims

    data = draco_claiming(722, 400, sequential=False)
    assert draco_claims(data) == (722, 400)
    with pytest.raises(ValueError, match=says):
        draco_claims(change(data))


@pytest.mark.parametrize(
    "uri",
    [
        "../outside.bin",
        "%2e%2e/outside.bin",
        "/etc/hostname",
        "file:///etc/hostname",
        "http://localhost/a.bin",
        "link.bin",
    ],
)
def test_buffers_outside_the_folder_are_refused(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    document, binary = gltf_document(folder, SHEET)
    write(tmp_path / "outside.bin", binary)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    document["buffers"][0]["uri"] = uri
    path = write(folder / "a.gltf", json.dumps(document))
    for read in (load_mesh, mesh_sha256):
        with pytest.raises(MeshError, match=r"outside the file's own folder|not a relative path"):
            read(path)


@pytest.mark.parametrize("kind", ["obj", "glb", "gltf-inline", "draco", "binary_little_endian", "ascii", "off", "stl"])
def test_truncated_anywhere_is_a_mesh_or_a_mesh_error(kind: str, tmp_path: Path) -> None:
    """No traceback and no hang, wherever a file is cut or a byte is wrong."""
    if kind == "stl":
        path = tmp_path / "a.stl"
        trimesh.Trimesh(SHEET.vertices, SHEET.faces).export(path)
    else:
        path = sheet_file(kind, tmp_path)
    whole = path.read_bytes()
    generator = np.random.Generator(np.random.Philox(key=5))
    failed = 0
    for trial in range(120):
        data = bytearray(whole)
        if trial % 2 == 0:
            data = data[: int(generator.integers(1, len(whole)))]
        else:
            for _ in range(3):
                data[int(generator.integers(len(data)))] = int(generator.integers(256))
        path.write_bytes(bytes(data))
        try:
            mesh = load_mesh(path, max_faces=10_000)
            assert np.isfinite(mesh.vertices).all() and mesh.faces.max() < len(mesh.vertices)
        except MeshError as error:
            failed += 1
            assert "\n" not in error.message
    assert failed > 10


def test_missing_files_folders_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="does not exist"):
        load_mesh(tmp_path / "a.obj")
    (tmp_path / "b.obj").mkdir()
    with pytest.raises(MeshError, match="a folder"):
        load_mesh(tmp_path / "b.obj")
    path = meshes.write_obj(tmp_path / "c.obj", SHEET)
    with pytest.raises(MeshError, match="more than is allowed"):
        load_mesh(path, max_bytes=10)


@pytest.mark.parametrize("name", ["blub.obj", "boot.obj", "spot.obj", "CesiumMan.glb"])
def test_real_meshes_load_upright_and_outside_out(name: str, shared_meshes: Path) -> None:
    mesh = load_mesh(shared_meshes / name)
    assert len(mesh.faces) > 1000 and mesh.faces.max() == len(mesh.vertices) - 1
    assert volume(mesh) > 0
    if name == "CesiumMan.glb":
        height = np.ptp(mesh.vertices, axis=0)
        assert np.argmax(height) == 1 or height[1] == pytest.approx(height.max())
    assert "." + mesh.source_format in FORMATS
