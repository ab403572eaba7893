"""Rows of several recipes in one manifest: each is checked by its own recipe's fields, as strictly as the other's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thirty_bad_rows import write_tetrahedron

from pipeline import cli
from pipeline.core.errors import ManifestError, UsageError
from pipeline.core.job import Job
from pipeline.export.record import write_record
from pipeline.manifest import ManifestStream, Problem, json_schema, load_manifest
from pipeline.manifest.schema import FIELDS, RECIPES, RULES
from pipeline.manifest.values import field_rule
from pipeline.plan import fingerprint, plan
from pipeline.recipes import LIMIT_SETTINGS, MESH_FIELDS, RECIPE_VERSIONS
from pipeline.recipes.generate_settings import GenerateOptions, Shape
from pipeline.recipes.paint_settings import PaintOptions
from pipeline.recipes.registry import get_recipe

Write = Callable[[str, Any], Path]
BOX = {"shape": "box", "size": [1, 0.5, 1]}
PRIOR = "5" * 64


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a manifest (text, or a value as JSON) beside meshes/a.obj, and gives its path."""
    write_tetrahedron(tmp_path / "meshes/a.obj")
    write_tetrahedron(tmp_path / "meshes/b.obj", 2)

    def _write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return _write


def jobs_of(path: Path, **options: Any) -> list[Job]:
    loaded = load_manifest(path, **options)
    assert not loaded.problems, [str(problem) for problem in loaded.problems]
    return loaded.jobs


def problems_of(path: Path, **options: Any) -> list[str]:
    items = ManifestStream(path, **options)
    return [f"{item.field}: {item.message}" for item in items if isinstance(item, Problem)]


def generate(**fields: Any) -> dict[str, Any]:
    return {"recipe": "generate", "prompt": "a red chair", **fields}


# --- good rows


def test_words_alone_make_a_job(write: Write) -> None:
    (job,) = jobs_of(write("m.json", [generate(id="chair", seed=3)]))
    assert (job.id, job.recipe, job.prompt, job.seed, job.mesh) == ("chair", "generate", "a red chair", 3, None)
    assert job.settings == GenerateOptions().model_dump()
    assert GenerateOptions(**job.settings) == GenerateOptions()
    json.dumps(dict(job.settings))


def test_a_manifest_may_mix_recipes_in_every_format(write: Write) -> None:
    rows = [
        {"id": "a", "prompt": "a brick", "mesh": "meshes/a.obj", "close_up": 0.25},
        {"id": "b", **generate(sketch="meshes/b.obj", sigma_shape=0.1, formats=["ply", "obj"], steps=40)},
        {"id": "c", **generate(shapes=[{**BOX, "rotation": [0, 45, 0]}, {"shape": "sphere", "size": 0.5}])},
        {"id": "d", "recipe": "paint", "prompt": "moss", "mesh": "meshes/b.obj", "steps": 5},
    ]
    jobs = jobs_of(write("m.json", rows))
    assert [(job.recipe, job.mesh.name if job.mesh else "") for job in jobs] == [
        ("paint", "a.obj"),
        ("generate", "b.obj"),
        ("generate", ""),
        ("paint", "b.obj"),
    ]
    assert jobs[0].settings["close_up"] == 0.25 and "close_up" not in jobs[1].settings
    assert jobs[1].settings["formats"] == ["glb", "obj", "ply"] and jobs[1].settings["steps"] == 40
    assert jobs[2].settings["shapes"] == [
        {"shape": "box", "position": [0, 0, 0], "rotation": [0, 45, 0], "size": [1, 0.5, 1]},
        {"shape": "sphere", "position": [0, 0, 0], "rotation": [0, 0, 0], "size": [0.5, 0.5, 0.5]},
    ]
    assert jobs_of(write("m.jsonl", "\n".join(json.dumps(row) for row in rows))) == jobs
    shapes = json.dumps(rows[2]["shapes"]).replace('"', '""')
    table = [
        "id,recipe,prompt,mesh,sketch,shapes,close_up,sigma_shape,formats,steps",
        "a,,a brick,meshes/a.obj,,,0.25,,,",
        "b,generate,a red chair,,meshes/b.obj,,,0.1,obj; ply,40",
        f'c,generate,a red chair,,,"{shapes}",,,,',
        "d,paint,moss,meshes/b.obj,,,,,,5",
    ]
    assert jobs_of(write("m.csv", "\n".join(table))) == jobs


