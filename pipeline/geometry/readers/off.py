"""OFF text files, with the optional normals (N), colours (C) and texture coordinates (ST) in their vertices."""

from __future__ import annotations

import re

import numpy as np

from pipeline.core.errors import MeshError
from pipeline.geometry.readers.raw import (
    RawMesh,
    first_columns,
    number_lines,
    parse_numbers,
    plain_text,
    triangulate,
)

_KEYWORD = re.compile(rb"^(ST)?(C)?(N)?(4)?(n)?OFF(?=\s|$)")
_BINARY = re.compile(rb"\S*OFF\s+BINARY")


def read_off(data: bytes, name: str, max_faces: int) -> RawMesh:
    """Reads an OFF from its bytes. Raises MeshError."""
    if _BINARY.match(data):
        raise MeshError(f"{name}: binary OFF files are not supported; save it as text")
    lines = [line.split(b"#", 1)[0].strip() for line in plain_text(data, name).splitlines()]
    lines = [line for line in lines if line]
    keyword = _KEYWORD.match(lines[0]) if lines else None
    if keyword is None:
        raise MeshError(f"{name}: it does not begin with OFF: empty or not an OFF file")
    textured, _, with_normals, four, many = keyword.groups()
    if four or many:
        raise MeshError(f"{name}: OFF files of other than three dimensions are not supported")
    rest = lines[0][keyword.end() :].strip()
    lines = ([rest] if rest else []) + lines[1:]
    sizes = parse_numbers(lines[0], np.int64) if lines else np.empty(0, np.int64)
    if len(sizes) < 2 or sizes[0] < 0 or sizes[1] < 0:
        raise MeshError(f"{name}: the counts of vertices and faces are missing")
    vertices, polygons = int(sizes[0]), int(sizes[1])
    if len(lines) - 1 < vertices + polygons:
        raise MeshError(
            f"{name}: it promises {vertices} vertices and {polygons} faces, but has only {len(lines) - 1} "
            "lines of them: truncated"
        )
    if vertices == 0:
        raise MeshError(f"{name}: there are no vertices in it")
    values, counts = number_lines(lines[1 : 1 + vertices], columns=3, what="vertex", name=name)
    table = first_columns(values, counts, int(counts.min()))
    if polygons == 0:
        return RawMesh(table[:, :3], np.empty((0, 3), np.int64))
    # Colours may follow the indices, as integers or not.
    values, counts = number_lines(lines[1 + vertices : 1 + vertices + polygons], columns=1, what="face", name=name)
    starts = np.cumsum(counts) - counts
    corners_of = values[starts]
    if not ((corners_of >= 0) & (corners_of < counts)).all():
        at = int(np.argmin((corners_of >= 0) & (corners_of < counts)))
        raise MeshError(f"{name}: face {at + 1} has fewer indices than it promises")
    sizes = corners_of.astype(np.int64)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    picked = values[np.repeat(starts + 1, sizes) + within]
    if not (np.isfinite(picked).all() and (picked == np.floor(picked)).all()):
        raise MeshError(f"{name}: a face holds something that is not an index")
    corners = np.clip(picked, -1, 2**53).astype(np.int64)
    triangles, lacking = triangulate(table[:, :3], corners, sizes, name=name, max_faces=max_faces)
    mesh = RawMesh(table[:, :3], corners[triangles])
    if lacking:
        mesh.warnings.append(f"{lacking} faces with fewer than three corners were dropped")
    width = table.shape[1]
    if with_normals and width >= 6:
        mesh.normals, mesh.normal_faces = table[:, 3:6], mesh.faces
    if textured and width >= 5 and (counts.size and width > 3 + (3 if with_normals else 0)):
        mesh.uv = np.stack([table[:, width - 2], 1.0 - table[:, width - 1]], axis=1)
        mesh.uv_faces = mesh.faces
    return mesh
