"""Manifests: every mistake is named where it stands, the formats mean the same, and nothing but ManifestError flies."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from manifest_files import ROWS, Write, as_csv, found, jobs_of, row_problem, whole_problem

from pipeline.core.location import InputFile
from pipeline.manifest import Manifest, load_manifest
from pipeline.manifest.ids import id_problem
from pipeline.recipes.paint_settings import PaintOptions

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
        (
            "mesh",
            "meshes",
            "'meshes' has no ending; allowed: .obj, .ply, .stl, .off, .gltf, .glb, .fbx, .dae, .3ds, .usd, .usda, "
            ".usdc or .usdz",
        ),
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