def test_a_table_of_generated_rows_alone_needs_no_mesh_column(write: Write) -> None:
    (job,) = jobs_of(write("m.csv", "prompt,recipe\na red chair,generate\n"))
    assert job.mesh is None and job.id.startswith("a-red-chair-")
    assert problems_of(write("m.csv", "id,prompt,recipe\na,a brick,\n")) == [
        "mesh: it is empty; allowed: the path of a mesh, or recipe generate or material"
    ]


def test_derived_ids_follow_the_sketch(write: Write) -> None:
    rows = [generate(), generate(sketch="meshes/a.obj"), generate(shapes=[BOX]), generate(shapes=[{**BOX, "size": 1}])]
    ids = [job.id for job in jobs_of(write("m.json", rows))]
    assert len(set(ids)) == 4
    # Pinned: an id that moved would rebuild and orphan every asset that has no id of its own.
    assert ids[:2] == ["a-red-chair-56dce5947898", "a-red-chair-a-e175ccba5de8"]


def test_defaults_reach_the_rows_whose_recipe_knows_them(write: Write) -> None:
    envelope = {
        "defaults": {"close_up": 0.1, "sigma_shape": 0.2, "steps": 9, "mesh": "meshes/a.obj", "sketch": "meshes/b.obj"},
        "rows": [{"prompt": "x"}, generate(), generate(shapes=[BOX]), generate(steps=3)],
    }
    paint, sketched, shaped, short = jobs_of(write("m.json", envelope))
    assert (paint.settings["close_up"], paint.settings["steps"]) == (0.1, 9)
    assert paint.mesh and paint.mesh.name == "a.obj" and sketched.mesh and sketched.mesh.name == "b.obj"
    assert (sketched.settings["sigma_shape"], sketched.settings["steps"], short.settings["steps"]) == (0.2, 9, 3)
    assert shaped.mesh is None and shaped.settings["shapes"]
    # What the row itself says has to fit its recipe.
    envelope["rows"] = [generate(close_up=0.3)]
    assert "close_up: this field belongs to the recipe paint" in problems_of(write("m.json", envelope))[0]
    assert len(jobs_of(write("m.json", {"defaults": {"recipe": "generate"}, "rows": [{"prompt": "x"}]}))) == 1


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        ({"close_up": 2}, "defaults: close_up: 2 is not allowed"),
        ({"sigma_shape": 0}, "defaults: sigma_shape: 0 is not allowed"),
        ({"recipe": "generate", "fov": 0}, "defaults: fov: 0 is not allowed"),
        ({"shapes": []}, "defaults: shapes: it has 0 shapes"),
        ({"sketch": "meshes/no.obj"}, "defaults: sketch: there is no file"),
        ({"sigma_shap": 1}, "defaults: sigma_shap: unknown field; did you mean 'sigma_shape'?"),
    ],
)
def test_defaults_of_any_recipe_are_checked(defaults: dict[str, Any], words: str, write: Write) -> None:
    with pytest.raises(ManifestError) as caught:
        load_manifest(write("m.json", {"defaults": defaults, "rows": [generate()]}))
    assert words in caught.value.message


