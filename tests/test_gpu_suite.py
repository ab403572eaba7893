"""The tests marked ``gpu``, run on a make-believe device with stand-ins for its libraries.

They cannot prove a GPU here, but they prove themselves: imports, devices, shapes and tolerances that the plain
twins meet. So what fails on the first real GPU is the GPU's answer and not the test.
"""

from __future__ import annotations

import fake_nvdiffrast
import fake_tinycudann
import pytest
import torch
from fake_cuda import fake_cuda
from fake_prior import make_prior
from fake_variants import make_diffusers
from gpu import test_backends_on_cuda as suite
from gpu import test_memory_on_cuda as memory_suite
from gpu import test_paint_on_cuda as paint_suite
from gpu import test_prior_on_cuda as prior_suite

from pipeline.fields.grid import tinycudann_backend
from pipeline.fields.mlp import tinycudann_backend as mlp_tinycudann
from pipeline.optimize import loop


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    return make_diffusers(tmp_path_factory.mktemp("priors") / "sdxl", "sdxl")


@pytest.fixture(autouse=True)
def make_believe(tiny, xl, monkeypatch):
    fake_nvdiffrast.install(monkeypatch)
    fake_tinycudann.install(monkeypatch)
    with fake_cuda():
        yield
    tinycudann_backend.encoding_module.cache_clear()
    mlp_tinycudann.network_module.cache_clear()


@pytest.mark.parametrize("cull", [False, True])
def test_rasterise(cull, monkeypatch):
    blob = suite.blob
    monkeypatch.setattr(suite, "blob", lambda: blob(300))
    suite.test_rasterise("warp", (64, 64), cull)
    suite.test_rasterise("nvdiffrast", (24, 24), cull)


def test_outlines(monkeypatch):
    blob = suite.blob
    monkeypatch.setattr(suite, "blob", lambda: blob(100))
    suite.test_outlines()


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("backend", ["torch", "nvdiffrast"])
def test_texture(backend, mode, monkeypatch):
    suite.test_texture(backend, mode, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["small", "tiled", "dense"])
def test_grid(name, dtype):
    suite.test_grid(name, dtype)


@pytest.mark.parametrize(("name", "hidden"), [("small", 64), ("tiled", 40), ("dense", 64)])
def test_network(name, hidden):
    suite.test_network(name, hidden)


def test_the_rest(monkeypatch):
    suite.test_auto_is_a_cuda_rasteriser(monkeypatch)
    suite.test_warp_gives_the_same_bits_twice()
    suite.test_texture_gradients_have_the_same_bits_twice(monkeypatch)
    suite.test_the_plain_grid_runs_on_cuda()


def test_lack_of_memory(tiny, monkeypatch):
    """The limit is counted in scenes, from one step of the loop to the next."""
    blocks, limit = [], []
    gradients, render = loop.sds_gradients, memory_suite.Large.render
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: limit.append(share))
    monkeypatch.setattr(loop, "sds_gradients", lambda *arguments: (blocks.clear(), gradients(*arguments))[1])
    monkeypatch.setattr(memory_suite, "NUMBERS", 16)

    def taking(scene, *arguments):
        blocks.append(scene)
        if limit and len(blocks) > memory_suite.LIMIT:
            blocks.clear()
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return render(scene, *arguments)

    monkeypatch.setattr(memory_suite.Large, "render", taking)
    memory_suite.test_eight_that_do_not_fit_go_on_as_four(False, tiny, monkeypatch)
    assert len(limit) == 2 and limit[-1] == 1.0


def test_the_prior(xl):
    prior_suite.test_float32_agrees_with_the_cpu(xl)
    prior_suite.test_half_precision_is_the_default_and_near(xl)
    prior_suite.test_offloaded_parts_leave_the_device(xl)


def test_paint(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(paint_suite, "STEPS", 2)
    blob = paint_suite.meshes.blob
    monkeypatch.setattr(paint_suite.meshes, "blob", lambda faces: blob(60))
    for number, test in enumerate(
        (
            paint_suite.test_paint_agrees_with_the_cpu,
            paint_suite.test_paint_with_the_cuda_rasteriser,
            paint_suite.test_the_same_row_twice_gives_the_same_bytes,
        )
    ):
        (tmp_path / str(number)).mkdir()
        test(tiny, tmp_path / str(number), monkeypatch)
    paint_suite.test_the_prior_in_half_precision_agrees_with_the_cpu(tiny)
