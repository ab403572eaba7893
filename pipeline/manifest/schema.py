"""The fields of a row: one model per recipe, and a parsing rule for each field."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pipeline.manifest.adapters import MAX_FILES
from pipeline.manifest.problems import join_or, quoted, suggestion
from pipeline.manifest.values import FieldRule, field_rule, not_allowed, read_json, read_text
from pipeline.recipes import MESH_FIELDS
from pipeline.recipes.generate_settings import MAX_SHAPES, GenerateOptions, Shape
from pipeline.recipes.material_settings import MaterialOptions
from pipeline.recipes.paint_settings import PaintOptions
from pipeline.recipes.shared_settings import CommonOptions

MAX_ID = 100
MAX_PROMPT = 2000
MAX_PATH = 1000
# The largest integer that every JSON reader and spreadsheet represents exactly.
MAX_SEED = 2**53 - 1

ID_ALLOWED = (
    f"1 to {MAX_ID} of the letters a-z A-Z, digits, '.', '_' and '-', beginning with a letter or digit, "
    "not ending in '.'"
)


class RowModel(CommonOptions):
    """Fields of every row, besides its recipe's settings."""

    id: str | None = Field(
        default=None,
        pattern=rf"^[A-Za-z0-9]([A-Za-z0-9._-]{{0,{MAX_ID - 2}}}[A-Za-z0-9_-])?$",
        description="Names the asset and its folder. Left out: derived from the row, always the same.",
    )
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="What the asset should look like.")
    negative_prompt: str = Field(default="", max_length=MAX_PROMPT, description="What it should not look like.")
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Same seed, same asset.")
    lora: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_FILES * MAX_PATH,
        description="LoRA for this row alone: PATH or PATH:WEIGHT of a .safetensors file; several separated by ';'.",
    )
    concept: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_FILES * MAX_PATH,
        description="Textual inversion for this row alone: PATH of a .safetensors file; several separated by ';'.",
    )


class PaintRow(PaintOptions, RowModel):
    """One row of a manifest for the recipe ``paint``."""

    model_config = ConfigDict(title="A painted mesh")

    recipe: Literal["paint"] = Field(default="paint", description="How the asset is made.")
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="What the surface should look like.")
    mesh: str = Field(
        min_length=1, max_length=MAX_PATH, description="Path of the mesh, relative to the manifest's folder."
    )


class GenerateRow(GenerateOptions, RowModel):
    """One row of a manifest for the recipe ``generate``."""

    model_config = ConfigDict(title="An object from words")

    recipe: Literal["generate"] = Field(description="How the asset is made.")
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="What the object should look like.")
    sketch: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PATH,
        description="Path of a mesh that gives the rough shape, relative to the manifest's folder.",
    )


class MaterialRow(MaterialOptions, RowModel):
    """One row of a manifest for the recipe ``material``."""

    model_config = ConfigDict(title="A tileable texture set")

    recipe: Literal["material"] = Field(description="How the asset is made.")
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="What the surface should look like.")


@dataclass(frozen=True)
class RecipeFields:
    """The fields of a recipe's rows: the row's ``own`` fields, then the recipe's ``settings``.

    ``prompt`` describes the prompt in messages.
    """

    recipe: str
    row: type[RowModel]
    model: type[CommonOptions]
    prompt: str

    @functools.cached_property
    def mesh(self) -> str:
        """The field that names the input mesh; "" for a recipe without one."""
        return MESH_FIELDS.get(self.recipe, "")

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the row's own fields."""
        mesh = (self.mesh,) if self.mesh else ()
        return ("id", "recipe", "prompt", "negative_prompt", *mesh, "seed", "lora", "concept")

    @functools.cached_property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings, the recipe-specific ones last."""
        return tuple(self.model.model_fields)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Names of all fields."""
        return frozenset((*self.own, *self.settings))

    @functools.cached_property
    def required(self) -> tuple[str, ...]:
        """Names of the required fields, except the recipe."""
        return tuple(name for name in self.own if name != "recipe" and self.row.model_fields[name].is_required())