# --- rows that are wrong


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"mesh": "meshes/a.obj"},
            "mesh: this field belongs to the recipe paint, but the row's recipe is generate; did you mean 'sketch'?",
        ),
        ({"close_up": 0.5}, "close_up: this field belongs to the recipe paint, but the row's recipe is generate"),
        ({"fov": 5}, "fov: this field belongs to the recipe paint, but the row's recipe is generate"),
        ({"fov_mim": 5}, "fov_mim: unknown field; did you mean 'fov_min'?"),
        ({"sketch": "meshes/no.obj"}, "sketch: there is no file 'meshes/no.obj'; allowed: a path relative to"),
        ({"sketch": "../a.obj"}, "sketch: '../a.obj' leaves the manifest's folder"),
        ({"sketch": 3}, "sketch: 3 is not text; allowed: the path of a mesh"),
        ({"sketch": "meshes/a.obj", "shapes": [BOX]}, "shapes: the row also has a sketch; allowed: one of the two"),
        ({"prompt": ""}, "prompt: it is empty; allowed: what the object should look like"),
        ({"steps": 0}, "steps: 0 is not allowed; allowed: a whole number from 1 to 100000"),
        ({"sigma_shape": 0}, "sigma_shape: 0 is not allowed; allowed: a number above 0 and at most 10"),
        ({"sketch_fit": "stretch"}, "sketch_fit: 'stretch' is not allowed; allowed: centre or keep"),
        ({"radius_min": 2, "radius_max": 1.5}, "radius_min: radius_min is 2 and radius_max is 1.5; allowed:"),
        ({"fov_min": 40, "fov_max": 30}, "fov_min: fov_min is 40 and fov_max is 30"),
        ({"t_min": 0.99}, "t_min: t_min is 0.99 and t_max is 0.98"),
        ({"formats": ["fbx"]}, "formats: 'fbx' is not allowed; allowed: a list of glb, obj or ply"),
        ({"formats": "obj"}, "formats: 'obj' is not allowed; allowed: a list of glb, obj or ply"),
        ({"formats": [1]}, "formats: 1 is not allowed; allowed: a list of glb, obj or ply"),
        ({"shapes": BOX}, "shapes: an object is not allowed; allowed: a list of 1 to 64 solids, like "),
        ({"shapes": "box"}, "shapes: 'box' is not allowed; allowed: a list of 1 to 64 solids"),
        ({"shapes": []}, "shapes: it has 0 shapes; allowed: 1 to 64"),
        ({"shapes": [BOX] * 65}, "shapes: it has 65 shapes; allowed: 1 to 64"),
        ({"shapes": [BOX, 7]}, "shapes: shape 2: 7 is not allowed; allowed: an object with shape, position, ro"),
        ({"shapes": [{"size": 1}]}, "shapes: shape 1: 'shape' is missing; allowed: sphere, box, cylinder"),
        ({"shapes": [{"shape": "box"}]}, "shapes: shape 1: 'size' is missing; allowed: three numbers above 0"),
        ({"shapes": [{**BOX, "shape": "cube"}]}, "shapes: shape 1: shape: 'cube' is not allowed; allowed: sphere"),
        ({"shapes": [{**BOX, "sise": 1}]}, "shapes: shape 1: unknown key 'sise'; allowed: shape, position, rota"),
        ({"shapes": [{**BOX, "size": [1, 1]}]}, "shapes: shape 1: size: a list is not allowed; allowed: three numbers"),
        ({"shapes": [{**BOX, "size": [1, 0, 1]}]}, "shapes: shape 1: size: 0 is not allowed; allowed: three num"),
        ({"shapes": [{**BOX, "size": True}]}, "shapes: shape 1: size: true is not allowed"),
        ({"shapes": [{**BOX, "position": [0, float("nan"), 0]}]}, "shapes: shape 1: position: NaN is not allowed"),
        ({"shapes": [{**BOX, "rotation": [0, "9", 0]}]}, "shapes: shape 1: rotation: '9' is not allowed"),
        ({"shapes": [{**BOX, "position": [10**400, 0, 0]}]}, "shapes: shape 1: position: a number of more than"),
        ({"shapes": [{"shape": "torus", "size": 1}]}, "shapes: shape 1: a torus as thick as 1 has no hole in 1 by 1"),
        ({"shapes": [{"shape": "capsule", "size": [2, 1, 1]}]}, "shapes: shape 1: a capsule 2 by 1 wide cannot be"),
    ],
)  # fmt: skip
def test_a_wrong_generated_row(fields: dict[str, Any], problem: str, write: Write) -> None:
    (found,) = problems_of(write("m.json", [generate(**fields)]))
    assert found.startswith(problem) and "\n" not in found


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"sketch": "no.obj"},
            "sketch: this field belongs to the recipe generate, but the row's recipe is paint; did you mean 'mesh'?",
        ),
        ({"sigma_shape": "x"}, "sigma_shape: this field belongs to the recipe generate, but the row's recipe is paint"),
        ({"shapes": [BOX]}, "shapes: this field belongs to the recipe generate, but the row's recipe is paint"),
    ],
)  # fmt: skip
def test_a_painted_row_with_the_other_recipes_fields(fields: dict[str, Any], problem: str, write: Write) -> None:
    assert problems_of(write("m.json", [{"prompt": "x", "mesh": "meshes/a.obj", **fields}])) == [problem]


