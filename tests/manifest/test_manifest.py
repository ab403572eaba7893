"""Manifests: every mistake is named where it stands, the formats mean the same, and nothing but ManifestError flies."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thirty_bad_rows import BAD, write_tetrahedron, write_thirty

from pipeline import cli
from pipeline.core.errors import ManifestError, UsageError
from pipeline.core.job import Job
from pipeline.core.location import InputFile
from pipeline.manifest import Manifest, ManifestStream, Problem, json_schema, load_manifest
from pipeline.manifest import readers as readers_module
from pipeline.manifest.rows import id_problem
from pipeline.manifest.schema import FIELDS, RECIPES, RULES
from pipeline.recipes.paint_settings import PaintOptions

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a manifest beside meshes/a.obj and meshes/b.obj, and gives its path."""
    write_tetrahedron(tmp_path / "home/meshes/a.obj")
    write_tetrahedron(tmp_path / "home/meshes/b.obj", 2)
    write_tetrahedron(tmp_path / "outside.obj")

    def _write(name: str, content: str | bytes) -> Path:
        path = tmp_path / "home" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


def found(path: Path, **options: Any) -> list[str]:
    """All problems of a manifest as lines, without the file's name."""
    items = ManifestStream(path, **options)
    return [str(item).removeprefix(str(path)) for item in items if isinstance(item, Problem)]


def row_problem(write: Write, **fields: Any) -> str:
    """The only problem of a manifest of one row with these fields."""
    row = {"id": "one", "prompt": "a brick", "mesh": "meshes/a.obj", **fields}
    path = write("row.json", json.dumps([row]))
    loaded = load_manifest(path)
    assert not loaded.jobs
    (problem,) = loaded.problems
    assert problem.row == 1 and problem.file == str(path)
    assert "\n" not in str(problem) and str(problem) == f"{path}:1: {problem.field}: {problem.message}"
    return f"{problem.field}: {problem.message}"


def whole_problem(path: Path) -> str:
    """The message of the ManifestError that a manifest raises, without the file's name."""
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert "\n" not in caught.value.message
    return caught.value.message.removeprefix(str(path))


# --- what a good row becomes


def test_a_row_becomes_a_job_with_all_settings(write: Write) -> None:
    path = write("m.csv", "id,prompt,mesh,seed,steps\nboot,a  red\tbrick ,meshes/a.obj,7,20\n")
    loaded = load_manifest(path)
    (job,) = loaded.jobs
    assert (job.id, job.recipe, job.prompt, job.negative_prompt, job.seed) == ("boot", "paint", "a red brick", "", 7)
    assert job.mesh and job.mesh.local() == (path.parent / "meshes/a.obj").resolve()
    assert job.settings == {**PaintOptions().model_dump(), "steps": 20}
    assert (job.row_location.file, job.row_location.row) == (str(path), 2)
    assert loaded == Manifest(path, 1, [job], [], frozenset({"boot"}))
    json.dumps(dict(job.settings))
    assert PaintOptions(**job.settings).steps == 20


ROWS: list[dict[str, Any]] = [
    {"id": "one", "prompt": "a red brick thing", "mesh": "meshes/a.obj", "seed": 3, "steps": 20, "guidance_scale": 7},
    {"prompt": 'weiße Fliesen, "glänzend"; neu', "mesh": "meshes/b.obj", "turntable": True, "t_min": 0.1},
    {"id": "three", "prompt": "two\nlines", "mesh": "meshes/a.obj", "negative_prompt": "blurry", "front": "-x"},
    {"id": "4", "recipe": "paint", "prompt": "日本の壁", "mesh": "meshes/b.obj", "base_colour": "#a0b0c0", "fov": 45.5},
]


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\n") -> str:
    header = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        text = json.dumps(value) if isinstance(value, bool | int | float) else value
        return '"' + text.replace('"', '""') + '"' if re.search(r'[",;\t\n]', text) else text

    lines = [delimiter.join(header)]
    lines += [delimiter.join(cell(row.get(name, "")) for name in header) for row in rows]
    return end.join(lines) + end


def jobs_of(path: Path, **options: Any) -> list[Job]:
    loaded = load_manifest(path, **options)
    assert not loaded.problems, [str(problem) for problem in loaded.problems]
    return loaded.jobs


