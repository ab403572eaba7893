"""Writes the finished asset as one GLB file (glTF 2.0): the input's geometry, our texture, and provenance.

* Positions are in the input's coordinates and units, stored as float32. If that would lose more than a
  millionth of the mesh's size (as in georeferenced scans), they are stored relative to the centre of the bounding
  box, and the node's translation is that centre.
* A vertex is a distinct combination of position, texture coordinate and normal. Faces keep their order and
  count, also degenerate ones, so face i of the asset is face i of the (triangulated) input.
* The same arguments give the same bytes: nothing depends on clock, machine or path.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pygltflib
from numpy.typing import NDArray
from PIL import Image

from pipeline import __version__
from pipeline.core.atomic import write_bytes
from pipeline.core.errors import ExportError
from pipeline.core.json_types import Json
from pipeline.mesh.mesh import UVMesh, unique_rows
from pipeline.mesh.normals import corner_normals, is_closed
from pipeline.mesh.tangents import corner_tangents

BASE_COLOUR = "base_colour"
"""The name of the sRGB base colour map in ``maps``, which every asset has."""

NORMAL, METALLIC_ROUGHNESS, OCCLUSION, EMISSIVE = "normal", "metallic_roughness", "occlusion", "emissive"
"""Further maps: normals in tangent space with +Y up; occlusion, roughness and metalness in red, green and blue;
occlusion alone, as grey; sRGB light that the surface sends out."""

PROVENANCE_KEY = "latentkiln"
"""The key of our provenance in ``asset.extras``."""

# Largest rounding error of float32 positions, as a share of the mesh's size, without a node translation.
_MAX_POSITION_ERROR = 1e-6
# Index 65,535 is the primitive restart value of 16-bit indices.
_SHORT_INDICES = 65_535
_JPEG_QUALITY = 95
_TRANSFORM = "KHR_texture_transform"
_MIME = {"png": "image/png", "jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Corners:
    """Vertices for a renderer, one per distinct corner. U vertices, F faces."""

    position: NDArray[np.int64]  # (U,) index into the mesh's positions
    uv: NDArray[np.float32]  # (U, 2) top-left origin
    normal: NDArray[np.float32]  # (U, 3) unit
    faces: NDArray[np.int64]  # (F, 3) into the above; the three of a face always differ
    tangent: NDArray[np.float32] | None = None  # (U, 4) MikkTSpace, where asked for


@dataclass(frozen=True)
class MaterialFactors:
    """What the material is where no map says it: metallic and roughness in [0, 1]. occlusion_strength: how much of the
    measured occlusion darkens, in [0, 1]."""

    metallic: float = 0.0
    roughness: float = 1.0
    occlusion_strength: float = 1.0


MATT = MaterialFactors()
"""What a base colour alone is shown with."""


class _Document(pygltflib.GLTF2):  # type: ignore[misc]
    """A GLTF2 that writes extras and a sampler name unchanged.

    pygltflib drops all empty values of the document. That is right for glTF's own properties but would drop an empty
    negative prompt from the provenance. Its samplers also have no names.
    """

    asset_extras: Json
    sampler_name: str

    def to_json(self, **options: object) -> str:
        data = json.loads(super().to_json(**options))
        data["asset"]["extras"] = self.asset_extras
        data["samplers"][0]["name"] = self.sampler_name
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_glb(
    path: Path,
    uvmesh: UVMesh,
    maps: Mapping[str, NDArray[np.uint8]],
    *,
    name: str,
    provenance: Json,
    crease_angle: float = math.radians(60),
    image_format: str = "png",
    tiling: tuple[float, float] | None = None,
    factors: MaterialFactors = MATT,
    encoded: Mapping[str, bytes] | None = None,
) -> None:
    """Writes ``uvmesh`` with its textures to ``path``, atomically.

    ``maps`` holds ``BASE_COLOUR``: ``(H, W, 3)`` uint8 sRGB, row 0 at v = 0, and any of the further maps, which are
    always PNG. With ``NORMAL`` the file has tangents. ``OCCLUSION`` beside ``METALLIC_ROUGHNESS`` is the red channel of
    the latter. ``provenance`` (JSON values only) goes to ``asset.extras["latentkiln"]``. ``crease_angle`` (radians)
    applies where the input has no normals. Raises ExportError for coordinates out of float32's range and for an unknown
    image format.
    ``encoded``: files of the maps by name, as ``encode_maps`` returns them; None: they are encoded here.
    ``tiling``: how often all maps repeat along u and v of the unit square (KHR_texture_transform); None: once, clamped
    at the borders.
    """
    if image_format not in _MIME:
        known = ", ".join(sorted(_MIME))
        raise ExportError(f"image_format {image_format!r} is unknown; allowed: {known}")
    corners = split_corners(uvmesh, crease_angle, tangents=NORMAL in maps)
    positions, translation = _positions(uvmesh.mesh.vertices, corners.position, path)
    title = name or "asset"

    document, binary = _Document(), _Binary()
    document.asset_extras = {PROVENANCE_KEY: dict(provenance)}
    document.sampler_name = f"{title} sampler"
    document.asset = pygltflib.Asset(generator=f"latentkiln {__version__}")
    attributes = pygltflib.Attributes(
        POSITION=binary.vertices(f"{title} positions", positions, bounds=True),
        NORMAL=binary.vertices(f"{title} normals", corners.normal),
        TEXCOORD_0=binary.vertices(f"{title} texture coordinates", corners.uv, bounds=True),
    )
    if corners.tangent is not None:
        attributes.TANGENT = binary.vertices(f"{title} tangents", corners.tangent)
    indices = binary.indices(f"{title} indices", corners.faces, len(positions))
    texture_of = _add_images(document, binary, encoded or encode_maps(maps, image_format), title, image_format)
    # Charts lie inside [0, 1], so filtering must not wrap around to the opposite border.
    document.samplers = [
        pygltflib.Sampler(
            magFilter=pygltflib.LINEAR,
            minFilter=pygltflib.LINEAR_MIPMAP_LINEAR,
            wrapS=pygltflib.CLAMP_TO_EDGE,
            wrapT=pygltflib.CLAMP_TO_EDGE,
        )
    ]
    document.materials = [_material(title, texture_of, factors, double_sided=not is_closed(uvmesh.mesh))]
    if tiling is not None:
        _repeat(document, tiling)
    primitive = pygltflib.Primitive(attributes=attributes, indices=indices, material=0)
    document.meshes = [pygltflib.Mesh(primitives=[primitive], name=title)]
    document.nodes = [pygltflib.Node(mesh=0, name=title, translation=translation)]
    document.scenes = [pygltflib.Scene(nodes=[0], name=title)]
    document.scene = 0
    document.accessors, document.bufferViews = binary.accessors, binary.views
    document.buffers = [pygltflib.Buffer(byteLength=len(binary.data))]
    document.set_binary_blob(bytes(binary.data))
    write_bytes(path, b"".join(document.save_to_bytes()))


def _repeat(document: _Document, tiling: tuple[float, float]) -> None:
    """Makes every texture of the materials repeat ``tiling`` times along u and v."""
    for sampler in document.samplers:
        sampler.wrapS = sampler.wrapT = pygltflib.REPEAT
    for material in document.materials:
        pbr = material.pbrMetallicRoughness
        textures = [pbr.baseColorTexture, pbr.metallicRoughnessTexture]
        textures += [material.normalTexture, material.occlusionTexture, material.emissiveTexture]
        for texture in textures:
            if texture is not None:
                texture.extensions = {**(texture.extensions or {}), _TRANSFORM: {"scale": list(map(float, tiling))}}
    document.extensionsUsed = sorted({*(document.extensionsUsed or ()), _TRANSFORM})


def encode_maps(maps: Mapping[str, NDArray[np.uint8]], image_format: str) -> dict[str, bytes]:
    """The maps' files by name: the base colour in ``image_format``, the others as PNG.

    What JPEG does to colours it must not do to numbers.
    """
    return {
        name: encode_image(image, image_format) if name == BASE_COLOUR else encode_data(image)
        for name, image in maps.items()
    }


def _add_images(
    document: _Document, binary: _Binary, encoded: Mapping[str, bytes], title: str, image_format: str
) -> dict[str, int]:
    """Adds an image and a texture for each map that is stored. Returns the textures' indices by map."""
    document.images, document.textures = [], []
    texture_of: dict[str, int] = {}
    for name in (BASE_COLOUR, NORMAL, METALLIC_ROUGHNESS, OCCLUSION, EMISSIVE):
        if name not in encoded:
            continue
        if name == OCCLUSION and METALLIC_ROUGHNESS in encoded:
            texture_of[name] = texture_of[METALLIC_ROUGHNESS]
            continue
        label = f"{title} {name.replace('_', ' ')}"
        view = binary.view(label, encoded[name])
        mime = _MIME[image_format if name == BASE_COLOUR else "png"]
        document.images.append(pygltflib.Image(bufferView=view, mimeType=mime, name=label))
        texture_of[name] = len(document.textures)
        document.textures.append(pygltflib.Texture(sampler=0, source=len(document.images) - 1, name=label))
    return texture_of