def test_cells_with_shapes(write: Write) -> None:
    head = "prompt,recipe,shapes\nx,generate,"
    assert problems_of(write("m.csv", head + "[{]"))[0].startswith("shapes: not valid JSON at column 3: ")
    assert problems_of(write("m.csv", head + "7"))[0].startswith("shapes: 7 is not allowed; allowed: a list")
    assert problems_of(write("m.csv", head + "[" * 60_000))[0].startswith("shapes: not usable: the JSON is nested")


def test_an_unknown_recipe_leaves_the_fields_of_all_alone(write: Write) -> None:
    row = {"recipe": "generat", "prompt": "x", "close_up": 9, "sigma_shape": 9, "shapes": 3, "zz": 1}
    unknown, recipe = sorted(problems_of(write("m.json", [row])), reverse=True)
    assert unknown == "zz: unknown field"
    assert recipe == "recipe: 'generat' is not a recipe; allowed: paint, generate or material; did you mean 'generate'?"


# --- --set


def test_overrides_reach_the_rows_whose_recipe_knows_them(write: Write) -> None:
    rows = [{"prompt": "x", "mesh": "meshes/a.obj"}, generate()]
    path = write("m.json", rows)
    shapes = json.dumps([BOX])
    paint, made = jobs_of(path, overrides={"close_up": "0.1", "steps": "4", "sigma_shape": "0.2", "shapes": shapes})
    assert (paint.settings["close_up"], paint.settings["steps"], made.settings["steps"]) == (0.1, 4, 4)
    assert made.settings["sigma_shape"] == 0.2 and made.settings["shapes"][0]["shape"] == "box"
    assert "sigma_shape" not in paint.settings and "close_up" not in made.settings
    with pytest.raises(
        UsageError, match="--set close_up: only the recipe paint has this setting, and no row uses that recipe"
    ):
        jobs_of(write("n.json", [generate()]), overrides={"close_up": "0.1"})
    for bad, words in ({"sigma_shape": "0"}, "0 is not allowed"), ({"shapes": "[]"}, "it has 0 shapes"):
        with pytest.raises(UsageError, match=words):
            jobs_of(path, overrides=bad)


def test_shapes_set_for_all_rows_clash_with_a_sketch(write: Write) -> None:
    path = write("m.json", [generate(sketch="meshes/a.obj")])
    (found,) = problems_of(path, overrides={"shapes": json.dumps([BOX])})
    assert found == "shapes: the row also has a sketch; allowed: one of the two (with --set)"


# --- the schema and the settings


def test_a_name_means_the_same_in_every_recipe() -> None:
    for name in FIELDS:
        if name != "recipe":
            for fields in RECIPES.values():
                if name in fields.names:
                    assert field_rule(name, fields.row.model_fields[name]) == RULES[name], name
    assert set(RECIPES) == set(RECIPE_VERSIONS) == set(LIMIT_SETTINGS) > set(MESH_FIELDS)
    for recipe, limits in LIMIT_SETTINGS.items():
        assert limits <= set(RECIPES[recipe].settings)


SCHEMA_ROWS: list[tuple[dict[str, Any], bool]] = [
    ({"prompt": "x", "mesh": "meshes/a.obj", "steps": None}, True),
    ({"prompt": "x"}, False),
    ({"prompt": "x", "mesh": "meshes/a.obj", "sigma_shape": 1}, False),
    (generate(), True),
    (generate(shapes=[BOX, {"shape": "sphere", "size": 0.5}], formats=["obj"], refine=True), True),
    (generate(shapes=[{"shape": "cube", "size": 1}]), False),
    (generate(shapes=[{**BOX, "size": [1, 1]}]), False),
    (generate(sketch="meshes/a.obj", shapes=[BOX]), False),
    (generate(sketch="meshes/a.obj"), True),
    (generate(mesh="meshes/a.obj"), False),
    (generate(formats=["fbx"]), False),
    (generate(steps=0), False),
]


@pytest.mark.parametrize(("row", "good"), SCHEMA_ROWS)
def test_the_schema_agrees_with_the_command(row: dict[str, Any], good: bool, write: Write) -> None:
    schema = json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert validator.is_valid([row]) == good
    assert (not problems_of(write("m.json", [row]))) == good


def test_every_setting_is_described_in_the_schema() -> None:
    schema = json_schema()
    for recipe in RECIPES:
        row = schema["$defs"][f"{recipe}_row"]
        assert set(row["properties"]) == RECIPES[recipe].names
        assert all(value.get("description") for value in row["properties"].values())
    assert all(value.get("description") for value in schema["$defs"]["Shape"]["properties"].values())
    assert set(Shape.ALLOWED) == set(Shape.model_fields)
    with_defaults = {"defaults": {"recipe": "generate", "shapes": [BOX]}, "rows": [{"prompt": "x"}]}
    assert jsonschema.Draft202012Validator(schema).is_valid(with_defaults)


