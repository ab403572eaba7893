"""Bakes a material: the texels of a mesh take their colours from a tileable sample that covers the mesh."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.bake.atlas import TexelMap, shared_edges, texel_map
from pipeline.bake.bake import BASE_COLOUR, BakedMaps
from pipeline.bake.exemplar_maps import ExemplarMaps, ExemplarSettings
from pipeline.bake.inpainting import extend_nearest
from pipeline.bake.map_images import MeshFrame, TexelMaterial, map_images
from pipeline.bake.seams import LEVEL_MARGIN, seam_step
from pipeline.bake.surface_maps import Surface
from pipeline.core.arrays import Float32Array
from pipeline.core.job import Reporter, no_report
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normals import smooth_normals
from pipeline.painting.tiling import Layout, prepare_exemplar, regularity, shade_surface, tile_maps
from pipeline.raster.rasterise import interpolate

# The projection treats edges up to this angle as round. Beyond it, each face is projected by its own normal.
_CREASE = math.radians(75)
# A sample is not reduced below this many pixels a side, however coarse the texture.
_LEAST_SIDE = 16


@dataclass(frozen=True)
class ExtraMaps:
    """What ``bake_material`` needs for maps besides the base colour."""

    exemplar: ExemplarMaps
    options: ExemplarSettings
    frame: MeshFrame


def bake_material(
    uvmesh: UVMesh,
    vertices: NDArray[np.floating],
    image: Float32Array,
    tile: float,
    texture_size: int,
    seed: int,
    report: Reporter = no_report,
    *,
    layout: Layout = "auto",
    extra: ExtraMaps | None = None,
) -> BakedMaps:
    """The base colour map of ``uvmesh`` covered with ``image``, and the maps that ``extra`` asks for.

    Args:
        vertices: (V, 3) positions of ``uvmesh.mesh`` in the working frame (+Y up).
        image: (H, W, 3) in [0, 1], which wraps around.
        tile: side of ``image`` on the surface, in units of ``vertices``.
        texture_size: side of the map. If its texels are larger than the image's pixels, the image is filtered down
            first, to avoid aliasing.
        seed: seed of the random offsets.
        extra: further maps. Their base colour is used in place of ``image``.
    """
    started = time.perf_counter()
    report("bake", 0, 2)
    positions = np.asarray(vertices, np.float64)
    texels = texel_map(uvmesh, texture_size, LEVEL_MARGIN)
    density = texels_per_unit(uvmesh, positions, texels)
    share = min(1.0, density * tile / len(image))
    image = image if extra is None else extra.exemplar.base_colour
    exemplar = prepare_exemplar(_filtered(image, share), layout)
    normals, normal_faces = smooth_normals(positions, uvmesh.mesh.faces, _CREASE)
    smooth = interpolate(texels.face, texels.bary, normals, normal_faces)
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-12)
    position = interpolate(texels.face, texels.bary, positions, uvmesh.mesh.faces)
    colours = np.zeros((texture_size, texture_size, 3), np.float32)
    colours[texels.mask] = shade_surface(exemplar, position, smooth, tile, seed)
    report("bake", 1, 2)
    spread = extend_nearest(np.ascontiguousarray(colours.transpose(2, 0, 1)), texels.mask)
    pixels = np.ascontiguousarray(np.clip(np.rint(spread.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8))
    across, _ = seam_step(pixels, uvmesh)
    surface = Surface(uvmesh, texels, positions, position, smooth)
    extra_maps = BakedMaps({})
    if extra is not None:
        extra_maps = _bake_extra(surface, extra, colours[texels.mask], exemplar.layout, share, tile, seed)
    report("bake", 2, 2)
    radius = float(np.linalg.norm(positions - (positions.min(axis=0) + positions.max(axis=0)) / 2, axis=1).max())
    notes = {
        "texture_size": texture_size,
        "layout": exemplar.layout,
        "regularity": round(regularity(image), 3),
        "sample_size": len(image),
        "sample_pixels_per_radius": round(len(image) * radius / tile, 1),
        "texels_per_radius": round(density * radius, 1),
        "texels_on_surface": int(texels.mask.sum()),
        "texels_unreached": 0,
        "chart_borders": len(shared_edges(uvmesh)[0]),
        "seam_step": round(across, 3),
        **extra_maps.notes,
        "seconds": round(time.perf_counter() - started, 2),
    }
    return BakedMaps({BASE_COLOUR: pixels, **extra_maps.maps}, notes, extra_maps.height)


def _bake_extra(
    surface: Surface,
    extra: ExtraMaps,
    colour: Float32Array,
    layout: Literal["periodic", "hexagonal"],
    share: float,
    tile: float,
    seed: int,
) -> BakedMaps:
    """The maps besides the base colour, projected in the same way as the colour."""
    exemplar = extra.exemplar
    scalars = [exemplar.roughness, exemplar.metalness, exemplar.glow, exemplar.height]
    planes = _filtered(np.stack([*scalars, *exemplar.slopes.transpose(2, 0, 1)], axis=2), share)
    values, gradient = tile_maps(planes[..., :4], planes[..., 4:], layout, surface.position, surface.smooth, tile, seed)
    # From pixels of the exemplar to units of the input mesh.
    unit = np.float32(tile / len(exemplar.base_colour) / extra.frame.scale)
    rough, metal, glow, height = values.T
    material = TexelMaterial(rough, metal, glow, height * unit, gradient, colour)
    baked = map_images(surface, material, extra.options, extra.frame)
    return BakedMaps(baked.maps, {**exemplar.notes, **baked.notes}, baked.height)


def texels_per_unit(uvmesh: UVMesh, positions: NDArray[np.float64], texels: TexelMap) -> float:
    """Texels per unit of length on the surface: the median over the surface's area."""
    corners = positions[uvmesh.mesh.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    flat = np.asarray(uvmesh.uv, np.float64)[uvmesh.uv_faces] * texels.size
    edge1, edge2 = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    texel_area = np.abs(edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]) / 2
    valid = area > 0
    density = np.sqrt(texel_area[valid] / area[valid])
    order = np.argsort(density, kind="stable")
    covered = np.cumsum(area[valid][order])
    if len(order) == 0:
        return 0.0
    return float(density[order][np.searchsorted(covered, covered[-1] / 2)])


def _filtered(image: Float32Array, share: float) -> Float32Array:
    """Scales ``image`` (H, W, C), which wraps around, to ``share`` of its size by an area filter."""
    side = max(_LEAST_SIDE, round(len(image) * share))
    if side >= len(image):
        return image
    # Add the neighbouring tiles, so that the filter wraps around.
    tiled = np.tile(image, (3, 3, 1))
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(tiled[..., c])).resize((3 * side,) * 2, Image.Resampling.BOX))
        for c in range(image.shape[2])
    ]
    return np.ascontiguousarray(np.stack(planes, axis=-1)[side : 2 * side, side : 2 * side], np.float32)
