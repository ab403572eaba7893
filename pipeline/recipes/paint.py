"""``paint``: a given mesh gets a texture, a latent one decoded once (Latent-Paint) or patch by patch, out as glTF."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from pipeline.bake.bake import BASE_COLOUR, BakedMaps, bake_base_colour, bake_refined
from pipeline.core.asset_layout import UNWRAP_CACHE
from pipeline.core.errors import LatentkilnError
from pipeline.core.job import Job
from pipeline.mesh.normalise import normalise
from pipeline.mesh.normals import is_closed
from pipeline.mesh.readers.unkept import not_in_asset, unkept
from pipeline.painting.multiview_sampling import SampledTextureMesh
from pipeline.painting.painted_mesh import PaintedMesh, PaintedMeshSettings
from pipeline.painting.refined_mesh import RefinedMesh, RefinedMeshSettings
from pipeline.prior.load import Prior
from pipeline.raster.camera import CameraSettings
from pipeline.recipes.asset_build import Asset, AssetBuild, Variant
from pipeline.recipes.build import Recipe, build
from pipeline.recipes.material_surface import material_defaults, painted_with_material
from pipeline.recipes.paint_settings import PaintSettings
from pipeline.recipes.paintable_mesh import MESH_RADIUS, PaintableMesh, bake_sampled_views, sampled_view_settings
from pipeline.uv.cache import load_unwrapped
from pipeline.uv.unwrap import uneven_density


class Paint(Recipe):
    """The recipe's own steps; ``recipes.build`` does the rest."""

    name = "paint"

    def resolve(self, job: Job, prior: Prior) -> PaintSettings:
        """The job's settings, with what the row left out taken from the prior."""
        settings, defaults = PaintSettings(**job.settings), vars(prior.defaults)
        if settings.distillation == "material" or (settings.distillation is None and _suits_material(job, prior)):
            defaults = material_defaults(prior)
        return settings.completed(defaults)

    def prepare(self, asset_build: AssetBuild, prior: Prior, out: Path) -> None:
        """Reads the mesh and gives it texture coordinates."""
        job, settings = asset_build.job, asset_build.settings
        if job.mesh is None:
            raise LatentkilnError(f"{job.id}: paint needs a mesh", stage="load")
        with asset_build.stage("unwrap"):
            uvmesh = load_unwrapped(
                job.mesh,
                out / UNWRAP_CACHE,
                texture_size=settings.texture_size,
                mode=settings.unwrap,
                time_limit=settings.unwrap_seconds,
                max_faces=settings.max_faces,
                report=asset_build.report,
            )
        asset_build.input_sha256 = uvmesh.mesh.source_sha256
        asset_build.warnings += uvmesh.mesh.warnings
        uneven = uneven_density(uvmesh.mesh) if settings.unwrap in ("auto", "input") else ""
        if uneven and uvmesh.method == "input":
            asset_build.warnings.append(f"{uneven}; with unwrap auto the mesh is unwrapped anew")
        elif uneven and uneven in uvmesh.reason:
            asset_build.warnings.append(f"{uneven}: it was unwrapped anew")
        if lost := not_in_asset(unkept(job.mesh)):
            asset_build.warnings.append(f"mesh: {lost}")
        vertices = uvmesh.mesh.vertices
        frame = normalise(vertices, radius=MESH_RADIUS, up_axis=settings.up_axis, front=settings.front)
        asset_build.shared = PaintableMesh(uvmesh, frame)
        asset_build.warnings += asset_build.shared.warnings

    def scene(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> tuple[PaintedMesh | None, str]:
        """The mesh under a latent texture, and the hash of its layout; nothing where a material is laid over it."""
        settings, paintable = asset_build.settings, asset_build.shared
        if settings.distillation == "material":
            return None, paintable.layout
        uvmesh = paintable.uvmesh
        mesh_scene = (
            paintable.vertices,
            uvmesh.mesh.faces,
            uvmesh.uv,
            uvmesh.uv_faces,
            prior.latent_rgb,
            scene_settings(settings, prior),
            variant.seed,
            prior.device,
        )
        if settings.distillation == "patches":
            patchwork = SampledTextureMesh(
                *mesh_scene,
                steps=settings.steps,
                t_min=settings.t_min,
                t_max=settings.t_max,
                two_sided=not is_closed(uvmesh.mesh),
            )
            return patchwork, paintable.layout
        return PaintedMesh(*mesh_scene), paintable.layout

    def refined(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> RefinedMesh:
        """The same mesh under the decoded texture."""
        settings = asset_build.settings
        baked = _bake_decoded(asset_build, variant, prior)
        variant.notes = baked.notes
        texture = torch.from_numpy(baked.maps[BASE_COLOUR]).permute(2, 0, 1).float() / 255
        refinement = RefinedMeshSettings(settings.views, settings.view_size, settings.refine_learning_rate)
        return RefinedMesh(variant.scene.renderer, texture, prior, refinement, variant.seed)

    def asset(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> Asset:
        """Decodes the latent texture once; a refined one is RGB already."""
        if asset_build.settings.distillation == "material":
            baked = painted_with_material(asset_build, variant, prior)
            return Asset(asset_build.shared.uvmesh, baked.maps, baked.notes, asset_build.shared.frame)
        with asset_build.stage("bake"):
            if variant.refined is None:
                baked = _bake_decoded(asset_build, variant, prior)
            else:
                baked = bake_refined(variant.refined.texture, asset_build.shared.uvmesh, asset_build.report)
        return Asset(asset_build.shared.uvmesh, baked.maps, {**variant.notes, **baked.notes}, asset_build.shared.frame)


def _bake_decoded(asset_build: AssetBuild, variant: Variant, prior: Prior) -> BakedMaps:
    """The base colour that the scene's latents decode to: of patches view by view, else of the texture at once."""
    scene = variant.scene
    patches = scene.sampled_views() if isinstance(scene, SampledTextureMesh) else None
    if patches is not None:
        return bake_sampled_views(
            patches, asset_build.shared, asset_build.settings.texture_size, prior, asset_build.report
        )
    return bake_base_colour(
        scene.texture.detach(),
        scene.texel_coverage.coverage,
        asset_build.shared.uvmesh,
        prior,
        asset_build.settings.texture_size,
        asset_build.report,
    )


def _suits_material(job: Job, prior: Prior) -> bool:
    """Whether a row that leaves the way of painting open gets a material laid over its mesh."""
    return prior.material_defaults.auto and not job.settings.get("refine") and prior.names_material_alone(job.prompt)


paint = functools.partial(build, Paint())


def scene_settings(settings: PaintSettings, prior: Prior) -> PaintedMeshSettings:
    """The scene's part of a row's resolved settings."""
    colour = settings.base_colour
    rgb = tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)) if colour else (0.5, 0.5, 0.5)
    return PaintedMeshSettings(
        views=int(settings.views or 1),
        view_size=int(settings.view_size or prior.sample_size),
        texture_size=int(settings.texture_size or 0) // prior.vae_scale_factor,
        learning_rate=float(settings.learning_rate or 0),
        cameras=CameraSettings(
            close_up=settings.close_up,
            elevation_min=float(np.radians(settings.elevation_min)),
            elevation_max=float(np.radians(settings.elevation_max)),
            fov=float(np.radians(settings.fov)),
            object_radius=MESH_RADIUS,
        ),
        background="learned" if settings.background == "learned" else "random",
        initial_noise=float(settings.initial_noise or 0),
        base_colour=rgb,  # type: ignore[arg-type]
        antialias=settings.antialias,
        patches=sampled_view_settings(settings),
    )
