"""The cost page is what its program prints, and the program that times a step works where there is no GPU."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fake_cuda import fake_cuda
from fake_prior import make_prior

from benchmarks import cost, gpu_step
from pipeline.fields.grid.layout import GridSettings
from pipeline.prior.load import load_prior

ROOT = Path(__file__).parents[2]
SETTINGS = GridSettings(levels=4, finest=64, log2_table=12)


def test_the_cost_page_is_what_its_program_prints():
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    for line in cost.tables().splitlines():
        assert line in page


def test_the_unet_is_stable_diffusions():
    one, four = cost.unet_cost(cost.SD1, 1), cost.unet_cost(cost.SD1, 4)
    assert one.parameters == 859_520_964
    assert 0.80e12 < one.flops < 0.81e12
    assert four.flops == pytest.approx(4 * one.flops, rel=1e-3)
    weights = one.parameters * cost.HALF
    assert weights < one.moved < four.moved < 4 * one.moved  # weights are read once a call


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    gpu = cost.Gpu("round", flops=10.0, bandwidth=5.0)
    assert cost.Cost(20, 5, 1).seconds(gpu) == 2
    assert cost.Cost(10, 20, 1).seconds(gpu) == 4
    assert cost.floor(cost.Cost(20, 5, 1), lockstep=4, steps=10, gpu=gpu) == 5


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_step, "CELLS", 12)
        patch.setattr(gpu_step, "RAYS", 8)
        yield


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    prior = load_prior(make_prior(tmp_path_factory.mktemp("priors") / "tiny"), "cpu")
    mesh = ROOT / "manifests" / "meshes" / "vase.obj"
    return gpu_step.report(prior, mesh, [1, 2], repeats=1, points=1000, settings=SETTINGS)


def test_each_part_is_timed(lines):
    for part in (
        "rasterise 1 x 32^2",
        "numba",
        "warp",
        "texture",
        "UNet, K 1",
        "UNet, K 2",
        "decode",
        "encode",
        "grid",
        "march",
        "composite",
        "update of the occupancy grid",
    ):
        assert any(part in line for line in lines[1:]), part
    assert all(float(line[56:].split()[0]) > 0 for line in lines[1:])
    unet = [float(line.split()[-2]) for line in lines if "UNet" in line]
    assert all(not math.isnan(value) for value in unet)


def test_each_part_runs_on_a_device(tmp_path):
    folder = make_prior(tmp_path / "tiny")
    with fake_cuda():
        parts = gpu_step.every_part(
            load_prior(folder, "cuda"), ROOT / "manifests" / "meshes" / "vase.obj", [1], 1000, SETTINGS
        )
        names = [(name, call())[0] for name, call, _ in parts]
    assert len(names) >= 8 and not any("grid" in name and "numba" in name for name in names)


def test_the_peak_of_a_listed_gpu_is_found(monkeypatch):
    assert math.isnan(gpu_step.published_rate(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert gpu_step.published_rate(torch.device("cuda")) == 989e12