def test_paint_has_the_new_settings_switched_off() -> None:
    settings = PaintOptions()
    assert (settings.refine, settings.refine_steps, settings.seeds, settings.max_seconds) == (False, None, 1, None)


# --- what has to be built


def test_the_fingerprint_covers_sketch_and_shapes_but_no_limits(write: Write) -> None:
    rows = [generate(), generate(shapes=[BOX]), generate(shapes=[{**BOX, "size": 1}]), generate(sketch="meshes/a.obj")]
    rows += [generate(sketch="meshes/b.obj"), generate(max_faces=10, max_seconds=5), generate(formats=["obj"])]
    rows = [{"id": f"r{n}", **row} for n, row in enumerate(rows)]
    marks = [item.fingerprint for item in plan(jobs_of(write("m.json", rows)), Path("nowhere"), prior_identity=PRIOR)]
    assert len(set(marks)) == len(rows) - 1 and marks[5] == marks[0]
    job = Job("x", "generate", "a red chair", "", 0, None, {"shapes": [BOX], "max_seconds": 5})
    # Literal on purpose: a change of this digest rebuilds every asset that anyone has.
    given = {"prior_identity": PRIOR, "recipe_version": "1", "mesh_sha256": ""}
    assert fingerprint(job, **given) == "039acdd45bf9e4482501cd39e145e07d1e26f9ae67a7ce077d4e7a12e56f90ca"


def test_the_plan_says_that_the_sketch_changed(write: Write, tmp_path: Path) -> None:
    path = write("m.json", [generate(id="chair", sketch="meshes/a.obj", shapes=None)])
    (job,) = jobs_of(path)
    out = tmp_path / "out"
    (item,) = plan([job], out, prior_identity=PRIOR)
    (out / "chair").mkdir(parents=True)
    inputs: dict[str, Any] = {"mesh": {"name": "a.obj", "sha256": "0" * 64}, "prior": {"identity": PRIOR}}
    before = {**job.settings, "shapes": [BOX], "sigma_shape": 0.5}
    inputs["job"] = {"prompt": job.prompt, "negative_prompt": "", "seed": 0, "settings": before}
    record = {"id": "chair", "recipe": "generate", "recipe_version": RECIPE_VERSIONS["generate"]}
    record |= {"inputs": inputs, "outputs": {}}
    write_record(out / "chair", {**record, "fingerprint": "f" * 64})
    (again,) = plan([job], out, prior_identity=PRIOR)
    assert again.fingerprint == item.fingerprint
    assert again.reason == "sketch bytes changed; shapes changed; sigma_shape changed from 0.5 to 0.3"


def test_check_opens_sketches(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "meshes/bad.obj").write_text("v 0 0 0\n")
    path = write("m.json", [generate(sketch="meshes/bad.obj"), generate(), generate(sketch="meshes/a.obj")])
    assert cli.main(["check", str(path)]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if ": warning: " not in line]
    assert lines[0].startswith(f"{path}:1: sketch: bad.obj") and "1 error in 1 row" in lines[-1]


def test_a_recipe_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pipeline.recipes.generate", None)
    with pytest.raises(UsageError, match="this installation lacks the recipe 'generate'"):
        get_recipe("generate")
    with pytest.raises(UsageError, match="unknown recipe 'sculpt'; allowed: paint, generate, material"):
        get_recipe("sculpt")


# --- whatever the values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["shape", "size", "position", "rotation"]) | st.text(), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(row=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6), shapes=st.lists(JSON, max_size=3))
def test_random_values_under_real_names(row: dict[str, Any], shapes: list[Any], write: Write) -> None:
    path = write("m.json", [generate(shapes=shapes, **{k: v for k, v in row.items() if k not in ("recipe", "shapes")})])
    try:
        loaded = load_manifest(path)
    except ManifestError as error:
        assert "\n" not in error.message
        return
    for problem in loaded.problems:
        assert str(problem).isprintable() and len(str(problem)) < 1000
    for job in loaded.jobs:
        json.dumps(dict(job.settings), allow_nan=False)
