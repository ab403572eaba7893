"""The artist's own look of a surface, baked into an atlas: base colour, its factor, vertex colours and transparency.

S is the atlas's side, F faces.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.arrays import Float32Array
from pipeline.core.errors import MeshError
from pipeline.document.kept import GltfDocument, image_bytes
from pipeline.document.surface import DocumentSurface
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.readers.gltf_buffers import normalised
from pipeline.mesh.readers.gltf_file import Object
from pipeline.raster.rasterise import rasterise_uv

# Texels around charts that get the look of the nearest face.
_MARGIN = 4.0
# Larger pictures are not decoded: their factor alone is shown.
_MOST_PIXELS = 1 << 26
_REPEAT, _MIRROR = 10497, 33648


def own_look(
    document: GltfDocument, surface: DocumentSurface, uvmesh: UVMesh, size: int, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """((S, S, 4) sRGB and alpha, (S, S) texels that have a look) of the ``chosen`` (F,) faces in their own materials.

    ``uvmesh`` lays the surface out. A picture that cannot be decoded counts as white.
    """
    faces = np.flatnonzero(chosen)
    face, bary = rasterise_uv(uvmesh.uv, uvmesh.uv_faces[faces], size, size, conservative=_MARGIN)
    mask = face >= 0
    image = np.zeros((size, size, 4), np.uint8)
    image[..., 3] = 255
    of_texel, weights = faces[face[mask]], bary[mask]
    texels = np.ones((len(of_texel), 4), np.float32)
    numbers = np.array([_material_number(surface, n) for n in range(len(surface.placed))], np.int64)
    material_of = numbers[surface.placement[of_texel]]
    for number in np.unique(material_of):
        rows = material_of == number
        material = document.json["materials"][number] if number >= 0 else {}
        texels[rows] = _look(document, surface, material, of_texel[rows], weights[rows])
    texels *= _vertex_colours(surface, of_texel, weights)
    rgb = np.clip(texels[:, :3], 0, 1)
    srgb = np.where(rgb <= 0.0031308, rgb * 12.92, 1.055 * np.maximum(rgb, 1e-9) ** (1 / 2.4) - 0.055)
    image[mask] = np.rint(np.concatenate([srgb, np.clip(texels[:, 3:], 0, 1)], axis=1) * 255).astype(np.uint8)
    return image, mask


def _material_number(surface: DocumentSurface, placement: int) -> int:
    material = surface.source(placement).material
    return -1 if material is None else material


def _look(
    document: GltfDocument, surface: DocumentSurface, material: Object, faces: NDArray[np.int64], bary: Float32Array
) -> Float32Array:
    """(M, 4) linear colour and alpha of a material at points of faces."""
    pbr = material.get("pbrMetallicRoughness") or {}
    factor = np.array(pbr.get("baseColorFactor") or (1, 1, 1, 1), np.float32)
    result = np.tile(factor[:4], (len(faces), 1))
    texture = pbr.get("baseColorTexture") or {}
    picture, sampler = _picture(document, texture.get("index"))
    mesh = surface.mesh
    if picture is None or mesh.uv is None or mesh.uv_faces is None:
        return result
    has_uv = (mesh.uv_faces[faces] >= 0).all(axis=1)
    uv = np.einsum("mk,mkc->mc", bary, mesh.uv[np.maximum(mesh.uv_faces[faces], 0)])
    shown = _sampled(picture, uv, sampler)
    result[has_uv] *= shown[has_uv]
    return result


def _picture(document: GltfDocument, texture: object) -> tuple[NDArray[np.uint8] | None, Object]:
    """((H, W, 4) bytes of a texture's picture, its sampler); None if it cannot be decoded."""
    textures = document.json.get("textures") or []
    if not isinstance(texture, int) or not 0 <= texture < len(textures):
        return None, {}
    entry = textures[texture]
    source, extension = entry.get("source"), (entry.get("extensions") or {}).get("EXT_texture_webp") or {}
    samplers, number = document.json.get("samplers") or [], entry.get("sampler")
    sampler = samplers[number] if isinstance(number, int) and 0 <= number < len(samplers) else {}
    try:
        data = image_bytes(document, extension.get("source", source))
        if data is None:
            return None, sampler
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                return None, sampler
            return np.array(opened.convert("RGBA")), sampler
    except (MeshError, OSError, ValueError, SyntaxError):
        return None, sampler


def _sampled(picture: NDArray[np.uint8], uv: NDArray[np.floating], sampler: Object) -> Float32Array:
    """(M, 4) linear colours and alpha at ``uv`` (M, 2), bilinear."""
    height, width = picture.shape[:2]
    corners = []
    for axis, (size, key) in enumerate(((width, "wrapS"), (height, "wrapT"))):
        at = np.nan_to_num(uv[:, axis].astype(np.float64)) * size - 0.5
        low = np.floor(at)
        mode = sampler.get(key, _REPEAT)
        corners.append((_wrapped(low, size, mode), _wrapped(low + 1, size, mode), (at - low)[:, None]))
    (left, right, fx), (top, bottom, fy) = corners
    upper = _linear(picture[top, left]) * (1 - fx) + _linear(picture[top, right]) * fx
    lower = _linear(picture[bottom, left]) * (1 - fx) + _linear(picture[bottom, right]) * fx
    return np.asarray(upper * (1 - fy) + lower * fy, np.float32)


def _wrapped(index: NDArray[np.float64], size: int, mode: object) -> NDArray[np.int64]:
    if mode == _REPEAT:
        return np.mod(index, size).astype(np.int64)
    if mode == _MIRROR:
        folded = np.mod(index, 2 * size)
        mirrored: NDArray[np.int64] = np.minimum(folded, 2 * size - 1 - folded).astype(np.int64)
        return mirrored
    return np.clip(index, 0, size - 1).astype(np.int64)


def _linear(picture: NDArray[np.uint8]) -> Float32Array:
    values = picture.astype(np.float32) / 255
    rgb = values[..., :3]
    values[..., :3] = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(values, np.float32)


def _vertex_colours(surface: DocumentSurface, faces: NDArray[np.int64], bary: Float32Array) -> Float32Array:
    """(M, 4) vertex colours at points of faces; 1 where a primitive has none."""
    result = np.ones((len(faces), 4), np.float32)
    keys, placements = surface.keys(), surface.placement[faces]
    coloured = [n for n, each in enumerate(surface.placed) if each.attributes.accessors.get("COLOR_0") is not None]
    for number in np.intersect1d(placements, coloured).astype(int).tolist():
        try:
            values = surface.stored(keys[number], "COLOR_0")
        except MeshError:
            continue
        if values.dtype.kind != "f":
            values = normalised(values)
        chosen = placements == number
        rows = surface.table_rows(keys[number])[surface.own_face[faces[chosen]]]
        rows = np.where(surface.flipped[faces[chosen], None], rows[:, ::-1], rows)
        shown = np.einsum("mk,mkc->mc", bary[chosen], values[rows].astype(np.float32))
        result[chosen, : shown.shape[1]] = shown
    return result
