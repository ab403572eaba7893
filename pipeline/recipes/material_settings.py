"""Every setting of the ``material`` recipe: its range, its default and what it does. Loads no torch.

An option of None means "what the prior recommends" (``prior.material_defaults``) or "what the texture needs".
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from pipeline.prior.defaults import MaterialDefaults
from pipeline.recipes.map_settings import MapOptions, MapSettings, sort_maps
from pipeline.recipes.shared_settings import CommonOptions, CommonSettings

# By default a sample is at most this many times as wide as the prior draws at once. Each doubling takes four times
# as long.
LARGEST_SAMPLE = 4
# Tiles of the prior's own size that the ball shows from pole to pole, where the row does not say how many.
_TILES_ON_BALL = 2


class MaterialOptions(MapOptions, CommonOptions):
    """The options of a row of ``material``, validated strictly: text and booleans are not numbers."""

    sample_size: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        multiple_of=8,
        description="Latent pixels a side of the tileable sample. A larger sample holds more of the pattern. Left "
        "out: the texture's size, at most 4 times the size that the prior draws at once.",
    )
    repeats: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Repetitions of the texture on the preview ball from pole to pole; around the ball there are "
        "twice as many. "
        "Left out: 2, or 1 for a texture larger than what the prior draws at once.",
    )
    prompt_close_up: bool = Field(default=True, description="Add ', close up' to the prompt of close-ups.")

    @model_validator(mode="after")
    def _has_no_mesh(self) -> Self:
        if self.maps and "occlusion" in self.maps:
            raise PydanticCustomError(
                "order",
                "{field} has occlusion, which is measured on a mesh; allowed: the other maps",
                {"field": "maps"},
            )
        return self


class MaterialSettings(MapSettings, CommonSettings):
    """The settings that a tileable texture set is built with."""

    sample_size: int
    repeats: int
    prompt_close_up: bool


def resolve_material(
    options: MaterialOptions, defaults: MaterialDefaults, native: int, vae_scale_factor: int
) -> MaterialSettings:
    """Complete ``options``.

    Args:
        native: latent pixels a side that the prior draws at once.
        vae_scale_factor: image pixels to a latent pixel.
    """
    largest = native * LARGEST_SAMPLE
    texture = options.texture_size or min(defaults.texture_size, largest * vae_scale_factor)
    sample = options.sample_size or min(max(texture // vae_scale_factor, native), largest)
    return MaterialSettings(
        **options.model_dump(exclude={"steps", "guidance_scale", "texture_size", "sample_size", "repeats", "maps"}),
        maps=sort_maps(defaults.maps, without=("occlusion",)) if options.maps is None else options.maps,
        steps=options.steps or defaults.steps,
        guidance_scale=defaults.guidance_scale if options.guidance_scale is None else options.guidance_scale,
        texture_size=texture,
        sample_size=sample,
        repeats=options.repeats or max(1, _TILES_ON_BALL * native // sample),
    )
