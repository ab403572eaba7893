"""OFF text files, with the optional normals (N), colours (C) and texture coordinates (ST) in their vertices.

Most writers put each vertex and face on a line of its own, possibly followed by colours. Others write a stream of
numbers with arbitrary line breaks; files whose lines do not match are read that way.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.mesh.readers.polygons import triangulate
from pipeline.mesh.readers.raw import RawMesh, first_columns, number_lines, parse_integers, parse_numbers, plain_text

# The counts may follow without a blank, as in many files of ModelNet.
_KEYWORD = re.compile(rb"^(ST)?(C)?(N)?(4)?(n)?OFF(?=\s|\d|$)")
_BINARY = re.compile(rb"\S*OFF\s+BINARY")

# Numbers of each vertex (V, at least 3), corners of all faces (C,), and corner counts (F,).
_Numbers = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def read_off(data: bytes, name: str, max_faces: int) -> RawMesh:
    """Reads an OFF from its bytes. Raises MeshError."""
    if _BINARY.match(data):
        raise MeshError(f"{name}: binary OFF files are not supported; save it as text")
    lines = [line.split(b"#", 1)[0].strip() for line in plain_text(data, name).splitlines()]
    lines = [line for line in lines if line]
    keyword = _KEYWORD.match(lines[0]) if lines else None
    if keyword is None:
        raise MeshError(f"{name}: it does not begin with OFF: empty or not an OFF file")
    textured, coloured, with_normals, four, many = keyword.groups()
    if four or many:
        raise MeshError(f"{name}: OFF files of other than three dimensions are not supported")
    trailing = lines[0][keyword.end() :].strip()
    lines = ([trailing] if trailing else []) + lines[1:]
    extra = (3 if with_normals else 0) + (2 if textured else 0)
    # A colour has three or four numbers.
    widths = [3 + extra + colour for colour in ((4, 3) if coloured else (0,))]
    try:
        table, picked, sizes = _by_lines(lines, name, max_faces)
    except MeshError:
        streamed = _as_stream(b" ".join(lines), widths, max_faces)
        if streamed is None:
            raise
        table, picked, sizes = streamed
    if len(sizes) == 0:
        return RawMesh(table[:, :3], np.empty((0, 3), np.int64))
    if not (np.isfinite(picked).all() and (picked == np.floor(picked)).all()):
        raise MeshError(f"{name}: a face holds something that is not an index")
    corners = np.clip(picked, -1, 2**53).astype(np.int64)
    triangles, notes = triangulate(table[:, :3], corners, sizes, name=name, max_faces=max_faces)
    mesh = RawMesh(table[:, :3], corners[triangles], warnings=notes)
    columns = table.shape[1]
    if with_normals and columns >= 6:
        mesh.normals, mesh.normal_faces = table[:, 3:6], mesh.faces
    if textured and columns >= 3 + extra:
        mesh.uv = np.stack([table[:, columns - 2], 1.0 - table[:, columns - 1]], axis=1)
        mesh.uv_faces = mesh.faces
    return mesh


def _by_lines(lines: list[bytes], name: str, max_faces: int) -> _Numbers:
    """Reads a file with a line for each vertex and face. Raises MeshError for other files."""
    sizes = parse_integers(lines[0]) if lines else np.empty(0, np.int64)
    if len(sizes) < 2 or sizes[0] < 0 or sizes[1] < 0:
        raise MeshError(f"{name}: the counts of vertices and faces are missing")
    vertices, polygons = int(sizes[0]), int(sizes[1])
    if len(lines) - 1 < vertices + polygons:
        raise MeshError(
            f"{name}: it claims {vertices} vertices and {polygons} faces, but has only {len(lines) - 1} "
            "lines for them: truncated"
        )
    if vertices == 0:
        raise MeshError(f"{name}: it has no vertices")
    if polygons > max_faces:
        raise MeshError(f"{name}: {polygons} faces are more than max_faces = {max_faces}")
    values, counts = number_lines(lines[1 : 1 + vertices], columns=3, label="vertex", name=name)
    table = first_columns(values, counts, int(counts.min()))
    if polygons == 0:
        return table, np.empty(0), np.empty(0, np.int64)
    # Colours may follow the indices, as integers or not.
    values, counts = number_lines(lines[1 + vertices : 1 + vertices + polygons], columns=1, label="face", name=name)
    starts = np.cumsum(counts) - counts
    corners_of = values[starts]
    fits = (corners_of >= 0) & (corners_of < counts)
    if not fits.all():
        raise MeshError(f"{name}: face {int(np.argmin(fits)) + 1} has fewer indices than it claims")
    sizes = corners_of.astype(np.int64)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return table, values[np.repeat(starts + 1, sizes) + within], sizes


def _as_stream(text: bytes, widths: list[int], max_faces: int) -> _Numbers | None:
    """Reads a file with arbitrary line breaks. Returns None if the counts do not match.

    ``widths``: the possible numbers of values per vertex.
    """
    values = parse_numbers(text)
    for counted in (3, 2):  # the number of edges may be missing
        head = values[:counted]
        if len(head) < counted or not (np.isfinite(head).all() and (head >= 0).all()):
            continue
        vertices, polygons = int(head[0]), int(head[1])
        for width in widths:
            start = counted + vertices * width
            if not 0 < vertices * width <= len(values) - counted or not 0 < polygons <= max_faces:
                continue
            if (faces := _faces_of(values[start:], polygons)) is not None:
                return values[counted:start].reshape(vertices, width), *faces
    return None


def _faces_of(values: NDArray[np.float64], polygons: int) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Parses a stream of faces. Returns (corners, corners of each face); None if it does not end with the last face.

    If the counts are wrong, the numbers may fit by chance. Then some faces have fewer than three corners.
    """
    ends = [0]
    while len(ends) <= polygons:
        if ends[-1] >= len(values):
            return None
        size = values[ends[-1]]
        if not 3 <= size < len(values) - ends[-1] or size != int(size):
            return None
        ends.append(ends[-1] + 1 + int(size))
    if ends[-1] != len(values):
        return None
    sizes = np.array([b - a - 1 for a, b in pairwise(ends)], np.int64)
    return np.delete(values, ends[:-1]), sizes
