"""Rows of the recipe ``material``: what they may hold, what they may not, and their schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from pipeline.core.errors import ManifestError
from pipeline.manifest import json_schema, load_manifest
from pipeline.manifest.schema import RECIPES


def load(tmp_path: Path, name: str, text: str, **options: object):  # type: ignore[no-untyped-def]
    path = tmp_path / name
    path.write_text(text)
    return load_manifest(path, **options)  # type: ignore[arg-type]


def problems(tmp_path: Path, row: dict[str, object]) -> list[str]:
    try:
        loaded = load(tmp_path, "m.json", json.dumps([row]))
    except ManifestError as error:
        return [str(error)]
    return [f"{problem.field}: {problem.message}" for problem in loaded.problems]


def test_a_prompt_is_enough_and_a_table_needs_no_column_of_meshes(tmp_path: Path) -> None:
    loaded = load(tmp_path, "m.csv", "recipe,prompt\nmaterial,red brick\nmaterial,oak wood\n")
    assert not loaded.problems
    first, second = loaded.jobs
    assert (first.recipe, first.prompt, first.mesh, first.seed) == ("material", "red brick", None, 0)
    assert first.id.startswith("red-brick-") and first.id != second.id
    assert first.settings["texture_size"] is None and "views" not in first.settings


def test_settings_are_read_and_set_for_all(tmp_path: Path) -> None:
    text = "id,recipe,prompt,texture_size,sample_size,repeats,seeds\na,material,red brick,1024,128,2,4\n"
    (job,) = load(tmp_path, "m.csv", text).jobs
    assert [job.settings[n] for n in ("texture_size", "sample_size", "repeats", "seeds")] == [1024, 128, 2, 4]
    (job,) = load(tmp_path, "m.csv", text, overrides={"texture_size": "256", "repeats": "8"}).jobs
    assert job.settings["texture_size"] == 256 and job.settings["repeats"] == 8


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("mesh", "a.obj", "mesh: this field belongs to the recipe paint, but the row's recipe is material"),
        ("sketch", "a.obj", "sketch: this field belongs to the recipe generate, but the row's recipe is material"),
        ("tile_size", 0.5, "tile_size: this field belongs to the recipe paint, but the row's recipe is material"),
        ("views", 4, "views: this field belongs to the recipe paint or generate, but the row's recipe is material"),
        ("formats", ["obj"], "formats: this field belongs to the recipe paint or generate, but"),
        ("sample_size", 12, "allowed: a whole number from 8 to 1024 that is a multiple of 8"),
        ("texture_size", 100, "allowed: a whole number from 64 to 8192 that is a multiple of 64"),
        ("repeats", 0, "allowed: a whole number from 1 to 64"),
        ("repeat", 2, "unknown field; did you mean 'repeats'?"),
    ],
)
def test_what_does_not_suit_a_material_is_refused(tmp_path: Path, field: str, value: object, expected: str) -> None:
    (problem,) = problems(tmp_path, {"recipe": "material", "prompt": "red brick", field: value})
    assert expected in problem


def test_a_material_without_a_prompt_and_its_fields_elsewhere_are_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, {"recipe": "material"})
    assert problem == "prompt: it is missing; allowed: what the surface should look like"
    (problem,) = problems(tmp_path, {"recipe": "generate", "prompt": "a tower", "repeats": 2})
    assert "this field belongs to the recipe material, but the row's recipe is generate" in problem


def test_defaults_of_a_mixed_manifest_reach_the_rows_that_have_the_field(tmp_path: Path) -> None:
    rows = [{"recipe": "material", "prompt": "red brick"}, {"recipe": "generate", "prompt": "a tower"}]
    content = {"defaults": {"texture_size": 256, "repeats": 4, "views": 2}, "rows": rows}
    loaded = load(tmp_path, "m.json", json.dumps(content))
    assert not loaded.problems
    brick, tower = loaded.jobs
    assert brick.settings["repeats"] == 4 and "views" not in brick.settings
    assert tower.settings["views"] == 2 and "repeats" not in tower.settings
    assert brick.settings["texture_size"] == tower.settings["texture_size"] == 256


def test_the_json_schema_knows_its_rows() -> None:
    schema = json_schema()
    good = {"recipe": "material", "prompt": "red brick", "texture_size": 512, "repeats": 2}
    jsonschema.validate([good], schema)
    for wrong in ({"mesh": "a.obj"}, {"sample_size": 12}, {"views": 4}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([{**good, **wrong}], schema)
    assert "mesh" not in RECIPES["material"].own
