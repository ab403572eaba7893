"""Every setting of the ``paint`` recipe: its range, its default and what it does. Loads no torch.

``None`` means "what the prior recommends" (``prior.defaults``) or, where a prior has no say, "none". Angles
are in degrees here, as in manifests.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

UnwrapMode = Literal["auto", "input", "xatlas", "box"]
UpAxis = Literal["y", "z"]
Front = Literal["+x", "-x", "+y", "-y", "+z", "-z"]
Background = Literal["random", "learned"]
ImageFormat = Literal["png", "jpeg"]


class PaintSettings(BaseModel):
    """The settings of one painted asset; validated strictly (text is no number, a boolean is no number)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    steps: int = Field(default=300, ge=1, le=100_000, description="Steps of the optimisation.")
    guidance_scale: float | None = Field(
        default=None, ge=0, le=1000, description="Classifier-free guidance. Left out: what the prior recommends."
    )
    texture_size: int | None = Field(
        default=None, ge=64, le=8192, multiple_of=64, description="Pixels a side of the texture. Left out: prior's."
    )
    views: int | None = Field(default=None, ge=1, le=64, description="Views drawn per step. Left out: the prior's.")
    view_size: int | None = Field(
        default=None, ge=8, le=128, description="Latent pixels a side of a drawn view. Left out: the prior's."
    )
    learning_rate: float | None = Field(default=None, gt=0, le=10, description="Of Adam. Left out: the prior's.")
    t_min: float = Field(default=0.02, ge=0, le=1, description="Least noise, as a share of the prior's timesteps.")
    t_max: float = Field(default=0.98, ge=0, le=1, description="Most noise, as a share; above t_min.")
    anneal: bool = Field(default=True, description="Let the most noise fall during the run.")
    close_up: float = Field(default=0.5, ge=0, le=1, description="Share of views that are close-ups.")
    elevation_min: float = Field(default=-60, ge=-90, le=90, description="Lowest camera, degrees above the horizon.")
    elevation_max: float = Field(default=80, ge=-90, le=90, description="Highest, degrees; above elevation_min.")
    fov: float = Field(default=60, ge=10, le=120, description="Vertical field of view, degrees.")
    view_words: bool | None = Field(
        default=None, description="Add 'front view' and the like to the prompt. Left out: if the prior knows them."
    )
    prompt_close_up: bool = Field(default=True, description="Add ', close up' to the prompt of close-ups.")
    background: Background | None = Field(
        default=None,
        description="Behind the mesh: a random plain colour per view, or learned latents. Left out: the prior's.",
    )
    initial_noise: float | None = Field(
        default=None, ge=0, le=2, description="Strength of the random latents at the start. Left out: the prior's."
    )
    base_colour: str | None = Field(
        default=None, pattern=r"^#[0-9a-fA-F]{6}$", description="Colour to start from, like #c04020. Left out: grey."
    )
    max_faces: int = Field(default=2_000_000, ge=1, le=100_000_000, description="Meshes with more faces are refused.")
    unwrap: UnwrapMode = Field(default="auto", description="Where texture coordinates come from.")
    unwrap_seconds: float = Field(
        default=120, gt=0, le=86_400, description="Longest time for xatlas before a simpler unwrap is used."
    )
    crease_angle: float = Field(default=60, ge=0, le=180, description="Edges above this many degrees stay sharp.")
    up_axis: UpAxis = Field(default="y", description="The input mesh's upward axis.")
    front: Front | None = Field(
        default=None,
        description="Where the object's front faces, in the input mesh's axes. Left out: +z, or -y where z is up.",
    )
    image_format: ImageFormat = Field(default="png", description="Of the texture inside the GLB.")
    preview: bool = Field(default=True, description="Write preview.png beside the asset.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for low, high in (("t_min", "t_max"), ("elevation_min", "elevation_max")):
            a, b = getattr(self, low), getattr(self, high)
            if a >= b:
                raise PydanticCustomError(
                    "order",
                    "{low} is {a} and {high} is {b}; allowed: {low} below {high}",
                    {"field": low, "low": low, "high": high, "a": f"{a:g}", "b": f"{b:g}"},
                )
        if self.front is not None and self.front[1] == self.up_axis:
            raise PydanticCustomError(
                "order",
                "{front} runs along the up_axis {up}; allowed: an axis across it",
                {"field": "front", "front": self.front, "up": self.up_axis},
            )
        return self
