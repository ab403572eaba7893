"""The generate recipe on a make-believe CUDA device: no tensor is on the wrong one, with a sketch and in RGB, too.

What runs here are the tests for a real one, so they prove themselves as well.
"""

from __future__ import annotations

from pathlib import Path

import fake_nvdiffrast
import fake_tinycudann
import numpy as np
import pytest
from fake_cuda import CudaTensor, fake_cuda
from fake_prior import make_prior
from gpu import test_generate_on_cuda as suite

from pipeline.fields.grid import tinycudann_backend
from pipeline.fields.mlp import tinycudann_backend as mlp_tinycudann


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture(autouse=True)
def device(folder: Path, monkeypatch: pytest.MonkeyPatch):
    fake_nvdiffrast.install(monkeypatch)
    fake_tinycudann.install(monkeypatch)
    monkeypatch.setenv("LATENTKILN_RASTERISE", "numba")  # its stand-in draws slowly, and paint shows it
    monkeypatch.setattr("pipeline.recipes.generate.BAKE_VIEWS", 6)
    with fake_cuda():
        yield
    tinycudann_backend.encoding_module.cache_clear()
    mlp_tinycudann.network_module.cache_clear()


def test_volume_rendering() -> None:
    suite.test_march_and_composite_agree_with_the_cpu()


@pytest.mark.parametrize(
    ("grid", "network", "made"),
    [("tinycudann", "torch", "Encoding"), ("torch", "tinycudann", "NetworkWithInputEncoding")],
)
def test_generate_with_tinycudann(
    grid: str, network: str, made: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.test_generate_from_a_sketch_and_refined(grid, network, folder, tmp_path, monkeypatch)
    assert {name for name, _ in fake_tinycudann.calls} == {made, "forward"}
    seen = [arguments for name, arguments in fake_tinycudann.calls if name == "forward"]
    assert all(isinstance(arguments["params"], CudaTensor) for arguments in seen)


def test_generate_with_the_plain_grid(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.test_the_surface_is_the_cpus(folder, tmp_path, monkeypatch)


def test_painting_the_surface_by_patches(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.test_the_surface_is_painted_by_patches(folder, tmp_path, monkeypatch)


def test_what_the_scenes_take_is_measured_without_a_trace(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Occupancy grids decay with every look: two variants come to the same mesh whether they were rehearsed or not."""
    one, two = suite.test_what_the_scenes_take_is_measured_once(folder, tmp_path, monkeypatch)
    assert np.array_equal(one.vertices, two.vertices) and np.array_equal(one.faces, two.faces)
