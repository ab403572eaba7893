"""Renders the contact sheet: a finished asset from eight directions in soft light.

The light shows shape and preserves colour: a surface that faces the viewer is within a few percent of its texture's
colour. All filtering and shading is in linear light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.atomic import write_bytes
from pipeline.export.gltf import BASE_COLOUR, encode_image
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normalise import SimilarityTransform
from pipeline.mesh.normals import corner_normals, unit_face_normals
from pipeline.raster.camera import Cameras, directions, orbit
from pipeline.raster.rasterise import interpolate, rasterise

Float32Array = NDArray[np.float32]

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

# Light, as factors of the colour. The key light is at the upper left behind the viewer (camera space).
_KEY_FROM = np.array([-0.46, 0.56, 0.69], np.float32)
_KEY, _SKY, _GROUND = 0.70, 0.42, 0.27
_WRAP = 0.25
# Background, sRGB: bright behind the object, darker towards the corners.
_BACK_CENTRE, _BACK_CORNER = 0.66, 0.47


@dataclass(frozen=True)
class MipPyramid:
    """Mip levels of a texture in linear light, concatenated. P texels, L levels. ``repeats``: lookups wrap around."""

    texels: Float32Array  # (P, 3)
    start: NDArray[np.int64]  # (L,) of each level in ``texels``
    width: NDArray[np.int64]  # (L,)
    height: NDArray[np.int64]  # (L,)
    repeats: bool = False


def preview_png(
    path: Path,
    uvmesh: UVMesh,
    maps: Mapping[str, NDArray[np.uint8]],
    frame: SimilarityTransform,
    *,
    views: int = 8,
    size: int = 256,
    crease_angle: float = _CREASE,
) -> None:
    """Writes a contact sheet of the first ``views`` of ``VIEWS``, ``size`` pixels each, four to a row.

    ``maps`` as for ``write_glb``. ``frame`` transforms the mesh to the working frame (+Y up, front +Z). The same
    arguments give the same bytes.
    """
    tiles = render_views(uvmesh, maps[BASE_COLOUR], frame, views=views, size=size, crease_angle=crease_angle)
    write_bytes(path, encode_sheet(tiles, _linear_to_srgb(_background(size))))


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
    views: int = 8,
    size: int = 256,
    crease_angle: float = _CREASE,
    tiling: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Renders the first ``views`` of ``VIEWS``: ``(views, size, size, 3)`` uint8 sRGB. ``tiling`` as ``write_glb``."""
    vertices = frame.apply(uvmesh.mesh.vertices)
    faces = uvmesh.mesh.faces
    normals, normal_faces = corner_normals(uvmesh.mesh, crease_angle)
    turned = normals.astype(np.float64) @ frame.matrix[:3, :3].T
    normals = (turned / np.linalg.norm(turned, axis=1, keepdims=True)).astype(np.float32)
    facing = unit_face_normals(vertices, faces)
    pyramid = _pyramid(image, limit=4 * _SAMPLES * size, repeats=tiling is not None)
    scale = np.array(tiling or (1, 1), np.float32)
    density = _texel_density(uvmesh, vertices, image.shape[1], image.shape[0]) * scale.prod()
    halvings = math.log2(max(image.shape[0] / pyramid.height[0], 1))

    cameras = sheet_cameras(vertices, views)
    across = size * _SAMPLES
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
        normal *= np.where(towards < 0, np.float32(-1), np.float32(1))[visible_faces, None]
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), np.float32(1e-12))
        in_camera = normal @ camera.view[0, :3, :3].T.astype(np.float32)

        pixel = fragments.depth[0][covered] * np.float32(2 * math.tan(_FOV / 2) / across)
        # A slanted surface has more texels per pixel; use the geometric mean of both directions.
        slant = np.maximum(in_camera[:, 2], np.float32(0.1))
        level = 0.5 * np.log2(np.maximum(density[visible_faces] * pixel**2 / slant, np.float32(1e-9))) - halvings
        colour = background.copy()
        colour[covered] = _sample(pyramid, uv, level) * _light(normal, in_camera)[:, None]
        tiles[n] = _linear_to_srgb(_halved(colour))
    return tiles


