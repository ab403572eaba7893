"""A lock file that a killed run left beside a finished asset goes when a later run keeps the row."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from stub_recipe import item, make_toolbox

from pipeline.core.asset_layout import LOCK, WORK_DIR
from pipeline.core.location import Location, RemotePath
from pipeline.scheduler import runner
from pipeline.scheduler.runner import RunSettings
from pipeline.storage.input_cache import scratch_folder


def run_kept_row(out: Location) -> None:
    settings = RunSettings(serial=True)
    summary = runner.run([item("a", action="keep")], out, prior_spec="x", settings=settings, hooks=make_toolbox())
    assert (summary.kept, summary.built, summary.exit_code) == (1, 0, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "record.json").write_text("{}")
    return tmp_path / "a"


def test_a_stale_lock_file_of_a_kept_row_is_removed(folder: Path) -> None:
    (folder / LOCK).touch()
    run_kept_row(folder.parent)
    assert sorted(os.listdir(folder)) == ["record.json"]


def test_a_held_lock_of_a_kept_row_stays(folder: Path) -> None:
    with (folder / LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        run_kept_row(folder.parent)
        assert (folder / LOCK).exists()


def test_a_link_in_place_of_the_lock_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    (folder / LOCK).symlink_to(tmp_path / "mine")
    run_kept_row(folder.parent)
    assert (tmp_path / "mine").read_text() == "x"


def test_a_kept_row_without_a_lock_file_gets_none(folder: Path) -> None:
    before = folder.stat().st_mtime_ns
    run_kept_row(folder.parent)
    assert folder.stat().st_mtime_ns == before


def test_a_kept_row_at_a_url_leaves_nothing_in_the_scratch_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTKILN_CACHE", str(tmp_path / "cache"))
    out = RemotePath("memory://bucket/stale") / tmp_path.name
    folder = scratch_folder(out) / "a"
    (folder / WORK_DIR).mkdir(parents=True)
    (folder / LOCK).touch()
    run_kept_row(out)
    assert not folder.exists()
