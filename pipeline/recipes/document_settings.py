"""Settings of a row whose mesh is a glTF document: what of it is painted, and how that is written. Loads no torch.

As with map settings, one that a row leaves out is not in its dump: rows without them keep their fingerprints.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer
from pydantic_core import PydanticCustomError

from pipeline.recipes.map_settings import MapOptions, MapSettings, without_defaults

Package = Literal["glb", "gltf"]
Textures = Literal["per_material", "atlas"]
_MOST_PATTERNS, _LONGEST = 64, 200


class DocumentOptions(MapOptions):
    """Options of a row whose mesh is a glTF; others have no effect on meshes of other formats."""

    target: list[str] | None = Field(
        default=None,
        max_length=_MOST_PATTERNS,
        description="What of a glTF is painted: patterns (* and ?) of names of materials, meshes, or nodes with all "
        "below them. The rest keeps its look. Left out: everything.",
    )
    textures: Textures = Field(
        default="per_material",
        description="Images of a painted glTF: one for each painted material, or one atlas for all of them.",
    )
    uv_set: int | None = Field(
        default=None,
        ge=0,
        le=15,
        description="Set of a glTF's texture coordinates to paint on. Left out: the one of the base colour.",
    )
    variant: str | None = Field(
        default=None,
        description="Name of a new material variant of a glTF (KHR_materials_variants) that shows the paint; the "
        "default look stays. Left out: the paint is the default look.",
    )

    package: Package = Field(
        default="glb",
        description="glb: a painted glTF is one file. gltf: write it, too, as asset.gltf with its buffer and images in "
        "files beside it.",
    )

    @field_validator("target")
    @classmethod
    def _not_empty(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not all(0 < len(name) <= _LONGEST for name in value):
            raise PydanticCustomError("length", "a pattern has 1 to {most} characters", {"most": _LONGEST})
        return value or None

    @field_validator("variant")
    @classmethod
    def _short(cls, value: str | None) -> str | None:
        if value is not None and not 0 < len(value) <= _LONGEST:
            raise PydanticCustomError("length", "a name has 1 to {most} characters", {"most": _LONGEST})
        return value

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _lean(without_defaults(self, handler))


class DocumentSettings(MapSettings):
    """The document settings that a row is built with."""

    target: list[str] | None = None
    textures: Textures = "per_material"
    uv_set: int | None = None
    variant: str | None = None
    package: Package = "glb"

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _lean(without_defaults(self, handler))


def _lean(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` without document settings that have their default."""
    own = {name: field for name, field in DocumentSettings.model_fields.items() if name not in MapSettings.model_fields}
    return {name: value for name, value in values.items() if name not in own or value != own[name].default}
