"""``generate``: text to 3D by a radiance field of latents, with or without a sketch, out as a textured mesh.

Latent-NeRF, Sketch-Shape and RGB refinement (METHOD sections 3 to 5). Lengths are in units of the scene, whose cube
reaches from -1 to 1; +Y is up and the object faces +Z, in the asset too.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import torch

from pipeline.bake.bake import BakedMaps
from pipeline.bake.decode import decode_texture
from pipeline.bake.projection import bake_projected, covering_cameras
from pipeline.core.asset_layout import SKETCH_CACHE
from pipeline.core.job import Job
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
from pipeline.recipes.asset_build import Asset, AssetBuild, Variant
from pipeline.recipes.build import Recipe, build
from pipeline.recipes.generate_settings import GenerateSettings
from pipeline.recipes.mesh_extraction import BOUND, extract_mesh, latent_texture
from pipeline.recipes.paintable_mesh import MESH_RADIUS, PaintableMesh, bake_sampled_views, sampled_view_settings
from pipeline.uv.unwrap import unwrap

# The grid's coarsest level, as published.
_COARSEST = 16
# A scene_radius that takes nothing away.
_WHOLE_CUBE = 2.0
# Views that the texture is projected from.
BAKE_VIEWS = 40


class Generate(Recipe):
    """The recipe's own steps; ``recipes.build`` does the rest."""

    name = "generate"

    def resolve(self, job: Job, prior: Prior) -> GenerateSettings:
        """The job's settings, with what the row left out taken from the prior. Raises SettingError."""
        settings, defaults = GenerateSettings(**job.settings), dict(vars(prior.generate_defaults))
        sketch_guidance = defaults.pop("sketch_guidance_scale")
        if job.mesh is not None or settings.shapes:
            # A sketch says itself how far the asset reaches, and the words need not make its outline.
            defaults["scene_radius"] = _WHOLE_CUBE
            defaults["guidance_scale"] = sketch_guidance or defaults["guidance_scale"]
        return settings.completed(defaults)

    def prepare(self, asset_build: AssetBuild, prior: Prior, out: Path) -> None:
        """Reads and measures the sketch, where there is one."""
        job, settings = asset_build.job, asset_build.settings
        if job.mesh is None and not settings.shapes:
            return
        with asset_build.stage("sketch"):
            volume = load_sketch(
                job.mesh,
                [shape.model_dump() for shape in settings.shapes or ()],
                out / SKETCH_CACHE,
                fit=settings.sketch_fit,
                up_axis=settings.up_axis,
                front=settings.front,
                max_faces=settings.max_faces,
                bound=BOUND,
                report=asset_build.report,
            )
            asset_build.shared = Sketch(volume, settings.sigma_shape, prior.device)
            if job.mesh is not None:
                asset_build.input_sha256 = mesh_sha256(job.mesh)

    def scene(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> tuple[RadianceFieldScene, str]:
        """A field that knows nothing yet but a blob of density."""
        settings = asset_build.settings
        grid = GridSettings(
            levels=settings.grid_levels,
            base=min(_COARSEST, settings.grid_finest),
            finest=settings.grid_finest,
            log2_table=settings.grid_log2_table,
        )
        field = RadianceField(
            FieldSettings(
                grid=grid,
                channels=prior.latent_channels,
                bound=BOUND,
                radius=float(settings.scene_radius or math.inf),
            ),
            variant.seed,
            base_latent=_base_latent(settings.base_colour, prior),
        )
        occupancy = OccupancyGrid(resolution=settings.occupancy_resolution, bound=BOUND, device=prior.device)
        scene = RadianceFieldScene(
            field.to(prior.device),
            occupancy,
            scene_settings(settings),
            prior.latent_rgb,
            variant.seed,
            asset_build.shared,
        )
        return scene, ""

    def refined(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> RadianceFieldScene:
        """The same field, seen through a layer from latents to RGB and the prior's encoder."""
        settings = scene_settings(asset_build.settings, learning_rate=asset_build.settings.refine_learning_rate)
        grown = variant.scene
        return RadianceFieldScene(
            grown.field, grown.occupancy, settings, prior.latent_rgb, variant.seed, asset_build.shared, refine=prior
        )

    def textured(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> tuple[SampledTextureMesh, str]:
        """The field's surface under the field's own latents, to be painted by patches."""
        settings, paintable = asset_build.settings, _paintable_mesh(asset_build, variant)
        size = int(settings.texture_size or 0) // prior.vae_scale_factor
        with asset_build.stage("prepare_texture"):
            scene = SampledTextureMesh(
                paintable.vertices,
                paintable.uvmesh.mesh.faces,
                paintable.uvmesh.uv,
                paintable.uvmesh.uv_faces,
                prior.latent_rgb,
                PaintedMeshSettings(
                    views=int(settings.views or 1),
                    view_size=int(settings.view_size or prior.sample_size),
                    texture_size=size,
                    learning_rate=0.0,
                    cameras=CameraSettings(object_radius=MESH_RADIUS),
                    patches=sampled_view_settings(settings),
                ),
                variant.seed,
                prior.device,
                steps=int(settings.texture_steps or 1),
                t_min=settings.t_min,
                t_max=settings.t_max,
                two_sided=not is_closed(paintable.uvmesh.mesh),
                known_latents=latent_texture(variant.scene, paintable.uvmesh, size),
            )
        return scene, paintable.layout

    def asset(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> Asset:
        """The field's surface, textured with what its views show or with the patches painted on it."""
        paintable = _paintable_mesh(asset_build, variant)
        patches = variant.textured.sampled_views() if variant.textured is not None else None
        with asset_build.stage("bake"):
            if patches is not None:
                size = int(asset_build.settings.texture_size or 0)
                baked = bake_sampled_views(patches, paintable, size, prior, asset_build.report)
            else:
                baked = _bake_projected(
                    variant.refined or variant.scene, paintable.uvmesh, asset_build.settings, prior, asset_build
                )
        return Asset(paintable.uvmesh, baked.maps, {**baked.notes, **variant.notes}, paintable.frame)


generate = functools.partial(build, Generate())


def scene_settings(settings: GenerateSettings, learning_rate: float | None = None) -> RadianceFieldSettings:
    """The scene's part of a row's resolved settings."""
    return RadianceFieldSettings(
        views=int(settings.views or 1),
        view_size=int(settings.view_size or 64),
        learning_rate=float(learning_rate or settings.learning_rate or 0),
        cameras=OrbitSettings(
            elevation=_radians(settings.elevation_min, settings.elevation_max),
            radius=(float(settings.radius_min or 0), float(settings.radius_max or 0)),
            fov=_radians(settings.fov_min, settings.fov_max),
        ),
        samples_step=float(settings.samples_step or 0),
        background="learned" if settings.background == "learned" else "random",
        supersample=int(settings.supersample or 1),
        lambdas=LossWeights(
            float(settings.lambda_sparsity or 0),
            float(settings.lambda_shape or 0),
            settings.lambda_orientation,
            settings.lambda_tv,
        ),
    )


def _base_latent(colour: str | None, prior: Prior) -> torch.Tensor:
    """(C,) latent of the colour to start from, grey where there is none."""
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] if colour else [0.5, 0.5, 0.5]
    return torch.from_numpy(prior.latent_rgb.invert(np.array(rgb))).float()


def _radians(low: float | None, high: float | None) -> tuple[float, float]:
    return float(np.radians(low or 0)), float(np.radians(high or 0))


def _paintable_mesh(asset_build: AssetBuild, variant: Variant) -> PaintableMesh:
    """The surface of the variant's field, unwrapped; found once."""
    if variant.paintable is None:
        settings = asset_build.settings
        scene: RadianceFieldScene = variant.refined or variant.scene
        with asset_build.stage("surface"):
            mesh = extract_mesh(scene, settings, sketched=asset_build.shared is not None)
        asset_build.warnings += mesh.warnings
        with asset_build.stage("unwrap"):
            uvmesh = unwrap(
                mesh, texture_size=settings.texture_size, time_limit=settings.unwrap_seconds, report=asset_build.report
            )
        variant.paintable = PaintableMesh(uvmesh, normalise(mesh.vertices, radius=MESH_RADIUS))
    paintable: PaintableMesh = variant.paintable
    return paintable


def _bake_projected(
    scene: RadianceFieldScene, uvmesh: UVMesh, settings: GenerateSettings, prior: Prior, asset_build: AssetBuild
) -> BakedMaps:
    vertices = uvmesh.mesh.vertices
    cameras = bake_cameras(vertices)
    view_size = prior.sample_size * 2 if prior.sample_size < 64 else prior.sample_size
    images, depths = [], []
    for index in range(len(cameras)):
        image, depth = render_picture(scene, cameras[index : index + 1], view_size, prior)
        images.append(image)
        depths.append(depth)
        asset_build.report("views", index + 1, len(cameras))
    return bake_projected(
        uvmesh,
        vertices,
        cameras,
        np.concatenate(images),
        int(settings.texture_size or 0),
        asset_build.report,
        near_depths=np.concatenate(depths),
    )


def bake_cameras(vertices: np.ndarray) -> Cameras:
    """Cameras all around the scene that hold the whole of ``vertices`` (V, 3)."""
    reach = float(np.linalg.norm(vertices, axis=1).max())
    fov = np.radians(45)
    return covering_cameras(BAKE_VIEWS, radius=reach / np.sin(fov / 2) * 1.05, fov=float(fov))


@torch.no_grad()
def render_picture(
    scene: RadianceFieldScene, camera: Cameras, view_size: int, prior: Prior
) -> tuple[np.ndarray, np.ndarray]:
    """What the decoder shows of the field: (1, 3, H, H) in [0, 1], and (1, h, h) depth along the view axis, inf where
    rays pass."""
    if scene.layer is not None:
        image, weight, depth = scene.render_views(camera, view_size * prior.vae_scale_factor, 1)
        rgb = image
    else:
        image, weight, depth = scene.render_views(camera, view_size)
        rgb = decode_texture(image[0], prior)[None]
    along = torch.where(weight > 0.5, depth, torch.full_like(depth, float("inf")))
    return rgb.float().cpu().numpy(), along.float().cpu().numpy()
