"""Estimates material maps in pictures of a mesh, and projects them onto its texture.

N views of H x H pixels, S the texture's side, M texels on the surface.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.bake.atlas import shared_edges, texel_map
from pipeline.bake.bake import BASE_COLOUR, BakedMaps
from pipeline.bake.exemplar_maps import ExemplarSettings, glow_of, roughness_of, source_notes, to_bytes
from pipeline.bake.inpainting import inpaint_smoothly
from pipeline.bake.map_images import MeshFrame, TexelMaterial, map_images
from pipeline.bake.projection import BlendedViews, ProjectionSettings, SurfaceTexels, add_view
from pipeline.bake.seams import LEVEL_MARGIN
from pipeline.bake.surface_maps import Surface
from pipeline.core.arrays import Float32Array
from pipeline.mesh.mesh import UVMesh
from pipeline.prior.material_estimator import MaterialEstimator, MaterialMaps
from pipeline.raster.bilinear import sample_bilinear
from pipeline.raster.camera import Cameras
from pipeline.raster.rasterise import interpolate, rasterise

# Slopes and heights (in pixels) are projected as colours in [0, 1], which stand for -limit to +limit.
_MAX_SLOPE, _MAX_HEIGHT = 4.0, 32.0


def bake_view_maps(
    uvmesh: UVMesh,
    vertices: NDArray[np.floating],
    cameras: Cameras,
    images: Float32Array,
    base_colour: NDArray[np.uint8],
    options: ExemplarSettings,
    estimator: MaterialEstimator | None,
    frame: MeshFrame,
    *,
    shares: Float32Array | None = None,
    settings: ProjectionSettings | None = None,
) -> BakedMaps:
    """Bake the maps that ``options`` request, and the base colour with light and shadow removed.

    Args:
        vertices: (V, 3) positions of ``uvmesh.mesh`` in the cameras' world.
        cameras: N cameras.
        images: (N, 3, H, H) float32 RGB in [0, 1], one per camera.
        base_colour: (S, S, 3) uint8, the finished colours. They stay sharp: only the difference between the estimated
            colours and those of the images is projected and added.
        estimator: estimates materials; None if the prior has none.
        frame: how the input mesh lies in the cameras' world.
        shares, settings: as for ``bake_projected``; the same as for the base colour if that was projected.

    Raises ValueError if ``options`` need an estimator and there is none.
    """
    positions = np.asarray(vertices, np.float64)
    texels = texel_map(uvmesh, len(base_colour), LEVEL_MARGIN)
    points = SurfaceTexels.of(uvmesh, positions, texels)
    surface = Surface(uvmesh, texels, positions, points.position, points.smooth)
    colour: Float32Array = base_colour[texels.mask].astype(np.float32) / np.float32(255)
    count = len(colour)
    zero = np.zeros(count, np.float32)
    material = TexelMaterial(np.ones(count, np.float32), zero, zero, zero, np.zeros((count, 3), np.float32), colour)
    confidence: dict[str, float] = {}
    if options.needs_estimator:
        if estimator is None:
            raise ValueError("maps: the prior has no network that estimates materials")
        estimates = estimator.estimate(np.ascontiguousarray(images, np.float32))
        material = _project_estimates(
            points, surface, cameras, images, estimates, material, shares, settings or ProjectionSettings()
        )
        covered = np.stack([_covered_pixels(points, cameras[n : n + 1], images.shape[-1]) for n in range(len(cameras))])
        means = [float(estimates.confidence[:, k][covered].mean()) if covered.any() else 0.0 for k in range(3)]
        names = ("base_colour", "roughness_and_metalness", "height")
        confidence = {name: round(mean, 3) for name, mean in zip(names, means, strict=True)}
        if not options.delight:
            material = replace(material, colour=colour)
        unit = _pixel_size(cameras, images.shape[-1]) / frame.scale * options.normal_strength
        gradient = material.gradient * np.float32(options.normal_strength)
        material = replace(material, height=material.height * np.float32(unit), gradient=gradient)
    material = replace(
        material,
        roughness=roughness_of(material.roughness, options),
        metalness=material.metalness if options.metallic is None else np.full(count, options.metallic, np.float32),
        glow=glow_of(material.colour),
    )
    baked = map_images(surface, material, options, frame)
    name = estimator.identity if estimator is not None and options.needs_estimator else ""
    notes = {**source_notes(options, name, confidence), **baked.notes}
    final_colour = (
        surface.spread(to_bytes(material.colour)) if options.needs_estimator and options.delight else base_colour
    )
    return BakedMaps({BASE_COLOUR: final_colour, **baked.maps}, notes, baked.height)


def _project_estimates(
    points: SurfaceTexels,
    surface: Surface,
    cameras: Cameras,
    images: Float32Array,
    estimates: MaterialMaps,
    material: TexelMaterial,
    shares: Float32Array | None,
    settings: ProjectionSettings,
) -> TexelMaterial:
    """``material`` with the projected estimates. Texels that no picture shows are inpainted."""
    blend = BlendedViews.empty(len(points.position), 9)
    for n in range(len(cameras)):
        camera = cameras[n : n + 1]
        height = estimates.height[n, 0]
        down, right = np.gradient(height) if min(height.shape) > 1 else (height, height)
        axes = camera.view[0, :2, :3]
        rise = right[None] * axes[0][:, None, None] - down[None] * axes[1][:, None, None]
        encoded = (
            0.5 + (estimates.base_colour[n] - images[n]) / 2,
            np.stack([estimates.roughness[n, 0], estimates.metalness[n, 0], 0.5 + height / (2 * _MAX_HEIGHT)]),
            0.5 + rise / (2 * _MAX_SLOPE),
        )
        weights = None if shares is None else shares[n]
        add_view(blend, points, camera, np.concatenate(encoded).astype(np.float32), None, weights, settings)
    painted = blend.broad > 0
    if not painted.any():
        return material
    change, scalars, rise = np.split(_inpaint_values(surface, blend.colours(), painted), 3, axis=1)
    return replace(
        material,
        colour=np.clip(material.colour + 2 * change - 1, 0, 1).astype(np.float32),
        roughness=scalars[:, 0],
        metalness=scalars[:, 1],
        height=(scalars[:, 2] - np.float32(0.5)) * np.float32(2 * _MAX_HEIGHT),
        gradient=(rise - np.float32(0.5)) * np.float32(2 * _MAX_SLOPE),
    )


def _inpaint_values(surface: Surface, values: Float32Array, painted: NDArray[np.bool_]) -> Float32Array:
    """Values (M, C) in which texels that are not ``painted`` (M,) form a smooth membrane between the others."""
    mask = surface.texels.mask
    image, painted_texels = np.zeros((values.shape[1], *mask.shape), np.float32), np.zeros(mask.shape, bool)
    image[:, mask], painted_texels[mask] = values.T, painted
    borders, _ = shared_edges(surface.uvmesh)
    result: Float32Array = inpaint_smoothly(image, surface.texels, painted_texels, borders)[:, mask].T
    return result


def _covered_pixels(points: SurfaceTexels, camera: Cameras, side: int) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = np.isfinite(rasterise(points.vertices, points.faces, camera, side, side).depth[0])
    return result


def _pixel_size(cameras: Cameras, side: int) -> float:
    """Side of a pixel at the distance of the origin, in units of the cameras' world: the mean over the views."""
    distance = np.linalg.norm(cameras.eye, axis=1)
    return float((2 * np.tan(cameras.fov / 2) * distance).mean() / side)


def draw_unlit(
    uvmesh: UVMesh, vertices: NDArray[np.floating], base_colour: NDArray[np.uint8], cameras: Cameras, side: int
) -> Float32Array:
    """Unlit pictures (N, 3, side, side) float32 in [0, 1] of the mesh; the background has the mean base colour."""
    mean = base_colour.reshape(-1, 3).mean(axis=0).astype(np.float32) / 255
    images = np.empty((len(cameras), side, side, 3), np.float32)
    uv = uvmesh.uv.astype(np.float64)
    for n in range(len(cameras)):
        fragments = rasterise(vertices, uvmesh.mesh.faces, cameras[n : n + 1], side, side)
        images[n] = mean
        pixel_uv = interpolate(fragments.face, fragments.bary, uv, uvmesh.uv_faces)
        images[n][fragments.face[0] >= 0] = sample_bilinear(base_colour, pixel_uv) / np.float32(255)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


#: Field of view, in radians, of the pictures in which a finished asset's material is estimated.
VIEW_FOV = math.radians(35)
