"""Records: written whole, read only when they are ours and unharmed."""

from __future__ import annotations

import json

import pytest

from pipeline.core.asset_layout import FAILURE, RECORD
from pipeline.export.record import (
    describe_outputs,
    load_record,
    output_problem,
    read_failure,
    read_record,
    write_failure,
    write_record,
)

GOOD = {"id": "vase", "fingerprint": "ab" * 32, "outputs": {}, "warnings": ["ünusual"], "seed": 2**53}


def test_a_record_comes_back_with_schema_and_status(tmp_path):
    folder = tmp_path / "vase"
    write_record(folder, GOOD)
    assert read_record(folder) == GOOD | {"schema": 1, "status": "done"}
    assert load_record(folder)[1] == ""
    assert [p.name for p in folder.iterdir()] == [RECORD]


def test_nothing_there_is_no_problem(tmp_path):
    assert load_record(tmp_path / "nowhere") == (None, "")
    assert read_failure(tmp_path) is None


def test_a_failure_leaves_a_good_record_and_a_success_removes_the_failure(tmp_path):
    write_record(tmp_path, GOOD)
    write_failure(tmp_path, {"id": "vase", "fingerprint": "cd" * 32, "stage": "load", "message": "no"})
    assert read_record(tmp_path)["fingerprint"] == "ab" * 32
    assert read_failure(tmp_path)["stage"] == "load"
    assert read_failure(tmp_path)["status"] == "failed"
    write_record(tmp_path, GOOD)
    assert read_failure(tmp_path) is None
    assert not (tmp_path / FAILURE).exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"schema": 1, "id"', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"[]", "JSON object"),
        (b'{"schema": 2}', "schema 2 is not 1"),
        (b'{"schema": 1, "status": "failed"}', "status 'failed'"),
        (b'{"schema": 1, "status": "done", "id": 3}', "'id'"),
        (b'{"schema": 1, "status": "done", "id": "a"}', "'fingerprint'"),
    ],
)
def test_a_harmed_record_reads_as_none_with_a_reason(tmp_path, text, reason):
    (tmp_path / RECORD).write_bytes(text)
    record, why = load_record(tmp_path)
    assert record is None
    assert reason in why
    assert RECORD in why
    assert "\n" not in why
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    "outputs",
    [
        None,
        [],
        {"a.glb": {}},
        {"a.glb": {"sha256": "x", "bytes": 1}},
        {"a.glb": {"sha256": "0" * 64, "bytes": "1"}},
        {"../a.glb": {"sha256": "0" * 64, "bytes": 1}},
        {"..": {"sha256": "0" * 64, "bytes": 1}},
        {"a\\b": {"sha256": "0" * 64, "bytes": 1}},
    ],
)
def test_outputs_must_be_files_of_this_folder(tmp_path, outputs):
    (tmp_path / RECORD).write_text(json.dumps({"schema": 1, "status": "done"} | GOOD | {"outputs": outputs}))
    record, why = load_record(tmp_path)
    assert record is None
    assert "outputs" in why


def test_a_folder_in_the_place_of_a_record_is_told(tmp_path):
    (tmp_path / RECORD).mkdir()
    record, why = load_record(tmp_path)
    assert record is None
    assert "cannot be read" in why


def test_a_foreign_giant_is_not_read(tmp_path):
    with (tmp_path / RECORD).open("wb") as stream:
        stream.truncate((16 << 20) + 1)
    assert "larger than 16 MiB" in load_record(tmp_path)[1]


def test_numbers_json_has_no_word_for_are_refused_before_anything_is_replaced(tmp_path):
    write_record(tmp_path, GOOD)
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path, GOOD | {"peak": float("nan")})
    assert read_record(tmp_path)["seed"] == 2**53
    assert [p.name for p in tmp_path.iterdir()] == [RECORD]


def test_outputs_are_checked_byte_for_byte(tmp_path):
    asset, preview = tmp_path / "asset.glb", tmp_path / "preview.png"
    asset.write_bytes(b"glTF")
    preview.write_bytes(b"PNG")
    record = {"outputs": describe_outputs(tmp_path, ["preview.png", "asset.glb"])}
    assert record["outputs"]["asset.glb"]["bytes"] == 4
    assert output_problem(tmp_path, record) == ""
    asset.write_bytes(b"glTg")
    assert output_problem(tmp_path, record) == "asset.glb does not match its recorded hash"
    asset.write_bytes(b"glTF+")
    assert output_problem(tmp_path, record) == "asset.glb does not have its recorded size"
    asset.unlink()
    assert output_problem(tmp_path, record) == "asset.glb is missing"
