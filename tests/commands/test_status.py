"""The run's record and ``status``: readable while running, after a crash, and when it is lost."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import time
import tracemalloc

import pytest

from pipeline.commands.status import show_status
from pipeline.commands.table import cell
from pipeline.core.errors import UsageError
from pipeline.export.record import describe_outputs, write_failure, write_record
from pipeline.scheduler.run_log import RunLog, read_run
from pipeline.scheduler.tasks import TaskResult


@pytest.fixture
def run_log(tmp_path):
    run_log = RunLog(tmp_path, {"manifest": "m.csv", "command": "latentkiln run m.csv"})
    run_log.open()
    for job_id in ("a", "b", "c"):
        run_log.planned(job_id, "planned")
    run_log.planned("old", "kept")
    run_log.started("a", 1, "worker 1", "node 7")
    return run_log


def write_asset(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asset.glb").write_bytes(b"glTF" + folder.name.encode())
    outputs = describe_outputs(folder, ["asset.glb"])
    write_record(folder, {"id": folder.name, "fingerprint": "f", "outputs": outputs})


def test_a_run_is_readable_while_it_goes_on(run_log, tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        now = time.monotonic()
        later.setattr(time, "monotonic", lambda: now + 3600)  # the record is not written at every step
        run_log.stage("a", "distill", 3, 10)
    view = read_run(tmp_path)
    assert view.state == "running"
    assert {job_id: row["state"] for job_id, row in view.rows.items()} == {
        "a": "running", "b": "planned", "c": "planned", "old": "kept",
    }  # fmt: skip
    assert (view.rows["a"]["stage"], view.rows["a"]["done"]) == ("distill", 3)


def test_the_end_of_a_run(run_log, tmp_path, capsys):
    run_log.finished(TaskResult("a", "done", seconds=2.5))
    run_log.finished(TaskResult("b", "failed", "bake", "E", "it broke", reproduce="again"))
    run_log.close("failed", 1)
    view = read_run(tmp_path)
    assert view.header["counts"] == {"done": 1, "failed": 1, "planned": 1, "kept": 1}
    assert view.header["failures"][0]["reproduce"] == "again" and view.header["exit_code"] == 1
    ended = {name: view.rows["a"][name] for name in ("state", "attempts", "worker", "node", "seconds")}
    assert ended == {"state": "done", "attempts": 1, "worker": "worker 1", "node": "node 7", "seconds": 2.5}
    assert show_status(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "b\tfailed\tbake: it broke" in printed and "run ended (failed)" in printed


def test_a_killed_run_is_told_from_a_running_one(run_log, tmp_path, capsys):
    header = json.loads((tmp_path / "run.json").read_text())
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    (tmp_path / "run.json").write_text(json.dumps(header | {"pid": child}))
    assert read_run(tmp_path).state == "killed"
    show_status(tmp_path, watch=True)
    printed = capsys.readouterr().out
    assert "a\tkilled" in printed and "continue with: latentkiln run m.csv" in printed


def test_a_line_cut_by_a_crash_is_left_out(run_log, tmp_path):
    with (tmp_path / "run.events.jsonl").open("a") as stream:
        stream.write('{"id":"b","state":"do')
    assert read_run(tmp_path).rows["b"]["state"] == "planned"


def test_without_the_run_record_the_assets_speak(tmp_path, capsys):
    write_asset(tmp_path / "done")
    write_failure(tmp_path / "bad", {"id": "bad", "fingerprint": "f", "stage": "load", "message": "no mesh"})
    (tmp_path / ".cache").mkdir()
    assert show_status(tmp_path, json=True) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["state"] == "unknown" and value["counts"] == {"done": 1, "failed": 1}
    assert {row["id"] for row in value["rows"]} == {"done", "bad"}


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"state": 5, "running": 7, "pid": "x"}'])
def test_a_damaged_record_does_no_harm(tmp_path, damage):
    (tmp_path / "run.json").write_text(damage)
    (tmp_path / "run.events.jsonl").write_text(damage)
    assert show_status(tmp_path) == 0


def test_a_disk_that_refuses_the_record_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    run_log = RunLog(tmp_path / "file" / "below", {})
    run_log.open()
    run_log.planned("a", "planned")
    run_log.started("a", 1, "w")
    run_log.finished(TaskResult("a", "done"))
    run_log.close("done", 0)
    assert "run.json: cannot be written" in run_log.problem


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        show_status(tmp_path / "none")


def write_log(out, rows):
    """A run of so many rows: all planned, then built one by one, the last ones failed or running."""
    names = [f"r{number:06d}" for number in range(rows)]
    events = [{"id": name, "state": "planned"} for name in names]
    for number, name in enumerate(names[:-3] + names[-2:]):
        events.append({"id": name, "state": "running"})
        if number < rows - 2:
            end = {"state": "failed", "message": "it broke"} if number == rows - 3 else {"state": "done"}
            events.append({"id": name} | end)
    (out / "run.events.jsonl").write_text("\n".join(map(json.dumps, events)))
    return {"done": rows - 3, "running": 1, "failed": 1, "planned": 1}


def test_of_a_long_run_what_is_held_is_bounded_and_what_is_counted_is_whole(tmp_path):
    peaks = []
    for rows in (2_000, 20_000):
        counts = write_log(tmp_path, rows)
        tracemalloc.start()
        view = read_run(tmp_path, most=50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert view.counts == counts and not view.complete and len(view.rows) <= 100
        assert [view.rows[f"r{rows - n:06d}"]["state"] for n in (1, 2)] == ["running", "failed"]
    # A million rows take as much as these.
    assert peaks[1] < peaks[0] + 100_000 < 2_000_000


def test_a_long_run_is_told_in_short(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.commands.status.read_run", functools.partial(read_run, most=10))
    counts = write_log(tmp_path, 500)
    for number in (*range(10), 400):
        write_asset(tmp_path / f"r{number:06d}")
    show_status(tmp_path)
    printed = capsys.readouterr().out
    assert "r000498\tfailed" in printed and "and 488 more rows" in printed and "497 done" in printed
    show_status(tmp_path, json=True)
    value = json.loads(capsys.readouterr().out)
    assert value["counts"] == counts and value["left_out"] == 488 and len(value["rows"]) == 12


def test_a_row_that_is_tried_again_is_counted_once(tmp_path):
    events = [
        ("planned", {}),
        ("running", {}),
        ("planned", {"retry": "its worker died"}),
        ("running", {}),
        ("done", {}),
    ]
    lines = [json.dumps({"id": "a", "state": state} | more) for state, more in events]
    (tmp_path / "run.events.jsonl").write_text("\n".join(lines))
    assert read_run(tmp_path).counts == {"done": 1}


def test_a_table_for_spreadsheets_holds_no_formula(run_log, tmp_path, capsys):
    run_log.finished(TaskResult("b", "failed", "", "E", '=HYPERLINK("http://evil","x")'))
    show_status(tmp_path, csv=True)
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["id", "state", "attempts", "node", "seconds", "what"]
    assert rows[1][:4] == ["a", "running", "1", "node 7"]
    assert rows[2] == ["b", "failed", "1", "", "0.0", '\'=HYPERLINK("http://evil","x")']
    with pytest.raises(UsageError, match="cannot be combined"):
        show_status(tmp_path, csv=True, json=True)


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", " =1", "\r=1", "\uff1d1"])
def test_cells_that_start_a_formula_are_quoted(text):
    assert cell(text) == f"'{text}" and cell(f"a{text}") == f"a{text}" and cell(-1) == -1