def test_the_formats_mean_the_same(write: Write) -> None:
    plain = jobs_of(write("m.json", json.dumps(ROWS)))
    assert len(plain) == len(ROWS)
    assert jobs_of(write("m.jsonl", "\n\n".join(json.dumps(row) for row in ROWS))) == plain
    assert jobs_of(write("m.ndjson", "\ufeff" + "\r\n".join(json.dumps(row) for row in ROWS))) == plain
    assert jobs_of(write("bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode())) == plain
    for delimiter in ",;\t":
        for end in "\n", "\r\n":
            assert jobs_of(write("m.csv", as_csv(ROWS, delimiter, end))) == plain
            assert jobs_of(write("m.csv", "\ufeff\n" + as_csv(ROWS, delimiter, end))) == plain
    assert jobs_of(write("M.TSV", as_csv(ROWS, "\t"))) == plain
    envelope = {"$schema": "x", "defaults": {"recipe": "paint"}, "rows": ROWS}
    assert jobs_of(write("e.json", json.dumps(envelope))) == plain


def test_whole_numbers_and_switches_may_be_written_as_spreadsheets_do(write: Write) -> None:
    head = "id,prompt,mesh,steps,prompt_close_up,preview\n"
    (one, two) = jobs_of(write("m.csv", head + "a,x,meshes/a.obj,300.0,TRUE,no\nb,x,meshes/a.obj,+300,1,False\n"))
    assert one.settings == two.settings and one.settings["preview"] is False
    (three,) = jobs_of(write("m.json", '[{"prompt": "x", "mesh": "meshes/a.obj", "steps": 300.0, "preview": false}]'))
    assert three.settings == one.settings and type(three.settings["steps"]) is int


def test_defaults_fill_what_a_row_leaves_out(write: Write) -> None:
    envelope = {
        "defaults": {"mesh": "meshes/a.obj", "steps": 7, "seed": 1},
        "rows": [{"prompt": "a"}, {"prompt": "b", "steps": 8, "seed": None}, {"prompt": "c", "mesh": "meshes/b.obj"}],
    }
    a, b, c = jobs_of(write("m.json", json.dumps(envelope)))
    assert [a.settings["steps"], b.settings["steps"], c.settings["steps"]] == [7, 8, 7]
    assert [a.seed, b.seed, c.seed] == [1, 1, 1]
    assert [job.mesh.name for job in (a, b, c) if job.mesh] == ["a.obj", "a.obj", "b.obj"]


def test_a_csv_row_is_numbered_by_the_line_it_starts_on(write: Write) -> None:
    text = 'id,prompt,mesh\n\na,"one\ntwo\r\nthree",meshes/a.obj\n\nb,x,meshes/b.obj\nc,"\n",nope.obj\n'
    path = write("m.csv", text)
    loaded = load_manifest(path)
    assert [(job.id, job.row_location.row) for job in loaded.jobs] == [("a", 3), ("b", 7)]
    assert loaded.jobs[0].prompt == "one two three"
    assert [(problem.row, problem.field) for problem in loaded.problems] == [(8, "prompt"), (8, "mesh")]
    assert loaded.rows == 3 and loaded.bad_rows == 1


def test_json_rows_are_numbered_by_place_and_json_lines_by_line(write: Write) -> None:
    rows = [{"prompt": "x", "mesh": "meshes/a.obj"}, {"prompt": "", "mesh": "meshes/a.obj"}]
    assert [p.row for p in load_manifest(write("m.json", json.dumps(rows, indent=4))).problems] == [2]
    lines = "\n\n\n".join(json.dumps(row) for row in rows)
    assert [p.row for p in load_manifest(write("m.jsonl", lines)).problems] == [4]


# --- ids


def test_derived_ids_are_stable_and_readable(write: Write) -> None:
    row = {"prompt": "A red brick, weathered!", "mesh": "meshes/a.obj"}
    (job,) = jobs_of(write("m.json", json.dumps([row])))
    # Pinned: an id that moved would rebuild and orphan every asset that has no id of its own.
    assert job.id == "a-red-brick-weathered-a-6b28b8be15a3"
    assert id_problem(job.id) == ""
    again = jobs_of(write("n.csv", as_csv([{**row, "prompt": " A red brick,  weathered!"}])), overrides={"steps": "3"})
    assert again[0].id == job.id and again[0].settings["steps"] == 3
    (dotted,) = jobs_of(write("n.json", json.dumps([{**row, "mesh": "./meshes//a.obj"}])))
    assert dotted.id == job.id


def test_any_difference_gives_another_derived_id(write: Write) -> None:
    base = {"prompt": "x", "mesh": "meshes/a.obj"}
    changes: list[dict[str, Any]] = [{}, {"prompt": "y"}, {"mesh": "meshes/b.obj"}, {"seed": 1}, {"steps": 5}]
    changes += [{"negative_prompt": "y"}, {"turntable": True}, {"prompt": "x" * 300}, {"prompt": "壁"}]
    jobs = jobs_of(write("m.json", json.dumps([{**base, **change} for change in changes])))
    assert len({job.id for job in jobs}) == len(changes)
    for job in jobs:
        assert id_problem(job.id) == "", job.id


@pytest.mark.parametrize("text", ["a", "A-1", "boot.v2", "x_y", "9", "a" * 100, "console", "com10", "nullable"])
def test_good_ids(text: str) -> None:
    assert id_problem(text) == ""


BAD_IDS = [
    "",
    ".",
    "..",
    ".a",
    "-a",
    "_a",
    "a/b",
    "a\\b",
    "a b",
    "a.",
    "ä",
    "a\n",
    "a:b",
    "a*",
    "CON",
    "nul",
    "Aux.txt",
]
BAD_IDS += ["com1", "LPT9.a", "a" * 101, "run.json", "a\u0000", "１", "a" * 5000]


@pytest.mark.parametrize("text", BAD_IDS)
def test_ids_that_are_no_safe_file_name(text: str, write: Write) -> None:
    assert row_problem(write, id=text).startswith("id: ")
    assert "allowed: " in id_problem(text)


def test_clashing_ids_refuse_the_whole_manifest_and_are_all_named(write: Write) -> None:
    text = "id,prompt,mesh\na,x,meshes/a.obj\na,y,meshes/a.obj\nA,z,meshes/a.obj\n,w,meshes/a.obj\n,w,meshes/a.obj\n"
    path = write("m.csv", text + "a,,nope.obj\n")
    lines = found(path)
    assert [line.split(": ")[0] for line in lines] == [":3", ":4", ":6", ":7", ":7", ":7"]
    assert "'a' is already the id of row 2" in lines[0]
    assert "'A' clashes with 'a' of row 2" in lines[1]
    assert "duplicate of row 5, and neither has an id" in lines[2]
    message = whole_problem(path)
    assert all(part in message for part in (":3: id:", ":4: id:", ":6: id:", ":7: id:"))


def test_many_clashes_stay_one_line_of_bounded_length(write: Write) -> None:
    path = write("m.csv", "id,prompt,mesh\n" + "a,x,meshes/a.obj\n" * 1000)
    assert len(found(path)) == 999
    message = whole_problem(path)
    assert "and 994 more" in message and len(message) < 2000


# --- rows that are wrong in themselves


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("prompt", "", "it is empty"),
        ("prompt", " \n\t ", "it is empty"),
        ("prompt", 7, "7 is not text"),
        ("prompt", ["a"], "a list is not text"),
        ("prompt", "x" * 2001, "2001 characters; allowed: at most 2000"),
        ("prompt", "a\u0000b", "control character U+0000"),
        ("prompt", "a\x1b[31mb", "control character U+001B"),
        ("prompt", "a\ud800b", "control character U+D800"),
        ("negative_prompt", True, "true is not text"),
        ("negative_prompt", "x" * 2001, "2001 characters"),
        ("id", 7, "7 is not text"),
        ("recipe", "piant", "'piant' is not a recipe; allowed: paint, generate or material; did you mean 'paint'?"),
        ("recipe", "Generate", "'Generate' is not a recipe; allowed: paint, generate or material; did you mean 'gener"),
        ("recipe", 3, "3 is not a recipe"),
        ("recipe", {}, "an object is not a recipe"),
        ("mesh", "", "it is empty"),
        ("mesh", 3, "3 is not text"),
        ("mesh", "meshes/c.obj", "there is no file 'meshes/c.obj'; allowed: a path relative to"),
        ("mesh", "meshes", "'meshes' has no ending; allowed: .obj, .ply, .stl, .off, .gltf or .glb"),
        ("mesh", "meshes/a.max", "'.max' is not a mesh format"),
        ("mesh", "../outside.obj", "leaves the manifest's folder"),
        ("mesh", "meshes/../../outside.obj", "leaves the manifest's folder"),
        ("mesh", "/etc/a.obj", "is an absolute path"),
        ("mesh", "C:\\a.obj", "is an absolute path"),
        ("mesh", "meshes\\a.obj", "backslash"),
        ("mesh", "https://example.org/a.obj", "is a URL outside"),
        ("mesh", "x" * 2000 + ".obj", "2004 characters"),
        ("mesh", "x" * 900 + ".obj", "cannot be used: File name too long"),
        ("mesh", "a\u0000.obj", "control character"),
        ("mesh", "a\ud800.obj", "control character"),
        ("seed", -1, "-1 is not allowed; allowed: a whole number from 0 to 9007199254740991"),
        ("seed", 2**53, "is not allowed"),
        ("seed", 10**300, "a number of more than 20 digits is not allowed"),
        ("seed", 1.5, "1.5 is not allowed"),
        ("seed", True, "true is not allowed"),
        ("seed", "1", "'1' is not allowed; allowed: a whole number"),
        ("steps", 0, "0 is not allowed; allowed: a whole number from 1 to 100000"),
        ("steps", 100_001, "100001 is not allowed"),
        ("steps", 10.5, "10.5 is not allowed"),
        ("steps", False, "false is not allowed"),
        ("steps", "10", "'10' is not allowed"),
        ("steps", [10], "a list is not allowed"),
        ("guidance_scale", math.nan, "NaN is not allowed; allowed: a number from 0 to 1000"),
        ("guidance_scale", math.inf, "Infinity is not allowed"),
        ("guidance_scale", -math.inf, "-Infinity is not allowed"),
        ("guidance_scale", -0.5, "-0.5 is not allowed"),
        ("guidance_scale", 10**400, "a number of more than 20 digits"),
        ("texture_size", 65, "65 is not allowed; allowed: a whole number from 64 to 8192 that is a multiple of 64"),
        ("texture_size", 8256, "8256 is not allowed"),
        ("learning_rate", 0, "0 is not allowed; allowed: a number above 0 and at most 10"),
        ("turntable", "true", "'true' is not allowed; allowed: true or false"),
        ("turntable", 1, "1 is not allowed; allowed: true or false"),
        ("base_colour", "red", "'red' is not allowed; allowed: a colour like #c04020"),
        ("base_colour", "#12345\n", "is not allowed"),
        ("unwrap", "magic", "'magic' is not allowed; allowed: auto, input, xatlas or box"),
        ("front", 1, "1 is not text; allowed: +x"),
        ("t_min", 0.99, "t_min is 0.99 and t_max is 0.98; allowed: t_min below t_max"),
        ("elevation_min", 85, "elevation_min is 85 and elevation_max is 80"),
        ("front", "+y", "+y runs along the up_axis y"),
    ],
)
def test_a_wrong_value(field: str, value: Any, words: str, write: Write) -> None:
    problem = row_problem(write, **{field: value})
    assert problem.startswith(f"{field}: ")
    assert words in problem


