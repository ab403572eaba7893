"""``run``: manifests in, exit codes out, with a recipe that paints nothing; and what a run may not import."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from meshes import CUBE
from stub_recipe import make_toolbox
from thirty_bad_rows import write_thirty

from pipeline.commands.run import RunOptions, run_manifest
from pipeline.core.errors import UsageError
from pipeline.export.record import read_failure, read_record
from pipeline.scheduler.file_lock import asset_lock


@pytest.fixture(scope="module")
def prior(prior_folder):
    return str(prior_folder)


@pytest.fixture
def run(tmp_path, prior):
    """Writes a manifest of ``id,prompt,mesh`` rows and runs it in this process."""
    (tmp_path / "cube.obj").write_text(CUBE)

    def start(*rows: str, **options) -> int:
        (tmp_path / "m.csv").write_text("id,prompt,mesh\n" + "".join(f"{row}\n" for row in rows))
        options = {"serial": True, "lockstep": 1, "prior": prior} | options
        chosen = RunOptions(**{"manifest": tmp_path / "m.csv", "out": tmp_path / "out"} | options)
        return run_manifest(chosen, hooks=make_toolbox())

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


def test_nothing_is_written_into_folders_that_are_not_ours(run, tmp_path, capsys):
    """Ids that are names of folders which were there before: of a good row, of a wrong one, and a link to elsewhere."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for folder in (out / "a", out / "empty", elsewhere):
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
    for name in ("b", "no-mesh"):
        (out / name).symlink_to(elsewhere)
    assert run(*GOOD, *BAD, "c,fine,cube.obj") == 1
    printed = capsys.readouterr().out
    assert (
        "contains files that do not belong to an asset (notes.txt)" in printed and "leaves the output folder" in printed
    )
    for folder in (out / "a", out / "empty", elsewhere):
        assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    told = json.loads((out / "run.json").read_text())
    assert read_record(out / "c") and told["counts"]["failed"] == 4 and len(told["wrong_rows"]) == 2


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


def test_thirty_bad_rows_among_five_good_ones(tmp_path, prior, capsys):
    options = RunOptions(manifest=write_thirty(tmp_path), out=tmp_path / "out", serial=True, lockstep=1, prior=prior)
    assert run_manifest(dataclasses.replace(options, strict=True), hooks=make_toolbox()) == 2
    assert "nothing built: 30 wrong rows" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert run_manifest(options, hooks=make_toolbox()) == 1
    printed = capsys.readouterr().out
    assert "built 5, 0 up to date, 30 failed" in printed
    rows = {int(line.split(":")[1]) for line in printed.splitlines() if line.startswith(f"{options.manifest}:")}
    assert len(rows) == 30
    assert {folder.parent.name for folder in (tmp_path / "out").glob("*/asset.glb")} == {f"good-{n}" for n in range(5)}
    assert not (tmp_path / "escape").exists()