RECIPES: Mapping[str, RecipeFields] = {
    "paint": RecipeFields("paint", PaintRow, PaintOptions, "what the surface should look like"),
    "generate": RecipeFields("generate", GenerateRow, GenerateOptions, "what the object should look like"),
    "material": RecipeFields("material", MaterialRow, MaterialOptions, "what the surface should look like"),
}
DEFAULT_RECIPE = "paint"


def _together(of: str) -> tuple[str, ...]:
    """Names of all recipes' fields, each once, in the order of the recipes."""
    return tuple(dict.fromkeys(name for recipe in RECIPES.values() for name in getattr(recipe, of)))


SETTINGS = _together("settings")
FIELDS: tuple[str, ...] = (*_together("own"), *SETTINGS)

# A name has the same meaning in every recipe, so each has one rule.
RULES: Mapping[str, FieldRule] = {
    name: next(field_rule(name, r.row.model_fields[name]) for r in RECIPES.values() if name in r.names)
    for name in FIELDS
} | {"recipe": FieldRule("choice", join_or(RECIPES))}


def recipes_with(name: str) -> list[str]:
    """The recipes that have the field ``name``."""
    return [recipe for recipe, fields in RECIPES.items() if name in fields.names]


def from_text(name: str, text: str) -> tuple[Any, str]:
    """Parses ``text`` of a CSV cell or of ``--set`` as field ``name``. Returns (value, "") or (None, error)."""
    return read_text(RULES[name], text)


def from_json(name: str, value: object) -> tuple[Any, str]:
    """Converts a JSON value of field ``name`` for the models. Returns (value, "") or (None, error)."""
    return read_json(RULES[name], value)


@functools.cache
def _default_settings(recipe: str) -> dict[str, object]:
    return RECIPES[recipe].model().model_dump()


def settings_problems(
    recipe: str, values: Mapping[str, object], *, together: bool = True
) -> tuple[dict[str, object], list[tuple[str, str]]]:
    """Validates ``values``. Returns all settings of ``recipe`` with defaults, and (field, message) errors.

    With ``together`` off, combinations of settings are not checked.
    """
    if not values:
        return _default_settings(recipe), []
    try:
        return RECIPES[recipe].model.model_validate(values).model_dump(), []
    except ValidationError as error:
        details = error.errors(include_url=False)
        return {}, [_explain(detail) for detail in details if together or not _is_of_several(detail)]


def _is_of_several(detail: ErrorDetails) -> bool:
    return detail["type"] == "order" and not detail["loc"]


def _explain(detail: ErrorDetails) -> tuple[str, str]:
    if _is_of_several(detail):
        return str(detail["ctx"]["field"]), detail["msg"]
    name = str(detail["loc"][0])
    if name == "shapes":
        return name, _explain_shape(detail)
    if len(detail["loc"]) > 1:
        return name, f"{quoted(detail['input'])} is not allowed; allowed: {RULES[name].allowed}"
    return name, not_allowed(RULES[name], detail["input"])


def _explain_shape(detail: ErrorDetails) -> str:
    """Describes an error in a list of shapes. Its location is (shapes, index of the shape, its key, ...)."""
    path, value = detail["loc"][1:], detail["input"]
    if not path:
        return f"it has {len(value)} shapes; allowed: 1 to {MAX_SHAPES}"
    shape = f"shape {int(path[0]) + 1}"
    if detail["type"] == "order":
        return f"{shape}: {detail['msg']}"
    if len(path) == 1:
        return f"{shape}: {quoted(value)} is not allowed; allowed: an object with {join_or(Shape.ALLOWED)}"
    key = str(path[1])
    if detail["type"] == "missing":
        return f"{shape}: '{key}' is missing; allowed: {Shape.ALLOWED[key]}"
    if key not in Shape.ALLOWED:
        return f"{shape}: unknown key {quoted(key)}; allowed: {join_or(Shape.ALLOWED)}{suggestion(key, Shape.ALLOWED)}"
    return f"{shape}: {key}: {quoted(value)} is not allowed; allowed: {Shape.ALLOWED[key]}"