def test_missing_fields(write: Write) -> None:
    assert found(write("m.json", "[{}]")) == [
        ":1: prompt: it is missing; allowed: what the surface should look like",
        ":1: mesh: it is missing; allowed: the path of a mesh, or recipe generate or material",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stps", "unknown field; did you mean 'steps'?"),
        ("Prompt", "unknown field; did you mean 'prompt'?"),
        ("guidance-scale", "unknown field; did you mean 'guidance_scale'?"),
        ("zzzzz", "unknown field"),
        ("", "unknown field"),
        ("a\n\x1b", "unknown field"),
        ("x" * 100_000, "unknown field"),
    ],
)
def test_unknown_fields(name: str, words: str, write: Write) -> None:
    problem = row_problem(write, **{name: 1})
    assert problem.endswith(words) and len(problem) < 200


def test_a_key_that_is_there_twice(write: Write) -> None:
    path = write("m.jsonl", '{"id": "a", "prompt": "x", "mesh": "meshes/a.obj", "prompt": "y"}')
    assert found(path) == [":1: prompt: the key occurs twice in this row"]


@pytest.mark.parametrize(("item", "noun"), [("7", "a number"), ('"x"', "text"), ("null", "null"), ("[1]", "a list")])
def test_a_row_that_is_no_object(item: str, noun: str, write: Write) -> None:
    for name, text in (("m.json", f"[{item}]"), ("m.jsonl", item)):
        (line,) = found(write(name, text))
        assert line.startswith(f":1: row: the row is {noun}; allowed: an object")


