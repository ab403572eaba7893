"""``run.json``, the log and the closing list tell the truth: rows that were refused, exit codes, every kind of end."""

from __future__ import annotations

import json

import pytest
from meshes import CUBE
from stub_recipe import make_toolbox

from pipeline.commands.run import RunOptions, run_manifest
from pipeline.commands.status import show_status
from pipeline.core.errors import PriorError
from pipeline.scheduler.tasks import Hooks


@pytest.fixture
def run(tmp_path):
    """Runs a manifest of ``id,prompt,mesh`` rows in this process."""
    (tmp_path / "cube.obj").write_text(CUBE)
    (tmp_path / "bad.obj").write_bytes(b"")
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model_index.json").write_text("{}")

    def start(*rows: str, toolbox: Hooks | None = None, **options) -> int:
        (tmp_path / "m.csv").write_text("id,prompt,mesh\n" + "".join(f"{row}\n" for row in rows))
        options = {"serial": True, "lockstep": 1, "prior": str(tmp_path / "prior")} | options
        chosen = RunOptions(manifest=tmp_path / "m.csv", out=tmp_path / "out", **options)
        return run_manifest(chosen, hooks=toolbox or make_toolbox())

    return start


def record(tmp_path):
    return json.loads((tmp_path / "out" / "run.json").read_text())


def events(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "run.events.jsonl").read_text().splitlines()]


def test_refused_rows_are_listed_logged_and_counted(run, tmp_path, capsys):
    assert run("a,fine,cube.obj", "b,fine,bad.obj", ",,none.obj", "!,fine,cube.obj", "c,fail,cube.obj") == 1
    lines = capsys.readouterr().out.splitlines()
    assert "run: 2 to build, 0 up to date" in lines and not [line for line in lines if "/0]" in line]
    assert [line for line in lines if line.startswith("a: done in 0.0 s [1/2")]
    assert "c: FAILED in unwrap: c: no way [2/2]" in lines
    closing = [line for line in lines if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in closing] == ["b", "row 4", "row 5", "c"]
    assert closing[0].startswith("failed: b: manifest: mesh: 'bad.obj' is an empty file")
    assert lines[-1].startswith("built 1, 0 up to date, 4 failed")
    told = record(tmp_path)
    assert (told["state"], told["exit_code"], told["counts"]) == ("failed", 1, {"done": 1, "failed": 4})
    assert [failure["id"] for failure in told["failures"]] == ["b", "row 4", "row 5", "c"]
    logged = {event["id"]: event for event in events(tmp_path) if event.get("refused")}
    assert logged["b"]["message"].startswith("mesh: 'bad.obj'") and logged["b"]["source"].endswith("m.csv:3")
    assert show_status(tmp_path / "out", json=True) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["counts"] == {"done": 1, "failed": 4}
    assert [row["id"] for row in status["rows"]].count("b") == 1
    assert show_status(tmp_path / "out", check=True) == 1


def test_refused_rows_are_events_of_json(run, capsys):
    assert run("a,fine,cube.obj", "b,fine,bad.obj", json=True) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (row,) = [event for event in told if event.get("id") == "b"]
    assert (row["event"], row["state"], row["stage"]) == ("row", "failed", "manifest")
    assert list(told[-1]["wrong"]) == ["b"] and told[-1]["failed"] == [] and told[-1]["failed_rows"] == 1


def test_a_row_that_is_blocked_is_counted_before_it_ends(run, tmp_path, capsys):
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "notes.txt").write_text("mine")
    assert run("a,fine,cube.obj") == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a: FAILED in plan")]
    assert line.endswith("[1/1]")


def test_a_run_of_refused_rows_alone_says_1_everywhere(run, tmp_path, capsys):
    assert run("b,fine,bad.obj") == 1
    assert "failed: b: manifest" in capsys.readouterr().out
    assert (record(tmp_path)["state"], record(tmp_path)["exit_code"]) == ("failed", 1)
    assert events(tmp_path)[-1]["exit_code"] == 1


def test_refused_rows_do_not_make_an_id_that_is_used_twice_vanish(run, tmp_path, capsys):
    from pipeline.scheduler.run_log import read_run

    assert run("a,fine,cube.obj") == 0
    path = tmp_path / "out" / "run.events.jsonl"
    refused = {"run": record(tmp_path)["run"], "id": "a", "state": "failed", "refused": True, "source": "m.csv:9"}
    path.write_text(path.read_text() + json.dumps(refused) + "\n")
    view = read_run(tmp_path / "out")
    assert view.rows["a"]["state"] == "done" and view.rows["a (m.csv:9)"]["state"] == "failed"
    assert view.counts == {"done": 1, "failed": 1}
    path.write_text(json.dumps(refused) + "\n" + "\n".join(path.read_text().splitlines()[1:-1]))
    view = read_run(tmp_path / "out")
    assert view.rows["a"]["state"] == "done" and view.counts == {"done": 1, "failed": 1}


@pytest.mark.parametrize(
    ("raised", "state", "code"),
    [
        (KeyboardInterrupt(), "interrupted", 3),
        (PriorError("no weights"), "failed", 2),
        (ZeroDivisionError("a bug"), "failed", 1),
    ],
    ids=repr,
)
def test_a_run_that_ends_by_an_error_records_the_commands_exit_code(raised, state, code, run, tmp_path):
    def load(spec: str, threads: int) -> None:
        raise raised

    toolbox = Hooks(load, make_toolbox().recipe)
    if isinstance(raised, KeyboardInterrupt):
        assert run("a,fine,cube.obj", toolbox=toolbox) == code  # the second Ctrl-C while it loads
    else:
        with pytest.raises(type(raised)):
            run("a,fine,cube.obj", toolbox=toolbox)
    assert (record(tmp_path)["state"], record(tmp_path)["exit_code"]) == (state, code)


def test_a_summary_that_reaches_nobody_is_no_success(run, tmp_path, capsys, monkeypatch):
    from pipeline.commands import run as module
    from pipeline.core.terminal import OutputLost

    def lost():
        raise OutputLost("No space left on device")

    monkeypatch.setattr(module, "flush", lost)
    monkeypatch.setattr(module, "silence_stdout", lambda: None)
    assert run("a,fine,cube.obj") == 1
    assert "standard output cannot be written (No space left on device); built 1, 0 failed" in capsys.readouterr().err
    assert (record(tmp_path)["state"], record(tmp_path)["exit_code"]) == ("failed", 1)
