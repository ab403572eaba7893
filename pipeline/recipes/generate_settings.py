"""Every setting of the ``generate`` recipe: its range, its default and what it does. Loads no torch.

An option of None means "what the prior recommends" (``prior.generate_defaults``) or, where priors recommend nothing,
"none". Lengths are in units of the scene, whose cube reaches from -1 to 1; angles are in degrees, as in manifests. Each
``lambda`` weighs a mean (per ray, per sample or per pixel) against the guidance's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.recipes.shared_settings import SharedOptions, SharedSettings

ShapeName = Literal["sphere", "box", "cylinder", "cone", "capsule", "torus"]
SketchFit = Literal["centre", "keep"]
Texturing = Literal["views", "patches"]

MAX_SHAPES = 64

Coordinate = Annotated[float, Field(ge=-10, le=10)]
Degrees = Annotated[float, Field(ge=-360, le=360)]
Extent = Annotated[float, Field(gt=0, le=10)]
Extents = Annotated[list[Extent], Field(min_length=3, max_length=3)]


class Shape(BaseModel):
    """One solid of a sketch. Its own axes are the scene's until it is rotated: +Y up, +Z towards the viewer.

    Cylinder, cone (tip up) and capsule stand along y; a torus lies in the plane of x and z, its tube as thick as
    its y. ``uv.primitives`` makes the triangles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    shape: ShapeName = Field(description="Which solid.")
    position: list[Coordinate] = Field(
        default=[0.0, 0.0, 0.0], min_length=3, max_length=3, description="Its centre: x, y, z."
    )
    rotation: list[Degrees] = Field(
        default=[0.0, 0.0, 0.0],
        min_length=3,
        max_length=3,
        description="Degrees about x, then y, then z; the axes stay where they are.",
    )
    size: list[Extent] = Field(
        min_length=3,
        max_length=3,
        description="Its whole extent along x, y and z before it is rotated; one number for a cube's.",
    )

    # Allowed values, for error messages.
    ALLOWED: ClassVar[dict[str, str]] = {
        "shape": "sphere, box, cylinder, cone, capsule or torus",
        "position": "three numbers from -10 to 10",
        "rotation": "three numbers of degrees from -360 to 360",
        "size": "three numbers above 0 and at most 10, or one for all three",
    }

    @field_validator("size", mode="before", json_schema_input_type=Extent | Extents)
    @classmethod
    def _one_for_all(cls, value: object) -> object:
        return [value] * 3 if type(value) in (int, float) else value

    @model_validator(mode="after")
    def _makes_a_solid(self) -> Self:
        x, y, z = self.size
        if self.shape == "torus" and y > min(x, z) / 2:
            raise PydanticCustomError(
                "order",
                "a torus as thick as {y} has no hole in {x} by {z}; allowed: a y of at most half of x and z",
                {"field": "shapes", "x": f"{x:g}", "y": f"{y:g}", "z": f"{z:g}"},
            )
        if self.shape == "capsule" and y < max(x, z):
            raise PydanticCustomError(
                "order",
                "a capsule {x} by {z} wide cannot be {y} high; allowed: a y of at least x and z",
                {"field": "shapes", "x": f"{x:g}", "y": f"{y:g}", "z": f"{z:g}"},
            )
        return self


