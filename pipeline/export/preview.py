"""Renders the contact sheet: a finished asset from eight directions in soft light.

The light shows shape and preserves colour: a matt surface that faces the viewer is within a few percent of its
texture's colour. Metals and gloss reflect an environment, and normal maps catch the light. All filtering and shading
is in linear light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Float32Array
from pipeline.core.atomic import write_bytes
from pipeline.export.gltf import (
    BASE_COLOUR,
    EMISSIVE,
    MATT,
    METALLIC_ROUGHNESS,
    NORMAL,
    OCCLUSION,
    MaterialFactors,
    encode_image,
)
from pipeline.export.mip_pyramid import (
    MipPyramid,
    halved,
    linear_to_srgb,
    mip_pyramid,
    sample_pyramid,
    srgb_to_linear,
)
from pipeline.export.shading import Surface, diffuse_light, shade
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normalise import SimilarityTransform
from pipeline.mesh.normals import corner_normals, unit_face_normals
from pipeline.mesh.tangents import corner_tangents
from pipeline.raster.camera import Cameras, directions, orbit
from pipeline.raster.rasterise import interpolate, rasterise

# Elevation and azimuth in degrees: four sides, then corners, above and below.
VIEWS = ((12, 0), (12, 90), (12, 180), (12, 270), (28, 38), (28, 218), (72, 0), (-62, 30))
COLUMNS = 4

_FOV = math.radians(28)
_FILL = 0.88
# Limits how much closer the camera moves in views where the object is small.
_CLOSEST = 0.72
# Supersampling: samples across a pixel, in both directions.
_SAMPLES = 2
_CREASE = math.radians(60)

# Background, sRGB: bright behind the object, darker towards the corners.
_BACK_CENTRE, _BACK_CORNER = 0.66, 0.47


@dataclass(frozen=True)
class Look:
    """The material of a preview beside its base colour: further ``maps``, as for ``write_glb``, and its factors."""

    maps: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    factors: MaterialFactors = MATT

    @property
    def matt(self) -> bool:
        """Whether nothing but the base colour shows: no map, no metal, no gloss."""
        shown = {NORMAL, METALLIC_ROUGHNESS, OCCLUSION, EMISSIVE} & set(self.maps)
        return not shown and self.factors.metallic == 0 and self.factors.roughness == 1


def preview_png(
    path: Path,
    uvmesh: UVMesh,
    maps: Mapping[str, NDArray[np.uint8]],
    frame: SimilarityTransform,
    *,
    factors: MaterialFactors = MATT,
    views: int = 8,
    size: int = 256,
    crease_angle: float = _CREASE,
) -> None:
    """Writes a contact sheet of the first ``views`` of ``VIEWS``, ``size`` pixels each, four to a row.

    ``maps`` and ``factors`` as for ``write_glb``. ``frame`` transforms the mesh to the working frame (+Y up, front +Z).
    The same arguments give the same bytes.
    """
    look = Look(maps, factors)
    tiles = render_views(uvmesh, maps[BASE_COLOUR], frame, look=look, views=views, size=size, crease_angle=crease_angle)
    write_bytes(path, encode_sheet(tiles, linear_to_srgb(_background(size))))


def encode_sheet(tiles: NDArray[np.uint8], empty: NDArray[np.uint8]) -> bytes:
    """Encodes ``tiles`` (N, H, W, 3) as one PNG, four to a row. Unused cells show ``empty`` (H, W, 3)."""
    count, height, width, _ = tiles.shape
    rows, columns = -(-count // COLUMNS), min(count, COLUMNS)
    cells = np.empty((rows * columns, height, width, 3), np.uint8)
    cells[:count] = tiles
    cells[count:] = empty
    sheet = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(-1, columns * width, 3)
    return encode_image(sheet, "png")


def render_views(
    uvmesh: UVMesh,
    image: NDArray[np.uint8],
    frame: SimilarityTransform,
    *,
    look: Look | None = None,
    views: int = 8,
    size: int = 256,
    crease_angle: float = _CREASE,
    tiling: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Renders the first ``views`` of ``VIEWS``: ``(views, size, size, 3)`` uint8 sRGB. ``tiling`` as ``write_glb``.

    ``image`` is the base colour, ``look`` the rest of the material; None: it is matt.
    """
    look = look or Look()
    vertices = frame.apply(uvmesh.mesh.vertices)
    faces = uvmesh.mesh.faces
    normals, normal_faces = corner_normals(uvmesh.mesh, crease_angle)
    facing = unit_face_normals(vertices, faces)
    across = size * _SAMPLES
    textures = _Textures(image, look, limit=4 * across, repeats=tiling is not None)
    tangents = None
    if NORMAL in look.maps:
        tangents = corner_tangents(uvmesh.mesh.vertices, faces, normals, normal_faces, uvmesh.uv, uvmesh.uv_faces)
        tangents[..., :3] = _turned(tangents[..., :3], frame)
    normals = _turned(normals, frame)
    scale = np.array(tiling or (1, 1), np.float32)
    density = _texel_density(uvmesh, vertices, image.shape[1], image.shape[0]) * scale.prod()

    cameras = sheet_cameras(vertices, views)
    tiles = np.empty((views, size, size, 3), np.uint8)
    background = _background(across)
    for n in range(views):
        camera = cameras[n : n + 1]
        fragments = rasterise(vertices, faces, camera, across, across)
        face, bary = fragments.face[0], fragments.bary[0]
        covered = face >= 0
        visible_faces = face[covered]
        uv = interpolate(face, bary, uvmesh.uv, uvmesh.uv_faces) * scale
        normal = interpolate(face, bary, normals, normal_faces)
        # Light both sides of open surfaces: the asset's material is double-sided.
        towards = np.einsum("fi,fi->f", facing, camera.eye[0] - vertices[faces[:, 0]])
        side = np.where(towards < 0, np.float32(-1), np.float32(1))[visible_faces, None]
        normal = _unit(normal * side)
        to_camera = camera.view[0, :3, :3].T.astype(np.float32)

        pixel = fragments.depth[0][covered] * np.float32(2 * math.tan(_FOV / 2) / across)
        # A slanted surface has more texels per pixel; use the geometric mean of both directions.
        slant = np.maximum((normal @ to_camera)[:, 2], np.float32(0.1))
        level = 0.5 * np.log2(np.maximum(density[visible_faces] * pixel**2 / slant, np.float32(1e-9)))
        colour = background.copy()
        base_colour = textures.sample(BASE_COLOUR, uv, level)
        if look.matt:
            colour[covered] = base_colour * diffuse_light(normal, normal @ to_camera)[:, None]
        else:
            if tangents is not None:
                tangent = interpolate(face, bary, tangents.reshape(-1, 4), _every_corner(len(faces)))
                normal = _bent(normal * side, tangent, textures.sample(NORMAL, uv, level)) * side
            view = _unit((camera.eye[0] - _points(vertices, faces, face, bary)).astype(np.float32)) @ to_camera
            colour[covered] = shade(textures.surface(base_colour, normal, to_camera, view, uv, level))
        tiles[n] = linear_to_srgb(halved(colour))
    return tiles


