"""The paint recipe with SD 2.x-768 and SDXL of reduced width, single files, and adapters: end to end, assets valid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from fake_variants import make_concept, make_diffusers, make_lora, make_single_file
from meshes import CUBE
from test_paint import digest, run

from pipeline.core.job import AdapterFile, Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.export.inspect import inspect_glb
from pipeline.export.record import read_record
from pipeline.prior.cache import CACHE_VARIABLE
from pipeline.prior.load import Prior, load_prior
from pipeline.recipes.paint_settings import PaintOptions

pytestmark = pytest.mark.usefixtures("every_asset_is_valid")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "cube.obj"
    path.write_text(CUBE)
    return path


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(make_diffusers(tmp_path_factory.mktemp("priors") / "sd1", "sd1"))


def job(mesh: Path, name: str = "one", adapters: tuple[AdapterFile, ...] = (), **settings: object) -> Job:
    values = PaintOptions(**{"steps": 3, "preview": False, "texture_size": 64, **settings}).model_dump(mode="json")  # type: ignore[arg-type]
    location = RowLocation("m.csv", 2)
    return Job(name, "paint", "a red toy cube", "", 0, InputFile(mesh), values, location, adapters=adapters)


@pytest.mark.parametrize("kind", ["sd2-768-v", "sdxl"])
def test_other_architectures_paint_from_folder_and_file_alike(kind: str, cube: Path, tmp_path: Path) -> None:
    folder = make_diffusers(tmp_path / "prior", kind)
    file = make_single_file(folder, tmp_path / "single.safetensors", kind)
    (outcome,) = run([job(cube)], load_prior(folder), tmp_path / "folder")
    assert outcome.state == "done", outcome
    (outcome,) = run([job(cube, refine=True, refine_steps=2)], load_prior(file), tmp_path / "file")
    assert outcome.state == "done", outcome


def test_a_lora_and_a_concept_change_their_own_row_only(sd1: Prior, cube: Path, tmp_path: Path) -> None:
    make_lora(tmp_path / "x.safetensors", sd1)
    make_concept(tmp_path / "toy.safetensors", sd1.text.widths)
    lora = (AdapterFile("lora", InputFile(tmp_path / "x.safetensors"), 0.7),)
    toy = (AdapterFile("concept", InputFile(tmp_path / "toy.safetensors")),)
    together = [job(cube, "plain"), job(cube, "lora", lora), job(cube, "toy", toy)]
    assert [o.state for o in run(together, sd1, tmp_path / "a", lockstep=4)] == ["done"] * 3
    glbs = {name: digest(tmp_path / "a" / name / "asset.glb") for name in ("plain", "lora", "toy")}
    for one in together:
        run([one], sd1, tmp_path / "b", lockstep=4)
        assert digest(tmp_path / "b" / one.id / "asset.glb") == glbs[one.id]
    run([job(cube, "plain")], load_prior(sd1.folder), tmp_path / "c", lockstep=4)
    assert digest(tmp_path / "c" / "plain" / "asset.glb") == glbs["plain"]
    record = read_record(tmp_path / "a" / "lora")
    assert record is not None and record["inputs"]["adapters"][0]["weight"] == 0.7
    assert record["inputs"]["adapters"][0]["sha256"]
    assert not [text for text in record["warnings"] if "view" not in text]  # few steps see little of the surface
    provenance = inspect_glb(tmp_path / "a" / "lora" / "asset.glb")["provenance"]
    assert provenance["adapters"] == record["inputs"]["adapters"]


def test_an_adapter_that_does_not_fit_fails_its_row_alone(sd1: Prior, cube: Path, tmp_path: Path) -> None:
    bad = make_concept(tmp_path / "bad.safetensors", [5])
    rows = [job(cube, "bad", (AdapterFile("concept", InputFile(bad)),)), job(cube, "good")]
    outcomes = run(rows, sd1, tmp_path / "out")
    assert [o.state for o in outcomes] == ["failed", "done"] and "made for another model" in outcomes[0].message


def test_a_concept_that_the_prompt_does_not_name_is_warned_of(sd1: Prior, cube: Path, tmp_path: Path) -> None:
    path = make_concept(tmp_path / "other.safetensors", sd1.text.widths)
    (outcome,) = run([job(cube, "one", (AdapterFile("concept", InputFile(path)),))], sd1, tmp_path / "out")
    assert outcome.state == "done" and "'other' is not in the prompt" in outcome.warnings[0]


def test_a_run_that_meets_out_of_memory_at_8_completes_at_4(
    sd1: Prior, cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(sd1, "batch_invariance", {})
    jobs = [dataclasses.replace(job(cube, f"j{i}", steps=2), seed=i) for i in range(8)]
    run(jobs[:1], sd1, tmp_path / "four", lockstep=4)
    predict = sd1.predict_noise

    def small(noisy, t, text):  # type: ignore[no-untyped-def]
        if len(noisy) > 2 * 4:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return predict(noisy, t, text)

    monkeypatch.setattr(sd1, "predict_noise", small)
    outcomes = run(jobs, sd1, tmp_path / "eight", lockstep=8)
    assert [o.state for o in outcomes] == ["done"] * 8
    record = read_record(tmp_path / "eight" / "j0")
    assert record is not None and (record["lockstep"], record["lockstep_used"]) == (8, 4)
    told = [text for text in record["warnings"] if "memory" in text]
    assert told == ["out of memory at a lockstep of 8: from step 0 on 4 at a time"]
    assert digest(tmp_path / "eight/j0/asset.glb") == digest(tmp_path / "four/j0/asset.glb")
