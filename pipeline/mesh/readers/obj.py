"""Wavefront OBJ: polygons with separate indices for position, texture coordinate and normal.

Ignores materials, groups and smoothing, and does not open ``mtllib``, because painting replaces the material. Reads
the whole file as one mesh, whatever its objects and groups. v starts at the bottom in this format.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.mesh.readers.polygons import triangulate
from pipeline.mesh.readers.raw import (
    RawMesh,
    first_columns,
    number_lines,
    parse_integers,
    plain_text,
    tokens_per_line,
)

_STATES = (b"o", b"g", b"usemtl", b"mtllib")
_STATEMENTS = (b"v", b"vt", b"vn", b"f")
# Statements of geometry that is not polygons.
_NO_POLYGONS = {b"l": "lines", b"p": "points", b"curv": "curves", b"curv2": "curves", b"surf": "free-form surfaces"}


@dataclass
class ObjText:
    """The statements of an OBJ, unparsed.

    points, coordinates, normals, faces  arguments of the v, vt, vn and f statements, in order.
    relative  for each face with negative indices: (its number, vertices, coordinates and normals before it).
    states  (number of faces before it, statement, argument) of each o, g, usemtl and mtllib statement.
    left_out  kind of each statement of other geometry.
    """

    points: list[bytes] = field(default_factory=list)
    coordinates: list[bytes] = field(default_factory=list)
    normals: list[bytes] = field(default_factory=list)
    faces: list[bytes] = field(default_factory=list)
    relative: list[tuple[int, int, int, int]] = field(default_factory=list)
    states: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def left_out_kinds(self) -> str:
        """The kinds of other geometry, in words."""
        return ", ".join(dict.fromkeys(self.left_out))


def split_statements(data: bytes, name: str) -> ObjText:
    """Sorts the lines of an OBJ by statement. Raises MeshError if it is not text or has no vertices."""
    lines = plain_text(data, name).splitlines()
    if b"\\" in data:
        lines = _joined(lines)
    text = ObjText()
    points, coordinates, normals, faces = text.points, text.coordinates, text.normals, text.faces
    for line in lines:
        head = line[:2]
        if head in (b"v ", b"v\t"):
            points.append(_without_comment(line[2:]))
        elif head in (b"f ", b"f\t"):
            line = _without_comment(line[2:])
            if b"-" in line:
                text.relative.append((len(faces), len(points), len(coordinates), len(normals)))
            faces.append(line)
        elif head == b"vt":
            coordinates.append(_without_comment(line[2:]))
        elif head == b"vn":
            normals.append(_without_comment(line[2:]))
        elif line[:1] in (b" ", b"\t"):
            # Indented statements are rare; only their lines are split a second time.
            words = line.split(None, 1)
            if len(words) == 2 and words[0] in (b"v", b"vt", b"vn", b"f"):
                arguments = _without_comment(words[1])
                if words[0] == b"f" and b"-" in arguments:
                    text.relative.append((len(faces), len(points), len(coordinates), len(normals)))
                {b"v": points, b"vt": coordinates, b"vn": normals, b"f": faces}[words[0]].append(arguments)
            elif words and words[0] in _STATES:
                text.states.append((len(faces), words[0], words[1].strip() if len(words) == 2 else b""))
        elif head[:1] in b"ogum" and (words := line.split(None, 1)) and words[0] in _STATES:
            text.states.append((len(faces), words[0], words[1].strip() if len(words) == 2 else b""))
        elif head[:1] in b"lpcs" and (kind := _NO_POLYGONS.get(line.split(None, 1)[0] if head else b"")):
            text.left_out.append(kind)
    if not points:
        raise MeshError(f"{name}: it has no vertices: empty or not an OBJ file")
    return text


def corner_indices(text: ObjText, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """((C, 3) zero-based indices of position, texture coordinate and normal, negative where absent; (N,) counts).

    Raises MeshError for a face that cannot be read.
    """
    corners, counts = _corners(text.faces, name)
    if text.relative:
        _resolve_relative(corners, counts, text.relative)
    return corners, counts


def coordinate_table(
    text: ObjText, corners: NDArray[np.int64], name: str, warnings: list[str]
) -> NDArray[np.float64] | None:
    """(T, 2) texture coordinates, v from the bottom; None, with a warning, if they are invalid or unused."""
    if not (text.coordinates and (corners[:, 1] >= 0).any()):
        return None
    # A lone u is allowed; then v is 0.
    return _optional_table(text.coordinates, 1, "texture coordinate", name, warnings, keep=2)


def normal_table(
    text: ObjText, corners: NDArray[np.int64], name: str, warnings: list[str]
) -> NDArray[np.float64] | None:
    """(N, 3) normals; None, with a warning, if they are invalid or unused."""
    if not (text.normals and (corners[:, 2] >= 0).any()):
        return None
    return _optional_table(text.normals, 3, "normal", name, warnings)


def position_table(text: ObjText, name: str, columns: int = 3) -> NDArray[np.float64]:
    """(P, columns) numbers of the vertices: 3 for positions, 6 with colours, 0 where a vertex has none."""
    return _table(text.points, 3, "vertex", name, 0 if columns == 3 else columns)


def read_obj(data: bytes, name: str, max_faces: int) -> RawMesh:
    """Reads an OBJ from its bytes. Raises MeshError."""
    text = split_statements(data, name)
    positions = position_table(text, name)
    if not text.faces:
        if text.left_out:
            raise MeshError(f"{name}: it has no faces, only {text.left_out_kinds}: export it as polygons")
        return RawMesh(positions, np.empty((0, 3), np.int64))
    corners, counts = corner_indices(text, name)
    triangles, warnings = triangulate(positions, corners[:, 0], counts, name=name, max_faces=max_faces)
    if text.left_out:
        warnings.append(f"{text.left_out_kinds} were left out")
    mesh = RawMesh(positions, corners[:, 0][triangles], warnings=warnings)
    table = coordinate_table(text, corners, name, warnings)
    if table is not None:
        mesh.uv = np.stack([table[:, 0], 1.0 - table[:, 1]], axis=1)
        mesh.uv_faces = corners[:, 1][triangles]
    normals = normal_table(text, corners, name, warnings)
    if normals is not None:
        mesh.normals = normals
        mesh.normal_faces = corners[:, 2][triangles]
    return mesh


def _optional_table(
    lines: list[bytes], columns: int, what: str, name: str, warnings: list[str], keep: int = 0
) -> NDArray[np.float64] | None:
    """As ``_table``, but returns None with a warning for invalid lines, since the shape does not need them."""
    try:
        return _table(lines, columns, what, name, keep)
    except MeshError as error:
        warnings.append(f"the file's {what}s are not used: {error.message.removeprefix(f'{name}: ')}")
        return None


def _joined(lines: list[bytes]) -> list[bytes]:
    """Joins lines that end in a backslash.

    Only for the statements that we read: comments and names of files and materials may end in a backslash by chance.
    """
    joined: list[bytes] = []
    pieces: list[bytes] = []
    for line in lines:
        end = line.rstrip()
        goes_on = end.endswith(b"\\") and b"#" not in end and (pieces or line.split(None, 1)[0] in _STATEMENTS)
        pieces.append(end[:-1] if goes_on else line)
        if not goes_on:
            joined.append(b" ".join(pieces))
            pieces = []
    return joined + ([b" ".join(pieces)] if pieces else [])


def _without_comment(line: bytes) -> bytes:
    """Removes the line's comment."""
    return line.split(b"#", 1)[0] if b"#" in line else line


