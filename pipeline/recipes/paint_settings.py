"""Every setting of the ``paint`` recipe: its range, its default and what it does. Loads no torch.

``None`` means "what the prior recommends" (``prior.defaults``) or, where a prior has no say, "none". Angles
are in degrees here, as in manifests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field

from pipeline.prior.defaults import PaintDefaults
from pipeline.recipes.shared_settings import SharedSettings

Distillation = Literal["score", "patches"]
UnwrapMode = Literal["auto", "input", "xatlas", "box"]


class PaintSettings(SharedSettings):
    """The settings of one painted asset; validated strictly (text is no number, a boolean is no number)."""

    distillation: Distillation | None = Field(
        default=None,
        description="How the texture is made: score (Adam along the score, as published) or patches (close-ups "
        "are sampled, a group at a time, each going on from the last). Left out: the prior's.",
    )
    close_up: float = Field(default=0.5, ge=0, le=1, description="Share of views that are close-ups.")
    fov: float = Field(default=60, ge=10, le=120, description="Vertical field of view, degrees.")
    prompt_close_up: bool = Field(default=True, description="Add ', close up' to the prompt of close-ups.")
    initial_noise: float | None = Field(
        default=None, ge=0, le=2, description="Strength of the random latents at the start. Left out: the prior's."
    )
    antialias: bool = Field(
        default=False,
        description="Smooth the outlines of drawn views by the share of a pixel that edges leave free: for meshes of "
        "large faces, and for refinement.",
    )
    unwrap: UnwrapMode = Field(default="auto", description="Where texture coordinates come from.")

    def completed(self, defaults: Mapping[str, Any]) -> Self:
        """As ``SharedSettings.completed``. A prior's steps are for its own way: a score needs more than patches do."""
        if self.distillation not in (None, defaults["distillation"]):
            defaults = {**defaults, "steps": PaintDefaults.steps}
        return super().completed(defaults)
