"""What a row may hold: one model per recipe, and for each field how its text is read and what is allowed."""

from __future__ import annotations

import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pipeline.manifest.problems import either, shown
from pipeline.recipes.paint_settings import PaintSettings

MAX_ID = 100
MAX_PROMPT = 2000
MAX_PATH = 1000
# The largest whole number that every JSON reader and spreadsheet keeps exact.
MAX_SEED = 2**53 - 1

ID_ALLOWED = (
    f"1 to {MAX_ID} of the letters a-z A-Z, digits, '.', '_' and '-', beginning with a letter or digit, "
    "not ending in '.'"
)


class PaintRow(PaintSettings):
    """One row of a manifest for the recipe ``paint``."""

    model_config = ConfigDict(title="Row")

    id: str | None = Field(
        default=None,
        pattern=rf"^[A-Za-z0-9]([A-Za-z0-9._-]{{0,{MAX_ID - 2}}}[A-Za-z0-9_-])?$",
        description="Names the asset and its folder. Left out: derived from the row, always the same.",
    )
    recipe: Literal["paint"] = Field(default="paint", description="How the asset is made.")
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="What the surface should look like.")
    negative_prompt: str = Field(default="", max_length=MAX_PROMPT, description="What it should not look like.")
    mesh: str = Field(
        min_length=1, max_length=MAX_PATH, description="Path of the mesh, relative to the manifest's folder."
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Same seed, same asset.")


SETTINGS: tuple[str, ...] = tuple(PaintSettings.model_fields)
OWN_FIELDS = ("id", "recipe", "prompt", "negative_prompt", "mesh", "seed")
FIELDS: tuple[str, ...] = (*OWN_FIELDS, *SETTINGS)

Kind = Literal["whole", "number", "switch", "choice", "text"]


@dataclass(frozen=True)
class FieldRule:
    """How a field's text is read (``kind``) and, in words, what is allowed in it."""

    kind: Kind
    allowed: str


def _rule(name: str) -> FieldRule:
    field = PaintRow.model_fields[name]
    annotation = field.annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is Literal:
        return FieldRule("choice", either(typing.get_args(annotation)))
    if annotation is bool:
        return FieldRule("switch", "true or false")
    if annotation is str:
        return FieldRule("text", "a colour like #c04020" if name == "base_colour" else "text")
    limits = {
        key: value for part in field.metadata for key in ("ge", "gt", "le", "multiple_of")
        if (value := getattr(part, key, None)) is not None
    }  # fmt: skip
    noun = "a whole number" if annotation is int else "a number"
    span = f"above {limits['gt']:g} and at most {limits['le']:g}" if "gt" in limits else (
        f"from {_plain(limits['ge'])} to {_plain(limits['le'])}"
    )  # fmt: skip
    multiple = f" that is a multiple of {limits['multiple_of']}" if "multiple_of" in limits else ""
    return FieldRule("whole" if annotation is int else "number", f"{noun} {span}{multiple}")


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


RULES: Mapping[str, FieldRule] = {name: _rule(name) for name in FIELDS}

_WHOLE = re.compile(r"[+-]?[0-9]{1,20}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def from_text(name: str, text: str) -> tuple[Any, str]:
    """The value of field ``name`` written as ``text`` in a CSV cell or after ``--set``, and "" or what is wrong."""
    rule = RULES[name]
    if rule.kind == "switch":
        value = _SWITCH.get(text.lower())
        return (value, "") if value is not None else (None, _not_allowed(name, text))
    if rule.kind == "whole":
        return (int(text.split(".")[0]), "") if _WHOLE.fullmatch(text) else (None, _not_allowed(name, text))
    if rule.kind == "number":
        if not _NUMBER.fullmatch(text):
            hint = " (write the decimal point as '.')" if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", text) else ""
            return None, _not_allowed(name, text) + hint
        number = float(text)
        return (number, "") if math.isfinite(number) else (None, _not_allowed(name, text))
    return text, ""


def from_json(name: str, value: Any) -> tuple[Any, str]:
    """The value of field ``name`` read from JSON as the models want it, and "" or what is wrong with its type."""
    rule = RULES[name]
    kind = type(value)
    if rule.kind == "whole" and kind is float and math.isfinite(value) and value.is_integer():
        # JSON knows one kind of number: 300.0 is 300.
        return int(value), ""
    if rule.kind == "number" and kind is int and abs(value) > 2**1000:
        return None, _not_allowed(name, value)
    fits = {"whole": (int,), "number": (int, float), "switch": (bool,), "choice": (str,), "text": (str,)}
    return (value, "") if kind in fits[rule.kind] else (None, _not_allowed(name, value))


def _not_allowed(name: str, value: Any) -> str:
    allowed = RULES[name].allowed
    text = shown(value)
    if RULES[name].kind in ("choice", "text") and not isinstance(value, str):
        return f"{text} is not text; allowed: {allowed}"
    return f"{text} is not allowed; allowed: {allowed}"


@functools.cache
def _default_settings() -> dict[str, Any]:
    return PaintSettings().model_dump()


def settings_problems(
    values: Mapping[str, Any], *, together: bool = True
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """All settings with defaults filled in, and what is wrong with ``values``: (field, message) each.

    ``together`` off leaves out that two settings do not fit together, and judges each by itself.
    """
    if not values:
        return _default_settings(), []
    try:
        return PaintSettings.model_validate(values).model_dump(), []
    except ValidationError as error:
        details = error.errors(include_url=False)
        return {}, [_explain(detail) for detail in details if together or detail["type"] != "order"]


def _explain(detail: ErrorDetails) -> tuple[str, str]:
    if detail["type"] == "order":
        return str(detail["ctx"]["field"]), detail["msg"]
    name = str(detail["loc"][0])
    return name, _not_allowed(name, detail["input"])


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a manifest: a list of rows, or ``{"defaults": {...}, "rows": [...]}``."""
    row = PaintRow.model_json_schema()
    row.pop("description", None)
    properties = {name: row["properties"][name] for name in FIELDS}
    for name in SETTINGS:
        # null is "left out", wherever it stands.
        _allow_null(properties[name])
    row |= {"properties": properties, "required": ["prompt", "mesh"], "additionalProperties": False}
    defaults = {key: value for key, value in row.items() if key not in ("required", "title")}
    defaults["properties"] = {name: value for name, value in properties.items() if name != "id"}
    # What "defaults" give, a row need not: its own fields are then checked by the command alone.
    loose = {key: value for key, value in row.items() if key != "required"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "latentkiln manifest",
        "description": "One asset per row. In JSON Lines each line is one row.",
        "anyOf": [
            {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/row"}},
            {
                "type": "object",
                "properties": {
                    "$schema": {"type": "string"},
                    "defaults": {"$ref": "#/$defs/defaults"},
                    "rows": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/row_with_defaults"}},
                },
                "required": ["rows"],
                "additionalProperties": False,
            },
        ],
        "$defs": {"row": row, "defaults": defaults, "row_with_defaults": loose},
    }


def _allow_null(schema: dict[str, Any]) -> None:
    if "anyOf" in schema:
        return
    kept = {key: schema.pop(key) for key in list(schema) if key not in ("default", "description", "title")}
    schema["anyOf"] = [kept, {"type": "null"}]
