"""Settings that recipes share: one range and one meaning, whatever the recipe. Loads no torch.

``CommonOptions`` holds the options that a row of any recipe has, ``SharedOptions`` those of recipes that make a
textured mesh. An option of None means "what the prior recommends" (``prior.defaults``) or, where priors recommend
nothing, "none". ``CommonSettings`` and ``SharedSettings`` hold the values that the row is built with. Angles
are in degrees, as in manifests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.core.errors import SettingError

UpAxis = Literal["y", "z"]
Front = Literal["+x", "-x", "+y", "-y", "+z", "-z"]
Background = Literal["random", "learned"]
ImageFormat = Literal["png", "jpeg"]
AssetFormat = Literal["glb", "obj", "ply"]
Timesteps = Literal["uniform", "annealed", "descending"]


class CommonOptions(BaseModel):
    """The options of a row of any recipe, validated strictly: text and booleans are not numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    steps: int | None = Field(
        default=None, ge=1, le=100_000, description="Steps of the optimisation. Left out: the prior's."
    )
    guidance_scale: float | None = Field(
        default=None, ge=0, le=1000, description="Classifier-free guidance. Left out: the prior's."
    )
    texture_size: int | None = Field(
        default=None, ge=64, le=8192, multiple_of=64, description="Pixels a side of the texture. Left out: prior's."
    )
    seeds: int = Field(
        default=1, ge=1, le=64, description="Number of variants, each from another seed; the best becomes the asset."
    )
    max_seconds: float | None = Field(
        default=None, gt=0, le=2_592_000, description="Time limit of the row in seconds. Left out: none."
    )
    image_format: ImageFormat = Field(default="png", description="Format of the texture inside the GLB.")
    preview: bool = Field(default=True, description="Write preview.png beside the asset.")


class SharedOptions(CommonOptions):
    """The options of a row of any recipe that makes a textured mesh."""

    # Pairs of settings of which the first has to be below the second.
    ORDERED: ClassVar[tuple[tuple[str, str], ...]] = (("t_min", "t_max"), ("elevation_min", "elevation_max"))

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
        description="Height of a close-up, in object radii. A larger height gives larger patterns. Left out: the "
        "prior's.",
    )
    learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Learning rate of Adam. Left out: the prior's."
    )
    t_min: float = Field(default=0.02, ge=0, le=1, description="Least noise, as a share of the prior's timesteps.")
    t_max: float = Field(default=0.98, ge=0, le=1, description="Most noise, as a share; above t_min.")
    timesteps: Timesteps | None = Field(
        default=None,
        description="Order of noise levels: uniform, annealed (the upper end falls) or descending (from the highest "
        "to the lowest). "
        "Left out: the prior's.",
    )
    elevation_min: float = Field(default=-60, ge=-90, le=90, description="Lowest camera, degrees above the horizon.")
    elevation_max: float = Field(default=80, ge=-90, le=90, description="Highest, degrees; above elevation_min.")
    view_words: bool | None = Field(
        default=None, description="Add 'front view' and the like to the prompt. Left out: if the prior knows them."
    )
    background: Background | None = Field(
        default=None,
        description="Background of the object: a random plain colour per view, or learned latents. Left out: the "
        "prior's.",
    )
    base_colour: str | None = Field(
        default=None, pattern=r"^#[0-9a-fA-F]{6}$", description="Colour to start from, like #c04020. Left out: grey."
    )
    refine: bool = Field(default=False, description="Continue in RGB, through the prior's encoder, when the steps end.")
    refine_steps: int | None = Field(
        default=None, ge=1, le=100_000, description="Steps of that refinement. Left out: the prior's."
    )
    refine_guidance_scale: float | None = Field(
        default=None, ge=0, le=1000, description="Guidance of that refinement. Left out: the prior's."
    )
    refine_learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Learning rate of that refinement. Left out: the prior's."
    )
    refine_t_max: float | None = Field(
        default=None, gt=0, le=1, description="Most noise of that refinement, as a share. Left out: the prior's."
    )
    max_faces: int = Field(
        default=2_000_000, ge=1, le=100_000_000, description="Input meshes with more faces are refused."
    )
    unwrap_seconds: float = Field(
        default=120, gt=0, le=86_400, description="Longest time for xatlas before a simpler unwrap is used."
    )
    crease_angle: float = Field(default=60, ge=0, le=180, description="Edges above this many degrees stay sharp.")
    up_axis: UpAxis = Field(default="y", description="The input mesh's upward axis.")
    front: Front | None = Field(
        default=None,
        description="Where the object's front faces, in the input mesh's axes. Left out: +z, or -y where z is up.",
    )
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
            # ``SharedSettings.of`` compares a pair that the prior completes.
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


