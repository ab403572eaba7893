"""Settings that every recipe has: one range and one meaning, whatever the recipe. Loads no torch.

``None`` means "what the prior recommends" (``prior.defaults``) or, where a prior has no say, "none". Angles
are in degrees here, as in manifests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.core.errors import SettingError

UpAxis = Literal["y", "z"]
Front = Literal["+x", "-x", "+y", "-y", "+z", "-z"]
Background = Literal["random", "learned"]
ImageFormat = Literal["png", "jpeg"]
AssetFormat = Literal["glb", "obj", "ply"]
Timesteps = Literal["uniform", "annealed", "descending"]


class SharedSettings(BaseModel):
    """What the settings of all recipes are made of; validated strictly (text and booleans are no numbers)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # Pairs of settings of which the first has to be below the second.
    ORDERED: ClassVar[tuple[tuple[str, str], ...]] = (("t_min", "t_max"), ("elevation_min", "elevation_max"))

    steps: int | None = Field(
        default=None, ge=1, le=100_000, description="Steps of the optimisation. Left out: the prior's."
    )
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
    patch_views: int | None = Field(
        default=None, ge=1, le=64, description="Patches that are painted together. Left out: the prior's, or views."
    )
    patch_size: int | None = Field(
        default=None, ge=8, le=128, description="Latent pixels a side of a patch. Left out: the prior's, or view_size."
    )
    patch_height: float | None = Field(
        default=None,
        gt=0,
        le=4,
        description="What a patch shows, in object radii: the more, the larger a pattern. Left out: the prior's.",
    )
    learning_rate: float | None = Field(default=None, gt=0, le=10, description="Of Adam. Left out: the prior's.")
    t_min: float = Field(default=0.02, ge=0, le=1, description="Least noise, as a share of the prior's timesteps.")
    t_max: float = Field(default=0.98, ge=0, le=1, description="Most noise, as a share; above t_min.")
    timesteps: Timesteps | None = Field(
        default=None,
        description="How noise is drawn: uniform, annealed (its upper end falls) or descending (from most to least). "
        "Left out: the prior's.",
    )
    elevation_min: float = Field(default=-60, ge=-90, le=90, description="Lowest camera, degrees above the horizon.")
    elevation_max: float = Field(default=80, ge=-90, le=90, description="Highest, degrees; above elevation_min.")
    view_words: bool | None = Field(
        default=None, description="Add 'front view' and the like to the prompt. Left out: if the prior knows them."
    )
    background: Background | None = Field(
        default=None,
        description="Behind the object: a random plain colour per view, or learned latents. Left out: the prior's.",
    )
    base_colour: str | None = Field(
        default=None, pattern=r"^#[0-9a-fA-F]{6}$", description="Colour to start from, like #c04020. Left out: grey."
    )
    refine: bool = Field(default=False, description="Go on in RGB, through the prior's encoder, when the steps end.")
    refine_steps: int | None = Field(
        default=None, ge=1, le=100_000, description="Steps of that refinement. Left out: the prior's."
    )
    refine_guidance_scale: float | None = Field(
        default=None, ge=0, le=1000, description="Guidance of that refinement. Left out: the prior's."
    )
    refine_learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Of Adam, during that refinement. Left out: the prior's."
    )
    refine_t_max: float | None = Field(
        default=None, gt=0, le=1, description="Most noise of that refinement, as a share. Left out: the prior's."
    )
    seeds: int = Field(
        default=1, ge=1, le=64, description="Variants to build, each from another seed; the best is the asset."
    )
    max_faces: int = Field(
        default=2_000_000, ge=1, le=100_000_000, description="Input meshes with more faces are refused."
    )
    unwrap_seconds: float = Field(
        default=120, gt=0, le=86_400, description="Longest time for xatlas before a simpler unwrap is used."
    )
    max_seconds: float | None = Field(
        default=None, gt=0, le=2_592_000, description="Longest time for the row before it is given up. Left out: none."
    )
    crease_angle: float = Field(default=60, ge=0, le=180, description="Edges above this many degrees stay sharp.")
    up_axis: UpAxis = Field(default="y", description="The input mesh's upward axis.")
    front: Front | None = Field(
        default=None,
        description="Where the object's front faces, in the input mesh's axes. Left out: +z, or -y where z is up.",
    )
    image_format: ImageFormat = Field(default="png", description="Of the texture inside the GLB.")
    preview: bool = Field(default=True, description="Write preview.png beside the asset.")
    formats: list[AssetFormat] = Field(
        default=["glb"],
        max_length=8,
        description="Files to write; a GLB is always among them.",
    )
    turntable: bool = Field(default=False, description="Write depth.png and normal.png beside the asset.")

    @field_validator("formats")
    @classmethod
    def _glb_first(cls, value: list[AssetFormat]) -> list[AssetFormat]:
        known: tuple[AssetFormat, ...] = ("glb", "obj", "ply")
        return [name for name in known if name == "glb" or name in value]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for low, high in self.ORDERED:
            a, b = getattr(self, low), getattr(self, high)
            # What is left to the prior is compared when it is known.
            if a is not None and b is not None and a >= b:
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

    def completed(self, defaults: Mapping[str, Any]) -> Self:
        """These settings with what is None taken from the prior's ``defaults``; front by what is up.

        Raises SettingError where a pair that was completed is out of order.
        """
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        for patch, other in (("patch_views", "views"), ("patch_size", "view_size")):
            if missing.get(patch, 0) is None:
                missing[patch] = missing.get(other, getattr(self, other))
        if self.front is None:
            missing["front"] = "-y" if self.up_axis == "z" else "+z"
        resolved = self.model_copy(update=missing)
        for low, high in self.ORDERED:
            a, b = getattr(resolved, low), getattr(resolved, high)
            if a >= b:
                raise SettingError(
                    f"{low} is {a:g} and {high} is {b:g} (one of them the prior's); allowed: {low} below {high}",
                    stage="prepare",
                )
        return resolved
