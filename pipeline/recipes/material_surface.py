"""Painting with a material: one tileable sample of the prior, laid over the whole surface at one scale."""

from __future__ import annotations

from typing import Any

from pipeline.bake.bake import BakedMaps
from pipeline.bake.material import bake_material
from pipeline.prior.load import Prior
from pipeline.prior.prompts import CLOSE_UP
from pipeline.prior.tile import GOOD_WRAP, sample_tile
from pipeline.recipes.asset_build import AssetBuild, Variant
from pipeline.recipes.paint_settings import PaintSettings
from pipeline.recipes.paintable_mesh import MESH_RADIUS, PaintableMesh


def material_defaults(prior: Prior) -> dict[str, Any]:
    """What a row that is painted with a material takes from the prior where it leaves settings out."""
    own = prior.material_defaults
    return {
        **vars(prior.defaults),
        "distillation": "material",
        "steps": own.steps,
        "guidance_scale": own.guidance_scale,
        "texture_size": own.texture_size,
    }


def material_prompt(asset_build: AssetBuild, prior: Prior) -> str:
    """What the sample is asked for: the surface alone, from near."""
    prompt = prior.surface_prompt(asset_build.job.prompt)
    if not asset_build.settings.prompt_close_up:
        return prompt
    return prior.fit_prompt(prompt, CLOSE_UP, prior.adapters(asset_build.job.adapters)) + CLOSE_UP


def painted_with_material(asset_build: AssetBuild, variant: Variant, prior: Prior) -> BakedMaps:
    """The maps of one variant: a sample drawn with its seed, baked. Adds a warning where the sample's borders do not
    meet well."""
    settings, paintable = asset_build.settings, asset_build.shared
    with asset_build.stage("sample"):
        tile = sample_tile(
            prior,
            material_prompt(asset_build, prior),
            negative_prompt=asset_build.job.negative_prompt,
            guidance_scale=settings.guidance_scale,
            steps=settings.steps,
            seed=variant.seed,
            size=prior.material_defaults.size or prior.sample_size,
            adapters=prior.adapters(asset_build.job.adapters),
            report=asset_build.report,
        )
    if tile.wrap > GOOD_WRAP:
        asset_build.warnings.append(
            f"the tileable sample's borders show: the step across them is {tile.wrap:.1f} times what is usual inside; "
            "try another seed"
        )
    with asset_build.stage("bake"):
        baked = bake_material(
            paintable.uvmesh,
            paintable.vertices,
            tile.image,
            tile_side(settings, paintable, prior),
            settings.texture_size,
            variant.seed,
            asset_build.report,
        )
    notes = {"distillation": "material", "wrap": round(tile.wrap, 3), "unet_evaluations": tile.evaluations}
    return BakedMaps(baked.maps, {**notes, **baked.notes})


def tile_side(settings: PaintSettings, paintable: PaintableMesh, prior: Prior) -> float:
    """The sample's side on the surface in the working frame: what the row says, in the mesh's units, or the prior's
    share of the object's radius."""
    if settings.tile_size is not None:
        return settings.tile_size * paintable.frame.scale
    return prior.material_defaults.coverage * MESH_RADIUS
