"""The recipe ``generate``: a textured mesh from text, by way of a radiance field of latents, with or without a sketch.

Latent-NeRF, Sketch-Shape and RGB refinement (docs/method.md, sections 3 to 5). Lengths are in units of the scene, whose
cube reaches from -1 to 1; +Y is up and the object faces +Z, in the asset too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bake.bake import BakedMaps
from pipeline.bake.decode import decode_texture
from pipeline.bake.projection import bake_projected, covering_cameras
from pipeline.core.asset_layout import SKETCH_CACHE
from pipeline.core.job import Job, Reporter
from pipeline.fields import grid, mlp, volume
from pipeline.fields.grid.layout import GridSettings
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.fields.radiance_field import FieldSettings, RadianceField
from pipeline.fields.radiance_field_scene import LossWeights, RadianceFieldScene, RadianceFieldSettings
from pipeline.fields.sketch import Sketch
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.mesh_hash import mesh_sha256
from pipeline.mesh.normalise import normalise
from pipeline.mesh.normals import is_closed
from pipeline.mesh.winding_grid import load_sketch
from pipeline.painting.multiview_sampling import SampledTextureMesh
from pipeline.painting.painted_mesh import PaintedMeshSettings
from pipeline.prior.load import Prior
from pipeline.raster.camera import Cameras, CameraSettings, OrbitSettings
from pipeline.recipes.asset_build import Asset, AssetBuild, Phase, PhaseScene, RowContext, Variant
from pipeline.recipes.build import build
from pipeline.recipes.generate_settings import GenerateOptions, GenerateSettings, resolve_generate
from pipeline.recipes.mesh_extraction import BOUND, extract_mesh, latent_texture
from pipeline.recipes.paintable_mesh import MESH_RADIUS, PaintableMesh, bake_sampled_views, sampled_view_settings
from pipeline.recipes.recipe import Recipe
from pipeline.uv.unwrap import unwrap

# The grid's coarsest level, as published.
_COARSEST = 16
# A scene_radius beyond the corners of the scene's cube.
_WHOLE_CUBE = 2.0
# Views that the texture is projected from.
BAKE_VIEWS = 40


@dataclass
class FieldScenes:
    """The scenes of one variant, and the mesh of its finished field."""

    grown: RadianceFieldScene | None = None
    refined: RadianceFieldScene | None = None
    textured: SampledTextureMesh | None = None
    surface: PaintableMesh | None = None

    @property
    def latest(self) -> RadianceFieldScene:
        """The field after the latest phase that changed it."""
        scene = self.refined or self.grown
        assert scene is not None
        return scene


# The input is the sketch; None where there is none.
FieldBuild = AssetBuild[GenerateSettings, Sketch | None, FieldScenes]
FieldPhase = Phase[GenerateSettings, Sketch | None, FieldScenes]
FieldVariant = Variant[FieldScenes]


class Generate(Recipe[GenerateSettings, Sketch | None, FieldScenes]):
    """Grows an object from text."""

    name = "generate"

    def resolve(self, job: Job, prior: Prior) -> GenerateSettings:
        """The job's settings, completed with the prior's defaults. Raises SettingError."""
        options = GenerateOptions.model_validate(dict(job.settings))
        defaults: dict[str, object] = dict(vars(prior.generate_defaults))
        if job.mesh is not None or options.shapes:
            # The sketch bounds the object, and the guidance need not shape its outline.
            defaults["scene_radius"] = _WHOLE_CUBE
            if defaults["sketch_guidance_scale"] is not None:
                defaults["guidance_scale"] = defaults["sketch_guidance_scale"]
        return resolve_generate(options, defaults)

    def prepare(self, row: RowContext, settings: GenerateSettings, prior: Prior, out: Path) -> Sketch | None:
        """Read and measure the sketch, where there is one. Raises LatentkilnError."""
        mesh_path = row.job.mesh.local() if row.job.mesh else None
        if mesh_path is None and not settings.shapes:
            return None
        with row.stage("sketch"):
            winding = load_sketch(
                mesh_path,
                [shape.model_dump() for shape in settings.shapes or ()],
                out / SKETCH_CACHE,
                fit=settings.sketch_fit,
                up_axis=settings.up_axis,
                front=settings.front,
                max_faces=settings.max_faces,
                bound=BOUND,
                report=row.report,
            )
            if mesh_path is not None:
                row.input_sha256 = mesh_sha256(mesh_path)
            return Sketch(winding, settings.sigma_shape, prior.device)

    def new_scenes(self) -> FieldScenes:
        """No scene yet."""
        return FieldScenes()

    def phases(self, settings: GenerateSettings) -> list[FieldPhase]:
        """Grow the field in latents; then, if requested, refine it in RGB or paint its surface by patches."""
        latent = Phase(
            "latent",
            preparation="prepare",
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            t_max=settings.t_max,
            close_up=False,
            stream="sds",
            make_scene=_grown_scene,
        )
        rgb = Phase(
            "rgb",
            preparation="prepare_refinement",
            steps=settings.refine_steps,
            guidance_scale=settings.refine_guidance_scale,
            t_max=settings.refine_t_max,
            close_up=False,
            stream="sds-rgb",
            make_scene=_refined_scene,
        )
        texture = Phase(
            "texture",
            preparation="prepare_texture",
            steps=settings.texture_steps,
            guidance_scale=settings.texture_guidance_scale,
            t_max=settings.t_max,
            close_up=True,
            stream="sds-texture",
            make_scene=_textured_scene,
        )
        return [latent, *([rgb] if settings.refine else []), *([texture] if _paints_surface(settings) else [])]

    def uses_close_ups(self, settings: GenerateSettings) -> bool:
        """True if the surface is painted by patches."""
        return _paints_surface(settings)

    def finish(self, asset_build: FieldBuild, variant: FieldVariant, prior: Prior) -> Asset:
        """The field's surface, textured from the patches painted on it or from views of the field."""
        scenes, size, report = variant.scenes, asset_build.settings.texture_size, asset_build.row.report
        paintable = _surface(asset_build, variant)
        views = scenes.textured.sampled_views() if scenes.textured is not None else None
        with asset_build.row.stage("bake"):
            if views is not None:
                baked = bake_sampled_views(views, paintable, size, prior, report)
            else:
                baked = _bake_projected(scenes.latest, paintable.uvmesh, size, prior, report)
        return Asset(paintable.uvmesh, baked.maps, baked.notes, paintable.frame)

    def backends(self, settings: GenerateSettings, device: str) -> dict[str, str]:
        """The field's encoding, network and volume rendering."""
        operations = {"grid": grid.backend_for, "network": mlp.backend_for, "volume": volume.backend_for}
        return {name: backend_for(device) for name, backend_for in operations.items()}


