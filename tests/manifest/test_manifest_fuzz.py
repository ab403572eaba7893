"""Random and mutated manifests raise nothing but ManifestError, and long ones need bounded memory."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_files import ROWS, Write, as_csv

from pipeline.core.errors import ManifestError
from pipeline.core.job import Job
from pipeline.manifest import ManifestStream, load_manifest
from pipeline.manifest import readers as readers_module
from pipeline.manifest.ids import id_problem
from pipeline.manifest.schema import FIELDS


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