def test_ragged_csv_rows(write: Write) -> None:
    path = write("m.csv", "id,prompt,mesh,seed\na,x\nb,x,y,meshes/a.obj,1\nc,x,meshes/a.obj,1\n")
    loaded = load_manifest(path)
    assert [job.id for job in loaded.jobs] == ["c"]
    assert [(p.row, p.field, p.row_id) for p in loaded.problems] == [(2, "mesh", "a"), (3, "cells", "b")]
    assert "it is empty; allowed: the path of a mesh" in loaded.problems[0].message
    assert "5 cells, but the header has 4 columns; put cells" in loaded.problems[1].message


def test_rows_of_delimiters_alone_say_nothing(write: Write) -> None:
    loaded = load_manifest(write("m.csv", "id,prompt,mesh\na,x,meshes/a.obj\n,,,,\n  \n,\n\n,,\nb,x,meshes/a.obj\n"))
    assert [job.id for job in loaded.jobs] == ["a", "b"] and not loaded.problems


def test_an_unknown_column_matters_to_the_rows_that_fill_it(write: Write) -> None:
    loaded = load_manifest(write("m.csv", "id,prompt,mesh,stps\na,x,meshes/a.obj,\nb,x,meshes/a.obj,7\n"))
    assert [job.id for job in loaded.jobs] == ["a"]
    assert [str(p).rpartition("m.csv")[2] for p in loaded.problems] == [
        ":3: stps: unknown field; did you mean 'steps'?"
    ]