def _light(normal: Float32Array, in_camera: Float32Array) -> Float32Array:
    """Light factors (M,) at unit normals (M, 3), given in world and in camera space."""
    key_from = _KEY_FROM / np.linalg.norm(_KEY_FROM)
    key = np.maximum((in_camera @ key_from + _WRAP) / (1 + _WRAP), 0)
    sky = 0.5 + 0.5 * normal[:, 1]
    return np.asarray(_KEY * key + _GROUND + (_SKY - _GROUND) * sky, np.float32)


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


def _pyramid(image: NDArray[np.uint8], limit: int, repeats: bool = False) -> MipPyramid:
    """Mip levels of ``image``, from the first level of at most ``limit`` on."""
    linear = _srgb_to_linear(np.asarray(np.arange(256) / 255, np.float32))
    if max(image.shape[:2]) > limit and min(image.shape[:2]) > 1:
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        level = linear[image[0::2, 0::2]]
        for y, x in ((0, 1), (1, 0), (1, 1)):
            level += linear[image[y::2, x::2]]
        level *= np.float32(0.25)
    else:
        level = linear[image]
    while max(level.shape[:2]) > limit and min(level.shape[:2]) > 1:
        level = _halved(level)
    levels = [level]
    while max(level.shape[:2]) > 1:
        level = _halved(level)
        levels.append(level)
    height, width = np.array([entry.shape[:2] for entry in levels], np.int64).T
    count = width * height
    return MipPyramid(
        np.concatenate([entry.reshape(-1, 3) for entry in levels]), np.cumsum(count) - count, width, height, repeats
    )


def _halved(level: Float32Array) -> Float32Array:
    """Halves (H, W, 3): each texel is the mean of four. Repeats an odd last row or column."""
    height, width = level.shape[:2]
    if height % 2 or width % 2:
        level = np.pad(level, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return (level[0::2, 0::2] + level[0::2, 1::2] + level[1::2, 0::2] + level[1::2, 1::2]) * np.float32(0.25)


def _sample(pyramid: MipPyramid, uv: Float32Array, level: Float32Array) -> Float32Array:
    """Trilinear lookup at (M, 2), top-left origin, and fractional levels (M,). Returns linear light (M, 3)."""
    level = np.clip(level, 0, len(pyramid.start) - 1)
    low = level.astype(np.int64)
    high = np.minimum(low + 1, len(pyramid.start) - 1)
    share = (level - low)[:, None].astype(np.float32)
    below = _bilinear(pyramid, uv, low)
    return below + (_bilinear(pyramid, uv, high) - below) * share


def _bilinear(pyramid: MipPyramid, uv: Float32Array, level: NDArray[np.int64]) -> Float32Array:
    """As ``_sample`` at whole levels, clamped at the border unless the texture repeats."""
    width, height = pyramid.width[level], pyramid.height[level]
    if pyramid.repeats:
        x, y = (uv[:, 0] % 1) * width - 0.5, (uv[:, 1] % 1) * height - 0.5
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        fx, fy = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
        right, bottom = (left + 1) % width, (top + 1) % height
        left, top = left % width, top % height
    else:
        x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
        y = np.clip(uv[:, 1] * height - 0.5, 0, height - 1)
        left, top = x.astype(np.int64), y.astype(np.int64)
        fx, fy = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
        right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    start = pyramid.start[level]
    first, second = start + top * width, start + bottom * width
    texels = pyramid.texels
    upper = texels[first + left] * (1 - fx) + texels[first + right] * fx
    lower = texels[second + left] * (1 - fx) + texels[second + right] * fx
    return np.asarray(upper + (lower - upper) * fy)


def _background(size: int) -> Float32Array:
    """(size, size, 3) in linear light."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    away = np.minimum((axis[None, :] ** 2 + (axis[:, None] + 0.15) ** 2) / 2, 1)
    grey = _srgb_to_linear(np.asarray(_BACK_CENTRE + (_BACK_CORNER - _BACK_CENTRE) * away, np.float32))
    return np.repeat(grey[..., None], 3, axis=2)


def _srgb_to_linear(srgb: Float32Array) -> Float32Array:
    """Converts sRGB in [0, 1] to linear light."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _linear_to_srgb(linear: Float32Array) -> NDArray[np.uint8]:
    """Converts linear light to sRGB bytes."""
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (srgb * 255 + 0.5).astype(np.uint8)