def test_a_folder_that_cannot_be_made_is_wrong_usage(run, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is not a folder"):
        run(*GOOD, out=tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be made"):
        run(*GOOD, out=Path("/proc/none/out"))


def test_a_failed_row_says_how_to_see_it_again(run, tmp_path, capsys, prior):
    assert run("a,fail,cube.obj", GOOD[1]) == 1
    printed = capsys.readouterr().out
    assert "failed: a: unwrap: a: no way" in printed
    assert f"--prior {prior} --only a --lockstep 1 --serial" in printed


def test_fail_fast_says_what_was_not_begun(run, capsys):
    assert run("a,fail,cube.obj", *GOOD[1:], fail_fast=True) == 1
    assert "1 failed, 1 not started" in capsys.readouterr().out


def test_dry_run_writes_nothing(run, tmp_path, capsys):
    assert run(*GOOD, dry_run=True) == 0
    printed = capsys.readouterr().out
    assert "a\tbuild\tnew" in printed and "would build 2, keep 0" in printed
    assert not (tmp_path / "out").exists()


def test_quiet_prints_the_last_line_only(run, capsys):
    assert run(*GOOD, quiet=True) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_json_prints_events_and_nothing_else(run, tmp_path, capsys):
    assert run(*GOOD, BAD[0], json=True) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    summary = events[-1]
    assert (summary["event"], summary["built"], summary["exit_code"]) == ("summary", 2, 1)
    # One id joins what is printed, the run's log and the rows'.
    assert {event["run"] for event in events} == {json.loads((tmp_path / "out" / "run.json").read_text())["run"]}
    assert list(summary["wrong"]) == ["no-mesh"]
    assert [event["id"] for event in events if event.get("state") == "done"] == ["a", "b"]


def test_deleting_the_runs_record_loses_nothing(run, tmp_path, capsys):
    run(*GOOD, quiet=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("asset.glb")}
    for path in ("run.json", "run.events.jsonl", ".run.lock"):
        (tmp_path / "out" / path).unlink()
    for log in (tmp_path / "out").glob("*/log.jsonl"):
        log.unlink()
    assert run(*GOOD, quiet=True) == 0 and "built 0, 2 up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("asset.glb")} == before


def test_what_was_left_half_built_beside_an_asset_that_is_up_to_date_goes(run, tmp_path):
    run(GOOD[0], quiet=True)
    folder = tmp_path / "out" / "a"
    before = sorted(path.name for path in folder.iterdir())
    # The row was changed, its run killed (or interrupted), and the row changed back.
    (folder / ".work" / "0").mkdir(parents=True)
    (folder / ".tmp-1-x.glb").touch()
    with asset_lock(folder):
        assert run(GOOD[0], quiet=True) == 0 and (folder / ".work").exists()  # another run is at it
    assert run(GOOD[0], quiet=True) == 0
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_mesh_that_changes_between_plan_and_build_is_not_painted(run, tmp_path, capsys, monkeypatch):
    plain = make_toolbox()

    def recipe_named(name):
        def recipe(jobs, *more, **options):
            if jobs[0].id == "a":
                (tmp_path / "cube.obj").write_text(CUBE + "\n")
            return plain.recipe(name)(jobs, *more, **options)

        return recipe

    monkeypatch.setitem(globals(), "make_toolbox", lambda: dataclasses.replace(plain, recipe=recipe_named))
    assert run(*GOOD, quiet=True) == 1
    assert (
        "b: load: b: cube.obj: its bytes have changed since the run was planned; run again" in capsys.readouterr().out
    )
    assert read_record(tmp_path / "out" / "b") is None


def test_a_plan_that_breaks_off_ends_what_is_known_of_it(run, tmp_path, capsys, monkeypatch):
    from pipeline.commands import run as run_module
    from pipeline.core.errors import ManifestError

    def broken(jobs, out, *, now=run_module.iterate, **options):
        yield from itertools.islice(now(jobs, out, **options), given)
        raise ManifestError("the manifest changed while it was being read; run again")

    monkeypatch.setattr(run_module, "iterate", broken)
    given = 1
    assert run(*GOOD) == 3
    printed = capsys.readouterr().out
    assert "built 1, 0 up to date, 0 failed, 1 not started" in printed and "continue with: latentkiln run" in printed
    assert "some rows were not read: the manifest changed" in printed
    given = 0
    with pytest.raises(ManifestError, match="changed while"):
        run(*GOOD)


def test_the_command_survives_spaces():
    options = RunOptions(Path("my rows.csv"), only=("a",), overrides={"steps": "5"}, workers=2)
    assert options.command() == "latentkiln run 'my rows.csv' --only a --set steps=5 --workers 2"
    assert options.command(only="b") == "latentkiln run 'my rows.csv' --only b --set steps=5 --serial"


def test_a_run_with_nothing_to_do_loads_nothing_heavy(run, tmp_path, prior):
    assert run(*GOOD) == 0
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'ray', 'torch', 'diffusers', 'transformers', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    command = ["run", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out"), "--prior", prior]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "built 0, 2 up to date" in done.stdout