def test_numbers_in_csv_are_read_strictly(write: Write) -> None:
    for text in ("1_000", "0x10", "１", "1e3", "", "1,5", "--1", "nan", "inf", "9" * 30):
        path = write("m.csv", f'id,prompt,mesh,steps,fov\na,x,meshes/a.obj,"{text}",60\n')
        assert bool(found(path)) == bool(text), text
    for text in ("nan", "Infinity", "1_0", "1e999", "1e", ".", "60,5"):
        path = write("m.csv", f'id,prompt,mesh,fov\na,x,meshes/a.obj,"{text}"\n')
        (line,) = found(path)
        assert line.startswith(f":2: fov: '{text}' is not allowed; allowed: a number from 10 to 120")
        assert ("decimal point" in line) == (text == "60,5")
    (job,) = jobs_of(write("m.csv", "prompt,mesh,fov,close_up\nx,meshes/a.obj,6.05e1,.5\n"))
    assert (job.settings["fov"], job.settings["close_up"]) == (60.5, 0.5)


def test_every_problem_of_a_row_is_named_at_once(write: Write) -> None:
    row = {"id": "a/b", "prompt": "", "mesh": "no.obj", "seed": -1, "steps": 0, "fov": "x", "zz": 1, "unwrap": 3}
    fields = [line.split(": ")[1] for line in found(write("m.json", json.dumps([row])))]
    assert fields == ["id", "zz", "prompt", "seed", "mesh", "fov", "unwrap", "steps"]


def test_equal_numbers_of_other_types_are_not_confused(write: Write) -> None:
    base = {"prompt": "x", "mesh": "meshes/a.obj"}
    values = [1, True, 1.0, "1"]
    rows = [{**base, "id": f"r{n}", "views": value} for n, value in enumerate(values)]
    loaded = load_manifest(write("m.json", json.dumps(rows)))
    assert [job.id for job in loaded.jobs] == ["r0", "r2"]


# --- meshes and folders


def test_symlinks_that_leave_the_folder_are_refused(write: Write, tmp_path: Path) -> None:
    path = write("m.json", json.dumps([{"prompt": "x", "mesh": "meshes/link.obj"}]))
    os.symlink(tmp_path / "outside.obj", path.parent / "meshes/link.obj")
    assert "leaves the manifest's folder" in found(path)[0]
    (job,) = jobs_of(path, allow_outside=True)
    assert job.mesh == InputFile((tmp_path / "outside.obj").resolve())
    os.symlink(tmp_path, path.parent / "folder")
    path = write("m.json", json.dumps([{"prompt": "x", "mesh": "folder/outside.obj"}]))
    assert "leaves the manifest's folder" in found(path)[0]
    os.symlink("a.obj", path.parent / "meshes/inside.obj")
    assert jobs_of(write("m.json", json.dumps([{"prompt": "x", "mesh": "meshes/inside.obj"}])))


def test_links_in_a_ring_devices_and_folders_are_no_meshes(write: Write) -> None:
    path = write("m.json", json.dumps([{"prompt": "x", "mesh": f"meshes/{n}.obj"} for n in ("ring", "pipe", "dir")]))
    folder = path.parent / "meshes"
    os.symlink("ring.obj", folder / "ring.obj")
    os.mkfifo(folder / "pipe.obj")
    (folder / "dir.obj").mkdir()
    ring, pipe, directory = found(path)
    assert ":1: mesh: 'meshes/ring.obj'" in ring
    assert "is not a regular file" in pipe
    assert "is a folder" in directory


def test_outside_meshes_are_allowed_when_asked(write: Write, tmp_path: Path) -> None:
    rows = [{"prompt": "x", "mesh": "../outside.obj"}, {"prompt": "x", "mesh": str(tmp_path / "outside.obj")}]
    path = write("m.json", json.dumps(rows))
    assert len(found(path)) == 2
    outside = InputFile((tmp_path / "outside.obj").resolve())
    assert {job.mesh for job in jobs_of(path, allow_outside=True)} == {outside}


def test_the_manifests_folder_may_itself_be_a_link(write: Write, tmp_path: Path) -> None:
    path = write("m.json", json.dumps([{"prompt": "x", "mesh": "meshes/a.obj"}]))
    os.symlink(path.parent, tmp_path / "linked")
    assert jobs_of(tmp_path / "linked" / "m.json")[0].mesh == InputFile(path.parent.resolve() / "meshes/a.obj")


def test_missing_files_may_be_left_for_later(write: Write) -> None:
    path = write("m.json", json.dumps([{"prompt": "x", "mesh": "meshes/later.obj"}]))
    assert len(found(path)) == 1
    assert jobs_of(path, check_files=False)[0].mesh == InputFile(path.parent.resolve() / "meshes/later.obj")


# --- manifests that are unusable as a whole

