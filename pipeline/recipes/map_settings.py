"""Settings of the maps besides the base colour: the requested maps, and values that replace estimates. Loads no torch.

Map settings with their default are left out of dumps, so rows without maps keep the fingerprints that they had before
there were maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

MapName = Literal["base_colour", "normal", "metallic_roughness", "occlusion", "emissive", "height"]
NormalConvention = Literal["opengl", "directx"]
OnOff = Literal["on", "off"]


def sort_maps(names: Sequence[object], *, without: Sequence[MapName] = ()) -> list[MapName]:
    """Sort ``names``, each once, and add the base colour. Leaves out unknown names and those in ``without``."""
    known: tuple[MapName, ...] = get_args(MapName)
    return [name for name in known if name == "base_colour" or (name in names and name not in without)]


class MapOptions(BaseModel):
    """Options of a row's maps."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    maps: list[MapName] | None = Field(
        default=None,
        max_length=12,
        description="Maps of the material; base_colour is always included. normal, metallic_roughness and height are "
        "estimated, occlusion is measured on the mesh. Left out: what the prior recommends.",
    )
    metallic: float | None = Field(
        default=None, ge=0, le=1, description="Metalness of the whole surface, in place of an estimate."
    )
    roughness: float | None = Field(
        default=None, ge=0, le=1, description="Roughness of the whole surface, in place of an estimate."
    )
    roughness_min: float | None = Field(
        default=None, ge=0, le=1, description="Roughness of the smoothest part, where roughness is estimated."
    )
    roughness_max: float | None = Field(
        default=None, ge=0, le=1, description="Roughness of the roughest part, where roughness is estimated."
    )
    normal_strength: float = Field(default=1, ge=0, le=10, description="Factor of the relief in normal and height.")
    normal_convention: NormalConvention = Field(
        default="opengl",
        description="Green of the normal map's file beside the asset: up (opengl) or down (directx). Inside the GLB it "
        "is always up, as glTF requires.",
    )
    occlusion_strength: float = Field(default=1, ge=0, le=1, description="Strength of the occlusion in the GLB.")
    delight: OnOff = Field(
        default="on", description="Remove light and shadow from the base colour where a material is estimated."
    )

    @field_validator("maps")
    @classmethod
    def _each_once(cls, value: list[MapName] | None) -> list[MapName] | None:
        return value if value is None else sort_maps(value)

    @model_validator(mode="after")
    def _one_roughness(self) -> Self:
        low, high = self.roughness_min, self.roughness_max
        if self.roughness is not None and (low is not None or high is not None):
            raise PydanticCustomError(
                "order",
                "{field} is given, and {other} too; allowed: one value, or its least and greatest",
                {"field": "roughness", "other": "roughness_max" if low is None else "roughness_min"},
            )
        if low is not None and high is not None and low > high:
            raise PydanticCustomError(
                "order",
                "{field} is {low} and roughness_max is {high}; allowed: roughness_min at most roughness_max",
                {"field": "roughness_min", "low": f"{low:g}", "high": f"{high:g}"},
            )
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler)


class MapSettings(BaseModel):
    """The map settings that a row is built with."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    maps: list[MapName] = ["base_colour"]
    metallic: float | None = None
    roughness: float | None = None
    roughness_min: float | None = None
    roughness_max: float | None = None
    normal_strength: float = 1
    normal_convention: NormalConvention = "opengl"
    occlusion_strength: float = 1
    delight: OnOff = "on"

    @field_validator("maps", mode="before")
    @classmethod
    def _base_colour_alone(cls, value: object) -> object:
        if value is None:
            return ["base_colour"]
        return sort_maps(list(value)) if isinstance(value, list | tuple) else value

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler)


def without_defaults(settings: MapOptions | MapSettings, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
    """The dump of ``settings`` without map settings that have their default."""
    values: dict[str, Any] = handler(settings)
    kind = MapOptions if isinstance(settings, MapOptions) else MapSettings
    unused = [name for name, field in kind.model_fields.items() if getattr(settings, name) == field.default]
    return {name: value for name, value in values.items() if name not in unused}
