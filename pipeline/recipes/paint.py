"""The recipe ``paint``: a given mesh with a new texture, as glTF.

The texture is one distilled latent texture (Latent-Paint), sampled patch by patch, or one material.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline.bake.bake import BASE_COLOUR, BakedMaps, bake_base_colour, bake_refined
from pipeline.core.asset_layout import UNWRAP_CACHE
from pipeline.core.backends import select_backend
from pipeline.core.errors import LatentkilnError
from pipeline.core.job import Job
from pipeline.document.package import gltf_files
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normalise import normalise
from pipeline.mesh.readers.unkept import not_in_asset, unkept
from pipeline.painting.painted_mesh import PaintedMesh, PaintedMeshSettings
from pipeline.painting.refined_mesh import RefinedMesh, RefinedMeshSettings
from pipeline.prior.load import Prior
from pipeline.raster.camera import CameraSettings
from pipeline.recipes.asset_build import (
    Asset,
    AssetBuild,
    DocumentWriter,
    Json,
    Phase,
    PhaseScene,
    RowContext,
    Variant,
)
from pipeline.recipes.build import build
from pipeline.recipes.document_paint import (
    DocumentInput,
    document_notes,
    is_document,
    prepare_document,
    repainted,
)
from pipeline.recipes.material_surface import maps_of_views, material_defaults, paint_with_material
from pipeline.recipes.paint_settings import PaintOptions, PaintSettings, resolve_paint
from pipeline.recipes.paintable_mesh import MESH_RADIUS, PaintableMesh, sampled_view_settings
from pipeline.recipes.recipe import Recipe
from pipeline.recipes.view_surface import PaintedViews, make_view_scene, view_texture_size
from pipeline.uv.cache import load_unwrapped
from pipeline.uv.unwrap import uneven_density


@dataclass
class PaintScenes:
    """The scenes of one variant. ``notes`` are the record's notes on the texture that refinement starts from."""

    painted: PaintedMesh | None = None
    views: PaintedViews | None = None
    refined: RefinedMesh | None = None
    notes: Json = field(default_factory=dict)


PaintBuild = AssetBuild[PaintSettings, PaintableMesh, PaintScenes]
PaintPhase = Phase[PaintSettings, PaintableMesh, PaintScenes]
PaintVariant = Variant[PaintScenes]


