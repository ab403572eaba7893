"""OBJ, OFF, PLY and STL as careless writers leave them: headers, line ends, counts, and what is no number."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from test_foreign_meshes import (
    BOX,
    FACES,
    FACETS,
    OBJ,
    PLY,
    POINTS,
    QUADS,
    ROWS,
    STL,
    TRIANGLES,
    binary_ply,
    binary_stl,
)

from pipeline.core.errors import MeshError
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import Mesh, face_areas

CORNERS = "".join(f"{x:g} {y:g} {z:g}\n" for x, y, z in BOX)
INDICES = "".join(f"4 {a} {b} {c} {d}\n" for a, b, c, d in QUADS)
STREAM = (CORNERS + INDICES).split()
LITTLE = binary_ply("<", "\n")


def in_lines_of(numbers: int, words: list[str]) -> str:
    return "\n".join(" ".join(words[i : i + numbers]) for i in range(0, len(words), numbers))


def load(name: str, content: str | bytes, tmp_path: Path) -> Mesh:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_mesh(path)


def is_the_box(mesh: Mesh) -> None:
    assert len(mesh.vertices) == 8 and len(mesh.faces) == 12
    assert face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(8.2)
    assert np.allclose([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)], [(0, 0, 0), (1, 0.7, 2)])


def coloured(colour: str) -> list[str]:
    """The words of a box whose vertices have a colour each."""
    return [w for line in CORNERS.splitlines() for w in (line + colour).split()] + INDICES.split()


OFFS = {
    "counts behind the keyword": f"OFF8 6 0\n{ROWS}",
    "counts behind the keyword, no edges": f"OFF8 6\n{ROWS}",
    "coloured, counts behind": "COFF8 6 0\n" + ROWS.replace("\n", " 9 9 9 255\n", 8),
    "one number a line": "OFF\n8\n6\n0\n" + "\n".join(STREAM),
    "seven numbers a line": "OFF\n8 6 0\n" + in_lines_of(7, STREAM),
    "one line": "OFF 8 6 0 " + " ".join(STREAM),
    "no count of edges": "OFF\n8 6\n" + in_lines_of(11, STREAM),
    "comments between": "# by hand\nOFF # here\n8 6 0 # counts\n\n"
    + in_lines_of(5, STREAM).replace("\n", " # and so on\n\n"),
    "a stream with colours of four": "COFF\n8 6 0\n" + in_lines_of(9, coloured(" 0.1 0.2 0.3 1")),
    "a stream with colours of three": "COFF\n8 6 0\n" + in_lines_of(5, coloured(" 10 20 30")),
    "colours behind faces": "OFF\n8 6 12\n" + CORNERS + INDICES.replace("\n", " 0.5 0.5 0.5\n"),
    "Windows": f"OFF8 6 0\r\n{ROWS}".replace("\n", "\r\n"),
}


@pytest.mark.parametrize("case", OFFS)
def test_off_is_a_stream_of_numbers(case: str, tmp_path: Path) -> None:
    is_the_box(load("a.off", OFFS[case], tmp_path))


def test_off_normals_in_a_stream_are_used(tmp_path: Path) -> None:
    outward = BOX - BOX.mean(axis=0)
    words = [f"{v:g}" for point, normal in zip(BOX, outward, strict=True) for v in (*point, *normal)]
    mesh = load("a.off", "NOFF\n8 6 0\n" + in_lines_of(4, words + INDICES.split()), tmp_path)
    is_the_box(mesh)
    assert mesh.normals is not None and mesh.normals[0] == pytest.approx(outward[0] / np.linalg.norm(outward[0]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("OFF\n8 6 0\n" + in_lines_of(7, STREAM[:-1]), "truncated"),
        ("OFF\n8 6 0\n" + in_lines_of(7, [*STREAM[:-1], "x"]), "truncated"),
        ("OFF\n8 6 0\n" + in_lines_of(7, [*STREAM[:-1], "8"]), "out of range"),
        ("OFF99999999999 6 0\n1 2 3\n", "truncated"),
        ("OFFICE\n8 6 0\n", "does not begin with OFF"),
        ("OFF\n0 0 0\n", "it has no vertices"),
    ],
)
def test_a_stream_that_does_not_come_out_is_told(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=says):
        load("a.off", text, tmp_path)


def ply_with_wedges(*, binary: bool, last: float = 1.0, textures: int = 1) -> bytes:
    """As MeshLab writes texture coordinates: a list a face, and the number of its texture."""
    header = (
        f"ply\nformat {'binary_little_endian' if binary else 'ascii'} 1.0\ncomment VCGLIB generated\n"
        "element vertex 8\nproperty float x\nproperty float y\nproperty float z\nelement face 12\n"
        "property list uchar int vertex_indices\nproperty list uchar float texcoord\nproperty int texnumber\n"
        "end_header\n"
    ).encode()
    wedges = [0.0, 0.0, 1.0, 0.0, 1.0, last]
    if binary:
        rows = [struct.pack("<B3iB6fi", 3, *t, 6, *wedges, i % textures) for i, t in enumerate(TRIANGLES)]
        return header + BOX.astype("<f4").tobytes() + b"".join(rows)
    rows = [" ".join(map(str, (3, *t, 6, *wedges, i % textures))).encode() for i, t in enumerate(TRIANGLES)]
    return header + CORNERS.encode() + b"\n".join(rows).replace(b"nan", b"-1.#IND00") + b"\n"


@pytest.mark.parametrize("binary", [False, True])
def test_wedges_as_meshlab_writes_them(binary: bool, tmp_path: Path) -> None:
    mesh = load("a.ply", ply_with_wedges(binary=binary), tmp_path)
    is_the_box(mesh)
    assert mesh.uv is not None and mesh.uv_faces is not None and mesh.warnings == []
    assert mesh.uv[mesh.uv_faces[0]].tolist() == [[0, 1], [1, 1], [1, 0]]
    is_the_box(load("a.ply", ply_with_wedges(binary=binary, last=float("nan")), tmp_path))
    told = load("a.ply", ply_with_wedges(binary=binary, textures=2), tmp_path).warnings
    assert told == ["its texture coordinates refer to 2 textures and are used as if for one"]


PLYS: dict[str, str | bytes] = {
    "blank behind ply": PLY.replace("ply\n", "ply \n", 1),
    "blanks behind every line": PLY.replace("\n", " \t\n", 10),
    "end in CR LF": PLY.replace("end_header\n", "end_header\r\n"),
    "end in CR": PLY.replace("end_header\n", "end_header\r"),
    "end in LF of a file of CR LF": PLY.replace("\n", "\r\n").replace("end_header\r\n", "end_header\n"),
    "binary, end in CR LF": LITTLE.replace(b"end_header\n", b"end_header\r\n"),
    "binary, end in CR": LITTLE.replace(b"end_header\n", b"end_header\r"),
    "binary, blank behind the end": LITTLE.replace(b"end_header\n", b"end_header \n"),
    "binary, end in CR LF of a file of CR": binary_ply(">", "\r").replace(b"end_header\r", b"end_header\r\n"),
    "a property twice": PLY.replace("property float z\n", "property float z\nproperty float x\n").replace(
        CORNERS, CORNERS.replace("\n", " 7\n")),
    "no materials behind": PLY.replace("end_header", "element material 0\nproperty uchar red\nend_header"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLYS)
def test_ply_headers_as_they_come(case: str, tmp_path: Path) -> None:
    is_the_box(load("a.ply", PLYS[case], tmp_path))


@pytest.mark.parametrize("empty", ["vertex", "face"])
@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
def test_empty_elements_are_told(empty: str, encoding: str, tmp_path: Path) -> None:
    header = PLY[: PLY.index("end_header\n") + 11].replace("ascii", encoding)
    count = {"vertex": "vertex 8", "face": "face 6"}[empty]
    text = header.replace(count, f"{empty} 0").encode()
    if empty == "face":
        text += BOX.astype("<f4").tobytes() if encoding != "ascii" else CORNERS.encode()
    says = "a.ply: it has no vertices" if empty == "vertex" else "a.ply: it has no faces .8 points."
    with pytest.raises(MeshError, match=says):
        load("a.ply", text, tmp_path)


NOT_NUMBERS = ["-1.#IND00", "1.#QNAN", "1.#QNAN0", "1.#INF", "-1.#INF00", "nan", "-nan(ind)", "NaN", "inf"]


@pytest.mark.parametrize("word", NOT_NUMBERS)
@pytest.mark.parametrize("name", ["a.obj", "a.ply", "a.off"])
def test_normals_that_are_no_numbers_are_not_used(word: str, name: str, tmp_path: Path) -> None:
    normals = [f"{word} {word} 0"] + ["0 0 1"] * 7
    rows = "".join(f"{p} {n}\n" for p, n in zip(CORNERS.splitlines(), normals, strict=True)) + INDICES
    text = {
        "a.obj": POINTS + f"vn {word} {word} {word}\n" + "".join(
            "f " + " ".join(f"{i + 1}//1" for i in quad) + "\n" for quad in QUADS),
        "a.ply": PLY[: PLY.index("end_header")].replace("property float z\n", "property float z\n" + "".join(
            f"property float n{a}\n" for a in "xyz")) + "end_header\n" + rows,
        "a.off": "NOFF\n8 6 0\n" + rows,
    }[name]  # fmt: skip
    mesh = load(name, text, tmp_path)
    is_the_box(mesh)
    assert mesh.normals is None
    assert mesh.warnings == ["some normals are zero or not finite: the file's normals are not used"]


@pytest.mark.parametrize("name", ["a.obj", "a.ply", "a.off", "a.stl"])
def test_positions_that_are_no_numbers_are_told(name: str, tmp_path: Path) -> None:
    first = {"a.obj": OBJ, "a.ply": PLY, "a.off": f"OFF\n8 6 0\n{ROWS}", "a.stl": STL}[name]
    bent = first.replace("0.7", "-1.#IND00", 1) if name != "a.stl" else first.replace("vertex 1 ", "vertex 1.#QNAN ", 1)
    with pytest.raises(MeshError, match="vertices are NaN or infinite"):
        load(name, bent, tmp_path)


OPTIONAL = {
    "a normal that is a word": ("vn 0 up 0\n", "1//1", "the file's normals are not used: normal 1 holds"),
    "a normal of two numbers": ("vn 0 1\n", "1//1", "the file's normals are not used: normal 1 has 2 numbers"),
    "a normal that is not there": ("vn 0 1 0\n", "1//2", "the file's normals are not used: a face names normal 1"),
    "a coordinate that is a word": ("vt a b\n", "1/1", "the file's texture coordinates are not used: texture coord"),
    "a coordinate that is not there": ("vt 0 0\n", "1/5", "not used: a face names texture coordinate 4"),
}


@pytest.mark.parametrize("case", OPTIONAL)
def test_optional_data_of_an_obj_never_refuse_it(case: str, tmp_path: Path) -> None:
    extra, corner, says = OPTIONAL[case]
    tail = corner[1:]
    faces = "".join("f " + " ".join(f"{i + 1}{tail}" for i in quad) + "\n" for quad in QUADS)
    mesh = load("a.obj", POINTS + extra + faces, tmp_path)
    is_the_box(mesh)
    assert mesh.uv is None and mesh.normals is None
    assert len(mesh.warnings) == 1 and says in mesh.warnings[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("l 1 2 3\n", "it has no faces, only lines: export it as polygons"),
        ("p 1\nl 1 2\n", "only points, lines: export"),
        ("cstype bezier\ndeg 3\ncurv 0 1 1 2 3 4\nparm u 0 1\nend\n", "only curves: export"),
        ("cstype bspline\nsurf 0 1 0 1 1 2 3 4\nend\n", "only free-form surfaces: export"),
        ("", "8 points.: a point cloud cannot be painted"),
    ],
)
def test_an_obj_of_curves_is_told_plainly(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=says):
        load("a.obj", POINTS + text, tmp_path)
    if text:
        left_out = load("a.obj", POINTS + FACES + text, tmp_path)
        is_the_box(left_out)
        assert len(left_out.warnings) == 1 and left_out.warnings[0].endswith("were left out")


def counted(count: int, head: bytes = b"made by a test", *, behind: bytes = b"") -> bytes:
    data = binary_stl(head)
    return data[:80] + struct.pack("<I", count) + data[84:] + behind


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (counted(0), ["its header claims 0 facets; the 12 in the file were read"]),
        (counted(0xFFFFFFFF, b"solid"), ["its header claims 4294967295 facets; the 12 in the file were read"]),
        (counted(0, b"solid facet of a gem"), ["its header claims 0 facets; the 12 in the file were read"]),
        (counted(12, b"solid", behind=b"\0" * 7), ["bytes after the last facet were ignored"]),
        ("solid " + "x" * 2000 + "\n" + FACETS + "endsolid\n", []),
        ("\n\n  solid\n" + FACETS + "endsolid\n", []),
    ],
)
def test_an_stl_is_read_by_its_length(content: str | bytes, told: list[str], tmp_path: Path) -> None:
    mesh = load("a.stl", content, tmp_path)
    is_the_box(mesh)
    assert mesh.warnings == told


def test_counts_that_promise_more_than_there_is_are_truncated_files(tmp_path: Path) -> None:
    for content in (counted(13), counted(12)[:-1], counted(0)[:84], counted(0xFFFFFFFF)[:90]):
        with pytest.raises(MeshError, match=r"a\.stl: (it claims|it has no)"):
            load("a.stl", content, tmp_path)


def test_texture_coordinates_of_dropped_faces_alone_are_none(tmp_path: Path) -> None:
    degenerate = "vt 0 0\nvt 1 0\nf 1/2 1/2 2/2\n"
    mesh = load("a.obj", POINTS + degenerate + FACES, tmp_path)
    is_the_box(mesh)
    assert mesh.uv is None and mesh.uv_faces is None


def test_what_is_broken_says_what_to_do(tmp_path: Path) -> None:
    for name, content in (("a.obj", OBJ.replace("0.7", "x")), ("a.ply", PLY[:-9]), ("a.gltf", "{}")):
        with pytest.raises(MeshError, match=r"; copy or export the file again$"):
            load(name, content, tmp_path)


def test_names_in_a_header_reach_no_terminal(tmp_path: Path) -> None:
    bent = PLY.replace("element face 6", "element \x1b[31mface 600")
    with pytest.raises(MeshError) as caught:
        load("a.ply", bent, tmp_path)
    assert caught.value.message.isprintable() and r"\x1b[31mface" in caught.value.message
