"""``clean``: only what is ours and no row names, only when asked, never while it is being built."""

from __future__ import annotations

import json

import pytest

from pipeline.commands.clean import clean
from pipeline.core.errors import ManifestError
from pipeline.export.record import foreign_files, write_failure, write_record
from pipeline.scheduler.file_lock import asset_lock


@pytest.fixture
def out(tmp_path):
    """``here`` is in the manifest; ``gone``, ``bad`` and ``half``, which was interrupted, are not; ``mine`` is nothing
    of ours, ``link`` leads out."""
    (tmp_path / "cube.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "m.csv").write_text("id,prompt,mesh\nHere,red,cube.obj\n")
    out = tmp_path / "out"
    for name in ("Here", "gone"):
        write_record(out / name, {"id": name, "fingerprint": "f", "outputs": {}})
        (out / name / "asset.glb").write_bytes(bytes(1000))
    write_failure(out / "bad", {"id": "bad", "fingerprint": "f"})
    (out / "half" / ".work" / "0").mkdir(parents=True)
    (out / "half" / ".work" / "0" / "latent.safetensors").write_bytes(bytes(5000))
    (out / "mine").mkdir()
    (out / "mine" / "thesis.txt").write_text("years of work")
    write_record(out / "copied", {"id": "gone", "fingerprint": "f", "outputs": {}})
    outside = tmp_path / "outside"
    write_record(outside, {"id": "link", "fingerprint": "f", "outputs": {}})
    (out / "link").symlink_to(outside)
    (out / ".cache").mkdir()
    return out


def names(out):
    return sorted(path.name for path in out.iterdir())


def test_it_lists_first_and_deletes_when_asked(out, tmp_path, capsys):
    before = names(out)
    assert clean(tmp_path / "m.csv", out=out) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:2] for line in printed[:-1]] == [
        ["bad", "would be deleted"],
        ["gone", "would be deleted"],
        ["half", "would be deleted"],
    ]
    assert "3 would be deleted" in printed[-1] and "--yes" in printed[-1]
    assert names(out) == before
    assert clean(tmp_path / "m.csv", out=out, yes=True) == 0
    assert names(out) == sorted(set(before) - {"gone", "bad", "half"})
    assert (tmp_path / "outside" / "record.json").exists()
    assert clean(tmp_path / "m.csv", out=out, yes=True) == 0
    assert "all assets are in the manifest" in capsys.readouterr().out


def test_somebody_elses_files_are_not_taken_along(out, tmp_path, capsys):
    # As where --out is a folder that was there before: the row called like its subfolder failed there.
    (out / "meshes").mkdir()
    (out / "meshes" / "years of work.obj").write_text("v")
    write_failure(out / "meshes", {"id": "meshes", "fingerprint": "f"})
    (out / "gone" / "notes.txt").write_text("mine")
    assert clean(tmp_path / "m.csv", out=out) == 0
    assert (
        "meshes\twould not be deleted: it contains files that do not belong to an asset: 'years of work.obj'"
        in capsys.readouterr().out
    )
    assert clean(tmp_path / "m.csv", out=out, yes=True) == 1
    assert "gone\tnot deleted: it contains files that do not belong to an asset: 'notes.txt'" in capsys.readouterr().out
    assert (out / "meshes" / "years of work.obj").exists() and (out / "gone" / "record.json").exists()
    assert not (out / "bad").exists() and not (out / "half").exists()


def test_all_that_a_row_leaves_is_its_own(tmp_path):
    names = ["asset.glb", "asset.obj", "asset_base_colour.jpg", "asset.mtl", "asset.ply", "seed-7.glb", "seed-7.png"]
    names += ["seed-7_base_colour.png", "preview.png", "depth.png", "seed-7-normal.png", "log.jsonl", ".tmp-1-ab.glb"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".work").mkdir()
    assert foreign_files(tmp_path) == []
    write_record(tmp_path, {"id": "x", "fingerprint": "f", "outputs": {"film.mp4": {"sha256": "0" * 64, "bytes": 0}}})
    (tmp_path / "film.mp4").touch()
    assert foreign_files(tmp_path) == []
    for name in ("my.obj", "asset", ".git", "preview.jpg"):
        (tmp_path / name).touch()
    assert foreign_files(tmp_path) == [".git", "asset", "my.obj", "preview.jpg"]


def test_what_a_run_builds_stays(out, tmp_path, capsys):
    with asset_lock(out / "gone"):
        assert clean(tmp_path / "m.csv", out=out, yes=True, json=True) == 3
    fates = {asset["id"]: asset["fate"] for asset in json.loads(capsys.readouterr().out)["assets"]}
    assert (
        fates == {"bad": "deleted", "gone": "being built", "half": "deleted"}
        and (out / "gone" / "record.json").exists()
    )


def test_a_manifest_with_wrong_rows_deletes_nothing(out, tmp_path):
    # Without ids, a wrong row may be the one that names what looks forgotten.
    (tmp_path / "m.csv").write_text("id,prompt,mesh\nHere,red,cube.obj\n,blue,none.obj\n")
    with pytest.raises(ManifestError, match="1 row wrong"):
        clean(tmp_path / "m.csv", out=out, yes=True)
    assert (out / "gone").exists()


def test_no_folder_is_nothing_to_do(tmp_path, out):
    assert clean(tmp_path / "m.csv", out=tmp_path / "none", yes=True) == 0
