"""Maps that depend on the geometry: normals in tangent space from gradients on the surface, and measured occlusion.

S is the texture's side, M texels on the surface, F faces.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from pipeline.bake.atlas import TexelMap, texel_map
from pipeline.bake.inpainting import extend_nearest
from pipeline.bake.occlusion import measure_occlusion
from pipeline.bake.seams import LEVEL_MARGIN
from pipeline.mesh.mesh import UVMesh, face_normals
from pipeline.mesh.normals import corner_normals, smooth_normals
from pipeline.mesh.tangents import corner_tangents
from pipeline.raster.rasterise import interpolate

NumberT = TypeVar("NumberT", bound=np.number)
FloatT = TypeVar("FloatT", bound=np.floating)

# Occlusion is smooth, so it is measured for a texture of at most this side and upscaled.
_OCCLUSION_SIDE = 512


@dataclass(frozen=True)
class Surface:
    """The texels of a mesh in the working frame.

    Attributes:
        vertices: (V, 3) float64.
        position: (M, 3) points of the texels.
        smooth: (M, 3) unit normals, interpolated over faces, which weigh projections.
    """

    uvmesh: UVMesh
    texels: TexelMap
    vertices: NDArray[np.float64]
    position: NDArray[np.floating]
    smooth: NDArray[np.floating]

    @functools.cached_property
    def _nearest(self) -> NDArray[np.int64]:
        """Index (S, S) of the nearest texel on the surface."""
        mask = self.texels.mask
        number = np.zeros(mask.shape, np.int64)
        number[mask] = np.arange(int(mask.sum()))
        if mask.all() or not mask.any():
            return number
        row, column = distance_transform_edt(~mask, return_distances=False, return_indices=True)
        nearest: NDArray[np.int64] = number[row, column]
        return nearest

    def spread(self, values: NDArray[NumberT]) -> NDArray[NumberT]:
        """An image (S, S, C) of ``values`` (M, C); empty texels take the value of the nearest one."""
        if len(values) == 0:
            return np.zeros((*self.texels.mask.shape, values.shape[1]), values.dtype)
        result: NDArray[NumberT] = values[self._nearest]
        return result


def tangent_normals(
    uvmesh: UVMesh, texels: TexelMap, gradient: NDArray[np.floating], crease_angle: float
) -> NDArray[np.float32]:
    """Unit normals (M, 3) in tangent space, +Y up the texture, of a surface that rises by ``gradient`` (M, 3).

    ``gradient`` is in the frame of ``uvmesh``'s positions. Only its part along the surface counts. The tangent frame at
    a texel is the one that renderers compute from the file's normals and MikkTSpace tangents.
    """
    mesh = uvmesh.mesh
    normals, normal_faces = corner_normals(mesh, crease_angle)
    corners = corner_tangents(mesh.vertices, mesh.faces, normals, normal_faces, uvmesh.uv, uvmesh.uv_faces)
    corner_index = np.arange(mesh.faces.size).reshape(-1, 3)
    normal = _unit(interpolate(texels.face, texels.bary, normals, normal_faces))
    flat = np.ascontiguousarray(corners.reshape(-1, 4)[:, :3])
    tangent = _unit(interpolate(texels.face, texels.bary, flat, corner_index))
    handedness = corners[texels.face[texels.mask], 0, 3:]
    bitangent = _unit(handedness * np.cross(normal, tangent))
    rise = np.asarray(gradient, np.float32)
    rise = rise - normal * _dot(normal, rise)
    raised = _unit(normal - rise)
    # Between the corners, interpolated normal and tangent are not quite at right angles.
    skew = np.clip(_dot(normal, tangent), -0.95, 0.95)
    along, out = _dot(raised, tangent), _dot(raised, normal)
    x, z = (along - skew * out) / (1 - skew**2), (out - skew * along) / (1 - skew**2)
    return _unit(np.concatenate([x, _dot(raised, bitangent), z], axis=1))


def occlusion_of_texels(surface: Surface) -> NDArray[np.float32]:
    """Measure the share of the sky (M,), in [0, 1], that each texel on the surface sees."""
    size = surface.texels.size
    if size <= _OCCLUSION_SIDE:
        return _measure(surface.uvmesh, surface.vertices, surface.texels)
    coarse = texel_map(surface.uvmesh, _OCCLUSION_SIDE, LEVEL_MARGIN)
    image = np.zeros((1, _OCCLUSION_SIDE, _OCCLUSION_SIDE), np.float32)
    image[0, coarse.mask] = _measure(surface.uvmesh, surface.vertices, coarse)
    filled = extend_nearest(image, coarse.mask)[0]
    upscaled = np.asarray(Image.fromarray(filled).resize((size, size), Image.Resampling.BILINEAR))
    result: NDArray[np.float32] = upscaled[surface.texels.mask]
    return result


def _measure(uvmesh: UVMesh, vertices: NDArray[np.float64], texels: TexelMap) -> NDArray[np.float32]:
    """Visible share of the sky (M,) for the M texels on the surface of ``texels``."""
    faces = uvmesh.mesh.faces
    flat = _unit(face_normals(vertices, faces))[texels.face[texels.mask]]
    normals, normal_faces = smooth_normals(vertices, faces)
    smooth = _unit(interpolate(texels.face, texels.bary, normals, normal_faces).astype(np.float64))
    points = interpolate(texels.face, texels.bary, vertices, faces)
    return measure_occlusion(vertices, faces, points, flat, smooth)


def _unit(vectors: NDArray[FloatT]) -> NDArray[FloatT]:
    """``vectors`` (M, 3) at unit length, in their dtype."""
    length = np.sqrt(_dot(vectors, vectors))
    result: NDArray[FloatT] = vectors / np.maximum(length, 1e-12)
    return result


def _dot(one: NDArray[FloatT], other: NDArray[FloatT]) -> NDArray[FloatT]:
    """Dot products (M, 1) of vectors (M, 3)."""
    result: NDArray[FloatT] = np.einsum("mi,mi->m", one, other)[:, None]
    return result
