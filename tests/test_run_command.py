"""``run``: manifests in, exit codes out, with a recipe that paints nothing; and what a run may not import."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_prior import make_prior
from meshes import CUBE
from stub_recipe import make_toolbox

from pipeline.commands.run import RunOptions, run_manifest
from pipeline.export.record import read_failure, read_record


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior") / "prior"
    make_prior(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path, prior):
    """Writes a manifest of ``id,prompt,mesh`` rows and runs it in this process."""
    (tmp_path / "cube.obj").write_text(CUBE)

    def start(*rows: str, **options) -> int:
        (tmp_path / "m.csv").write_text("id,prompt,mesh\n" + "".join(f"{row}\n" for row in rows))
        options = {"serial": True, "lockstep": 1, "prior": prior} | options
        chosen = RunOptions(manifest=tmp_path / "m.csv", out=tmp_path / "out", **options)
        return run_manifest(chosen, toolbox=make_toolbox())

    return start


GOOD = ("a,fine,cube.obj", "b,fine too,cube.obj")
BAD = ("no-mesh,fine,missing.obj", "empty,,cube.obj")


def test_all_built_then_nothing_to_do(run, tmp_path, capsys):
    assert run(*GOOD) == 0
    assert "built 2, 0 up to date, 0 failed" in capsys.readouterr().out
    assert run(*GOOD) == 0
    assert "built 0, 2 up to date, 0 failed" in capsys.readouterr().out
    assert run("a,changed,cube.obj", GOOD[1]) == 0
    assert "built 1, 1 up to date, 0 failed" in capsys.readouterr().out


def test_bad_rows_are_recorded_and_the_others_built(run, tmp_path, capsys):
    assert run(*GOOD, *BAD) == 1
    printed = capsys.readouterr().out
    assert "m.csv:4: mesh:" in printed and "m.csv:5: prompt:" in printed
    assert "built 2, 0 up to date, 2 failed" in printed
    failure = read_failure(tmp_path / "out" / "no-mesh")
    assert failure["stage"] == "manifest" and "missing.obj" in failure["message"]
    assert "--only no-mesh" in failure["reproduce"]
    assert not list((tmp_path / "out").rglob(".lock"))


def test_a_bad_row_leaves_the_asset_of_its_better_days(run, tmp_path):
    assert run(*GOOD) == 0
    assert run("a,,cube.obj", GOOD[1]) == 1
    assert read_record(tmp_path / "out" / "a") and read_failure(tmp_path / "out" / "a")


def test_strict_builds_nothing(run, tmp_path, capsys):
    assert run(*GOOD, *BAD, strict=True) == 2
    assert "nothing built" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    (tmp_path / "broken.obj").write_text("v 0 0 0\n")
    assert run(*GOOD, "c,fine,broken.obj", strict=True) == 2
    assert not (tmp_path / "out").exists()


def test_a_failed_row_says_how_to_see_it_again(run, tmp_path, capsys, prior):
    assert run("a,fail,cube.obj", GOOD[1]) == 1
    printed = capsys.readouterr().out
    assert "failed: a: unwrap: a: no way" in printed
    assert f"--prior {prior} --only a --lockstep 1 --serial" in printed


def test_fail_fast_says_what_was_not_begun(run, capsys):
    assert run("a,fail,cube.obj", *GOOD[1:], fail_fast=True) == 1
    assert "1 failed, 1 not begun" in capsys.readouterr().out


def test_dry_run_writes_nothing(run, tmp_path, capsys):
    assert run(*GOOD, dry_run=True) == 0
    printed = capsys.readouterr().out
    assert "a\tbuild\tnew" in printed and "would build 2, keep 0" in printed
    assert not (tmp_path / "out").exists()


def test_quiet_prints_the_last_line_only(run, capsys):
    assert run(*GOOD, quiet=True) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_json_prints_events_and_nothing_else(run, capsys):
    assert run(*GOOD, BAD[0], json=True) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    summary = events[-1]
    assert (summary["event"], summary["built"], summary["exit_code"]) == ("summary", 2, 1)
    assert list(summary["wrong"]) == ["no-mesh"]
    assert [event["id"] for event in events if event.get("state") == "done"] == ["a", "b"]


def test_the_command_survives_spaces():
    options = RunOptions(Path("my rows.csv"), only=("a",), overrides={"steps": "5"}, workers=2)
    assert options.command() == "latentkiln run 'my rows.csv' --only a --set steps=5 --workers 2"
    assert options.command(only="b") == "latentkiln run 'my rows.csv' --only b --set steps=5 --serial"


def test_a_run_with_nothing_to_do_is_quick_and_light(run, tmp_path, prior):
    assert run(*GOOD) == 0
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'ray', 'torch', 'diffusers', 'transformers', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    command = ["run", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out"), "--prior", prior]
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "built 0, 2 up to date" in done.stdout
    assert time.monotonic() - begun < 2.0 * 3  # two seconds, on a machine that does other work, too
