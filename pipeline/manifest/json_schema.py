"""The JSON Schema of manifests, for completion and validation in editors."""

from __future__ import annotations

from typing import Any

from pipeline.manifest.schema import DEFAULT_RECIPE, FIELDS, RECIPES


def json_schema() -> dict[str, object]:
    """Returns the JSON Schema (2020-12) of a manifest: a list of rows, or ``{"defaults": {...}, "rows": [...]}``.

    ``row`` selects a recipe's row by the field ``recipe``. Rows below "defaults" may omit fields, even the recipe, so
    the schema only checks them against the fields of all recipes. ``latentkiln check`` validates them fully.
    """
    definitions: dict[str, object] = {}
    rows = {recipe: _row(recipe, definitions) for recipe in RECIPES}
    every: dict[str, Any] = {}
    for row in rows.values():
        for name, schema in row["properties"].items():
            every.setdefault(name, schema)
    every["recipe"] = {"enum": list(RECIPES), "default": DEFAULT_RECIPE, "description": every["recipe"]["description"]}
    every = {name: every[name] for name in FIELDS}
    loose = {"type": "object", "title": "Row", "properties": every, "additionalProperties": False}
    defaults = {**loose, "title": "Defaults", "properties": {k: v for k, v in every.items() if k != "id"}}
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
        "$defs": {
            "row": _choice(),
            **{f"{recipe}_row": row for recipe, row in rows.items()},
            "defaults": defaults,
            "row_with_defaults": loose,
            **definitions,
        },
    }


def _choice() -> dict[str, object]:
    """The schema of a row, selected by its recipe. A row without one has the default recipe."""
    chosen: dict[str, object] = {"$ref": f"#/$defs/{DEFAULT_RECIPE}_row"}
    for recipe in RECIPES:
        if recipe != DEFAULT_RECIPE:
            named = {"type": "object", "properties": {"recipe": {"const": recipe}}, "required": ["recipe"]}
            chosen = {"if": named, "then": {"$ref": f"#/$defs/{recipe}_row"}, "else": chosen}
    return chosen


def _row(recipe: str, definitions: dict[str, object]) -> dict[str, Any]:
    """The schema of one recipe's rows. Adds referenced schemas to ``definitions``."""
    fields = RECIPES[recipe]
    row = fields.row.model_json_schema()
    row.pop("description", None)
    definitions |= row.pop("$defs", {})
    properties = {name: row["properties"][name] for name in (*fields.own, *fields.settings)}
    required = [*fields.required, *(["recipe"] if recipe != DEFAULT_RECIPE else [])]
    for name in properties:
        # null means "left out" for optional fields.
        if name not in required:
            _allow_null(properties[name])
    if recipe == "generate":
        row["not"] = {"required": ["sketch", "shapes"]}
    return row | {"properties": properties, "required": required, "additionalProperties": False}


def _allow_null(schema: dict[str, object]) -> None:
    if "anyOf" in schema:
        return
    constraints = {key: schema.pop(key) for key in list(schema) if key not in ("default", "description", "title")}
    schema["anyOf"] = [constraints, {"type": "null"}]