class _Textures:
    """The maps of a material as mip pyramids, all looked up at the levels of the base colour."""

    def __init__(self, image: NDArray[np.uint8], look: Look, *, limit: int, repeats: bool) -> None:
        self.factors = look.factors
        images = {**look.maps, BASE_COLOUR: image}
        self._pyramids: dict[str, tuple[MipPyramid, float]] = {}
        for name in (BASE_COLOUR, NORMAL, METALLIC_ROUGHNESS, OCCLUSION, EMISSIVE):
            if name in images:
                data = name not in (BASE_COLOUR, EMISSIVE)
                pyramid = mip_pyramid(images[name], limit, repeats=repeats, data=data)
                # How many levels the first one lies above the base colour's full size.
                halvings = math.log2(max(image.shape[0] / pyramid.height[0], 1))
                self._pyramids[name] = (pyramid, halvings)

    def sample(self, name: str, uv: Float32Array, level: Float32Array) -> Float32Array:
        """The map (M, 3) at (M, 2), and levels (M,) counted from the base colour's full size."""
        pyramid, halvings = self._pyramids[name]
        return sample_pyramid(pyramid, uv, level - np.float32(halvings))

    def surface(
        self,
        base_colour: Float32Array,
        normal: Float32Array,
        to_camera: Float32Array,
        view: Float32Array,
        uv: Float32Array,
        level: Float32Array,
    ) -> Surface:
        """The material at (M, 2), as the maps and, where there is none, the factors say."""
        count = len(uv)
        roughness = np.full(count, self.factors.roughness, np.float32)
        metalness = np.full(count, self.factors.metallic, np.float32)
        occlusion = np.ones(count, np.float32)
        if METALLIC_ROUGHNESS in self._pyramids:
            red, roughness, metalness = self.sample(METALLIC_ROUGHNESS, uv, level).T
            occlusion = red if OCCLUSION in self._pyramids else occlusion
        elif OCCLUSION in self._pyramids:
            occlusion = self.sample(OCCLUSION, uv, level)[:, 0]
        strength = np.float32(self.factors.occlusion_strength)
        emits = EMISSIVE in self._pyramids
        return Surface(
            base_colour=base_colour,
            normal=normal,
            in_camera=normal @ to_camera,
            view=view,
            up=to_camera[1],
            roughness=roughness,
            metalness=metalness,
            occlusion=1 + strength * (occlusion - 1),
            emission=self.sample(EMISSIVE, uv, level) if emits else np.zeros_like(base_colour),
        )