HEAD = "id,prompt,mesh\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.csv", "", ": the manifest is empty"),
        ("m.csv", "\n\n", "the manifest has no rows"),
        ("m.csv", HEAD, ": the manifest has no rows"),
        ("m.csv", "brick,meshes/a.obj\n", ":1: header: the first line must name the columns"),
        ("m.csv", ",,\nx,y,z\n", ":1: header: the first line must name the columns, among them prompt and mesh"),
        ("m.csv", "ID,Prompt,Mesh\na,x,m\n", "among them prompt and mesh; names are written in lower case"),
        ("m.csv", "id,,prompt,mesh\na,,x,meshes/a.obj\n", ":1: header: column 2 has no name"),
        (
            "m.csv",
            "id,prompt,mesh,id\na,x,meshes/a.obj,b\n",
            ":1: header: column 4 is named 'id' like an earlier column",
        ),
        ("m.csv", "id,prompt\na,x\n", ":1: header: the required column 'mesh' is missing"),
        ("m.csv", "id,promt,mesh\na,x,m\n", "the required column 'prompt' is missing; is 'promt' a misspelling of it?"),
        ("m.csv", HEAD + 'a,"x,meshes/a.obj\nb,y,z\n', ':2: a quote (") that opens in this row is not closed'),
        ("m.csv", HEAD + 'a,"x"y,meshes/a.obj\n', ":2: text follows a closing quote"),
        ("m.csv", HEAD + 'a,"' + "x\n" * 100_000 + '",m\n', ":2: a cell is longer than 131072 characters"),
        ("m.csv", HEAD + "a," + "x" * 2_000_000 + ",m\n", ":2: the line is longer than 1048576 bytes"),
        ("m.csv", HEAD + "a,x\ry,meshes/a.obj\n", ":2: the line contains a carriage return without"),
        ("m.csv", HEAD.encode() + b"a,caf\xe9,meshes/a.obj\n", ":2: this is not UTF-8 (byte 0xe9 at position 6"),
        (
            "m.csv",
            HEAD.encode("utf-16") + b"a",
            ": the file begins as UTF-16, but contains bytes that are not (truncated data)",
        ),
        ("m.csv", HEAD.encode("utf-16-le"), ":1: the line contains a NUL byte"),
        ("m.csv", HEAD.encode() + b"a,x\0,meshes/a.obj\n", ":2: the line contains a NUL byte"),
        ("m.csv", ",".join(f"c{n}" for n in range(2000)) + "\n", ":1: header: 2000 columns; allowed: at most 1000"),
        ("m.json", "", ": not valid JSON at column 1: expecting value"),
        ("m.json", "[", ": not valid JSON at column 2"),
        ("m.json", '[\n{"prompt": }]', ": not valid JSON at line 2, column 12"),
        ("m.json", "[]", ": the manifest has no rows"),
        ("m.json", "7", ": the manifest is a number; allowed: a list of rows"),
        ("m.json", "null", ": the manifest is null"),
        ("m.json", "{}", ": rows: it is missing; allowed: a list of rows"),
        ("m.json", '{"rows": 7}', ": rows: it is a number; allowed: a list of rows"),
        ("m.json", '{"rows": [], "default": {}}', ": unknown key 'default'; allowed: 'defaults' and 'rows'; did you"),
        ("m.json", '{"rows": [], "rows": []}', ": the key 'rows' occurs twice"),
        ("m.json", '{"rows": [], "defaults": []}', ": defaults: it is a list; allowed: an object"),
        ("m.json", '{"rows": [], "defaults": {"a": 1, "a": 2}}', ": defaults: the key 'a' occurs twice"),
        ("m.json", '{"rows": [{}], "defaults": {"id": "x"}}', ": defaults: id: an id cannot be a default"),
        ("m.json", '{"rows": [{}], "defaults": {"stps": 1}}', ": defaults: stps: unknown field; did you mean 'steps'?"),
        ("m.json", '{"rows": [{}], "defaults": {"steps": 0}}', ": defaults: steps: 0 is not allowed"),
        ("m.json", '{"prompt": "x", "mesh": "m"}', ": this is a single row; put it into a list"),
        ("m.json", b'["\xff"]', ": this is not UTF-8 (byte 0xff in line 1)"),
        ("m.json", "[" * 200_000, ": not usable: the JSON is nested too deeply"),
        ("m.json", '[{"seed": ' + "9" * 5000 + "}]", ": not usable: the JSON contains a number with too many digits"),
        ("m.jsonl", "", ": the manifest has no rows"),
        ("m.jsonl", '{"prompt": "x", "mesh": "meshes/a.obj"}\n{"prompt"\n', ":2: not valid JSON at column 10"),
        ("m.jsonl", "[" * 200_000, ":1: not usable: the JSON is nested too deeply"),
        ("m.jsonl", b'\n{"prompt": "\xff"}', ":2: this is not UTF-8"),
        ("m.jsonl", '{"prompt": "' + "x" * 2_000_000 + '"}', ":1: the line is longer"),
        ("m.txt", "x", ": a manifest's name ends in .csv, .tsv, .json, .jsonl or .ndjson; this one has '.txt'"),
        ("manifest", "x", "this one has no ending"),
    ],
)
def test_a_manifest_that_is_refused_whole(name: str, content: str | bytes, words: str, write: Write) -> None:
    assert words in whole_problem(write(name, content))