class GenerateOptions(SharedOptions):
    """The options of a row of ``generate``, validated strictly: text and booleans are not numbers."""

    ORDERED: ClassVar[tuple[tuple[str, str], ...]] = (
        *SharedOptions.ORDERED,
        ("radius_min", "radius_max"),
        ("fov_min", "fov_max"),
    )

    scene_radius: float | None = Field(
        default=None,
        ge=0.1,
        le=2,
        description="Largest distance of the object from the centre of the scene; 2 covers its whole cube. Left out: "
        "the prior's, or 2 with a sketch.",
    )
    radius_min: float | None = Field(
        default=None, ge=0.2, le=10, description="Nearest camera, from the centre. Left out: the prior's."
    )
    radius_max: float | None = Field(
        default=None, ge=0.2, le=10, description="Farthest camera; above radius_min. Left out: the prior's."
    )
    fov_min: float | None = Field(
        default=None, ge=10, le=120, description="Narrowest vertical field of view, degrees. Left out: the prior's."
    )
    fov_max: float | None = Field(
        default=None, ge=10, le=120, description="Widest, degrees; above fov_min. Left out: the prior's."
    )
    supersample: int | None = Field(
        default=None, ge=1, le=8, description="Rays along each side of a latent pixel. Left out: the prior's."
    )
    grid_levels: int | None = Field(
        default=None, ge=1, le=32, description="Levels of the field's grid. Left out: the prior's."
    )
    grid_finest: int | None = Field(
        default=None, ge=16, le=8192, description="Cells a side of its finest level. Left out: the prior's."
    )
    grid_log2_table: int | None = Field(
        default=None, ge=8, le=24, description="Most entries a level, as a power of 2. Left out: the prior's."
    )
    occupancy_resolution: int | None = Field(
        default=None,
        ge=16,
        le=512,
        description="Cells per side of the occupancy grid, which skips empty space. Left out: the prior's.",
    )
    samples_step: float | None = Field(
        default=None, gt=0, le=0.5, description="Distance between the samples of a ray. Left out: the prior's."
    )
    lambda_sparsity: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="Weight of the loss that makes each ray hit or miss. Left out: the prior's.",
    )
    lambda_orientation: float = Field(
        default=0, ge=0, le=1e6, description="Weight of the loss that turns visible surfaces to the camera."
    )
    lambda_tv: float = Field(
        default=0, ge=0, le=1e6, description="Weight of the loss that makes neighbouring depths agree."
    )
    shapes: list[Shape] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_SHAPES,
        description="A sketch made of solids, instead of a mesh; it is their union.",
    )
    sketch_fit: SketchFit | None = Field(
        default=None,
        description="Centre the sketch and scale it to a fixed size, or keep its coordinates as those of the scene, "
        "-1 to 1. Left out: centre for a mesh, keep for shapes.",
    )
    lambda_shape: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="Weight of the loss that makes the field follow the sketch. Left out: the prior's.",
    )
    sigma_shape: float = Field(
        default=0.3, gt=0, le=10, description="Distance from the sketch's surface within which the field is free."
    )
    mesh_resolution: int | None = Field(
        default=None,
        ge=16,
        le=1024,
        description="Samples per side for the extraction of the surface. Left out: the prior's.",
    )
    density_threshold: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Density at the surface. Left out: the surface is where the transmittance of rays is one half.",
    )
    surface_blur: float | None = Field(
        default=None,
        ge=0,
        le=0.5,
        description="Blur of the field before the surface is extracted, which removes bumps: sigma in scene units. "
        "Left out: the prior's.",
    )
    texturing: Texturing | None = Field(
        default=None,
        description="Source of the texture: views (decoded views of the field are projected) or patches (close-ups "
        "paint the surface, starting from the field's colours). Left out: the prior's, or "
        "views after refine.",
    )
    texture_steps: int | None = Field(
        default=None, ge=1, le=100_000, description="Steps of painting by patches. Left out: the prior's."
    )
    texture_guidance_scale: float | None = Field(
        default=None, ge=0, le=1000, description="Guidance of painting by patches. Left out: the prior's."
    )
    face_budget: int = Field(default=20_000, ge=100, le=2_000_000, description="Largest number of faces of the mesh.")

    @model_validator(mode="after")
    def _textured_once(self) -> Self:
        if self.refine and self.texturing == "patches":
            raise PydanticCustomError(
                "order",
                "patches would paint over the result of refine; allowed with refine: views",
                {"field": "texturing"},
            )
        return self


class GenerateSettings(SharedSettings):
    """The settings that a generated asset is built with."""

    scene_radius: float
    radius_min: float
    radius_max: float
    fov_min: float
    fov_max: float
    supersample: int
    grid_levels: int
    grid_finest: int
    grid_log2_table: int
    occupancy_resolution: int
    samples_step: float
    lambda_sparsity: float
    lambda_orientation: float
    lambda_tv: float
    shapes: list[Shape] | None
    sketch_fit: SketchFit | None
    lambda_shape: float
    sigma_shape: float
    mesh_resolution: int
    density_threshold: float | None
    surface_blur: float
    texturing: Texturing
    texture_steps: int
    texture_guidance_scale: float
    face_budget: int


def resolve_generate(options: GenerateOptions, defaults: Mapping[str, object]) -> GenerateSettings:
    """Complete ``options`` with the prior's ``defaults``, by name. Raises SettingError as ``SharedSettings.of``.

    A refined field is textured from its views, whatever the prior prefers.
    """
    return GenerateSettings.of(options, {**defaults, "texturing": "views"} if options.refine else defaults)
