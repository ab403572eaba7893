"""Manifests as files: what is refused whole, delimiters, bounds, and overrides."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from manifest_files import Write, found, jobs_of, whole_problem

from pipeline.core.errors import UsageError
from pipeline.manifest import load_manifest
from pipeline.manifest import readers as readers_module

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
