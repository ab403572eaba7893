"""Every setting of the ``paint`` recipe: its range, its default and what it does. Loads no torch.

An option of None means "what the prior recommends" (``prior.defaults``) or, where priors recommend nothing, "none".
Angles are in degrees, as in manifests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from pipeline.prior.defaults import PaintDefaults
from pipeline.recipes.document_settings import DocumentOptions, DocumentSettings
from pipeline.recipes.shared_settings import SharedOptions, SharedSettings

Distillation = Literal["score", "patches", "material"]
UnwrapMode = Literal["auto", "input", "xatlas", "box"]


class PaintOptions(DocumentOptions, SharedOptions):
    """The options of a row of ``paint``, validated strictly: text and booleans are not numbers."""

    distillation: Distillation | None = Field(
        default=None,
        description="Way of painting: score (score distillation with Adam, as published), patches (views are sampled "
        "in groups, each group continuing from earlier ones) or material (one tileable sample covers the surface). "
        "Left out: the prior's choice for the prompt.",
    )
    tile_size: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="Side of the tileable sample on the surface, in the mesh's units, for distillation: material. "
        "Left out: a share of the object's size.",
    )
    close_up: float = Field(default=0.5, ge=0, le=1, description="Share of views that are close-ups.")
    fov: float = Field(default=60, ge=10, le=120, description="Vertical field of view, degrees.")
    prompt_close_up: bool = Field(default=True, description="Add ', close up' to the prompt of close-ups.")
    initial_noise: float | None = Field(
        default=None, ge=0, le=2, description="Standard deviation of the initial noise. Left out: the prior's."
    )
    antialias: bool = Field(
        default=False,
        description="Antialias the outlines of drawn views. It helps for meshes with large faces, and for refinement.",
    )
    unwrap: UnwrapMode = Field(default="auto", description="Where texture coordinates come from.")

    @model_validator(mode="after")
    def _suits_a_material(self) -> Self:
        if self.distillation == "material" and self.refine:
            raise PydanticCustomError(
                "order",
                "{field} is true and distillation is material; allowed: refine with score or patches",
                {"field": "refine"},
            )
        if self.tile_size is not None and (self.refine or self.distillation in ("score", "patches")):
            raise PydanticCustomError(
                "order",
                "{field} is given, and {why}; allowed: distillation: material, without refine",
                {
                    "field": "tile_size",
                    "why": "refine is true" if self.refine else f"distillation is {self.distillation}",
                },
            )
        return self


class PaintSettings(DocumentSettings, SharedSettings):
    """The settings that a painted asset is built with."""

    distillation: Distillation
    tile_size: float | None
    close_up: float
    fov: float
    prompt_close_up: bool
    initial_noise: float
    antialias: bool
    unwrap: UnwrapMode


def resolve_paint(options: PaintOptions, defaults: Mapping[str, object]) -> PaintSettings:
    """Complete ``options`` with the prior's ``defaults``, by name. Raises SettingError as ``SharedSettings.of``.

    The prior's steps are meant for the prior's own distillation: score distillation needs more steps than patches do.
    """
    if options.distillation == "score" and defaults["distillation"] != "score":
        defaults = {**defaults, "steps": PaintDefaults.steps}
    return PaintSettings.of(options, defaults)