def _material(
    title: str, texture_of: Mapping[str, int], factors: MaterialFactors, *, double_sided: bool
) -> pygltflib.Material:
    """The material that shows the textures."""
    surface = pygltflib.PbrMetallicRoughness(
        baseColorTexture=pygltflib.TextureInfo(index=texture_of[BASE_COLOUR]),
        metallicFactor=factors.metallic,
        roughnessFactor=factors.roughness,
    )
    material = pygltflib.Material(name=f"{title} material", pbrMetallicRoughness=surface, doubleSided=double_sided)
    if METALLIC_ROUGHNESS in texture_of:
        surface.metallicRoughnessTexture = pygltflib.TextureInfo(index=texture_of[METALLIC_ROUGHNESS])
        surface.metallicFactor = surface.roughnessFactor = 1.0
    if NORMAL in texture_of:
        material.normalTexture = pygltflib.NormalMaterialTexture(index=texture_of[NORMAL])
    if OCCLUSION in texture_of:
        material.occlusionTexture = pygltflib.OcclusionTextureInfo(
            index=texture_of[OCCLUSION], strength=factors.occlusion_strength
        )
    if EMISSIVE in texture_of:
        material.emissiveTexture = pygltflib.TextureInfo(index=texture_of[EMISSIVE])
        material.emissiveFactor = [1.0, 1.0, 1.0]
    return material