def test_all_broken_lines_of_json_lines_are_named(write: Write) -> None:
    lines = found(write("m.jsonl", '{\n{"prompt": "", "mesh": "meshes/a.obj"}\n}\n'))
    assert [line.split(": ")[0] for line in lines] == [":1", ":2", ":3"]


def test_manifests_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    assert "cannot be read: No such file" in whole_problem(tmp_path / "no.csv")
    assert "not a regular file" in whole_problem(tmp_path / "folder.csv")
    assert "not a regular file" in whole_problem(tmp_path / "pipe.csv")
    assert "cannot be read" in whole_problem(Path("a\0.csv"))


def test_a_json_manifest_is_bounded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_module, "MAX_JSON", 1 << 20)
    assert "larger than 1 MiB; write large manifests as JSON Lines" in whole_problem(write("m.json", " " * (2 << 20)))


def test_the_delimiter_is_the_one_that_shows_known_names(write: Write) -> None:
    (job,) = jobs_of(write("m.csv", "id;prompt;mesh\na;red, white, blue;meshes/a.obj\n"))
    assert job.prompt == "red, white, blue"
    (job,) = jobs_of(write("m.csv", 'id,prompt,mesh\na,"red; white; blue",meshes/a.obj\n'))
    assert job.prompt == "red; white; blue"


# --- --set and --only


def test_overrides_win_and_leave_ids_alone(write: Write) -> None:
    rows = [{"prompt": "x", "mesh": "meshes/a.obj", "steps": 5, "seed": 3}, {"prompt": "y", "mesh": "meshes/a.obj"}]
    path = write("m.json", json.dumps(rows))
    plain = jobs_of(path)
    forced = jobs_of(path, overrides={"steps": "9", "seed": "4", "turntable": "true", "negative_prompt": "blurry"})
    assert [job.id for job in forced] == [job.id for job in plain]
    assert [(job.settings["steps"], job.settings["turntable"], job.seed) for job in forced] == [(9, True, 4)] * 2
    assert {job.negative_prompt for job in forced} == {"blurry"}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("stps", "3", "unknown setting 'stps'; did you mean 'steps'?"),
        ("zzzz", "3", "unknown setting 'zzzz'; allowed: seed, negative_prompt, steps,"),
        ("prompt", "x", "'prompt' belongs to each row"),
        ("id", "x", "'id' belongs to each row"),
        ("steps", "abc", "'abc' is not allowed; allowed: a whole number from 1"),
        ("steps", "0", "0 is not allowed"),
        ("steps", "", "'' is not allowed"),
        ("seed", "-1", "-1 is not allowed"),
        ("unwrap", "magic", "'magic' is not allowed"),
        ("negative_prompt", "a\x07", "U+0007"),
    ],
)
def test_wrong_overrides_are_wrong_usage(name: str, value: str, words: str, write: Write) -> None:
    path = write("m.json", json.dumps([{"prompt": "x", "mesh": "meshes/a.obj"}]))
    with pytest.raises(UsageError, match=re.escape(f"--set {name}={value}: ") + ".*" + re.escape(words)):
        load_manifest(path, overrides={name: value})


def test_an_override_that_does_not_fit_a_row_is_that_rows_problem(write: Write) -> None:
    rows = [{"prompt": "x", "mesh": "meshes/a.obj", "t_max": 0.3}, {"prompt": "y", "mesh": "meshes/a.obj"}]
    loaded = load_manifest(write("m.json", json.dumps(rows)), overrides={"t_min": "0.5"})
    assert [job.prompt for job in loaded.jobs] == ["y"]
    assert "t_min is 0.5 and t_max is 0.3" in str(loaded.problems[0]) and "(with --set)" in str(loaded.problems[0])
    # Two that only fit together are no wrong usage.
    assert len(load_manifest(loaded.path, overrides={"t_min": "0.985", "t_max": "1"}).jobs) == 2


