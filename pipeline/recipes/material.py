"""The recipe ``material``: a tileable texture set from a prompt alone, as image files and on a preview ball."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.bake.bake import BASE_COLOUR, EMISSIVE, HEIGHT, METALLIC_ROUGHNESS, NORMAL
from pipeline.bake.exemplar_maps import ExemplarMaps, at_size, flat_images, height_image
from pipeline.core.job import Job
from pipeline.mesh.ball import preview_ball
from pipeline.mesh.normalise import normalise
from pipeline.prior.load import Prior
from pipeline.prior.tile import Tile
from pipeline.recipes.asset_build import Asset, AssetBuild, Phase, RowContext, Variant
from pipeline.recipes.build import build
from pipeline.recipes.material_settings import MaterialOptions, MaterialSettings, resolve_material
from pipeline.recipes.material_surface import draw_sample, estimated_maps, exemplar_settings
from pipeline.recipes.paintable_mesh import MESH_RADIUS
from pipeline.recipes.recipe import Recipe

# Neither inputs nor scenes: a sample is drawn at once.
MaterialBuild = AssetBuild[MaterialSettings, None, None]
# A texture this many times as large as its sample looks soft.
_SOFT = 2.0


class TextureMap(NamedTuple):
    """One map of the set: its name, its image (H, W, 3) uint8, and the property of the glTF material that holds it."""

    name: str
    image: NDArray[np.uint8]
    slot: str


# The properties of the glTF material that hold further maps.
_SLOTS = {
    NORMAL: "normalTexture",
    METALLIC_ROUGHNESS: "metallicRoughnessTexture",
    EMISSIVE: "emissiveTexture",
}


def texture_maps(
    tile: Tile, size: int, maps: ExemplarMaps | None = None, names: Sequence[str] = ()
) -> list[TextureMap]:
    """The maps of a sample, ``size`` pixels a side: its base colour, and those of ``maps`` that ``names`` names and
    that lie in a plane. Each entry is written and recorded."""
    if maps is None:
        return [TextureMap(BASE_COLOUR, _resize_to_bytes(tile.image, size), "baseColorTexture")]
    scaled = at_size(maps, lambda plane: _resize(plane, size), size)
    images = flat_images(scaled, (BASE_COLOUR, *names))
    return [
        TextureMap(name, image, "baseColorTexture" if name == BASE_COLOUR else _SLOTS[name])
        for name, image in images.items()
    ]


class Material(Recipe[MaterialSettings, None, None]):
    """Draws a tileable texture."""

    name = "material"

    def resolve(self, job: Job, prior: Prior) -> MaterialSettings:
        """The job's settings, completed with the prior's defaults. Raises SettingError."""
        options = MaterialOptions.model_validate(dict(job.settings))
        return resolve_material(options, prior.material_defaults, _native_size(prior), prior.vae_scale_factor)

    def prepare(self, row: RowContext, settings: MaterialSettings, prior: Prior, out: Path) -> None:
        """Nothing: a row has no inputs."""

    def new_scenes(self) -> None:
        """None."""

    def phases(self, settings: MaterialSettings) -> list[Phase[MaterialSettings, None, None]]:
        """[]: nothing is optimised."""
        return []

    def uses_close_ups(self, settings: MaterialSettings) -> bool:
        """Whether the row adds ", close up" to the prompt."""
        return settings.prompt_close_up

    def finish(self, asset_build: MaterialBuild, variant: Variant[None], prior: Prior) -> Asset:
        """Draw the sample, make the maps of it, and put them on the ball. Raises LatentkilnError."""
        row, settings = asset_build.row, asset_build.settings
        base, doublings = base_size(settings.sample_size, _native_size(prior), _side_multiple(prior))
        tile = draw_sample(row, settings, variant.seed, prior, size=base, doublings=doublings)
        pixels = len(tile.image)
        if settings.texture_size > _SOFT * pixels:
            row.warn(
                f"the texture of {settings.texture_size} pixels is scaled up from a sample of {pixels}: it looks soft; "
                "a larger sample_size draws more of the pattern instead, and takes longer"
            )
        with row.stage("bake"):
            options = exemplar_settings(settings)
            estimated = estimated_maps(tile, options, prior) if options.maps else None
            maps = texture_maps(tile, settings.texture_size, estimated, options.maps)
            height = _height_image(estimated, settings.texture_size) if estimated and HEIGHT in options.maps else None
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
        if estimated is not None:
            notes |= estimated.notes
        images = {each.name: each.image for each in maps}
        return Asset(ball, images, notes, normalise(ball.mesh.vertices, radius=MESH_RADIUS), tiling, height)

    def backends(self, settings: MaterialSettings, device: str) -> dict[str, str]:
        """None of its own."""
        return {}


material = functools.partial(build, Material())


def base_size(size: int, native: int, multiple: int) -> tuple[int, int]:
    """The (side, doublings) from which a sample of ``size`` latent pixels is drawn.

    The side is the smallest one that the prior draws well: a multiple of ``multiple``, and at least ``native`` unless
    ``size`` is smaller.
    """
    side, doublings = size, 0
    while side % 2 == 0 and side // 2 >= native and side // 2 % multiple == 0:
        side, doublings = side // 2, doublings + 1
    return side, doublings


def _native_size(prior: Prior) -> int:
    return prior.material_defaults.size or prior.sample_size


def _side_multiple(prior: Prior) -> int:
    """Sides of a tile must be a multiple of this: the UNet halves its input, and other sides would not wrap around."""
    return int(2 ** (len(prior.unet.config.block_out_channels) - 1))


def _height_image(maps: ExemplarMaps, size: int) -> NDArray[np.uint16]:
    return height_image(_resize(maps.height[..., None], size)[..., 0])[0]


def _resize_to_bytes(image: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Resize ``image`` (H, W, 3) in [0, 1] to (size, size, 3) uint8 with a Lanczos filter that wraps around."""
    return np.ascontiguousarray(np.rint(np.clip(_resize(image, size), 0, 1) * 255).astype(np.uint8))


def _resize(image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Resize ``image`` (H, W, C) to (size, size, C) with a Lanczos filter that wraps around."""
    side = len(image)
    if side != size:
        # Pad with the opposite border, so that the filter wraps around.
        margin = min(side, 8 * max(1, -(-side // size)))
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="wrap")
        box = (margin, margin, margin + side, margin + side)
        planes = [Image.fromarray(np.ascontiguousarray(padded[..., c])) for c in range(image.shape[2])]
        planes = [plane.resize((size, size), Image.Resampling.LANCZOS, box) for plane in planes]
        image = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return image
