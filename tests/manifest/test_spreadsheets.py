"""Tables as Excel, LibreOffice and Numbers write them are read as they are meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from thirty_bad_rows import write_tetrahedron

from pipeline.manifest import Problem, load_manifest
from pipeline.manifest import encodings as encodings_module

Load = Callable[..., list[tuple[str, str, int]]]

HEAD = "id,prompt,mesh,seed\n"
ROWS = "a,a red brick box,box.obj,1\nb,ein grünes Faß,box.obj,2\n"
RIGHT = [("a", "a red brick box", 1), ("b", "ein grünes Faß", 2)]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a manifest beside box.obj, and gives id, prompt and seed of each of its rows, all of which are good."""
    write_tetrahedron(tmp_path / "box.obj")

    def _load(content: str | bytes, name: str = "m.csv") -> list[tuple[str, str, int]]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        loaded = load_manifest(path)
        assert not loaded.problems
        return [(job.id, job.prompt, job.seed) for job in loaded.jobs]

    return _load


def problems(tmp_path: Path, content: str) -> list[Problem]:
    (tmp_path / "m.csv").write_bytes(content.encode())
    return load_manifest(tmp_path / "m.csv").problems


def test_last_cells_that_are_missing_are_empty(load: Load) -> None:
    rows = "a,x,box.obj,1,y\nb,x,box.obj,2\nc,x,box.obj\n"
    assert load("id,prompt,mesh,seed,up_axis\n" + rows) == [("a", "x", 1), ("b", "x", 2), ("c", "x", 0)]


def test_a_row_that_ends_too_early_lacks_what_it_needs(load: Load, tmp_path: Path) -> None:
    found = problems(tmp_path, "id,prompt,seed,mesh\na,x\nb\n")
    assert [(p.row, p.field, p.row_id) for p in found] == [(2, "mesh", "a"), (3, "prompt", "b"), (3, "mesh", "b")]


@pytest.mark.parametrize("end", [",", ",,,", " , ,"])
def test_empty_columns_at_the_end_are_none(end: str, load: Load) -> None:
    lines = (HEAD + ROWS).splitlines()
    assert load("\n".join(line + end for line in lines) + "\n") == RIGHT
    assert load(f"{lines[0]}{end}\n" + ROWS) == RIGHT
    assert load(lines[0] + "\n" + "".join(f"{line}{end}\n" for line in lines[1:])) == RIGHT


def test_a_cell_under_no_name_is_told(load: Load, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "id,prompt,mesh,,\na,x,box.obj,,y\nb,x,box.obj,,\n")
    assert (found.row, found.field) == (2, "cells") and found.message.startswith("5 cells, but the header has 3 col")


@pytest.mark.parametrize(("line", "delimiter"), [
    ("sep=;", ";"), ("SEP=;", ";"), ('"sep=;"', ";"), ("sep=,", ","), ("sep=\t", "\t"), ("sep=|", "|"),
])  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_first_line_may_say_the_delimiter(line: str, delimiter: str, end: str, load: Load) -> None:
    text = f"{line}\n{HEAD}{ROWS}".replace(",", delimiter) if delimiter != "," else f"{line}\n{HEAD}{ROWS}"
    assert load(text.replace("\n", end)) == RIGHT
    assert load(text.replace("\n", end).encode("utf-8-sig")) == RIGHT


def test_rows_behind_a_line_sep_are_numbered_as_an_editor_does(load: Load, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "sep=;\nid;prompt;mesh\na;;box.obj\n")
    assert (found.row, found.field) == (3, "prompt")


def test_quotes_behind_a_blank_are_quotes(load: Load) -> None:
    assert load('id, prompt, mesh\na, "a red, brick box", box.obj\n') == [("a", "a red, brick box", 0)]
    assert load('id, prompt, mesh\na, "a red brick box", box.obj\n') == [("a", "a red brick box", 0)]
    assert load('id; "prompt"; mesh\na;  "a ""red""; box"; box.obj\n') == [("a", 'a "red"; box', 0)]


def test_quotes_inside_a_cell_and_blanks_stay_what_they_are(load: Load) -> None:
    assert load('id,prompt,mesh\na,a 6" box,box.obj\n') == [("a", 'a 6" box', 0)]
    assert load("id,prompt,mesh\n a , x  y , box.obj \n") == [("a", "x y", 0)]
    assert load("id\tprompt\tmesh\na\tx, y; z\tbox.obj\n") == [("a", "x, y; z", 0)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_line_ends_and_delimiters(encoding: str, end: str, delimiter: str, load: Load) -> None:
    text = (HEAD + ROWS).replace(",", delimiter).replace("\n", end)
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    assert load((mark + text).encode(encoding)) == RIGHT


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_json_in_any_encoding(encoding: str, load: Load) -> None:
    rows = [{"id": "a", "prompt": "Faß", "mesh": "box.obj"}, {"id": "b", "prompt": "x", "mesh": "box.obj", "seed": 2}]
    right = [("a", "Faß", 0), ("b", "x", 2)]
    assert load(json.dumps(rows, ensure_ascii=False).encode(encoding), "m.json") == right
    for end in "\n", "\r\n", "\r":
        lines = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
        assert load(lines.encode(encoding), "m.jsonl") == right


def test_blocks_of_any_size_read_alike(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (9, 24, 25, 64, 1000):
        monkeypatch.setattr(encodings_module, "PEEKED_BYTES", size + 20)
        for end in "\r", "\r\r\n":
            assert load((HEAD + ROWS).replace("\n", end)) == RIGHT
        assert load(("\ufeff" + HEAD + ROWS).encode("utf-16-be")) == RIGHT


def test_a_carriage_return_inside_a_cell_of_an_ordinary_file_stays(load: Load) -> None:
    loaded = load('id,prompt,mesh\na,"a red\rbox",box.obj\nb,x,box.obj\n')
    assert loaded == [("a", "a red box", 0), ("b", "x", 0)]