generate = functools.partial(build, Generate())


def scene_settings(settings: GenerateSettings, learning_rate: float | None = None) -> RadianceFieldSettings:
    """The settings of the field's scene. ``learning_rate`` replaces the row's."""
    return RadianceFieldSettings(
        views=settings.views,
        view_size=settings.view_size,
        learning_rate=settings.learning_rate if learning_rate is None else learning_rate,
        cameras=OrbitSettings(
            elevation=_radians(settings.elevation_min, settings.elevation_max),
            radius=(settings.radius_min, settings.radius_max),
            fov=_radians(settings.fov_min, settings.fov_max),
        ),
        samples_step=settings.samples_step,
        background=settings.background,
        supersample=settings.supersample,
        lambdas=LossWeights(
            settings.lambda_sparsity,
            settings.lambda_shape,
            settings.lambda_orientation,
            settings.lambda_tv,
        ),
    )


def _paints_surface(settings: GenerateSettings) -> bool:
    return settings.texturing == "patches"


def _base_latent(settings: GenerateSettings, prior: Prior) -> torch.Tensor:
    """(C,) float32 latent of the initial colour."""
    return torch.from_numpy(prior.latent_rgb.invert(np.array(settings.initial_colour))).float()


def _radians(low: float, high: float) -> tuple[float, float]:
    return float(np.radians(low)), float(np.radians(high))


def _grown_scene(asset_build: FieldBuild, variant: FieldVariant, prior: Prior) -> PhaseScene:
    """A new field: a blob of density in the initial colour."""
    settings = asset_build.settings
    with asset_build.row.stage("prepare"):
        encoding = GridSettings(
            levels=settings.grid_levels,
            base=min(_COARSEST, settings.grid_finest),
            finest=settings.grid_finest,
            log2_table=settings.grid_log2_table,
        )
        field = RadianceField(
            FieldSettings(
                grid=encoding,
                channels=prior.latent_channels,
                bound=BOUND,
                radius=settings.scene_radius,
            ),
            variant.seed,
            base_latent=_base_latent(settings, prior),
        )
        occupancy = OccupancyGrid(resolution=settings.occupancy_resolution, bound=BOUND, device=prior.device)
        scene = RadianceFieldScene(
            field.to(prior.device),
            occupancy,
            scene_settings(settings),
            prior.latent_rgb,
            variant.seed,
            asset_build.inputs,
        )
    variant.scenes.grown = scene
    # The empty part is in the keys of existing checkpoints.
    return PhaseScene(scene, ("",))


