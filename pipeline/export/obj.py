"""Writes the finished asset as Wavefront OBJ: geometry, a material, and the texture as PNG or JPEG.

Numbers have enough digits to round-trip exactly. v starts at the bottom in this format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.core.errors import ExportError
from pipeline.export.gltf import BASE_COLOUR, encode_image
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normals import corner_normals

_ENDING = {"png": ".png", "jpeg": ".jpg"}


def texture_name(stem: str, image_format: str) -> str:
    """Returns the file name of the base colour beside ``stem``.obj or .ply.

    Raises ExportError for an unknown image format.
    """
    if image_format not in _ENDING:
        known = ", ".join(sorted(_ENDING))
        raise ExportError(f"image_format {image_format!r} is unknown; allowed: {known}")
    return f"{stem}_{BASE_COLOUR}{_ENDING[image_format]}"


def obj_files(
    stem: str,
    uvmesh: UVMesh,
    maps: Mapping[str, NDArray[np.uint8]],
    *,
    name: str,
    crease_angle: float = math.radians(60),
    image_format: str = "png",
) -> dict[str, bytes]:
    """Returns the asset's files by name: the texture, ``stem``.mtl that refers to it, and ``stem``.obj.

    Other arguments as for ``write_glb``. The same arguments give the same bytes. Raises ExportError for a stem with
    blanks, which the format does not support, and for an unknown image format.
    """
    if any(c.isspace() for c in stem):
        raise ExportError(
            f"{stem}.obj: the name of an OBJ file must not contain blanks, because it could not refer to its material"
        )
    material, texture = stem + ".mtl", texture_name(stem, image_format)
    title = "_".join((name or "asset").split())
    text = "\n".join(_lines(uvmesh, title, material, crease_angle)) + "\n"
    return {
        texture: encode_image(maps[BASE_COLOUR], image_format),
        material: _material(texture).encode(),
        stem + ".obj": text.encode(),
    }


def _material(texture: str) -> str:
    """Returns a matt material with the texture as its colour, like the GLB's."""
    lines = ["newmtl baked", "Ka 1 1 1", "Kd 1 1 1", "Ks 0 0 0", "Ns 1", "d 1", "illum 1", f"map_Kd {texture}"]
    return "\n".join([f"# latentkiln {__version__}", *lines]) + "\n"


def _lines(uvmesh: UVMesh, title: str, material: str, crease_angle: float) -> Iterable[str]:
    mesh = uvmesh.mesh
    normals, normal_faces = corner_normals(mesh, crease_angle)
    yield from (f"# latentkiln {__version__}", f"mtllib {material}", f"o {title}")
    yield from (f"v {x!r} {y!r} {z!r}" for x, y, z in (mesh.vertices + 0.0).tolist())
    # In double precision 1 - (1 - v) is exactly v.
    yield from (f"vt {u!r} {1 - v!r}" for u, v in uvmesh.uv.astype(np.float64).tolist())
    yield from (f"vn {x} {y} {z}" for x, y, z in normals.astype("U16"))
    yield "usemtl baked"
    corners = np.stack([mesh.faces, uvmesh.uv_faces, normal_faces], axis=2).reshape(-1, 9) + 1
    yield from ("f {}/{}/{} {}/{}/{} {}/{}/{}".format(*face) for face in corners.tolist())
