"""An output folder from a stranger: links in it, and things that are neither file nor folder, are not followed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from stub_recipe import item, make_toolbox

from pipeline.cli import main
from pipeline.core.atomic import remove_stale_temporaries
from pipeline.core.errors import UsageError
from pipeline.core.plain import is_plain, open_plain
from pipeline.export.record import load_record, output_problem, read_record
from pipeline.optimize import checkpoint
from pipeline.scheduler import runner
from pipeline.scheduler.run_log import read_run
from pipeline.scheduler.runner import RunSettings


def build(out: Path, *ids: str):
    settings = RunSettings(serial=True, lockstep=1, threads=1)
    rows = [item(name) for name in ids]
    return runner.run(rows, out, prior_spec="stub", settings=settings, hooks=make_toolbox())


@pytest.fixture
def elsewhere(tmp_path: Path):
    """A folder of the user's, with what a careless program would read, write or delete; untouched at the end."""
    folder = tmp_path / "elsewhere"
    (folder / "0").mkdir(parents=True)
    for name in (".tmp-1-x", "old.jsonl", "0/.tmp-1-x", "0/checkpoint", "file"):
        (folder / name).write_text("the user's own")
    before = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    yield folder
    after = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    assert [str(path) for path in after] == [str(path) for path in before]
    for path, stat in before.items():
        assert (after[path].st_mtime_ns, after[path].st_ino) == (stat.st_mtime_ns, stat.st_ino), path


ROOT_NAMES = ("run.json", "run.events.jsonl", ".run.lock", ".runs", ".cache", ".cache/unwrap", ".cache/sketch")


@pytest.mark.parametrize("name", ROOT_NAMES)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_for_one_of_the_runs_own_names_is_wrong_usage(tmp_path, elsewhere, name, dangling, capsys) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(tmp_path / "nowhere" if dangling else elsewhere / "file" if "run." in name else elsewhere)
    with pytest.raises(UsageError, match="links in an output folder are not followed") as caught:
        build(out, "a")
    assert str(out / name) in str(caught.value)
    assert not (tmp_path / "nowhere").exists() and not (out / "a").exists()
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,recipe,prompt\na,generate,a stone\n")
    assert main(["run", str(manifest), "--out", str(out), "--serial"]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "is a link" in told.err and not told.out


ROW_NAMES = (
    "record.json", "failure.json", "log.jsonl", ".lock", ".work", ".work/0", ".work/0/latent.safetensors",
    "asset.glb", "asset-base_colour.png", "preview.png", "seed-1.glb", ".tmp-1-x",
)  # fmt: skip


@pytest.mark.parametrize("name", ROW_NAMES)
@pytest.mark.parametrize("kind", ["file", "folder", "nowhere", "pipe"])
def test_a_link_for_one_of_a_rows_own_names_fails_the_row_alone(tmp_path, elsewhere, name, kind) -> None:
    out = tmp_path / "out"
    path = out / "a" / name
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"file": elsewhere / "file", "folder": elsewhere, "nowhere": tmp_path / "nowhere"}[kind])
    summary = build(out, "a", "b")
    assert summary.exit_code == 1 and summary.built == 1 and read_record(out / "b")
    (failure,) = summary.failed
    assert failure.job_id == "a" and str(path) in failure.message and failure.message.count("\n") == 0
    assert "link" in failure.message or kind == "pipe", failure.message
    assert not (tmp_path / "nowhere").exists() and os.path.lexists(path)


def test_a_row_folder_that_is_a_link_out_of_the_root_fails(tmp_path, elsewhere) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(elsewhere)
    summary = build(tmp_path / "out", "a")
    assert summary.exit_code == 1 and "leaves the output folder" in summary.failed[0].message


def test_readers_follow_no_link_and_wait_for_no_pipe(tmp_path) -> None:
    good = tmp_path / "good"
    build(good, "a")
    record = read_record(good / "a")
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    for name in ("run.json", "run.events.jsonl", "a/record.json"):
        (out / name).symlink_to(good / name)
    (name,) = record["outputs"]
    (out / "a" / name).symlink_to(good / "a" / name)
    assert read_run(out).header == {} and not read_run(out).rows
    assert load_record(out / "a")[0] is None and "link" in load_record(out / "a")[1]
    assert output_problem(out / "a", record) == f"{name} is a link, or not a file"
    for path in (out / "run.json", out / "run.events.jsonl", out / "a" / "record.json", out / "a" / name):
        path.unlink()
        os.mkfifo(path)
        assert not is_plain(path)
        with pytest.raises(OSError, match="not a regular file"):
            open_plain(path)
    assert read_run(out).header == {} and load_record(out / "a")[0] is None
    assert "not a file" in output_problem(out / "a", record)
    saved = tmp_path / "saved"
    checkpoint.save(saved, {}, key="k", step=3)
    (tmp_path / "link").symlink_to(saved)
    assert checkpoint.load(saved, key="k", steps=5, required={}) == ({}, 3)
    assert checkpoint.load(tmp_path / "link", key="k", steps=5, required={}) is None


def test_sweeping_follows_no_link(tmp_path, elsewhere) -> None:
    (tmp_path / "link").symlink_to(elsewhere)
    assert remove_stale_temporaries(tmp_path / "link") == 0


def test_status_and_clean_of_such_a_folder_go_on(tmp_path, elsewhere, capsys) -> None:
    out = tmp_path / "out"
    build(out, "a", "b")
    (out / "b" / ".work").symlink_to(elsewhere)
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,recipe,prompt\na,generate,a stone\n")
    assert main(["status", str(out), "--json"]) == 0 and json.loads(capsys.readouterr().out)
    assert main(["clean", str(manifest), "--out", str(out), "--yes"]) == 0
    assert not (out / "b").exists() and (out / "a").exists()
