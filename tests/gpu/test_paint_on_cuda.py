"""The recipe and the prior on CUDA beside the CPU: the same asset within half precision."""

from __future__ import annotations

import io
from pathlib import Path

import meshes
import numpy as np
import pytest
import torch
from fake_prior import make_prior

from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.core.rng import torch_generator
from pipeline.export.record import read_record
from pipeline.prior.load import load_prior
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions

pytestmark = pytest.mark.gpu
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


def build(prior, out, lockstep=2, names=("one",), **settings):
    mesh = out.parent / "blob.obj"
    if not mesh.exists():
        meshes.write_obj(mesh, meshes.blob(800))
    values = PaintOptions(**{"steps": STEPS, "preview": False, **settings}).model_dump(mode="json")
    jobs = [
        Job(name, "paint", "a red brick cube", "", seed, InputFile(mesh), values, RowLocation("m.csv", 2))
        for seed, name in enumerate(names)
    ]
    outcomes = paint(jobs, prior, out, fingerprints=[f"print-{n}" for n in names], lockstep=lockstep)
    assert all(o.state == "done" for o in outcomes), outcomes
    return [out / name for name in names]


def base_colour(asset: Path) -> np.ndarray:
    import pygltflib
    from PIL import Image

    gltf = pygltflib.GLTF2().load(str(asset / "asset.glb"))
    view = gltf.bufferViews[gltf.images[0].bufferView]
    blob = gltf.binary_blob()
    return np.asarray(Image.open(io.BytesIO(blob[view.byteOffset : view.byteOffset + view.byteLength])), np.float32)


def test_the_prior_in_half_precision_agrees_with_the_cpu(folder):
    """fp16 UNet, text encoder and VAE; the noise schedule and what is returned stay float32."""
    here, there = load_prior(folder, "cpu"), load_prior(folder, "cuda")
    assert there.dtype == torch.float16 and there.alphas_cumprod.dtype == torch.float32
    generator = torch_generator(51, "prior")
    noisy = torch.randn(4, here.latent_channels, 8, 8, generator=generator)
    t = torch.tensor([1, 300, 600, 999])
    answers = []
    for prior in (here, there):
        text = prior.embed(["a red brick cube"] * 4)
        noise = prior.predict_noise(noisy.to(prior.device), t.to(prior.device), text)
        image = prior.decode(noisy.to(prior.device))
        assert noise.dtype == image.dtype == torch.float32
        answers.append((noise.cpu(), image.cpu(), prior.encode(image).cpu()))
    for found, expected in zip(answers[1], answers[0], strict=True):
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_paint_agrees_with_the_cpu(folder, tmp_path, monkeypatch):
    """The same cameras, noise and rasteriser: what differs is half precision, step after step."""
    monkeypatch.setenv("LATENTKILN_RASTERISE", "numba")
    (here,) = build(load_prior(folder, "cpu"), tmp_path / "cpu")
    (there,) = build(load_prior(folder, "cuda"), tmp_path / "cuda")
    difference = np.abs(base_colour(here) - base_colour(there))
    assert np.median(difference) <= 2 and np.mean(difference) < 6


def test_paint_with_the_cuda_rasteriser(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("LATENTKILN_RASTERISE", raising=False)
    (asset,) = build(load_prior(folder, "cuda"), tmp_path / "auto")
    record = read_record(asset)
    assert record["backends"]["rasterise"] in ("warp", "nvdiffrast")
    assert record["backends"]["device"].startswith("cuda")
    monkeypatch.setenv("LATENTKILN_RASTERISE", "numba")
    (other,) = build(load_prior(folder, "cuda"), tmp_path / "numba")
    assert np.mean(np.abs(base_colour(asset) - base_colour(other))) < 6


def test_the_same_row_twice_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    """Whatever its neighbours in the lockstep batch: Warp, our texture gradients and the UNet add in a fixed order."""
    monkeypatch.setenv("LATENTKILN_RASTERISE", "warp")
    prior = load_prior(folder, "cuda")
    (alone,) = build(prior, tmp_path / "a", names=("one",))
    first, _ = build(prior, tmp_path / "b", names=("one", "two"))
    assert (base_colour(alone) == base_colour(first)).all()