class CommonSettings(BaseModel):
    """The settings that a row of any recipe is built with, from the row's options and the prior's defaults.

    A setting is None only where None means "none": no time limit, no colour to start from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    steps: int
    guidance_scale: float
    texture_size: int
    seeds: int
    max_seconds: float | None
    image_format: ImageFormat
    preview: bool

    @property
    def names_views(self) -> bool:
        """Whether prompts get words like 'front view'."""
        return False


class SharedSettings(CommonSettings):
    """The settings that a textured mesh of any recipe is built with."""

    views: int
    view_size: int
    patch_views: int
    patch_size: int
    patch_height: float
    learning_rate: float
    t_min: float
    t_max: float
    timesteps: Timesteps
    elevation_min: float
    elevation_max: float
    view_words: bool
    background: Background
    base_colour: str | None
    refine: bool
    refine_steps: int
    refine_guidance_scale: float
    refine_learning_rate: float
    refine_t_max: float
    max_faces: int
    unwrap_seconds: float
    crease_angle: float
    up_axis: UpAxis
    front: Front
    formats: list[AssetFormat]
    turntable: bool

    @property
    def names_views(self) -> bool:
        """Whether prompts get words like 'front view'."""
        return self.view_words

    @property
    def initial_colour(self) -> tuple[float, float, float]:
        """RGB in [0, 1] of ``base_colour``; grey where it is None."""
        if self.base_colour is None:
            return 0.5, 0.5, 0.5
        red, green, blue = (int(self.base_colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return red, green, blue

    @classmethod
    def of(cls, options: SharedOptions, defaults: Mapping[str, object]) -> Self:
        """Complete ``options`` with the prior's ``defaults``, by name. Defaults without a setting are ignored.

        ``patch_views`` and ``patch_size`` fall back to ``views`` and ``view_size``, ``front`` to the axis that faces
        forwards when ``up_axis`` is up. Raises SettingError where the prior's value has the wrong type or a pair of
        settings is out of order.
        """
        values: dict[str, object] = {name: getattr(options, name) for name in type(options).model_fields}
        for name in [name for name, value in values.items() if value is None]:
            values[name] = defaults.get(name)
        for patch, view in (("patch_views", "views"), ("patch_size", "view_size")):
            if values[patch] is None:
                values[patch] = values[view]
        if values["front"] is None:
            values["front"] = "-y" if options.up_axis == "z" else "+z"
        try:
            resolved = cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise SettingError(f"the prior's default for {field}: {first['msg']}", stage="prepare") from None
        _check_order(resolved, options.ORDERED)
        return resolved


def _check_order(settings: SharedSettings, pairs: Sequence[tuple[str, str]]) -> None:
    """Raises SettingError for the first pair whose lower bound is not below its upper one."""
    for low, high in pairs:
        a, b = getattr(settings, low), getattr(settings, high)
        if a >= b:
            raise SettingError(
                f"{low} is {a:g} and {high} is {b:g} (one of them the prior's); allowed: {low} below {high}",
                stage="prepare",
            )
