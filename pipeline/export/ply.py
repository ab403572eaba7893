"""Writes the finished asset as binary PLY, with vertex colours or with texture coordinates and an image.

Vertex colours sample the texture at the vertices, so they suit dense meshes. With a texture, vertices are split at
seams and creases, and a comment refers to the image, as MeshLab reads it. v starts at the bottom in this format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.export.gltf import BASE_COLOUR, encode_image, split_corners
from pipeline.export.obj import texture_name
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normals import smooth_normals
from pipeline.raster.bilinear import sample_bilinear

_NAMES = {"<f4": "float", "<f8": "double", "u1": "uchar"}


def ply_files(
    stem: str,
    uvmesh: UVMesh,
    maps: Mapping[str, NDArray[np.uint8]],
    *,
    texture: bool = False,
    crease_angle: float = math.radians(60),
    image_format: str = "png",
) -> dict[str, bytes]:
    """Returns the asset's files by name: ``stem``.ply, and with ``texture`` the image before it.

    Other arguments as for ``write_glb``. Positions are float if that is exact, else double. The same arguments give
    the same bytes.
    """
    image = maps[BASE_COLOUR]
    columns: list[tuple[str, NDArray[np.float64 | np.float32 | np.uint8]]]
    if not texture:
        columns = [("xyz", uvmesh.mesh.vertices), ("normal", _vertex_normals(uvmesh))]
        columns.append(("colour", vertex_colours(uvmesh, image)))
        return {stem + ".ply": _encode(columns, uvmesh.mesh.faces, [])}
    name = texture_name(stem, image_format)
    corners = split_corners(uvmesh, crease_angle)
    # In double precision 1 - (1 - v) is exactly v.
    uv = corners.uv.astype(np.float64)
    uv[:, 1] = 1 - uv[:, 1]
    columns = [("xyz", uvmesh.mesh.vertices[corners.position]), ("normal", corners.normal), ("uv", uv)]
    return {
        name: encode_image(image, image_format),
        stem + ".ply": _encode(columns, corners.faces, [f"TextureFile {name}"]),
    }


def vertex_colours(uvmesh: UVMesh, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(V, 3) uint8: the mean colour of ``image`` (S, S, 3) at each vertex's texture coordinates."""
    pairs = np.stack([uvmesh.mesh.faces.ravel(), uvmesh.uv_faces.ravel()], axis=1)
    vertex, coordinate = np.unique(pairs, axis=0).T
    colour = sample_bilinear(image, uvmesh.uv.astype(np.float64)[coordinate])
    count = len(uvmesh.mesh.vertices)
    total = np.stack([np.bincount(vertex, colour[:, c], count) for c in range(3)], axis=1)
    mean = total / np.maximum(np.bincount(vertex, minlength=count), 1)[:, None]
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8)


def _vertex_normals(uvmesh: UVMesh) -> NDArray[np.float32]:
    """(V, 3) one smooth normal per vertex."""
    normals, normal_faces = smooth_normals(uvmesh.mesh.vertices, uvmesh.mesh.faces, math.pi)
    result = np.zeros((len(uvmesh.mesh.vertices), 3), np.float32)
    # Assign in reverse, so the first face's normal wins at a vertex with several.
    result[uvmesh.mesh.faces.ravel()[::-1]] = normals[normal_faces.ravel()[::-1]]
    return result


_PROPERTIES = {
    "xyz": ("x", "y", "z"),
    "normal": ("nx", "ny", "nz"),
    "uv": ("s", "t"),
    "colour": ("red", "green", "blue"),
}


def _encode(
    columns: list[tuple[str, NDArray[np.float64 | np.float32 | np.uint8]]],
    faces: NDArray[np.int64],
    comments: list[str],
) -> bytes:
    fields: list[tuple[str, str]] = []
    for kind, values in columns:
        stored = "u1" if values.dtype == np.uint8 else "<f4"
        if values.dtype == np.float64 and not (values.astype(np.float32) == values).all():
            stored = "<f8"
        fields += [(name, stored) for name in _PROPERTIES[kind]]
    table = np.zeros(len(columns[0][1]), np.dtype(fields))
    for kind, values in columns:
        for axis, name in enumerate(_PROPERTIES[kind]):
            table[name] = values[:, axis] + (0 if values.dtype == np.uint8 else 0.0)
    rows = np.zeros(len(faces), np.dtype([("count", "u1"), ("corners", "<i4", (3,))]))
    rows["count"], rows["corners"] = 3, faces
    header = ["ply", "format binary_little_endian 1.0", f"comment latentkiln {__version__}"]
    header += [f"comment {comment}" for comment in comments]
    header += [f"element vertex {len(table)}", *(f"property {_NAMES[stored]} {name}" for name, stored in fields)]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    return "\n".join(header).encode() + b"\n" + table.tobytes() + rows.tobytes()
