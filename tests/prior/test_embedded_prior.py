"""The prior that ships: small, complete, loadable by the stock pipeline, and good enough to colour a cube."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pygltflib
import torch
from meshes import CUBE
from PIL import Image
from real.validator import validate_glb

from pipeline.core.job import Job
from pipeline.core.location import InputFile
from pipeline.prior.identity import EMBEDDED_FOLDER
from pipeline.prior.load import load_prior
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions


def test_the_package_carries_it_whole_and_small() -> None:
    files = [path for path in EMBEDDED_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt"}


def test_the_stock_pipeline_loads_it_and_generates() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    (image,) = pipeline("a red object", num_inference_steps=2, generator=generator).images
    assert image.size == (64, 64) and np.asarray(image).std() > 1


def test_a_cube_takes_the_colour_it_is_asked_for(tmp_path: Path) -> None:
    prior = load_prior("embedded")
    mesh = tmp_path / "cube.obj"
    mesh.write_text(CUBE)
    settings = PaintOptions(steps=40, texture_size=128).model_dump(mode="json")
    jobs = [Job(c, "paint", f"a {c} object", "", 0, InputFile(mesh), settings) for c in ("red", "blue")]
    outcomes = paint(jobs, prior, tmp_path / "out", fingerprints=["r", "b"], lockstep=2)
    assert [o.state for o in outcomes] == ["done", "done"]
    red, blue = (mean_colour(tmp_path / "out" / c / "asset.glb") for c in ("red", "blue"))
    assert red[0] > red[2] + 30 and blue[2] > blue[0] + 30
    for colour in ("red", "blue"):
        validate_glb(tmp_path / "out" / colour / "asset.glb")


def mean_colour(path: Path) -> np.ndarray:
    """(3,) mean RGB of the base colour texture inside a GLB, 0 to 255."""
    document = pygltflib.GLTF2().load(path)
    view = document.bufferViews[document.images[0].bufferView]
    data = document.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3).mean(axis=0)
