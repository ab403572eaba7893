"""The prior on a CUDA device: half precision, CUDA graphs, offloading. Run with `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_variants import make_diffusers
from test_options import gradient

from pipeline.prior import precision
from pipeline.prior.load import load_prior
from pipeline.prior.options import PriorOptions, low_memory

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["sd1", "sd2-768-v", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_diffusers(tmp_path_factory.mktemp("priors") / request.param, request.param)


def test_float32_agrees_with_the_cpu(folder: Path) -> None:
    expected = gradient(load_prior(folder, "cpu"))
    found = gradient(load_prior(folder, "cuda", PriorOptions(precision="float32", tf32=False)))
    assert torch.allclose(found.cpu(), expected, atol=1e-4 * float(expected.abs().max()))


def test_half_precision_is_the_default_and_near(folder: Path) -> None:
    prior = load_prior(folder)
    assert prior.device.type == "cuda" and prior.dtype == torch.float16
    expected, found = gradient(load_prior(folder, "cpu")), gradient(prior)
    assert found.dtype == torch.float32
    assert float((found.cpu() - expected).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.parametrize("compiles", [True, False])
def test_cuda_graphs_give_each_call_its_own_result(
    compiles: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiles and not precision.can_compile():
        pytest.skip("Triton or a C compiler is not here")
    monkeypatch.setattr(precision, "can_compile", lambda: compiles)
    prior = load_prior(folder, "cuda", PriorOptions(compile=True))
    text = prior.embed(["a red cube"])
    x = [torch.randn(1, 4, 8, 8, device="cuda", generator=torch.Generator("cuda").manual_seed(i)) for i in range(3)]
    t = torch.tensor([500], device="cuda")
    for _ in range(2):  # to warm up and record
        first = prior.predict_noise(x[0], t, text)
    kept = first.clone()
    others = [prior.predict_noise(noisy, t, text) for noisy in x[1:]]
    assert torch.equal(first, kept) and not torch.equal(first, others[0])
    plain = load_prior(folder, "cuda").predict_noise(x[0], t, text)
    assert float((first - plain).abs().max()) < 0.05 * float(plain.abs().max())


def test_offloaded_parts_leave_the_device(folder: Path) -> None:
    prior = load_prior(folder, "cuda", low_memory())
    prior.embed(["a red cube"])
    image = prior.decode(torch.zeros(1, 4, 8, 8, device="cuda"))
    assert image.device.type == "cuda"
    for model in (prior._vae, *prior.text.models):
        assert {p.device.type for p in model.parameters()} == {"cpu"}
    rgb = torch.rand(1, 3, 64, 64, device="cuda", requires_grad=True)
    prior.encode(rgb).sum().backward()
    assert rgb.grad is not None and rgb.grad.isfinite().all()
