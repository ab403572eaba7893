"""Files as strangers' programs write them: odd, allowed, and read right; held against trimesh where it reads them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from meshes import glb_bytes

from pipeline.core.errors import MeshError
from pipeline.core.hashing import sha256_file
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import face_areas, face_normals
from pipeline.mesh.mesh_hash import mesh_sha256
from pipeline.uv.unwrap import uv_problem

# A box of 1 x 0.7 x 2 with one corner at the origin, of six quads that look outwards.
BOX = np.array([(x, y, z) for z in (0, 2) for x, y in ((0, 0), (1, 0), (1, 0.7), (0, 0.7))])
QUADS = [(0, 3, 2, 1), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
TRIANGLES = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])

POINTS = "".join(f"v {x:g} {y:g} {z:g}\n" for x, y, z in BOX)
FACES = "".join(f"f {a + 1} {b + 1} {c + 1} {d + 1}\n" for a, b, c, d in QUADS)
OBJ = POINTS + FACES
ROWS = "".join(f"{x:g} {y:g} {z:g}\n" for x, y, z in BOX) + "".join(f"4 {a} {b} {c} {d}\n" for a, b, c, d in QUADS)
HEADER = (
    "ply\nformat {} 1.0\ncomment {}\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    "element face 6\nproperty list uchar int vertex_indices\nend_header\n"
)
PLY = HEADER.format("ascii", "none") + ROWS
FACETS = "".join(
    "  facet normal 0 0 0\n    outer loop\n"
    + "".join("      vertex {:g} {:g} {:g}\n".format(*BOX[corner]) for corner in triangle)
    + "    endloop\n  endfacet\n"
    for triangle in TRIANGLES
)
STL = f"solid box\n{FACETS}endsolid box\n"
BOM = b"\xef\xbb\xbf"


def binary_ply(order: str, ending: str) -> bytes:
    name = "binary_little_endian" if order == "<" else "binary_big_endian"
    header = HEADER.format(name, "none").replace("\n", ending).encode()
    return header + BOX.astype(f"{order}f4").tobytes() + b"".join(struct.pack(f"{order}B4i", 4, *q) for q in QUADS)


def binary_stl(head: bytes) -> bytes:
    facets = [struct.pack("<12fH", 0, 0, 0, *BOX[t].ravel(), 0) for t in TRIANGLES]
    return head.ljust(80) + struct.pack("<I", len(facets)) + b"".join(facets)


# The sides of the box as one strip around, its bottom and top as two in one list.
STRIPS = (
    PLY.split("element face")[0]
    + "element tristrips 2\nproperty list int int vertex_indices\nend_header\n"
    + "".join(f"{x:g} {y:g} {z:g}\n" for x, y, z in BOX)
    + "10 4 0 5 1 6 2 7 3 4 0\n9 0 3 1 2 -1 4 5 7 6\n"
)


FILES: dict[str, tuple[str, str | bytes]] = {
    "obj with a byte order mark": ("a.obj", BOM + OBJ.encode()),
    "obj from Windows": ("a.obj", OBJ.replace("\n", "\r\n")),
    "obj from an old Mac": ("a.obj", OBJ.replace("\n", "\r")),
    "obj with lines that go on": ("a.obj", POINTS + FACES.replace(" ", " \\\n ").replace("f \\\n", "f ", 2)),
    "obj with blanks behind the backslash": ("a.obj", POINTS + FACES.replace(" 1", " \\ \t\r\n 1")),
    "obj whose comment ends in a backslash": ("a.obj", "# from C:\\models\\\n" + OBJ),
    "obj whose library ends in a backslash": ("a.obj", "mtllib C:\\a b\\\n" + OBJ.replace("f 1", "g a\\\nf 1", 1)),
    "obj with a path behind a face": ("a.obj", OBJ.replace("f 1 4 3 2\n", "f 1 4 3 2 # C:\\\n")),
    "obj that ends in a backslash": ("a.obj", OBJ.rstrip() + " \\"),
    "obj with zeros behind its end": ("a.obj", OBJ.encode() + b"\0" * 100),
    "obj of many groups": ("a.obj", POINTS + FACES.replace("f", "g side\nusemtl paint\ns off\nf") + "l 1 2\np 3\n"),
    "obj with colours and weights": ("a.obj", POINTS.replace("\n", " 0.5 0.1 0.2\n", 3) + FACES),
    "obj with relative corners": (
        "a.obj",
        "".join("".join("v {:g} {:g} {:g}\n".format(*BOX[i]) for i in q) + "f -4 -3 -2 -1\n" for q in QUADS),
    ),
    "ply with a byte order mark": ("a.ply", BOM + PLY.encode()),
    "ply from Windows": ("a.ply", PLY.replace("\n", "\r\n")),
    "ply from an old Mac": ("a.ply", PLY.replace("\n", "\r")),
    "ply that speaks of its end": ("a.ply", HEADER.format("ascii", "no end_header yet") + ROWS),
    "ply of strips": ("a.ply", STRIPS),
    "ply little-endian": ("a.ply", binary_ply("<", "\n")),
    "ply little-endian from Windows": ("a.ply", binary_ply("<", "\r\n")),
    "ply big-endian from an old Mac": ("a.ply", binary_ply(">", "\r")),
    "stl with a byte order mark": ("a.stl", BOM + STL.encode()),
    "stl with a name like a line of its own": ("a.stl", STL.replace("solid box", "solid one vertex 1 2 3 endfacet")),
    "stl in capitals": ("a.stl", STL.upper()),
    "stl of two solids": ("a.stl", "solid a\n" + FACETS[: len(FACETS) // 2] + "endsolid a\nsolid b\n"
                          + FACETS[len(FACETS) // 2 :] + "endsolid b\n"),
    "stl binary that begins with solid": ("a.stl", binary_stl(b"solid binary all the same")),
    "off with a byte order mark": ("a.off", BOM + f"OFF\n8 6 0\n{ROWS}".encode()),
    "off on fewer lines": ("a.off", f"# a comment\nOFF 8 6 # no edges\n\n{ROWS}"),
    "off with colours": ("a.off", "COFF\n8 6 0\n" + ROWS.replace("\n", " 9 9 9 255\n", 8)),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_the_box_is_the_box_however_it_is_written(case: str, tmp_path: Path) -> None:
    name, content = FILES[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    mesh = load_mesh(path)
    twin = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert len(mesh.vertices) == 8 and len(mesh.faces) == 12
    assert twin.is_watertight and twin.volume == pytest.approx(1.4) and twin.area == pytest.approx(8.2)
    assert np.allclose(twin.bounds, [(0, 0, 0), (1, 0.7, 2)])


LOSSES: dict[str, tuple[str, bytes, str]] = {
    "obj with a hole of zeros": ("a.obj", POINTS.encode() + b"\0\0" + FACES.encode(), "not text .byte 73 is NUL"),
    "obj in UTF-16": ("a.obj", OBJ.encode("utf-16"), "UTF-16"),
    "off in UTF-16": ("a.off", f"OFF\n8 6 0\n{ROWS}".encode("utf-16"), "UTF-16"),
    "obj with digit groups": ("a.obj", POINTS.replace("v 1 ", "v 1_0 ", 1).encode() + FACES.encode(), "vertex 2 holds"),
    "obj with decimal commas": ("a.obj", OBJ.replace("0.7", "0,7").encode(), "vertex 3 holds"),
    "ply of strips that lead astray": ("a.ply", STRIPS.replace("5 7 6\n", "5 7 8\n").encode(), "out of range"),
    "ply of strips and negative vertices": ("a.ply", STRIPS.replace("5 7 6\n", "5 7 -2\n").encode(), "out of range"),
    "glb of nothing": ("a.glb", glb_bytes(b'{"asset": {"version": "2.0"}}', b""), "no faces, or its scene"),
    "glb of lines": (
        "a.glb",
        glb_bytes(
            b'{"asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],'
            b' "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 1}]}]}',
            b"",
        ),
        "no faces .points and lines were left out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LOSSES)
def test_nothing_is_lost_without_a_word(case: str, tmp_path: Path) -> None:
    name, content, says = LOSSES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MeshError, match=says) as caught:
        load_mesh(tmp_path / name)
    assert "\n" not in caught.value.message and caught.value.message.startswith(name)


@pytest.mark.filterwarnings("error")
def test_nothing_but_the_error_is_said_of_what_is_no_number(tmp_path: Path) -> None:
    # A signalling NaN: numpy warns of it at every turn.
    path = tmp_path / "a.stl"
    path.write_bytes(binary_stl(b"x").replace(struct.pack("<f", 2.0), b"\x01\x00\xa0\x7f"))
    with pytest.raises(MeshError, match="vertices are NaN or infinite"):
        load_mesh(path)


# -- glTF ---------------------------------------------------------------------------------------------------------


class Gltf:
    """A document with one node, one mesh and one primitive, filled by hand."""

    def __init__(self) -> None:
        self.binary = b""
        self.primitive: dict[str, Any] = {"attributes": {}}
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [self.primitive]}],
            "accessors": [],
            "bufferViews": [],
        }

    def add(self, values: np.ndarray, component: int, kind: str, **more: Any) -> int:
        """The number of a new accessor over ``values``."""
        self.binary += b"\0" * (-len(self.binary) % 4)
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": values.nbytes}
        self.binary += values.tobytes()
        self.document["bufferViews"].append(view)
        number = len(self.document["bufferViews"]) - 1
        accessor = {"bufferView": number, "componentType": component, "count": len(values), "type": kind}
        self.document["accessors"].append(accessor | more)
        return len(self.document["accessors"]) - 1

    def write(self, path: Path, uri: str | None = None, chunk: bool = True) -> Path:
        """Writes it as a .glb, with its bytes in it or (``uri``) beside it; as plain JSON without ``chunk``."""
        self.document["buffers"] = [{"byteLength": len(self.binary)} | ({"uri": uri} if uri else {})]
        text = json.dumps(self.document).encode()
        path.write_bytes(glb_bytes(text, b"" if uri else self.binary) if chunk else text)
        return path


def box() -> Gltf:
    made = Gltf()
    made.primitive["attributes"]["POSITION"] = made.add(BOX.astype("<f4"), 5126, "VEC3")
    made.primitive["indices"] = made.add(TRIANGLES.ravel().astype("<u2"), 5123, "SCALAR")
    return made


SQUARE = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], "<f4")
CORNERS = np.array([(0, 1), (1, 1), (1, 0), (0, 0)], float)


def square(uv: np.ndarray, component: int, normalized: bool = False, transform: dict[str, Any] | None = None) -> Gltf:
    """A square whose top left is to have the texture coordinates (0, 0)."""
    made = Gltf()
    attributes = made.primitive["attributes"]
    attributes["POSITION"] = made.add(SQUARE, 5126, "VEC3")
    attributes["TEXCOORD_0"] = made.add(uv, component, "VEC2", normalized=normalized)
    made.primitive["indices"] = made.add(np.array([0, 1, 2, 0, 2, 3], "<u2"), 5123, "SCALAR")
    if transform is not None:
        texture = {"index": 0, "extensions": {"KHR_texture_transform": transform}}
        made.document["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": texture}}]
        made.primitive["material"] = 0
    return made


@pytest.mark.parametrize(
    ("stored", "component", "normalized", "transform"),
    [
        (CORNERS.astype("<f4"), 5126, False, None),
        ((CORNERS * 65535).astype("<u2"), 5123, True, {}),
        ((CORNERS * 4095).astype("<u2"), 5123, True, {"scale": [65535 / 4095] * 2}),
        ((CORNERS * 4095).astype("<u2"), 5123, False, {"scale": [1 / 4095] * 2}),
        ((CORNERS * [1, -1] + [0, 1]).astype("<f4"), 5126, False, {"scale": [1, -1], "offset": [0, 1]}),
        # Turned clockwise in the file, and counter-clockwise by the transform, where v points down.
        (np.stack([1 - CORNERS[:, 1], CORNERS[:, 0]], 1).astype("<f4"), 5126, False,
         {"rotation": np.pi / 2, "offset": [0, 1]}),
    ],
)  # fmt: skip
def test_texture_coordinates_are_where_the_file_looks_its_colour_up(
    stored: np.ndarray, component: int, normalized: bool, transform: dict[str, Any] | None, tmp_path: Path
) -> None:
    mesh = load_mesh(square(stored, component, normalized, transform).write(tmp_path / "a.glb"))
    assert uv_problem(mesh) == ""
    assert mesh.uv is not None and mesh.uv_faces is not None
    found = {tuple(mesh.vertices[v]): mesh.uv[t] for v, t in zip(mesh.faces.flat, mesh.uv_faces.flat, strict=True)}
    for corner, uv in zip(SQUARE, CORNERS, strict=True):
        assert found[tuple(corner.astype(float))] == pytest.approx(uv, abs=1e-4)


def test_a_transform_that_tiles_makes_a_tiled_mesh(tmp_path: Path) -> None:
    mesh = load_mesh(square(CORNERS.astype("<f4"), 5126, False, {"scale": [10, 10]}).write(tmp_path / "a.glb"))
    assert "a tiled texture" in uv_problem(mesh)


def test_mirrors_and_scales_in_a_hierarchy_are_as_trimesh_has_them(tmp_path: Path) -> None:
    made = box()
    made.document["nodes"] = [
        {"children": [1, 2], "scale": [2, 2, 2], "rotation": [0, 0.6, 0, 0.8]},
        {"mesh": 0, "translation": [1, 2, 3], "scale": [-1, 1, 0.5]},
        {"mesh": 0, "matrix": [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0, 5, 0, 0, 1]},
    ]
    path = made.write(tmp_path / "a.glb")
    mesh, theirs = load_mesh(path), trimesh.load(path, force="mesh")
    assert face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(theirs.area)
    assert np.allclose([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)], theirs.bounds, atol=1e-5)
    corner = mesh.vertices[mesh.faces]
    for box_number in (slice(0, 12), slice(12, 24)):
        part = corner[box_number]
        outward = part.mean(axis=1) - part.mean(axis=(0, 1))
        normals = face_normals(part.reshape(-1, 3), np.arange(36).reshape(-1, 3))
        assert (np.einsum("fi,fi->f", outward, normals) > 0).all()


def test_interleaved_values_and_bytes_as_indices(tmp_path: Path) -> None:
    made = Gltf()
    rows = np.zeros(4, [("position", "<f4", 3), ("normal", "<f4", 3), ("uv", "<f4", 2)])
    rows["position"], rows["normal"], rows["uv"] = SQUARE, (0, 0, 2), CORNERS
    made.add(rows, 5126, "VEC3")
    made.document["bufferViews"][0]["byteStride"] = 32
    for offset, kind in ((12, "VEC3"), (24, "VEC2")):
        accessor = {"bufferView": 0, "byteOffset": offset, "componentType": 5126, "count": 4, "type": kind}
        made.document["accessors"].append(accessor)
    made.primitive["attributes"] = {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 2}
    made.primitive["indices"] = made.add(np.array([0, 1, 2, 3], "u1"), 5121, "SCALAR")
    made.primitive["mode"] = 6
    mesh = load_mesh(made.write(tmp_path / "a.glb"))
    assert mesh.vertices.tolist() == SQUARE.tolist() and mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.uv is not None and mesh.uv.tolist() == CORNERS.tolist() and uv_problem(mesh) == ""
    assert mesh.normals is not None and mesh.normals.tolist() == [[0, 0, 1]]


def test_what_is_left_aside_is_told(tmp_path: Path) -> None:
    made = box()
    made.document["extensionsRequired"] = ["KHR_texture_basisu", "KHR_materials_unlit", "ACME_bent_space"]
    mesh = load_mesh(made.write(tmp_path / "a.glb"))
    assert mesh.warnings == ["the required extension ACME_bent_space was ignored"]


def test_a_renamed_gltf_is_read_by_what_is_in_it(tmp_path: Path) -> None:
    inside = box().write(tmp_path / "a.gltf")
    beside = box()
    (tmp_path / "data.bin").write_bytes(beside.binary)
    for path in (inside, beside.write(tmp_path / "b.glb", uri="data.bin", chunk=False)):
        mesh = load_mesh(path)
        assert len(mesh.faces) == 12 and mesh.source_sha256 == mesh_sha256(path)


def test_a_glb_with_its_buffer_beside_it_changes_with_that(tmp_path: Path) -> None:
    made = box()
    buffer = tmp_path / "data.bin"
    buffer.write_bytes(made.binary)
    path = made.write(tmp_path / "a.glb", uri="data.bin")
    before = mesh_sha256(path)
    assert load_mesh(path).source_sha256 == before != sha256_file(path)
    buffer.write_bytes(b"\0\0\0\1" + made.binary[4:])
    assert mesh_sha256(path) != before
    buffer.unlink()
    with pytest.raises(MeshError, match=r"data.bin' does not exist"):
        mesh_sha256(path)
    # Of one file, and of a damaged one, whose reader says what is wrong, the digest is the file's own.
    whole = box().write(tmp_path / "b.glb")
    assert mesh_sha256(whole) == sha256_file(whole)
    whole.write_bytes(whole.read_bytes()[:50])
    assert mesh_sha256(whole) == sha256_file(whole)