class Paint(Recipe[PaintSettings, PaintableMesh, PaintScenes]):
    """Paints a given mesh."""

    name = "paint"

    def resolve(self, job: Job, prior: Prior) -> PaintSettings:
        """The job's settings, completed with the prior's defaults. Raises SettingError."""
        options = PaintOptions.model_validate(dict(job.settings))
        if options.distillation == "material" or (options.distillation is None and _suits_material(job, prior)):
            return resolve_paint(options, material_defaults(prior))
        defaults = dict(vars(prior.defaults))
        if (options.distillation or defaults["distillation"]) == "patches":
            defaults["texture_size"] = view_texture_size(options, prior)
        return resolve_paint(options, defaults)

    def prepare(self, row: RowContext, settings: PaintSettings, prior: Prior, out: Path) -> PaintableMesh:
        """Read the mesh and give it texture coordinates. Raises LatentkilnError."""
        if row.job.mesh is None:
            raise LatentkilnError(f"{row.job.id}: paint needs a mesh", stage="load")
        mesh_path = row.job.mesh.local()
        if is_document(mesh_path):
            with row.stage("unwrap"):
                document = prepare_document(row, settings, mesh_path, out)
                if lost := not_in_asset(unkept(mesh_path)):
                    row.warn(f"mesh: {lost}")
            return _paintable(row, settings, document.layout.uvmesh, document)
        with row.stage("unwrap"):
            uvmesh = load_unwrapped(
                mesh_path,
                out / UNWRAP_CACHE,
                texture_size=settings.texture_size,
                mode=settings.unwrap,
                time_limit=settings.unwrap_seconds,
                max_faces=settings.max_faces,
                report=row.report,
                shared=row.unwrap_cache,
            )
        row.input_sha256 = uvmesh.mesh.source_sha256
        row.warnings += uvmesh.mesh.warnings
        uneven = uneven_density(uvmesh.mesh) if settings.unwrap in ("auto", "input") else ""
        if uneven and uvmesh.method == "input":
            row.warnings.append(f"{uneven}; with unwrap auto the mesh is unwrapped again")
        elif uneven and uneven in uvmesh.reason:
            row.warnings.append(f"{uneven}: it was unwrapped again")
        if lost := not_in_asset(unkept(mesh_path)):
            row.warnings.append(f"mesh: {lost}")
        return _paintable(row, settings, uvmesh)

    def new_scenes(self) -> PaintScenes:
        """No scene yet."""
        return PaintScenes()

    def phases(self, settings: PaintSettings) -> list[PaintPhase]:
        """Painting, then refinement where the row asks for it; [] with a material, which is sampled at once."""
        if settings.distillation == "material":
            return []
        latent = Phase(
            "latent",
            preparation="prepare",
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            t_max=settings.t_max,
            close_up=settings.prompt_close_up,
            stream="sds",
            make_scene=_painted_scene,
        )
        rgb = Phase(
            "rgb",
            preparation="prepare_refinement",
            steps=settings.refine_steps,
            guidance_scale=settings.refine_guidance_scale,
            t_max=settings.refine_t_max,
            close_up=settings.prompt_close_up,
            stream="sds-rgb",
            make_scene=_refined_scene,
        )
        return [latent, rgb] if settings.refine else [latent]

    def uses_close_ups(self, settings: PaintSettings) -> bool:
        """As the row says."""
        return settings.prompt_close_up

    def finish(self, asset_build: PaintBuild, variant: PaintVariant, prior: Prior) -> Asset:
        """Decode the latent texture, or take the refined one, or sample a material, and bake it."""
        row, settings, paintable = asset_build.row, asset_build.settings, asset_build.inputs
        scenes = variant.scenes
        if not asset_build.phases:
            baked = paint_with_material(row, settings, paintable, variant.seed, prior)
        else:
            with row.stage("bake"):
                if scenes.refined is not None:
                    baked = bake_refined(scenes.refined.texture, paintable.uvmesh, row.report)
                else:
                    baked = _bake_decoded(asset_build, scenes, prior)
            baked = maps_of_views(row, settings, paintable, baked, prior)
        maps, writer = baked.maps, None
        if (document := paintable.document) is not None:
            maps, writer = document.with_own_look(baked.maps), _document_writer(row, settings, document, baked)
        notes = {**scenes.notes, **baked.notes}
        return Asset(paintable.uvmesh, maps, notes, paintable.frame, height=baked.height, document=writer)

    def backends(self, settings: PaintSettings, device: str) -> dict[str, str]:
        """Texture lookups, of which only CUDA has several backends, and antialiasing where the row asks for it."""
        operations = [*(["texture"] if device == "cuda" else []), *(["antialias"] if settings.antialias else [])]
        return {operation: select_backend(operation).name for operation in operations}


paint = functools.partial(build, Paint())


def _paintable(
    row: RowContext, settings: PaintSettings, uvmesh: UVMesh, document: DocumentInput | None = None
) -> PaintableMesh:
    """The mesh in the working frame. Adds its warnings to ``row``."""
    vertices = uvmesh.mesh.vertices
    frame = normalise(vertices, radius=MESH_RADIUS, up_axis=settings.up_axis, front=settings.front)
    paintable = PaintableMesh(uvmesh, frame, document)
    row.warnings += paintable.warnings
    return paintable


def _document_writer(
    row: RowContext, settings: PaintSettings, document: DocumentInput, baked: BakedMaps
) -> DocumentWriter:
    """Writes a variant's maps into the document that the mesh came in."""

    def write(provenance: Json, stem: str) -> dict[str, bytes]:
        result = repainted(document, settings, baked.maps, title=row.job.id, provenance=provenance)
        writer.notes = document_notes(document, result)
        files = gltf_files(result.document, stem) if settings.package == "gltf" else {}
        return {f"{stem}.glb": result.document.glb(), **files}

    writer = DocumentWriter(write)
    return writer


