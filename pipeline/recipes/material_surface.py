"""Paint with a material: one tileable sample of the prior covers the surface at one scale."""

from __future__ import annotations

import math
from typing import Protocol

from pipeline.bake.bake import BASE_COLOUR, BakedMaps
from pipeline.bake.exemplar_maps import ExemplarMaps, ExemplarSettings, exemplar_maps
from pipeline.bake.map_images import MeshFrame
from pipeline.bake.material import ExtraMaps, bake_material
from pipeline.bake.projection import covering_cameras
from pipeline.bake.view_maps import VIEW_FOV, bake_view_maps, draw_unlit
from pipeline.core.errors import SettingError
from pipeline.prior.load import Prior
from pipeline.prior.material_folder import NO_ESTIMATOR
from pipeline.prior.prompts import CLOSE_UP
from pipeline.prior.tile import GOOD_WRAP, Tile, sample_tile
from pipeline.recipes.asset_build import RowContext
from pipeline.recipes.map_settings import MapSettings
from pipeline.recipes.paint_settings import PaintSettings
from pipeline.recipes.paintable_mesh import MESH_RADIUS, PaintableMesh

# Number and side in pixels of the pictures in which a finished asset's material is estimated.
_VIEWS, _VIEW_SIDE = 8, 256


def material_defaults(prior: Prior) -> dict[str, object]:
    """The prior's defaults for a row that is painted with a material, by setting."""
    defaults = prior.material_defaults
    return {
        **vars(prior.defaults),
        "distillation": "material",
        "steps": defaults.steps,
        "guidance_scale": defaults.guidance_scale,
        "texture_size": defaults.texture_size,
        "maps": defaults.maps,
    }


def exemplar_settings(settings: MapSettings) -> ExemplarSettings:
    """The map settings as baking takes them."""
    return ExemplarSettings(
        tuple(name for name in settings.maps if name != BASE_COLOUR),
        settings.metallic,
        settings.roughness,
        settings.roughness_min,
        settings.roughness_max,
        settings.normal_strength,
        settings.delight == "on",
    )


def mesh_frame(settings: PaintSettings, paintable: PaintableMesh) -> MeshFrame:
    """How the mesh lies in the working frame."""
    frame = paintable.frame
    return MeshFrame(frame.matrix[:3, :3] / frame.scale, frame.scale, math.radians(settings.crease_angle))


def maps_of_views(
    row: RowContext, settings: PaintSettings, paintable: PaintableMesh, baked: BakedMaps, prior: Prior
) -> BakedMaps:
    """Add the maps that the row requests to ``baked``, whose base colour is finished.

    Materials are estimated in pictures of the asset from all around. Returns ``baked`` if the row requests no maps.
    Raises LatentkilnError.
    """
    options = exemplar_settings(settings)
    if not options.maps:
        return baked
    if options.needs_estimator and prior.material_estimator is None:
        raise SettingError(f"maps: {NO_ESTIMATOR}", stage="estimate")
    with row.stage("estimate"):
        distance = 1.05 * MESH_RADIUS / math.sin(VIEW_FOV / 2)
        cameras = covering_cameras(_VIEWS, radius=distance, fov=VIEW_FOV)
        colour = baked.maps[BASE_COLOUR]
        images = draw_unlit(paintable.uvmesh, paintable.vertices, colour, cameras, _VIEW_SIDE)
        extra = bake_view_maps(
            paintable.uvmesh,
            paintable.vertices,
            cameras,
            images,
            colour,
            options,
            prior.material_estimator,
            mesh_frame(settings, paintable),
        )
    return BakedMaps({**baked.maps, **extra.maps}, {**baked.notes, **extra.notes}, extra.height)


def estimated_maps(tile: Tile, options: ExemplarSettings, prior: Prior) -> ExemplarMaps:
    """The maps of a sample. Raises SettingError if the row needs an estimator and there is none."""
    if options.needs_estimator and prior.material_estimator is None:
        raise SettingError(f"maps: {NO_ESTIMATOR}", stage="sample")
    return exemplar_maps(tile.image, options, prior.material_estimator)


class SampleSettings(Protocol):
    """The part of a row's settings that ``draw_sample`` uses."""

    prompt_close_up: bool
    guidance_scale: float
    steps: int


def draw_sample(
    row: RowContext, settings: SampleSettings, seed: int, prior: Prior, *, size: int, doublings: int = 0
) -> Tile:
    """Draw a tileable sample of the row's surface; ``size`` and ``doublings`` as in ``sample_tile``.

    Adds a warning to ``row`` where opposite borders of the sample differ visibly. Raises LatentkilnError.
    """
    prompt, adapters = prior.surface_prompt(row.job.prompt), prior.adapters(row.job.adapters)
    if settings.prompt_close_up:
        prompt = prior.fit_prompt(prompt, CLOSE_UP, adapters) + CLOSE_UP
    with row.stage("sample"):
        tile = sample_tile(
            prior,
            prompt,
            negative_prompt=row.job.negative_prompt,
            guidance_scale=settings.guidance_scale,
            steps=settings.steps,
            seed=seed,
            size=size,
            doublings=doublings,
            adapters=adapters,
            report=row.report,
        )
    if tile.wrap > GOOD_WRAP:
        row.warn(
            f"the tileable sample's borders show: the step across them is {tile.wrap:.1f} times what is usual inside; "
            "try another seed"
        )
    return tile


def paint_with_material(
    row: RowContext, settings: PaintSettings, paintable: PaintableMesh, seed: int, prior: Prior
) -> BakedMaps:
    """The maps of one variant: a sample drawn with ``seed``, baked. Raises LatentkilnError."""
    size = prior.material_defaults.size or prior.sample_size
    tile = draw_sample(row, settings, seed, prior, size=size)
    options = exemplar_settings(settings)
    extra: ExtraMaps | None = None
    if options.maps:
        with row.stage("estimate"):
            exemplar = estimated_maps(tile, options, prior)
            extra = ExtraMaps(exemplar, options, mesh_frame(settings, paintable))
    with row.stage("bake"):
        baked = bake_material(
            paintable.uvmesh,
            paintable.vertices,
            tile.image,
            tile_side(settings, paintable, prior),
            settings.texture_size,
            seed,
            row.report,
            extra=extra,
        )
    notes = {"distillation": "material", "wrap": round(tile.wrap, 3), "unet_evaluations": tile.evaluations}
    return BakedMaps(baked.maps, {**notes, **baked.notes}, baked.height)


def tile_side(settings: PaintSettings, paintable: PaintableMesh, prior: Prior) -> float:
    """The sample's side on the surface, in the working frame: the row's ``tile_size``, else the prior's share of the
    object's radius."""
    if settings.tile_size is not None:
        return settings.tile_size * paintable.frame.scale
    return prior.material_defaults.coverage * MESH_RADIUS
