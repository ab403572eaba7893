"""The paint recipe end to end on a tiny prior: files, bytes, resume, failures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.export.inspect import inspect_glb
from pipeline.export.record import read_record
from pipeline.prior.load import Prior
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions
from pipeline.uv.cache import load_unwrapped

pytestmark = pytest.mark.usefixtures("every_asset_is_valid")


def job(mesh: Path, name: str = "one", seed: int = 0, **settings: object) -> Job:
    values = PaintOptions(**{"steps": 6, "preview": False, **settings}).model_dump(mode="json")  # type: ignore[arg-type]
    return Job(name, "paint", "a red brick cube", "", seed, InputFile(mesh), values, RowLocation("m.csv", 2))


def run(jobs: list[Job], prior: Prior, out: Path, lockstep: int = 2, stop: Callable[[], bool] = lambda: False):  # type: ignore[no-untyped-def]
    prints = [f"print-{j.id}" for j in jobs]
    return paint(jobs, prior, out, fingerprints=prints, lockstep=lockstep, stop=stop)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_asset_with_its_record_and_preview(prior: Prior, cube: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (outcome,) = run([job(cube, preview=True)], prior, out)
    assert (outcome.state, outcome.job_id) == ("done", "one")
    assert sorted(p.name for p in (out / "one").iterdir()) == ["asset.glb", "preview.png", "record.json"]
    record = read_record(out / "one")
    assert record is not None
    for name in ("asset.glb", "preview.png"):
        assert record["outputs"][name]["sha256"] == digest(out / "one" / name)
    assert record["inputs"]["mesh"]["sha256"] == digest(cube)
    assert record["resolved_settings"]["guidance_scale"] == 5.0
    assert record["backends"]["rasterise"] and record["timings"]["distill"] > 0
    extras = inspect_glb(out / "one" / "asset.glb")["provenance"]
    assert extras["prompt"] == "a red brick cube" and extras["prior"]["identity"] == prior.identity


def test_same_job_same_bytes_whatever_the_neighbours(prior: Prior, cube: Path, tmp_path: Path) -> None:
    run([job(cube, "one"), job(cube, "two", seed=5)], prior, tmp_path / "a")
    run([job(cube, "two", seed=5)], prior, tmp_path / "b")
    run([job(cube, "x", seed=9), job(cube, "two", seed=5)], prior, tmp_path / "c")
    assets = [digest(tmp_path / d / "two" / "asset.glb") for d in "abc"]
    assert len(set(assets)) == 1
    assert digest(tmp_path / "a" / "one" / "asset.glb") != assets[0]


def test_interrupted_then_resumed_is_the_same_to_the_byte(prior: Prior, cube: Path, tmp_path: Path) -> None:
    run([job(cube)], prior, tmp_path / "whole")
    calls = iter([False] * 5 + [True] * 100)
    (first,) = run([job(cube)], prior, tmp_path / "parts", stop=lambda: next(calls))
    assert first.state == "interrupted"
    assert not (tmp_path / "parts" / "one" / "record.json").exists()
    (second,) = run([job(cube)], prior, tmp_path / "parts")
    record = read_record(tmp_path / "parts" / "one")
    assert second.state == "done" and record is not None and record["resumed_from_step"] == 4
    assert digest(tmp_path / "parts/one/asset.glb") == digest(tmp_path / "whole/one/asset.glb")
    assert not (tmp_path / "parts" / "one" / ".work").exists()


def test_a_failed_row_is_recorded_and_the_others_are_built(prior: Prior, cube: Path, tmp_path: Path) -> None:
    bad = cube.with_name("bad.obj")
    bad.write_text("v 0 0 0\n")
    outcomes = run([job(bad, "bad"), job(cube, "good")], prior, tmp_path / "out")
    assert [o.state for o in outcomes] == ["failed", "done"]
    failure = json.loads((tmp_path / "out" / "bad" / "failure.json").read_text())
    assert failure["stage"] == "load" and "bad.obj" in failure["message"] and "\n" not in failure["message"]
    # Mended and built, the failure is gone.
    (again,) = run([dataclasses.replace(job(cube, "bad"))], prior, tmp_path / "out")
    assert again.state == "done" and not (tmp_path / "out" / "bad" / "failure.json").exists()


def test_rows_of_different_shapes_share_a_call(prior: Prior, cube: Path, tmp_path: Path) -> None:
    jobs = [job(cube, "a", views=1), job(cube, "b", views=2), job(cube, "c", steps=3, texture_size=128)]
    outcomes = run(jobs, prior, tmp_path / "out", lockstep=3)
    assert [o.state for o in outcomes] == ["done"] * 3
    run([jobs[2]], prior, tmp_path / "alone", lockstep=3)
    assert digest(tmp_path / "out/c/asset.glb") == digest(tmp_path / "alone/c/asset.glb")


def test_the_layout_is_made_once_per_mesh(prior: Prior, cube: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([job(cube, "one")], prior, out)
    (entry,) = (out / ".cache" / "unwrap").iterdir()
    before = entry.stat().st_mtime_ns
    run([job(cube, "two")], prior, out)
    assert [p.stat().st_mtime_ns for p in (out / ".cache" / "unwrap").iterdir()] == [before]
    entry.write_bytes(b"damaged")
    for other in "xy":  # a process keeps the last two layouts in memory
        load_unwrapped(cube, tmp_path / other, texture_size=64)
    (third,) = run([job(cube, "three")], prior, out)
    assert third.state == "done" and len(entry.read_bytes()) > 100
    assert digest(out / "three/asset.glb") != ""


def test_a_learned_background_is_optimised_and_resumed(prior: Prior, cube: Path, tmp_path: Path) -> None:
    learned = job(cube, background="learned")
    run([learned], prior, tmp_path / "whole")
    calls = iter([False] * 4 + [True] * 100)
    run([learned], prior, tmp_path / "parts", stop=lambda: next(calls))
    run([learned], prior, tmp_path / "parts")
    assert digest(tmp_path / "parts/one/asset.glb") == digest(tmp_path / "whole/one/asset.glb")
    run([job(cube, background="random")], prior, tmp_path / "plain")
    assert digest(tmp_path / "plain/one/asset.glb") != digest(tmp_path / "whole/one/asset.glb")


def test_patches_are_resumed_to_the_byte(prior: Prior, cube: Path, tmp_path: Path) -> None:
    painted = job(cube, distillation="patches", steps=12)
    run([painted], prior, tmp_path / "whole")
    for calls_before_the_stop in (1, 4, 9):
        out = tmp_path / f"{calls_before_the_stop}"
        calls = iter([False] * calls_before_the_stop + [True] * 100)
        (first,) = run([painted], prior, out, stop=lambda calls=calls: next(calls))
        assert first.state == "interrupted"
        (second,) = run([painted, job(cube, "two", distillation="patches", steps=12)], prior, out)[:1]
        assert second.state == "done"
        assert digest(tmp_path / "whole" / "one" / "asset.glb") == digest(out / "one" / "asset.glb")
        record = read_record(out / "one")
        assert record is not None and record["bake"]["groups"] == 2
        assert record["bake"]["views"] == 2 * record["resolved_settings"]["patch_views"]


@pytest.mark.parametrize("steps", [1, 2])
def test_patches_of_very_few_steps_still_make_an_asset(prior: Prior, cube: Path, tmp_path: Path, steps: int) -> None:
    (outcome,) = run([job(cube, distillation="patches", steps=steps)], prior, tmp_path / "out")
    assert outcome.state == "done", outcome.message


def test_outlines_may_be_smoothed(prior: Prior, cube: Path, tmp_path: Path) -> None:
    plain, smooth = job(cube, "plain"), job(cube, "smooth", antialias=True, refine=True, refine_steps=1)
    assert [o.state for o in run([plain, smooth], prior, tmp_path)] == ["done", "done"]
    one, other = (read_record(tmp_path / name) for name in ("plain", "smooth"))
    assert one is not None and other is not None
    assert "antialias" not in one["backends"] and other["backends"]["antialias"] in ("numpy", "nvdiffrast")


def test_leftovers_of_a_killed_run_are_cleared(prior: Prior, cube: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "one"
    (folder / ".work").mkdir(parents=True)
    (folder / ".tmp-1-abc.glb").write_bytes(b"half")
    (folder / ".work" / ".tmp-2-abc.safetensors").write_bytes(b"half")
    run([job(cube)], prior, tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["asset.glb", "record.json"]


def test_an_unwritable_output_is_a_failure_not_a_crash(prior: Prior, cube: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "one").write_text("a file where the folder should be")
    (outcome,) = run([job(cube)], prior, out)
    assert outcome.state == "failed" and "\n" not in outcome.message


def test_the_texture_is_the_decoded_latent_not_the_start(prior: Prior, cube: Path, tmp_path: Path) -> None:
    import trimesh

    run([job(cube, steps=1), job(cube, "long", steps=30)], prior, tmp_path / "out")
    images = [
        np.asarray(trimesh.load(tmp_path / "out" / n / "asset.glb", force="mesh").visual.material.baseColorTexture)
        for n in ("one", "long")
    ]
    assert images[0].shape == (64, 64, 3) and images[0].std() > 1
    assert np.abs(images[0].astype(int) - images[1]).mean() > 1