def scene_settings(settings: PaintSettings, prior: Prior) -> PaintedMeshSettings:
    """The settings of the painted mesh."""
    return PaintedMeshSettings(
        views=settings.views,
        view_size=settings.view_size,
        texture_size=settings.texture_size // prior.vae_scale_factor,
        learning_rate=settings.learning_rate,
        cameras=CameraSettings(
            close_up=settings.close_up,
            elevation_min=float(np.radians(settings.elevation_min)),
            elevation_max=float(np.radians(settings.elevation_max)),
            fov=float(np.radians(settings.fov)),
            object_radius=MESH_RADIUS,
        ),
        background=settings.background,
        initial_noise=settings.initial_noise,
        base_colour=settings.initial_colour,
        antialias=settings.antialias,
        patches=sampled_view_settings(settings),
    )


def _painted_scene(asset_build: PaintBuild, variant: PaintVariant, prior: Prior) -> PhaseScene:
    """The mesh, painted by score or by views. Checkpoints fit one layout of the texture."""
    settings, paintable = asset_build.settings, asset_build.inputs
    uvmesh = paintable.uvmesh
    with asset_build.row.stage("prepare"):
        mesh_settings = scene_settings(settings, prior)
        if settings.distillation == "patches":
            views = make_view_scene(asset_build.row, settings, mesh_settings.cameras, paintable, variant.seed, prior)
            variant.scenes.views = views
            return PhaseScene(views.scene, (paintable.layout,), views.scene.steps)
        scene = PaintedMesh(
            paintable.vertices,
            uvmesh.mesh.faces,
            uvmesh.uv,
            uvmesh.uv_faces,
            prior.latent_rgb,
            mesh_settings,
            variant.seed,
            prior.device,
        )
    variant.scenes.painted = scene
    return PhaseScene(scene, (paintable.layout,))


def _refined_scene(asset_build: PaintBuild, variant: PaintVariant, prior: Prior) -> PhaseScene:
    """The same mesh under the decoded texture."""
    settings, scenes = asset_build.settings, variant.scenes
    latent_scene = scenes.views.scene if scenes.views is not None else scenes.painted
    assert latent_scene is not None
    with asset_build.row.stage("prepare_refinement"):
        baked = _bake_decoded(asset_build, scenes, prior)
        texture = torch.from_numpy(baked.maps[BASE_COLOUR]).permute(2, 0, 1).float() / 255
        refinement = RefinedMeshSettings(settings.views, settings.view_size, settings.refine_learning_rate)
        scene = RefinedMesh(latent_scene.renderer, texture, prior, refinement, variant.seed)
    scenes.refined, scenes.notes = scene, baked.notes
    return PhaseScene(scene)


def _bake_decoded(asset_build: PaintBuild, scenes: PaintScenes, prior: Prior) -> BakedMaps:
    """The base colour that the views were laid on, or that the latent texture decodes to."""
    report = asset_build.row.report
    if scenes.views is not None:
        baked = scenes.views.canvas.bake(report)
        return BakedMaps(baked.maps, {"distillation": "patches", **scenes.views.notes, **baked.notes})
    painted = scenes.painted
    assert painted is not None
    return bake_base_colour(
        painted.texture.detach(),
        painted.texel_coverage.coverage,
        asset_build.inputs.uvmesh,
        prior,
        asset_build.settings.texture_size,
        report,
    )


# Settings that say how views are drawn or optimised: a row that gives one of them means to be painted by views.
_OF_VIEWS = (
    "views", "view_size", "patch_views", "patch_size", "patch_height", "learning_rate", "initial_noise", "timesteps",
    "background", "base_colour",
)  # fmt: skip


def _suits_material(job: Job, prior: Prior) -> bool:
    """Whether a row without ``distillation`` is painted with a material: it says the size of the tile, or its prompt
    names a material and nothing with parts, and no setting of the row needs views."""
    given = job.settings
    if given.get("tile_size") is not None:
        return True
    needs_views = bool(given.get("refine")) or any(given.get(name) is not None for name in _OF_VIEWS)
    return prior.material_defaults.auto and not needs_views and prior.names_material_alone(job.prompt)