def split_corners(uvmesh: UVMesh, crease_angle: float, *, tangents: bool = False) -> Corners:
    """One vertex per distinct (position, texture coordinate, normal), in the order of the positions.

    With ``tangents`` also per distinct tangent: where the texture is mirrored, both sides keep their own.
    """
    faces = uvmesh.mesh.faces
    normals, normal_faces = corner_normals(uvmesh.mesh, crease_angle)
    uv = uvmesh.uv.astype(np.float32) + np.float32(0)
    first_uv, uv_of = unique_rows(uv)
    first_normal, normal_of = unique_rows(normals)
    uv, normals = uv[first_uv], normals[first_normal]
    uv_faces, normal_faces = uv_of[uvmesh.uv_faces], normal_of[normal_faces]
    surface = uv_faces.reshape(-1) * len(normals) + normal_faces.reshape(-1)
    tangent: NDArray[np.float32] | None = None
    if tangents:
        every = corner_tangents(uvmesh.mesh.vertices, faces, normals, normal_faces, uv, uv_faces).reshape(-1, 4)
        first_tangent, tangent_of = unique_rows(every)
        tangent = every[first_tangent]
        # Densely numbered first, so that the product below stays small.
        pairs, surface_of = np.unique(surface, return_inverse=True)
        triples, triple_of = np.unique(surface_of.reshape(-1) * len(tangent) + tangent_of, return_inverse=True)
        pair, tangent_index = np.divmod(triples, len(tangent))
        surface, surface_of = pairs[pair], triple_of
    else:
        surface, surface_of = np.unique(surface, return_inverse=True)
    key = faces.reshape(-1) * len(surface) + surface_of.reshape(-1)
    key, vertex = np.unique(key, return_inverse=True)
    key, vertex = _separate(key, vertex.reshape(-1, 3).astype(np.int64))
    position, surface_index = np.divmod(key, len(surface))
    uv_index, normal_index = np.divmod(surface[surface_index], len(normals))
    if tangent is not None:
        tangent = tangent[tangent_index[surface_index]]
    return Corners(position, uv[uv_index], normals[normal_index], vertex, tangent)


