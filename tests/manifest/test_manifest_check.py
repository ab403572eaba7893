"""``check``: every mistake at once, as text and as JSON, and the schema of manifests."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from manifest_files import Write
from thirty_bad_rows import BAD, write_thirty

from pipeline import cli
from pipeline.manifest import json_schema, load_manifest
from pipeline.manifest.schema import FIELDS, RECIPES, RULES
from pipeline.recipes.paint_settings import PaintOptions


def test_check_names_all_thirty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_thirty(tmp_path)
    loaded = load_manifest(path)
    assert [job.id for job in loaded.jobs] == [f"good-{n}" for n in range(5)]
    assert (loaded.rows, loaded.bad_rows, len(loaded.problems)) == (35, 30, 30)
    for problem, (_, field, words) in zip(loaded.problems, BAD, strict=True):
        assert problem.field == field and words in problem.message, (str(problem), words)
    assert cli.main(["check", str(path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    errors = [line for line in lines[:-1] if ": warning: " not in line]
    assert errors == [str(problem) for problem in loaded.problems]
    assert lines[-1].startswith(f"{path}: 35 rows, 30 errors in 30 rows")


def test_check_opens_each_mesh_unless_told_not_to(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("m.csv", "id,prompt,mesh\na,red,meshes/bad.obj\nb,red,meshes/a.obj\nc,red,meshes/bad.obj\n")
    (path.parent / "meshes/bad.obj").write_text("v 0 0 0\nv 1 0 0\n")
    assert cli.main(["check", str(path)]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if ": warning: " not in line]
    assert [line.removeprefix(str(path)).split("bad.obj")[0] for line in lines[:2]] == [":2: mesh: ", ":4: mesh: "]
    assert cli.main(["check", str(path), "--skip-meshes"]) == 0


def test_check_names_a_bad_mesh_among_other_mistakes(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("m.csv", "id,prompt,mesh,steps\na,,meshes/bad.obj,0\nb,,meshes/a.obj,5\n")
    (path.parent / "meshes/bad.obj").write_text("v 0 0 0\nv 1 0 0\n")
    assert cli.main(["check", str(path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.removeprefix(str(path)).split(": ")[:2] for line in lines[:-1]] == [
        [":2", "prompt"], [":2", "steps"], [":2", "mesh"], [":3", "prompt"],
    ]  # fmt: skip
    assert "no faces" in lines[2] and "2 rows, 4 errors in 2 rows" in lines[-1]
    assert cli.main(["check", str(path), "--skip-meshes"]) == 2
    assert "3 errors in 2 rows" in capsys.readouterr().out


def test_check_as_json(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("m.csv", "id,prompt,mesh\na,red,meshes/a.obj\nb,,meshes/a.obj\n")
    assert cli.main(["check", str(path), "--json"]) == 2
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["ok"], result["errors"]) == (2, False, 1)
    (error,) = [problem for problem in result["problems"] if problem["level"] == "error"]
    assert (error["row"], error["field"], error["row_id"]) == (3, "prompt", "b")


def test_check_warns_of_words_that_the_prior_does_not_know(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    any_words, prior = tmp_path / "any", tmp_path / "prior"
    for folder in any_words, prior:
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
    # The last of them can never be one word of a prompt.
    (prior / "words.json").write_text('{"words": ["a", "red", "it\'s", "re-d"]}')
    path = write("m.csv", 'id,prompt,mesh\na,a red glorp,meshes/a.obj\nb,"RED, it\'s a-red",meshes/a.obj\n')
    assert cli.main(["check", str(path), "--prior", str(any_words)]) == 0
    assert "warning" not in capsys.readouterr().out
    assert cli.main(["check", str(path), "--prior", str(prior)]) == 0
    line = f"{path}:2: prompt: warning: the prior '{prior}' does not know: glorp"
    assert capsys.readouterr().out.splitlines() == [line, f"{path}: 2 rows, all good, 1 warning"]
    path = write("m.csv", "id,prompt,mesh\na,a re-d,meshes/a.obj\n")
    assert cli.main(["check", str(path), "--prior", str(prior)]) == 0
    assert "does not know: re, d\n" in capsys.readouterr().out
    assert cli.main(["check", str(path), "--prior", str(tmp_path / "no")]) == 2


def test_the_schema_names_every_field_and_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema()
    row = schema["$defs"]["paint_row"]
    assert set(row["properties"]) == set(PaintOptions.model_fields) | set(RECIPES["paint"].own)
    assert tuple(schema["$defs"]["row_with_defaults"]["properties"]) == FIELDS
    assert row["required"] == ["prompt", "mesh"] and row["additionalProperties"] is False
    assert all(value.get("description") for value in row["properties"].values())
    steps = row["properties"]["steps"]["anyOf"][0]
    assert (steps["minimum"], steps["maximum"]) == (1, 100_000)
    assert "id" not in schema["$defs"]["defaults"]["properties"]
    assert all(RULES[name].allowed for name in FIELDS)


def test_null_is_left_out_to_the_schema_as_to_the_command(write: Write) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    for recipe, fields in RECIPES.items():
        plain = {"recipe": recipe, "prompt": "x"} | ({"mesh": "meshes/a.obj"} if recipe == "paint" else {})
        for name in fields.names:
            rows = [{**plain, name: None}]
            loaded = load_manifest(write("m.json", json.dumps(rows)))
            # A row without a recipe is painted.
            good = not loaded.problems and all(job.recipe == recipe for job in loaded.jobs)
            assert validator.is_valid(rows) == good, (recipe, name, loaded.problems)
