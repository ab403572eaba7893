"""The generate recipe on a make-believe CUDA device: no tensor is on the wrong one, with a sketch and in RGB, too."""

from __future__ import annotations

from pathlib import Path

import fake_nvdiffrast
import fake_tinycudann
import pytest
from fake_cuda import CudaTensor, fake_cuda
from fake_prior import make_prior
from test_generate import BALL, SMALL

from pipeline.core.job import Job, Source
from pipeline.export.record import read_record
from pipeline.prior.load import load_prior
from pipeline.recipes.generate import generate
from pipeline.recipes.generate_settings import GenerateSettings
from pipeline.scene import grid_tcnn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def device(monkeypatch):
    fake_nvdiffrast.install(monkeypatch)
    fake_tinycudann.install(monkeypatch)
    monkeypatch.setenv("LATENTKILN_RASTERISE", "numba")  # its stand-in draws slowly, and paint shows it
    with fake_cuda():
        yield
    grid_tcnn._encoding.cache_clear()


@pytest.mark.parametrize("grid", ["tinycudann", "torch"])
def test_generate(grid: str, folder: Path, tmp_path: Path, device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTKILN_GRID", grid)
    monkeypatch.setattr("pipeline.recipes.generate._BAKE_VIEWS", 6)
    prior = load_prior(folder, "cuda")
    more = {"steps": 2, "views": 1, "mesh_resolution": 16, "lambda_orientation": 0.1, "lambda_tv": 0.1}
    if grid == "tinycudann":
        more |= {"shapes": BALL, "background": "learned", "refine": True, "refine_steps": 1}
    values = GenerateSettings(**{**SMALL, **more}).model_dump(mode="json")
    jobs = [Job("one", "generate", "a red stone", "", 0, None, values, Source("m.csv", 2))]
    (outcome,) = generate(jobs, prior, tmp_path, fingerprints=["print"], lockstep=2)
    assert outcome.status == "done", outcome
    record = read_record(tmp_path / "one")
    assert record is not None and record["backends"]["grid"] == grid and record["backends"]["volume"] == "torch"
    assert record["backends"]["device"] == "cuda" and record["backends"]["dtype"] == "float16"
    if grid == "tinycudann":
        seen = [arguments for name, arguments in fake_tinycudann.calls if name == "forward"]
        assert seen and all(isinstance(arguments["params"], CudaTensor) for arguments in seen)