def _separate(key: NDArray[np.int64], vertex: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Duplicates vertices so that the three corners of a degenerate face differ."""
    second = vertex[:, 1] == vertex[:, 0]
    third = (vertex[:, 2] == vertex[:, 0]) | (vertex[:, 2] == vertex[:, 1])
    if not (second.any() or third.any()):
        return key, vertex
    vertex = vertex.copy()
    for column, repeated in ((1, second), (2, third)):
        fresh = len(key) + np.arange(int(repeated.sum()))
        key = np.concatenate([key, key[vertex[repeated, column]]])
        vertex[repeated, column] = fresh
    return key, vertex


def _positions(
    vertices: NDArray[np.float64], used: NDArray[np.int64], path: Path
) -> tuple[NDArray[np.float32], list[float] | None]:
    """Returns positions ``(U, 3)`` to store, and the node's translation, or None if none is needed."""
    limit = float(np.finfo(np.float32).max)
    if not (np.abs(vertices) <= limit).all():
        raise ExportError(f"{path}: a coordinate of the mesh is beyond {limit:.3g}; scale the mesh down")
    stored = vertices.astype(np.float32)
    size = float(np.ptp(vertices, axis=0).max())
    if float(np.abs(stored - vertices).max()) <= _MAX_POSITION_ERROR * size:
        return stored[used] + np.float32(0), None
    # Round the centre to float32, so that readers in single and in double precision agree.
    centre = ((vertices.min(axis=0) + vertices.max(axis=0)) / 2).astype(np.float32).astype(np.float64)
    return (vertices - centre).astype(np.float32)[used] + np.float32(0), centre.tolist()


def encode_image(pixels: NDArray[np.uint8], image_format: str) -> bytes:
    """Encodes ``(H, W, 3)`` uint8 as PNG or JPEG, without a time stamp or colour profile (glTF forbids one)."""
    image, stream = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if image_format == "jpeg":
        # Full-resolution chroma: charts of different colours lie side by side.
        image.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        image.save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def encode_data(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Encodes a map of numbers, ``(H, W, 3)`` uint8 or ``(H, W)`` uint16, as PNG; three times as fast as a colour, and
    a fifth larger."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=3)
    return stream.getvalue()


def green_down(normals: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A normal map ``(H, W, 3)`` of +Y up as one of +Y down, as DirectX has it."""
    flipped = normals.copy()
    flipped[..., 1] = np.minimum(256 - normals[..., 1].astype(np.int16), 255)
    return flipped


class _Binary:
    """The GLB's only buffer, with its views and accessors. Each view starts at a multiple of four bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[pygltflib.BufferView] = []
        self.accessors: list[pygltflib.Accessor] = []

    def view(self, name: str, data: bytes, target: int | None = None) -> int:
        """Appends ``data``. Returns the view's index."""
        self.data.extend(bytes(-len(self.data) % 4))
        self.views.append(
            pygltflib.BufferView(buffer=0, byteOffset=len(self.data), byteLength=len(data), target=target, name=name)
        )
        self.data.extend(data)
        return len(self.views) - 1

    def vertices(self, name: str, values: NDArray[np.float32], *, bounds: bool = False) -> int:
        """Appends a vertex attribute ``(U, 2, 3 or 4)``. Returns the accessor's index."""
        view = self.view(name, np.ascontiguousarray(values, "<f4").tobytes(), pygltflib.ARRAY_BUFFER)
        accessor = pygltflib.Accessor(
            bufferView=view,
            componentType=pygltflib.FLOAT,
            count=len(values),
            type=f"VEC{values.shape[1]}",
            name=name,
        )
        if bounds:
            accessor.min, accessor.max = values.min(axis=0).tolist(), values.max(axis=0).tolist()
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def indices(self, name: str, faces: NDArray[np.int64], vertices: int) -> int:
        """Appends triangle indices, 16-bit if they fit. Returns the accessor's index."""
        short = vertices <= _SHORT_INDICES
        data = np.ascontiguousarray(faces.reshape(-1), "<u2" if short else "<u4").tobytes()
        accessor = pygltflib.Accessor(
            bufferView=self.view(name, data, pygltflib.ELEMENT_ARRAY_BUFFER),
            componentType=pygltflib.UNSIGNED_SHORT if short else pygltflib.UNSIGNED_INT,
            count=faces.size,
            type=pygltflib.SCALAR,
            min=[int(faces.min())],
            max=[int(faces.max())],
            name=name,
        )
        self.accessors.append(accessor)
        return len(self.accessors) - 1