def test_only_keeps_the_named_rows(write: Write) -> None:
    rows = [{"id": name, "prompt": "x", "mesh": mesh} for name, mesh in (("a", "meshes/a.obj"), ("b", "no.obj"))]
    path = write("m.json", json.dumps([*rows, {"id": "c", "prompt": "", "mesh": "meshes/a.obj"}]))
    loaded = load_manifest(path, only=["b", "a"])
    assert ([job.id for job in loaded.jobs], [p.row_id for p in loaded.problems]) == (["a"], ["b"])
    assert loaded.rows == 3 and loaded.ids == {"a", "b", "c"}
    with pytest.raises(UsageError, match=r"--only boot: no row of .*m\.json has this id"):
        load_manifest(path, only=["boot"])


# --- the thirty, and the command


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


# --- whatever the bytes


def only_manifest_errors(path: Path) -> None:
    try:
        loaded = load_manifest(path)
    except ManifestError as error:
        assert "\n" not in error.message and str(path) in error.message
        return
    assert len(loaded.jobs) + loaded.bad_rows == loaded.rows
    for problem in loaded.problems:
        assert str(problem).isprintable() and len(str(problem)) < 1000
    for job in loaded.jobs:
        assert id_problem(job.id) == ""
        assert job.mesh.local().is_file() if job.mesh else job.recipe == "generate"


quick = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ENDINGS = st.sampled_from(["csv", "json", "jsonl"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=5),
    max_leaves=12,
)


@quick
@given(content=st.binary(max_size=300), ending=ENDINGS)
def test_random_bytes(content: bytes, ending: str, write: Write) -> None:
    only_manifest_errors(write(f"m.{ending}", content))


@quick
@given(rows=st.lists(JSON, max_size=4), ending=st.sampled_from(["json", "jsonl"]))
def test_random_json(rows: list[Any], ending: str, write: Write) -> None:
    text = json.dumps(rows) if ending == "json" else "\n".join(json.dumps(row) for row in rows)
    only_manifest_errors(write(f"m.{ending}", text))


@quick
@given(row=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8))
def test_random_values_under_real_names(row: dict[str, Any], write: Write) -> None:
    only_manifest_errors(write("m.json", json.dumps([{"prompt": "x", "mesh": "meshes/a.obj", **row}])))


@quick
@given(cells=st.lists(st.lists(st.text(max_size=10), min_size=3, max_size=4), max_size=5))
def test_random_cells(cells: list[list[str]], write: Write) -> None:
    rows = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
    text = "id,prompt,mesh\n" + "\n".join(rows)
    only_manifest_errors(write("m.csv", text.encode("utf-8", "surrogatepass")))


PIECES = st.sampled_from(
    [b"a", b"\xc3\xa4", b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"long" * 6]
)


@quick
@given(data=st.lists(PIECES, max_size=40).map(b"".join), block=st.integers(1, 30))
def test_lines_read_in_blocks_are_lines_read_one_by_one(
    data: bytes, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One byte that is no text makes the reader take a block line by line.
    data += b"\n\xff"

    def read(size: int) -> list[object]:
        monkeypatch.setattr(readers_module, "BLOCK_BYTES", size)
        monkeypatch.setattr(readers_module, "MAX_LINE", 20)
        lines = readers_module.Lines(io.BytesIO(data), "m.csv")
        found = [(text, lines.number, [str(problem) for problem in lines.take_problems()]) for text in lines]
        # A byte order mark and nothing else is no line, or an empty one.
        return [*(line for line in found if line[0]), lines.take_problems()]

    assert read(block) == read(1 << 20)


def test_mutated_manifests(write: Write) -> None:
    sources = {"csv": as_csv(ROWS), "json": json.dumps(ROWS), "jsonl": "\n".join(json.dumps(row) for row in ROWS)}
    chance = random.Random(1)
    for number in range(600):
        ending = chance.choice(list(sources))
        data = bytearray(sources[ending].encode())
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[place] ^= 1 << chance.randrange(8)
                case 1:
                    del data[place : place + chance.randint(1, 20)]
                    data = data or bytearray(b"x")
                case 2:
                    data[place:place] = data[chance.randrange(len(data)) :][: chance.randint(1, 30)]
                case 3:
                    data[place:place] = chance.choice(
                        [b'"', b",", b"\n", b"\0", b"\r", b"\xff", b"{", b"NaN", b"1e999"]
                    )
        only_manifest_errors(write(f"m{number}.{ending}", bytes(data)))


def test_a_long_manifest_streams_in_bounded_memory(write: Write) -> None:
    import tracemalloc

    count = 20_000
    lines = (f"row-{n},a red brick number {n},meshes/a.obj,{300 + n % 7}\n" for n in range(count))
    path = write("m.csv", "id,prompt,mesh,steps\n" + "".join(lines))
    tracemalloc.start()
    try:
        stream = ManifestStream(path)
        assert sum(isinstance(item, Job) for item in stream) == count == stream.rows
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The ids, and little else: a million rows stay far below 500 MB.
    assert peak / count < 200