def _bent(normal: Float32Array, tangent: Float32Array, texel: Float32Array) -> Float32Array:
    """Unit normals (M, 3), bent by a normal map's texels (M, 3) in [0, 1]; tangent: (M, 4) with the handedness last."""
    bitangent = np.cross(normal, tangent[:, :3]) * tangent[:, 3:]
    x, y, z = (2 * texel - 1).T[..., None]
    return _unit(np.asarray(tangent[:, :3] * x + bitangent * y + normal * z, np.float32))


def _turned(vectors: NDArray[np.floating], frame: SimilarityTransform) -> Float32Array:
    """Unit vectors (..., 3) of the mesh, as unit vectors of the working frame."""
    return _unit((vectors.astype(np.float64) @ frame.matrix[:3, :3].T).astype(np.float64))


def _unit(vectors: NDArray[np.floating]) -> Float32Array:
    """Vectors (..., 3) of length one."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)


def _every_corner(count: int) -> NDArray[np.int64]:
    """(F, 3) indices of values that are stored corner by corner."""
    return np.arange(3 * count).reshape(-1, 3)


def _points(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], face: NDArray[np.int32], bary: Float32Array
) -> NDArray[np.floating]:
    """(M, 3) the points of the surface that pixels show."""
    return interpolate(face, bary, vertices, faces)


def sheet_cameras(vertices: NDArray[np.float64], views: int) -> Cameras:
    """Cameras at ``VIEWS`` that fit all ``vertices`` into ``_FILL`` of the image."""
    elevation, azimuth = np.radians(np.array(VIEWS[:views], float)).T
    theta = math.pi / 2 - elevation
    backward = directions(theta, azimuth)
    right = np.stack([np.cos(azimuth), np.zeros(views), -np.sin(azimuth)], axis=1)
    up = np.cross(backward, right)
    ahead = vertices @ backward.T
    # A point at x to the side and z ahead is in view from distance d when |x - c| <= s (d - z): the best
    # centre c and its distance follow from the extremes of both sides.
    slope = _FILL * math.tan(_FOV / 2)
    distance = np.zeros(views)
    sides = [vertices @ axis.T for axis in (right, up)]
    for side in sides:
        plus, minus = (ahead + side / slope).max(axis=0), (ahead - side / slope).max(axis=0)
        distance = np.maximum(distance, (plus + minus) / 2)
    size = float(np.linalg.norm(np.ptp(vertices, axis=0)))
    distance = np.maximum(distance, ahead.max(axis=0) + 0.2 * size)
    distance = np.maximum(distance, _CLOSEST * distance.max())
    # The centre of an axis depends on the distance, so iterate; two or three steps converge.
    target = np.zeros((views, 3))
    for side, axis in zip(sides, (right, up), strict=True):
        centre = (side.max(axis=0) + side.min(axis=0)) / 2
        for _ in range(3):
            extent_in_view = (side - centre) / (distance - ahead)
            centre += distance * (extent_in_view.max(axis=0) + extent_in_view.min(axis=0)) / 2
        target += axis * centre[:, None]
    near = 0.5 * float((distance - ahead.max(axis=0)).min())
    far = 2 * float((distance - ahead.min(axis=0)).max())
    return orbit(theta, azimuth, distance, _FOV, target, near=near, far=far)


def _texel_density(uvmesh: UVMesh, vertices: NDArray[np.float64], width: int, height: int) -> Float32Array:
    """Texels per area of the working frame, for each face (F,)."""
    corner = uvmesh.uv.astype(np.float64)[uvmesh.uv_faces] * (width, height)
    first, second = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    texels = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    corner = vertices[uvmesh.mesh.faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    return np.asarray(texels / np.maximum(area, 1e-12), np.float32)


def _background(size: int) -> Float32Array:
    """(size, size, 3) in linear light."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    away = np.minimum((axis[None, :] ** 2 + (axis[:, None] + 0.15) ** 2) / 2, 1)
    grey = srgb_to_linear(np.asarray(_BACK_CENTRE + (_BACK_CORNER - _BACK_CENTRE) * away, np.float32))
    return np.repeat(grey[..., None], 3, axis=2)