def _table(lines: list[bytes], columns: int, label: str, name: str, keep: int = 0) -> NDArray[np.float64]:
    """(n, keep or columns) numbers; missing numbers beyond ``columns`` are 0."""
    values, counts = number_lines(lines, columns=columns, label=label, name=name)
    keep = keep or columns
    if counts.min() >= keep:
        return first_columns(values, counts, keep)
    table = np.zeros((len(counts), keep))
    starts = np.cumsum(counts) - counts
    for column in range(keep):
        has = counts > column
        table[has, column] = values[starts[has] + column]
    return table


def _corners(lines: list[bytes], name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """((C, 3) zero-based indices of position, texture coordinate and normal, -1 where absent; (N,) counts).

    Negative indices stay negative, shifted by one: -1 in the file is -2 here.
    """
    text = b"\n".join(lines)
    counts = tokens_per_line(text, len(lines))
    # Normalise to single blanks, then expand every word to three numbers; 0 means absent.
    text = b" ".join(text.split()) + b" "
    text = text.replace(b"//", b"/0/").replace(b"/ ", b"/0 ")
    byte = np.frombuffer(text, np.uint8)
    word = np.cumsum(byte == 32)
    slashes = np.bincount(word[byte == 47], minlength=int(counts.sum()))[: int(counts.sum())]
    if len(slashes) and slashes.max() > 2:
        raise MeshError(f"{name}: a corner of a face has more than three indices")
    values = parse_integers(text.replace(b"/", b" "))
    if len(values) != (slashes + 1).sum():
        before = int(np.searchsorted(np.cumsum(slashes + 1), len(values), side="right"))
        at = int(np.searchsorted(np.cumsum(counts), before, side="right"))
        raise MeshError(f"{name}: face {at + 1} holds something that is not an index")
    corners = np.zeros((len(slashes), 3), np.int64)
    starts = np.cumsum(slashes + 1) - (slashes + 1)
    for column in range(3):
        has = slashes >= column
        corners[has, column] = values[starts[has] + column]
    if len(corners) and (corners[:, 0] == 0).any():
        raise MeshError(f"{name}: a face names vertex 0, but OBJ counts from 1: the index is out of range")
    return corners - 1, counts


def _resolve_relative(
    corners: NDArray[np.int64], counts: NDArray[np.int64], relative: list[tuple[int, int, int, int]]
) -> None:
    """Converts negative indices, which count back from the face's position in the file, in place."""
    table = np.array(relative, np.int64)
    ends = np.cumsum(counts)
    spans = counts[table[:, 0]]
    rows = np.repeat(ends[table[:, 0]] - spans - (np.cumsum(spans) - spans), spans) + np.arange(spans.sum())
    known = np.repeat(table[:, 1:], spans, axis=0)
    block = corners[rows]
    negative = block < -1
    # Below the first entry it stays negative, and is reported as out of range; -1 alone would mean "absent".
    resolved = block + 1 + known
    corners[rows] = np.where(negative, np.where(resolved < 0, -(10**12), resolved), block)
