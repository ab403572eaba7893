"""Extract a mesh from a radiance field, and a latent texture for it.

Frame and units are the scene's: a cube from -1 to 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter
from torch import Tensor

from pipeline.bake.atlas import texel_map
from pipeline.bake.seams import LEVEL_MARGIN
from pipeline.fields import sketch
from pipeline.fields.radiance_field_scene import RadianceFieldScene
from pipeline.mesh.isosurface import decimate, extract, keep_components, optical_depth_field, smooth
from pipeline.mesh.mesh import Mesh, UVMesh
from pipeline.mesh.normals import smooth_normals
from pipeline.raster.rasterise import interpolate
from pipeline.recipes.generate_settings import GenerateSettings

BOUND = 1.0
# Points per evaluation of the density.
_CHUNK = 1 << 18
# Depths below the surface, in scene units, at which a texel's latent is sampled.
_DEPTHS = (0.0, 0.01, 0.02, 0.03)


@torch.no_grad()
def density_grid(scene: RadianceFieldScene, resolution: int) -> NDArray[np.float32]:
    """(R, R, R) float32 densities at the corners of R - 1 cells a side, [x, y, z]; 0 in known empty space."""
    near = maximum_filter(np.asarray(scene.occupancy.binary, np.uint8), size=3).astype(bool)
    axis = np.linspace(-BOUND, BOUND, resolution, dtype=np.float32)
    cell = np.minimum((np.arange(resolution) * len(near)) // (resolution - 1), len(near) - 1)
    grid = np.zeros((resolution,) * 3, np.float32)
    occupied = np.argwhere(near[np.ix_(cell, cell, cell)])
    for start in range(0, len(occupied), _CHUNK):
        index = occupied[start : start + _CHUNK]
        points = torch.from_numpy(axis[index]).to(scene.device)
        grid[tuple(index.T)] = scene.field.density(points).float().cpu().numpy()
    return grid


def extract_mesh(scene: RadianceFieldScene, settings: GenerateSettings, *, sketched: bool = False) -> Mesh:
    """The field's surface within the face budget. Raises LatentkilnError.

    The surface lies where the density crosses ``density_threshold``. Without a threshold it lies where rays lose half
    their light; for a ``sketched`` field it encloses also all that the sketch's density encloses.
    """
    density = density_grid(scene, settings.mesh_resolution)
    threshold = settings.density_threshold
    if threshold is None:
        field, least = optical_depth_field(density, BOUND)
        field /= least
        density, threshold = np.maximum(field, density / sketch.SURFACE) if sketched else field, 1.0
    mesh = keep_components(extract(density, threshold, BOUND, blur=settings.surface_blur))
    return decimate(smooth(mesh), settings.face_budget)


@torch.no_grad()
def latent_texture(scene: RadianceFieldScene, uvmesh: UVMesh, size: int) -> Tensor:
    """(C, size, size) float32: the field's latents on the mesh's texture. Texels outside the charts take the nearest
    texel's latent.

    Each latent is the mean over a few depths below the surface, weighted by density, as along a ray that ends there.
    """
    texels = texel_map(uvmesh, size, LEVEL_MARGIN)
    vertices, faces = np.asarray(uvmesh.mesh.vertices, np.float64), uvmesh.mesh.faces
    texel_points = interpolate(texels.face, texels.bary, vertices, faces)
    normals, normal_faces = smooth_normals(vertices, faces, np.pi)
    inwards = -interpolate(texels.face, texels.bary, normals, normal_faces)
    inwards /= np.maximum(np.linalg.norm(inwards, axis=1, keepdims=True), 1e-12)
    total: Tensor | None = None
    weights = torch.zeros(len(texel_points), 1, device=scene.device)
    for depth in _DEPTHS:
        points = torch.from_numpy((texel_points + depth * inwards).clip(-BOUND, BOUND).astype(np.float32)).to(
            scene.device
        )
        density, latents = scene.field(points)
        # The constant gives the plain mean where all densities are 0.
        weight = density.float()[:, None] + 1e-3
        total = weight * latents.float() + (0 if total is None else total)
        weights += weight
    assert total is not None
    texel_latents = np.zeros((size, size, total.shape[1]), np.float32)
    texel_latents[texels.mask] = (total / weights).cpu().numpy()
    row, column = distance_transform_edt(~texels.mask, return_distances=False, return_indices=True)
    return torch.from_numpy(np.ascontiguousarray(texel_latents[row, column].transpose(2, 0, 1)))
