"""Paint with views: where they start, which ones there are, and the scene that paints them."""

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

# Steps that a group of views takes, as nearly as the number of steps allows.
_GROUP_STEPS = 8
# Timesteps that views begin at, shares of T: over a regular sample that lies on the surface (bricks, checks), whose
# phase must stay for views to meet; over any other; whole views; close-ups over them.
_REGULAR_START, _SAMPLE_START, _WHOLE_START, _DETAIL_START = 0.6, 0.75, 0.95, 0.55
# ... and over a colour that the row gives.
_COLOUR_START = 0.85
# How far the colours of a material are moved to its sample's, and how much finished views are sharpened.
_MATCHING, _SHARPENING = 0.8, 0.3
# Side of a texture, in radii of the object, that has a texel for each pixel of the views: atlases of usual meshes hold
# 220 to 370 texels a radius at 768 pixels a side. Least and most side.
_TEXELS, _LEAST_TEXTURE, _MOST_TEXTURE = 4.8, 128, 2048
# Candidates for close-ups, and for whole views; how far close-ups lean, and their field of view: so narrow that what is
# nearer is hardly larger.
CANDIDATES, _WHOLE_CANDIDATES = 192, 48
_LEAN, _FOV = 0.2, float(np.radians(30))
# Share of the groups that may be whole views, where there are any.
_WHOLE_SHARE = 0.34


def view_texture_size(options: PaintOptions, prior: Prior) -> int:
    """Pixels a side of the texture that views of this size and height can fill: more would show nothing more."""
    own = prior.defaults
    size = options.patch_size or own.patch_size or options.view_size or own.view_size
    pixels_per_radius = size * prior.vae_scale_factor / (options.patch_height or own.patch_height)
    return min(max(math.ceil(_TEXELS * pixels_per_radius / 64) * 64, _LEAST_TEXTURE), _MOST_TEXTURE)


@dataclass(frozen=True)
class PaintedViews:
    """A scene that paints by views, and the sample that it starts from."""

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
    """The scene of one variant. Raises LatentkilnError."""
    uvmesh = paintable.uvmesh
    # Where the prompt names no material, a sample of it would be a picture of the object.
    alone = prior.names_material_alone(row.job.prompt)
    wanted = settings.base_colour is None and (alone or _names_material(row, prior))
    tile = _sample(row, settings, seed, prior, whole=not alone) if wanted else None
    # Of one scale with the close-ups.
    side = settings.patch_height * MESH_RADIUS * _sample_size(prior) / settings.patch_size
    start: NDArray[np.float32] | None = None
    if tile is not None:
        baked = bake_material(uvmesh, paintable.vertices, tile.image, side, settings.texture_size, seed)
        start = baked.maps[BASE_COLOUR].astype(np.float32)
        start /= 255
    elif settings.base_colour is not None:
        colour = np.asarray(settings.initial_colour, np.float32)
        start = np.tile(colour, (settings.texture_size, settings.texture_size, 1))
    canvas = ViewCanvas(uvmesh, paintable.vertices, settings.texture_size, start)
    renderer = MeshRenderer(
        paintable.vertices, uvmesh.mesh.faces, uvmesh.uv, uvmesh.uv_faces, cameras, seed, settings.antialias
    )
    most = max(1, round(settings.steps / _GROUP_STEPS))
    first = _COLOUR_START if settings.base_colour is not None else _WHOLE_START
    groups = _plan(
        renderer,
        settings,
        cameras,
        most,
        whole=not alone,
        whole_start=first,
        close_start=_DETAIL_START if not alone else first if tile is None else _sample_start(tile),
    )
    painting = ViewPaintingSettings(
        settings.patch_size,
        prior.latent_channels,
        max(1, settings.steps // most),
        settings.t_min,
        max(64, settings.texture_size // prior.vae_scale_factor),
        not is_closed(uvmesh.mesh),
        matching=_MATCHING if alone else 0.0,
        sharpening=_SHARPENING,
    )
    scene = ViewPaintedMesh(
        renderer,
        _unit_normals(paintable),
        groups,
        canvas,
        prior,
        painting,
        seed,
        sample=None if tile is None else tile.image,
        sample_height=side,
    )
    pixels = settings.patch_size * prior.vae_scale_factor
    notes: dict[str, object] = {
        "prior_pixels_per_radius": round(pixels * MESH_RADIUS / min(group.height for group in groups), 1),
        "groups": len(groups),
        "unet_evaluations": (0 if tile is None else tile.evaluations) + scene.steps * len(groups[0].views),
    }
    return PaintedViews(scene, canvas, notes)


def _names_material(row: RowContext, prior: Prior) -> bool:
    return prior.surface_prompt(row.job.prompt) != row.job.prompt


def _sample_size(prior: Prior) -> int:
    """Latent pixels a side of the sample."""
    return prior.material_defaults.size or prior.sample_size


def _sample(row: RowContext, settings: PaintSettings, seed: int, prior: Prior, *, whole: bool) -> Tile:
    """A tileable sample of the material, as ``material`` draws it.

    Of an object with parts ("a wooden barrel with iron bands") without what "with" adds: that lies somewhere on the
    object, not all over it.
    """
    prompt = prior.surface_prompt(row.job.prompt)
    adapters = prior.adapters(row.job.adapters)
    if whole:
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


def _sample_start(tile: Tile) -> float:
    """Timestep at which views over the sample begin."""
    return _REGULAR_START if regularity(tile.image) > REGULAR else _SAMPLE_START


def _unit_normals(paintable: PaintableMesh) -> NDArray[np.float64]:
    normals = face_normals(paintable.vertices, paintable.uvmesh.mesh.faces)
    unit: NDArray[np.float64] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    return unit


def _plan(
    renderer: MeshRenderer,
    settings: PaintSettings,
    cameras: CameraSettings,
    most: int,
    *,
    whole: bool,
    whole_start: float,
    close_start: float,
) -> list[ViewGroup]:
    """At most ``most`` groups: whole views first where ``whole``, then close-ups, the ones that add most first."""
    count = settings.patch_views
    groups: list[ViewGroup] = []
    if whole or cameras.close_up == 0:
        whole_settings = dataclasses.replace(cameras, close_up=0.0, fill=(0.95, 0.95), fov=_FOV)
        height = 2 * MESH_RADIUS / 0.95
        limit = most if cameras.close_up == 0 else max(1, round(most * _WHOLE_SHARE))
        drawn = renderer.sample_cameras(0, max(_WHOLE_CANDIDATES, count), "whole views", whole_settings)
        for chosen in _choose(renderer, drawn[0], count, limit):
            views = [drawn[1][i] for i in chosen]
            groups.append(ViewGroup(drawn[0][chosen], views, min(whole_start, settings.t_max), height, True))
    if cameras.close_up == 0 or len(groups) >= most:
        return groups
    radii = settings.patch_height
    close = dataclasses.replace(cameras, close_up=1.0, close_height=(radii, radii), close_angle=_LEAN, fov=_FOV)
    start = min(close_start, settings.t_max)
    drawn = renderer.sample_cameras(0, max(CANDIDATES, count), "close-ups", close)
    for chosen in _choose(renderer, drawn[0], count, most - len(groups)):
        views = [drawn[1][i] for i in chosen]
        groups.append(ViewGroup(drawn[0][chosen], views, start, radii * MESH_RADIUS, False))
    return groups


def _choose(renderer: MeshRenderer, drawn: Cameras, count: int, most: int) -> list[NDArray[np.int64]]:
    weights = point_weights(renderer, drawn, MESH_RADIUS)
    return choose_groups(weights, count, most, np.zeros(weights.shape[1], np.float32))
