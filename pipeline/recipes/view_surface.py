"""Paint with sampled views: plans the views, draws the sample they start from, and makes the scene that paints them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bake.bake import BASE_COLOUR
from pipeline.bake.material import bake_material
from pipeline.bake.view_canvas import ViewCanvas
from pipeline.mesh.mesh import face_normals
from pipeline.mesh.normals import is_closed
from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.tiling import REGULAR, regularity
from pipeline.painting.view_painting import ViewPaintedMesh, ViewPaintingSettings
from pipeline.painting.view_planning import ViewGroup, choose_groups, point_weights
from pipeline.prior.load import Prior
from pipeline.prior.prompts import CLOSE_UP
from pipeline.prior.tile import Tile, sample_tile
from pipeline.raster.camera import Cameras, CameraSettings
from pipeline.recipes.asset_build import RowContext
from pipeline.recipes.paint_settings import PaintOptions, PaintSettings
from pipeline.recipes.paintable_mesh import MESH_RADIUS, PaintableMesh

# Approximate number of steps of a group of views.
_GROUP_STEPS = 8
# First timesteps, as shares of T: of views over a regular sample (bricks, checks), which must keep its phase; over any
# other sample; of overviews; and of close-ups over finished overviews.
_REGULAR_START, _SAMPLE_START, _OVERVIEW_START, _CLOSE_UP_START = 0.6, 0.75, 0.95, 0.55
# First timestep over a base colour given by the row.
_COLOUR_START = 0.85
# Strength of the match to the sample's colours (materials only), and amount of sharpening of finished views.
_TONE_MATCHING, _SHARPENING = 0.8, 0.3
# Side of a texture, in object radii, with one texel per pixel of the views: atlases of typical meshes hold 220 to 370
# texels per radius at a side of 768. Then the smallest and the largest side in texels.
_TEXTURE_RADII, _MIN_TEXTURE, _MAX_TEXTURE = 4.8, 128, 2048
# Number of candidate close-ups and overviews; the largest angle of close-ups to the surface normal, and the field of
# view (radians), which is narrow to keep perspective weak.
CANDIDATES, _OVERVIEW_CANDIDATES = 192, 48
_CLOSE_ANGLE, _FOV = 0.2, float(np.radians(30))
# Largest share of groups that are overviews, if there are close-ups too.
_OVERVIEW_SHARE = 0.34


def view_texture_size(options: PaintOptions, prior: Prior) -> int:
    """Side in pixels of the largest texture that views of the row's size and height fill with detail."""
    defaults = prior.defaults
    size = options.patch_size or defaults.patch_size or options.view_size or defaults.view_size
    pixels_per_radius = size * prior.vae_scale_factor / (options.patch_height or defaults.patch_height)
    return min(max(math.ceil(_TEXTURE_RADII * pixels_per_radius / 64) * 64, _MIN_TEXTURE), _MAX_TEXTURE)


@dataclass(frozen=True)
class PaintedViews:
    """A scene that paints with views, its texture, and notes for the record."""

    scene: ViewPaintedMesh
    canvas: ViewCanvas
    notes: dict[str, object]


