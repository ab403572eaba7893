"""The figures of quality in an asset's record, measured on its base colour texture."""

from __future__ import annotations

from pipeline.bake.texture_quality import ball_density, surface_quality, tile_quality
from pipeline.core.json_types import Json
from pipeline.export.gltf import BASE_COLOUR
from pipeline.recipes.asset_build import Asset


def asset_quality(asset: Asset) -> dict[str, float]:
    """The record's ``quality``; docs/figures.md explains each figure. One without a meaning for the asset is left out.

    Takes 0.1 to 0.3 s, whatever the size of the texture.
    """
    image, notes = asset.maps[BASE_COLOUR], asset.notes
    if asset.tiling is not None:
        sample, repeats = int(_number(notes, "sample_size") or len(image)), asset.tiling[1]
        return {
            **tile_quality(image, sample),
            "texels_per_radius": ball_density(len(image), repeats),
            "prior_pixels_per_radius": ball_density(sample, repeats),
            "coverage": 1.0,
        }
    figures = surface_quality(image, asset.uvmesh)
    if (density := _prior_density(notes, figures.get("texels_per_radius"))) is not None:
        figures["prior_pixels_per_radius"] = density
    unreached = _number(notes, "unreached_share")
    if unreached is not None:
        figures["coverage"] = round(1 - unreached, 4)
    elif notes.get("texels_unreached") == 0:
        figures["coverage"] = 1.0
    return figures


def _prior_density(notes: Json, texels: float | None) -> float | None:
    """Pixels that the prior drew along the object's radius: in its pictures, or in the texture that it decoded."""
    for name in ("prior_pixels_per_radius", "sample_pixels_per_radius"):
        if (density := _number(notes, name)) is not None:
            return density
    decoded, size = _number(notes, "decoded_size"), _number(notes, "texture_size")
    return None if texels is None or not decoded or not size else round(texels * decoded / size, 1)


def _number(notes: Json, name: str) -> float | None:
    value = notes.get(name)
    return float(value) if isinstance(value, int | float) else None
