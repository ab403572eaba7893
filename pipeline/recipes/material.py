"""The recipe ``material``: a tileable texture set from a prompt alone, as image files and on a preview ball."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.job import Job
from pipeline.export.gltf import BASE_COLOUR
from pipeline.mesh.ball import preview_ball
from pipeline.mesh.normalise import normalise
from pipeline.prior.load import Prior
from pipeline.prior.tile import Tile, sample_tile
from pipeline.recipes.asset_build import Asset, AssetBuild, Phase, RowContext, Variant
from pipeline.recipes.build import build
from pipeline.recipes.material_settings import MaterialSettings, ResolvedMaterialSettings, resolve_material
from pipeline.recipes.material_surface import border_warning, material_prompt
from pipeline.recipes.paintable_mesh import MESH_RADIUS
from pipeline.recipes.recipe import Recipe

# Neither inputs nor scenes: a sample is drawn at once.
MaterialBuild = AssetBuild[ResolvedMaterialSettings, None, None]
# A texture this many times as large as its sample looks soft.
_SOFT = 2.0


class TextureMap(NamedTuple):
    """One map of the set: its name, its image (H, W, 3) uint8, and the property of the glTF material that holds it."""

    name: str
    image: NDArray[np.uint8]
    slot: str


def texture_maps(tile: Tile, size: int) -> list[TextureMap]:
    """The maps of a sample, ``size`` pixels a side. A further map is one more entry here, and is written and recorded
    like the others; ``export.gltf.write_glb`` has to know its slot."""
    return [TextureMap(BASE_COLOUR, _resized(tile.image, size), "baseColorTexture")]


class Material(Recipe[ResolvedMaterialSettings, None, None]):
    """Draws a tileable texture."""

    name = "material"

    def resolve(self, job: Job, prior: Prior) -> ResolvedMaterialSettings:
        """The job's settings, completed with what the prior recommends. Raises SettingError."""
        options = MaterialSettings.model_validate(dict(job.settings))
        return resolve_material(options, prior.material_defaults, _native(prior), prior.vae_scale_factor)

    def prepare(self, row: RowContext, settings: ResolvedMaterialSettings, prior: Prior, out: Path) -> None:
        """Nothing: a row has no inputs."""

    def new_scenes(self) -> None:
        """None."""

    def phases(self, settings: ResolvedMaterialSettings) -> list[Phase[ResolvedMaterialSettings, None, None]]:
        """[]: nothing is optimised."""
        return []

    def uses_close_ups(self, settings: ResolvedMaterialSettings) -> bool:
        """As the row says."""
        return settings.prompt_close_up

    def finish(self, asset_build: MaterialBuild, variant: Variant[None], prior: Prior) -> Asset:
        """Draw the sample, make the maps of it, and put them on the ball. Raises LatentkilnError."""
        row, settings = asset_build.row, asset_build.settings
        base, doublings = base_size(settings.sample_size, _native(prior), _multiple(prior))
        with row.stage("sample"):
            tile = sample_tile(
                prior,
                material_prompt(row, prior, close_up=settings.prompt_close_up),
                negative_prompt=row.job.negative_prompt,
                guidance_scale=settings.guidance_scale,
                steps=settings.steps,
                seed=variant.seed,
                size=base,
                doublings=doublings,
                adapters=prior.adapters(row.job.adapters),
                report=row.report,
            )
        row.warn(border_warning(tile))
        pixels = len(tile.image)
        if settings.texture_size > _SOFT * pixels:
            row.warn(
                f"the texture of {settings.texture_size} pixels is scaled up from a sample of {pixels}: it looks soft; "
                "a larger sample_size draws more of the pattern instead, and takes longer"
            )
        with row.stage("bake"):
            maps = texture_maps(tile, settings.texture_size)
            ball = preview_ball()
        tiling = (2 * settings.repeats, settings.repeats)
        notes = {
            "texture_size": settings.texture_size,
            "sample_size": pixels,
            "doublings": doublings,
            "wrap": round(tile.wrap, 3),
            "unet_evaluations": tile.evaluations,
            "maps": {each.name: each.slot for each in maps},
            "tiling": list(tiling),
        }
        images = {each.name: each.image for each in maps}
        return Asset(ball, images, notes, normalise(ball.mesh.vertices, radius=MESH_RADIUS), tiling)

    def backends(self, settings: ResolvedMaterialSettings, device: str) -> dict[str, str]:
        """None of its own."""
        return {}


material = functools.partial(build, Material())


def base_size(size: int, native: int, multiple: int) -> tuple[int, int]:
    """(side, doublings) of the tile that a sample of ``size`` latent pixels grows from: the least side that the prior
    draws well, at least ``native`` where ``size`` allows it, and a multiple of ``multiple``."""
    side, doublings = size, 0
    while side % 2 == 0 and side // 2 >= native and side // 2 % multiple == 0:
        side, doublings = side // 2, doublings + 1
    return side, doublings


def _native(prior: Prior) -> int:
    return prior.material_defaults.size or prior.sample_size


def _multiple(prior: Prior) -> int:
    """The UNet halves its input this many times over: sides of another size would not wrap around inside it."""
    return int(2 ** (len(prior.unet.config.block_out_channels) - 1))


def _resized(image: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """(size, size, 3) sRGB bytes of ``image`` (H, W, 3) in [0, 1], which wraps around, with Lanczos filtering."""
    side = len(image)
    if side != size:
        # With a margin of its neighbours around it, so that the filter sees what lies across the borders.
        margin = min(side, 8 * max(1, -(-side // size)))
        around = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="wrap")
        box = (margin, margin, margin + side, margin + side)
        planes = [Image.fromarray(np.ascontiguousarray(around[..., c])) for c in range(3)]
        planes = [plane.resize((size, size), Image.Resampling.LANCZOS, box) for plane in planes]
        image = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return np.ascontiguousarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