def make_view_scene(
    row: RowContext,
    settings: PaintSettings,
    cameras: CameraSettings,
    paintable: PaintableMesh,
    seed: int,
    prior: Prior,
) -> PaintedViews:
    """Make the scene of one variant. Raises LatentkilnError."""
    uvmesh = paintable.uvmesh
    # Without a material in the prompt, a sample would be a picture of the object.
    material_alone = prior.names_material_alone(row.job.prompt)
    needs_sample = settings.base_colour is None and (material_alone or _names_material(row, prior))
    tile = _sample(row, settings, seed, prior, without_parts=not material_alone) if needs_sample else None
    # The sample has the same scale as the close-ups.
    sample_height = settings.patch_height * MESH_RADIUS * _sample_size(prior) / settings.patch_size
    start: NDArray[np.float32] | None = None
    if tile is not None:
        baked = bake_material(uvmesh, paintable.vertices, tile.image, sample_height, settings.texture_size, seed)
        start = baked.maps[BASE_COLOUR].astype(np.float32)
        start /= 255
    elif settings.base_colour is not None:
        colour = np.asarray(settings.initial_colour, np.float32)
        start = np.tile(colour, (settings.texture_size, settings.texture_size, 1))
    canvas = ViewCanvas(uvmesh, paintable.vertices, settings.texture_size, start)
    renderer = MeshRenderer(
        paintable.vertices, uvmesh.mesh.faces, uvmesh.uv, uvmesh.uv_faces, cameras, seed, settings.antialias
    )
    max_groups = max(1, round(settings.steps / _GROUP_STEPS))
    overview_start = _COLOUR_START if settings.base_colour is not None else _OVERVIEW_START
    groups = _plan(
        renderer,
        settings,
        cameras,
        max_groups,
        overviews=not material_alone,
        overview_start=overview_start,
        close_up_start=_close_up_start(tile, overview_start) if material_alone else _CLOSE_UP_START,
    )
    painting_settings = ViewPaintingSettings(
        settings.patch_size,
        prior.latent_channels,
        max(1, settings.steps // max_groups),
        settings.t_min,
        max(64, settings.texture_size // prior.vae_scale_factor),
        not is_closed(uvmesh.mesh),
        tone_matching=_TONE_MATCHING if material_alone else 0.0,
        sharpening=_SHARPENING,
    )
    scene = ViewPaintedMesh(
        renderer,
        _unit_normals(paintable),
        groups,
        canvas,
        prior,
        painting_settings,
        seed,
        sample=None if tile is None else tile.image,
        sample_height=sample_height,
    )
    view_pixels = settings.patch_size * prior.vae_scale_factor
    notes: dict[str, object] = {
        "prior_pixels_per_radius": round(view_pixels * MESH_RADIUS / min(group.height for group in groups), 1),
        "groups": len(groups),
        "unet_evaluations": (0 if tile is None else tile.evaluations) + scene.steps * len(groups[0].views),
    }
    return PaintedViews(scene, canvas, notes)


def _names_material(row: RowContext, prior: Prior) -> bool:
    return prior.surface_prompt(row.job.prompt) != row.job.prompt


def _sample_size(prior: Prior) -> int:
    """Side of the sample in latent pixels."""
    return prior.material_defaults.size or prior.sample_size


def _sample(row: RowContext, settings: PaintSettings, seed: int, prior: Prior, *, without_parts: bool) -> Tile:
    """Draw a tileable sample of the material with ``seed``, as ``distillation: material`` does.

    ``without_parts`` cuts the prompt at "with" ("a wooden barrel with iron bands"), because the words after it name
    parts of the object, not its surface.
    """
    prompt = prior.surface_prompt(row.job.prompt)
    adapters = prior.adapters(row.job.adapters)
    if without_parts:
        prompt = prompt.partition(" with ")[0]
    return sample_tile(
        prior,
        prior.fit_prompt(prompt, CLOSE_UP, adapters) + CLOSE_UP,
        negative_prompt=row.job.negative_prompt,
        guidance_scale=settings.guidance_scale,
        steps=prior.material_defaults.steps,
        seed=seed,
        size=_sample_size(prior),
        adapters=adapters,
    )


def _close_up_start(tile: Tile | None, without_sample: float) -> float:
    """First timestep, as a share of T, of close-ups that start from the sample; ``without_sample`` if there is none."""
    if tile is None:
        return without_sample
    return _REGULAR_START if regularity(tile.image) > REGULAR else _SAMPLE_START


def _unit_normals(paintable: PaintableMesh) -> NDArray[np.float64]:
    normals = face_normals(paintable.vertices, paintable.uvmesh.mesh.faces)
    unit_normals: NDArray[np.float64] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    return unit_normals


def _plan(
    renderer: MeshRenderer,
    settings: PaintSettings,
    cameras: CameraSettings,
    max_groups: int,
    *,
    overviews: bool,
    overview_start: float,
    close_up_start: float,
) -> list[ViewGroup]:
    """Plan at most ``max_groups`` groups: overviews first, if requested, then close-ups, each by decreasing gain."""
    count = settings.patch_views
    groups: list[ViewGroup] = []
    if overviews or cameras.close_up == 0:
        overview_settings = dataclasses.replace(cameras, close_up=0.0, fill=(0.95, 0.95), fov=_FOV)
        height = 2 * MESH_RADIUS / 0.95
        limit = max_groups if cameras.close_up == 0 else max(1, round(max_groups * _OVERVIEW_SHARE))
        candidates = renderer.sample_cameras(0, max(_OVERVIEW_CANDIDATES, count), "whole views", overview_settings)
        for indices in _choose_groups(renderer, candidates[0], count, limit):
            views = [candidates[1][i] for i in indices]
            groups.append(ViewGroup(candidates[0][indices], views, min(overview_start, settings.t_max), height, True))
    if cameras.close_up == 0 or len(groups) >= max_groups:
        return groups
    radii = settings.patch_height
    close_settings = dataclasses.replace(
        cameras, close_up=1.0, close_height=(radii, radii), close_angle=_CLOSE_ANGLE, fov=_FOV
    )
    start = min(close_up_start, settings.t_max)
    candidates = renderer.sample_cameras(0, max(CANDIDATES, count), "close-ups", close_settings)
    for indices in _choose_groups(renderer, candidates[0], count, max_groups - len(groups)):
        views = [candidates[1][i] for i in indices]
        groups.append(ViewGroup(candidates[0][indices], views, start, radii * MESH_RADIUS, False))
    return groups


def _choose_groups(renderer: MeshRenderer, candidates: Cameras, count: int, max_groups: int) -> list[NDArray[np.int64]]:
    weights = point_weights(renderer, candidates, MESH_RADIUS)
    return choose_groups(weights, count, max_groups, np.zeros(weights.shape[1], np.float32))
