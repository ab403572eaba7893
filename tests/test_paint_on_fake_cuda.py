"""The paint recipe on a make-believe CUDA device: no tensor is on the wrong one, from the first view to the texture.

Half precision networks, the nvdiffrast layer for the views and stand-ins for what is not here. What it cannot show
is in tests/gpu.
"""

from __future__ import annotations

from typing import Any

import fake_nvdiffrast
import meshes
import pytest
import torch
from fake_cuda import CUDA, CudaTensor, fake_cuda
from fake_prior import make_prior

from pipeline.core.job import Job, Source
from pipeline.export.record import read_record
from pipeline.prior.load import Prior, load_prior
from pipeline.prior.options import PriorOptions
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintSettings


def moved(value: Any, done: set[int]) -> Any:
    """``value``, an object of ours or what it holds, with its networks and tensors on the device."""
    if isinstance(value, torch.nn.Module | torch.Tensor):
        return value.to("cuda")
    if isinstance(value, list):
        value[:] = [moved(x, done) for x in value]
    elif isinstance(value, dict):
        value.update({key: moved(x, done) for key, x in value.items()})
    elif type(value).__module__.startswith("pipeline.") and hasattr(value, "__dict__") and id(value) not in done:
        done.add(id(value))
        for name, x in vars(value).items():
            object.__setattr__(value, name, moved(x, done))
    return value


@pytest.fixture
def prior(tmp_path, monkeypatch):
    """A prior on the device. Loaded on the CPU and moved after: transformers fills its buffers behind torch's back."""
    loaded = load_prior(make_prior(tmp_path / "prior"), "cpu", PriorOptions(precision="float16"))
    fake_nvdiffrast.install(monkeypatch)
    with fake_cuda():
        moved(loaded, set())
        loaded.device = CUDA
        yield loaded


def test_paint(prior: Prior, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTKILN_RASTERISE", "nvdiffrast")
    mesh = tmp_path / "blob.obj"
    meshes.write_obj(mesh, meshes.blob(60))
    values = PaintSettings(steps=2, views=1, preview=False).model_dump(mode="json")
    jobs = [Job(f"j{n}", "paint", "a red brick cube", "", n, mesh, values, Source("m.csv", 2)) for n in range(2)]
    outcomes = paint(jobs, prior, tmp_path / "out", fingerprints=["a", "b"], lockstep=2)
    assert [o.status for o in outcomes] == ["done", "done"], outcomes
    record = read_record(tmp_path / "out" / "j0")
    assert record is not None
    assert record["backends"]["rasterise"] == "nvdiffrast"
    assert record["backends"]["device"].startswith("cuda")
    drawn = [arguments for name, arguments in fake_nvdiffrast.calls if name == "rasterize"]
    assert len(drawn) >= 4 and all(isinstance(arguments["pos"], CudaTensor) for arguments in drawn)
