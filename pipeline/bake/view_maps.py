"""Maps of a mesh from pictures of it: estimated in each picture, and projected by the weights of its colours.

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
from pipeline.mesh.mesh import UVMesh
from pipeline.prior.material_estimator import MaterialEstimator, MaterialMaps
from pipeline.raster.bilinear import sample_bilinear
from pipeline.raster.camera import Cameras
from pipeline.raster.rasterise import interpolate, rasterise

Floats = NDArray[np.float32]

# Slopes and heights (pixels) go through the projection as colours: these are 0 and 1.
_STEEPEST, _HIGHEST = 4.0, 32.0


def bake_view_maps(
    uvmesh: UVMesh,
    vertices: NDArray[np.floating],
    cameras: Cameras,
    images: Floats,
    base_colour: NDArray[np.uint8],
    options: ExemplarSettings,
    estimator: MaterialEstimator | None,
    frame: MeshFrame,
    *,
    shares: Floats | None = None,
    settings: ProjectionSettings | None = None,
) -> BakedMaps:
    """The maps that ``options`` ask for, of a mesh that ``images`` show, and its base colour without their light.

    Args:
        vertices: (V, 3) positions of ``uvmesh.mesh`` in the cameras' world.
        images: (N, 3, H, H) in [0, 1], one a camera. shares, settings: as ``bake_projected`` had for the colours.
        base_colour: (S, S, 3) uint8, the finished colours. Only what the estimator changes of the pictures' colours is
            projected onto them, so they stay as sharp as they are.

    Raises ValueError where ``options`` need an estimator and there is none.
    """
    positions = np.asarray(vertices, np.float64)
    texels = texel_map(uvmesh, len(base_colour), LEVEL_MARGIN)
    points = SurfaceTexels.of(uvmesh, positions, texels)
    surface = Surface(uvmesh, texels, positions, points.position, points.smooth)
    colour: Floats = base_colour[texels.mask].astype(np.float32) / np.float32(255)
    count = len(colour)
    zero = np.zeros(count, np.float32)
    material = TexelMaterial(np.ones(count, np.float32), zero, zero, zero, np.zeros((count, 3), np.float32), colour)
    confidence: dict[str, float] = {}
    if options.needs_estimator:
        if estimator is None:
            raise ValueError("maps: the prior has no network that estimates materials")
        said = estimator.estimate(np.ascontiguousarray(images, np.float32))
        material = _projected(
            points, surface, cameras, images, said, material, shares, settings or ProjectionSettings()
        )
        shown = np.stack([_covered(points, cameras[n : n + 1], images.shape[-1]) for n in range(len(cameras))])
        means = [float(said.confidence[:, k][shown].mean()) if shown.any() else 0.0 for k in range(3)]
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
    finished = surface.spread(to_bytes(material.colour)) if options.needs_estimator and options.delight else base_colour
    return BakedMaps({BASE_COLOUR: finished, **baked.maps}, notes, baked.height)


def _projected(
    points: SurfaceTexels,
    surface: Surface,
    cameras: Cameras,
    images: Floats,
    said: MaterialMaps,
    material: TexelMaterial,
    shares: Floats | None,
    settings: ProjectionSettings,
) -> TexelMaterial:
    """``material`` with what each picture says of it; texels that no picture shows take what lies near."""
    blend = BlendedViews.empty(len(points.position), 9)
    for n in range(len(cameras)):
        camera = cameras[n : n + 1]
        height = said.height[n, 0]
        down, right = np.gradient(height) if min(height.shape) > 1 else (height, height)
        axes = camera.view[0, :2, :3]
        rise = right[None] * axes[0][:, None, None] - down[None] * axes[1][:, None, None]
        encoded = (
            0.5 + (said.base_colour[n] - images[n]) / 2,
            np.stack([said.roughness[n, 0], said.metalness[n, 0], 0.5 + height / (2 * _HIGHEST)]),
            0.5 + rise / (2 * _STEEPEST),
        )
        counts = None if shares is None else shares[n]
        add_view(blend, points, camera, np.concatenate(encoded).astype(np.float32), None, counts, settings)
    painted = blend.broad > 0
    if not painted.any():
        return material
    change, scalars, rise = np.split(_filled(surface, blend.colours(), painted), 3, axis=1)
    return replace(
        material,
        colour=np.clip(material.colour + 2 * change - 1, 0, 1).astype(np.float32),
        roughness=scalars[:, 0],
        metalness=scalars[:, 1],
        height=(scalars[:, 2] - np.float32(0.5)) * np.float32(2 * _HIGHEST),
        gradient=(rise - np.float32(0.5)) * np.float32(2 * _STEEPEST),
    )


def _filled(surface: Surface, values: Floats, painted: NDArray[np.bool_]) -> Floats:
    """Values (M, C), where none is ``painted`` a smooth membrane between those that are."""
    mask = surface.texels.mask
    image, reached = np.zeros((values.shape[1], *mask.shape), np.float32), np.zeros(mask.shape, bool)
    image[:, mask], reached[mask] = values.T, painted
    borders, _ = shared_edges(surface.uvmesh)
    result: Floats = inpaint_smoothly(image, surface.texels, reached, borders)[:, mask].T
    return result


def _covered(points: SurfaceTexels, camera: Cameras, side: int) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = np.isfinite(rasterise(points.vertices, points.faces, camera, side, side).depth[0])
    return result


def _pixel_size(cameras: Cameras, side: int) -> float:
    """What a pixel shows at the distance of the origin, in the cameras' world: the mean over the views."""
    distance = np.linalg.norm(cameras.eye, axis=1)
    return float((2 * np.tan(cameras.fov / 2) * distance).mean() / side)


def draw_unlit(
    uvmesh: UVMesh, vertices: NDArray[np.floating], base_colour: NDArray[np.uint8], cameras: Cameras, side: int
) -> Floats:
    """Pictures (N, 3, side, side) in [0, 1] of the mesh in its base colours, without light, on their mean colour."""
    mean = base_colour.reshape(-1, 3).mean(axis=0).astype(np.float32) / 255
    images = np.empty((len(cameras), side, side, 3), np.float32)
    uv = uvmesh.uv.astype(np.float64)
    for n in range(len(cameras)):
        seen = rasterise(vertices, uvmesh.mesh.faces, cameras[n : n + 1], side, side)
        images[n] = mean
        at = interpolate(seen.face, seen.bary, uv, uvmesh.uv_faces)
        images[n][seen.face[0] >= 0] = sample_bilinear(base_colour, at) / np.float32(255)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


#: Angle of view of the pictures in which a finished asset's material is estimated.
VIEW_FOV = math.radians(35)