def _refined_scene(asset_build: FieldBuild, variant: FieldVariant, prior: Prior) -> PhaseScene:
    """The same field, seen through a layer from latents to RGB and the prior's encoder."""
    grown = variant.scenes.latest
    with asset_build.row.stage("prepare_refinement"):
        settings = scene_settings(asset_build.settings, learning_rate=asset_build.settings.refine_learning_rate)
        scene = RadianceFieldScene(
            grown.field, grown.occupancy, settings, prior.latent_rgb, variant.seed, asset_build.inputs, refine=prior
        )
    variant.scenes.refined = scene
    return PhaseScene(scene)


def _textured_scene(asset_build: FieldBuild, variant: FieldVariant, prior: Prior) -> PhaseScene:
    """The field's surface with the field's latents, to be painted by patches."""
    settings, paintable = asset_build.settings, _surface(asset_build, variant)
    uvmesh, size = paintable.uvmesh, settings.texture_size // prior.vae_scale_factor
    with asset_build.row.stage("prepare_texture"):
        scene = SampledTextureMesh(
            paintable.vertices,
            uvmesh.mesh.faces,
            uvmesh.uv,
            uvmesh.uv_faces,
            prior.latent_rgb,
            PaintedMeshSettings(
                views=settings.views,
                view_size=settings.view_size,
                texture_size=size,
                learning_rate=0.0,
                cameras=CameraSettings(object_radius=MESH_RADIUS),
                patches=sampled_view_settings(settings),
            ),
            variant.seed,
            prior.device,
            steps=settings.texture_steps,
            t_min=settings.t_min,
            t_max=settings.t_max,
            two_sided=not is_closed(uvmesh.mesh),
            initial_latents=latent_texture(variant.scenes.latest, uvmesh, size),
        )
    variant.scenes.textured = scene
    return PhaseScene(scene, (paintable.layout,))


def _surface(asset_build: FieldBuild, variant: FieldVariant) -> PaintableMesh:
    """The unwrapped surface of the variant's field; extracted at the first call."""
    row, settings, scenes = asset_build.row, asset_build.settings, variant.scenes
    if scenes.surface is None:
        with row.stage("surface"):
            mesh = extract_mesh(scenes.latest, settings, sketched=asset_build.inputs is not None)
        row.warnings += mesh.warnings
        with row.stage("unwrap"):
            uvmesh = unwrap(
                mesh, texture_size=settings.texture_size, time_limit=settings.unwrap_seconds, report=row.report
            )
        scenes.surface = PaintableMesh(uvmesh, normalise(mesh.vertices, radius=MESH_RADIUS))
    return scenes.surface


def _bake_projected(
    scene: RadianceFieldScene, uvmesh: UVMesh, texture_size: int, prior: Prior, report: Reporter
) -> BakedMaps:
    """Project views from all around the field onto its mesh."""
    vertices = uvmesh.mesh.vertices
    cameras = bake_cameras(vertices)
    view_size = prior.sample_size * 2 if prior.sample_size < 64 else prior.sample_size
    images, depths = [], []
    for index in range(len(cameras)):
        image, depth = render_picture(scene, cameras[index : index + 1], view_size, prior)
        images.append(image)
        depths.append(depth)
        report("views", index + 1, len(cameras))
    return bake_projected(
        uvmesh,
        vertices,
        cameras,
        np.concatenate(images),
        texture_size,
        report,
        near_depths=np.concatenate(depths),
    )


def bake_cameras(vertices: NDArray[np.float64]) -> Cameras:
    """Cameras all around the scene, each with all of ``vertices`` (V, 3) in view."""
    reach = float(np.linalg.norm(vertices, axis=1).max())
    fov = np.radians(45)
    return covering_cameras(BAKE_VIEWS, radius=reach / np.sin(fov / 2) * 1.05, fov=float(fov))


@torch.no_grad()
def render_picture(
    scene: RadianceFieldScene, camera: Cameras, view_size: int, prior: Prior
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A decoded (or refined) view of the field: (1, 3, H, H) float32 RGB in [0, 1], and (1, h, h) float32 depth along
    the view axis, inf where rays hit nothing."""
    if scene.layer is not None:
        image, weight, depth = scene.render_views(camera, view_size * prior.vae_scale_factor, 1)
        rgb = image
    else:
        image, weight, depth = scene.render_views(camera, view_size)
        rgb = decode_texture(image[0], prior)[None]
    along = torch.where(weight > 0.5, depth, torch.full_like(depth, float("inf")))
    return rgb.float().cpu().numpy(), along.float().cpu().numpy()
