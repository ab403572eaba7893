"""Volume rendering and the generate recipe on CUDA beside the CPU, and the lockstep width that is measured there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_prior import make_prior
from gpu.libraries import need
from test_generate import BALL, SMALL

from pipeline.core.job import Job, RowLocation
from pipeline.core.rng import numpy_generator, torch_generator
from pipeline.export.record import read_record
from pipeline.fields import volume
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.mesh.load import load_mesh
from pipeline.optimize import loop
from pipeline.optimize.adaptive_batch import fitting_batch_size
from pipeline.prior.cache import CACHE_VARIABLE, read_entry
from pipeline.prior.load import load_prior
from pipeline.prior.options import PriorOptions
from pipeline.recipes.generate import generate
from pipeline.recipes.generate_settings import GenerateOptions

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


def build(prior, out, **settings):
    """One small row; its record and mesh."""
    small = {**SMALL, "steps": 2, "views": 1, "mesh_resolution": 16}
    values = GenerateOptions(**{**small, **settings}).model_dump(mode="json")
    row = Job("one", "generate", "a red stone", "", 0, None, values, RowLocation("m.csv", 2))
    (outcome,) = generate([row], prior, out, fingerprints=["print"], lockstep=2)
    assert outcome.state == "done", outcome
    return read_record(out / "one"), load_mesh(out / "one" / "asset.glb")


def test_march_and_composite_agree_with_the_cpu():
    generator = torch_generator(61, "rays")
    origins = torch.randn(200, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator) * 0.3 - origins, dim=1)
    jitter = torch.rand(200, generator=generator)
    occupancy = OccupancyGrid(24)
    occupancy.binary[:] = numpy_generator(61, "cells").random((24, 24, 24)) < 0.3
    answers = []
    for where in ("cpu", "cuda"):
        packed = volume.march(
            origins.to(where), directions.to(where), occupancy, step=0.05, jitter=jitter.to(where), backend="torch"
        )
        draws = torch.rand(len(packed.t), 5, generator=torch_generator(62, "samples"))
        sigma, values = (x.clone().to(where).requires_grad_(True) for x in (draws[:, 0] * 20, draws[:, 1:]))
        made = volume.composite(sigma, values, packed, backend="torch")
        (made.values.sum() + made.weight.sum() + made.depth.sum()).backward()
        answers.append([x.detach().cpu() for x in (packed.points, packed.t, made.values, made.depth, sigma.grad)])
        answers[-1].append(packed.start.cpu())
    assert len(answers[0][0]) > 1000
    for found, expected in zip(answers[1], answers[0], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("grid", "network"), [("torch", "torch"), ("tinycudann", "torch"), ("torch", "tinycudann")])
def test_generate_from_a_sketch_and_refined(grid, network, folder, tmp_path, monkeypatch):
    need("grid", grid)
    need("network", network)
    monkeypatch.setenv("LATENTKILN_GRID", grid)
    monkeypatch.setenv("LATENTKILN_NETWORK", network)
    more = {"shapes": BALL, "background": "learned", "refine": True, "refine_steps": 1, "lambda_orientation": 0.1}
    record, _ = build(load_prior(folder, "cuda"), tmp_path, lambda_tv=0.1, **more)
    assert record["backends"]["device"].startswith("cuda") and record["backends"]["dtype"] == "float16"
    assert record["backends"]["grid"] == grid and record["backends"]["volume"] == "torch"
    assert record["backends"]["network"] == network


def test_the_surface_is_the_cpus(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTKILN_GRID", "torch")
    options = PriorOptions(precision="float32", tf32=False)
    _, here = build(load_prior(folder, "cpu", options), tmp_path / "cpu")
    _, there = build(load_prior(folder, "cuda", options), tmp_path / "cuda")
    for reach in (np.min, np.max):
        np.testing.assert_allclose(reach(there.vertices, axis=0), reach(here.vertices, axis=0), atol=0.02)


def test_the_surface_is_painted_by_patches(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTKILN_GRID", "torch")
    monkeypatch.setattr("pipeline.painting.multiview_sampling.CANDIDATES", 4)
    record, _ = build(load_prior(folder, "cuda"), tmp_path, texturing="patches", texture_steps=3)
    assert record["backends"]["device"].startswith("cuda") and record["timings"]["texture_prior"] > 0


def test_the_width_is_measured_and_remembered(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    prior = load_prior(folder, "cuda")
    assert fitting_batch_size(prior, 1, 8, largest=4) == fitting_batch_size(prior, 2, 8, refine=True, largest=4) == 4
    assert len(read_entry("lockstep.json")) == 2


def test_what_the_scenes_take_is_measured_once(folder, tmp_path, monkeypatch):
    """Before the first step of the first batch, by a step of one variant and of two; later it is known."""
    monkeypatch.setenv("LATENTKILN_GRID", "torch")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    rehearsed, dry_run = [], loop.Optimization.dry_run
    monkeypatch.setattr(loop.Optimization, "dry_run", lambda one: (rehearsed.append(one), dry_run(one))[1])
    prior = load_prior(folder, "cuda")
    made = [build(prior, tmp_path / name, seeds=2) for name in ("one", "two")]
    assert len(rehearsed) == 1 + 2
    assert all(record["lockstep_used"] == 2 for record, _ in made)
    assert not [text for record, _ in made for text in record["warnings"] if "memory" in text]
    return [mesh for _, mesh in made]
