"""Renders contact sheets of an asset's shape: depth and normals.

Uses the cameras of the preview, so its tiles and these show the same pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.core.asset_layout import DEPTH, NORMAL
from pipeline.export.preview import encode_sheet, sheet_cameras
from pipeline.mesh.mesh import Mesh
from pipeline.mesh.normalise import SimilarityTransform
from pipeline.mesh.normals import corner_normals, unit_face_normals
from pipeline.raster.rasterise import interpolate, rasterise

# Grey of the farthest point of a sheet, distinct from the black background.
_FARTHEST = 0.2
# Samples across a pixel, in both directions.
_SAMPLES = 2


def turntable_files(
    mesh: Mesh,
    frame: SimilarityTransform,
    *,
    views: int = 8,
    size: int = 256,
    crease_angle: float = math.radians(60),
) -> dict[str, bytes]:
    """Returns the files by name: ``depth.png`` and ``normal.png``, as ``render_shape`` describes them.

    ``frame`` transforms the mesh to the working frame (+Y up, front +Z). ``views`` tiles of ``size`` pixels, as for
    ``preview_png``. The same arguments give the same bytes.
    """
    depth, normal = render_shape(mesh, frame, views=views, size=size, crease_angle=crease_angle)
    return {
        DEPTH: encode_sheet(depth, np.zeros((size, size, 3), np.uint8)),
        NORMAL: encode_sheet(normal, np.full((size, size, 3), 128, np.uint8)),
    }


def render_shape(
    mesh: Mesh, frame: SimilarityTransform, *, views: int = 8, size: int = 256, crease_angle: float = math.radians(60)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(depth, normals), each (views, size, size, 3) uint8.

    Depth: grey, linear in the distance along the view axis. White is the point nearest to any camera, dark grey the
    farthest, black the background. Normals: n / 2 + 1 / 2 as red, green, blue, in camera space (+X right, +Y up, +Z
    towards the viewer). Back faces are flipped; the background is the zero vector, mid grey.
    """
    vertices, faces = frame.apply(mesh.vertices), mesh.faces
    normals, normal_faces = corner_normals(mesh, crease_angle)
    normals = frame.apply_direction(normals).astype(np.float32)
    facing = unit_face_normals(vertices, faces)
    cameras = sheet_cameras(vertices, views)
    across = size * _SAMPLES
    depths = np.empty((views, across, across), np.float32)
    tiles = np.empty((views, size, size, 3), np.uint8)
    for n in range(views):
        camera = cameras[n : n + 1]
        fragments = rasterise(vertices, faces, camera, across, across)
        depths[n] = fragments.depth[0]
        covered = fragments.mask[0]
        normal = interpolate(fragments.face[0], fragments.bary[0], normals, normal_faces)
        towards = np.einsum("fi,fi->f", facing, camera.eye[0] - vertices[faces[:, 0]])
        normal *= np.where(towards < 0, np.float32(-1), np.float32(1))[fragments.face[0][covered], None]
        vectors = np.zeros((across, across, 3), np.float32)
        vectors[covered] = normal @ camera.view[0, :3, :3].T.astype(np.float32)
        vectors[covered] /= np.maximum(np.linalg.norm(vectors[covered], axis=1, keepdims=True), np.float32(1e-12))
        tiles[n] = np.clip(np.rint(_reduced(vectors) * 127.5 + 127.5), 0, 255)
    finite = np.isfinite(depths)
    near, far = (float(depths[finite].min()), float(depths[finite].max())) if finite.any() else (0.0, 1.0)
    share = (far - np.where(finite, depths, far)) / max(far - near, 1e-12)
    grey = np.where(finite, _FARTHEST + (1 - _FARTHEST) * share, 0).astype(np.float32)
    shades = np.stack([np.rint(_reduced(view[..., None]) * 255) for view in grey]).astype(np.uint8)
    return np.repeat(shades, 3, axis=-1), tiles


def _reduced(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Downsamples (H, W, C) by ``_SAMPLES`` in both directions."""
    height, width, channels = image.shape
    blocks = image.reshape(height // _SAMPLES, _SAMPLES, width // _SAMPLES, _SAMPLES, channels)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)
