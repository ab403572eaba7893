"""The material recipe end to end on a tiny prior: a tileable texture set and its ball."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pygltflib
import pytest
from PIL import Image
from real.validator import validate_glb

from pipeline.core.job import Job, RowLocation
from pipeline.core.outcome import TaskResult
from pipeline.export.inspect import inspect_glb
from pipeline.export.preview import render_views
from pipeline.export.record import read_record
from pipeline.mesh.ball import preview_ball
from pipeline.mesh.mesh import face_normals
from pipeline.mesh.normalise import normalise
from pipeline.mesh.normals import is_closed
from pipeline.prior.load import Prior
from pipeline.prior.tile import Tile, sample_tile, wrap_step
from pipeline.recipes.material import base_size, material, texture_maps
from pipeline.recipes.material_settings import MaterialOptions

pytestmark = pytest.mark.usefixtures("every_asset_is_valid")


def job(name: str = "one", seed: int = 0, **settings: object) -> Job:
    values = MaterialOptions(**{"steps": 3, "preview": False, **settings}).model_dump(mode="json")  # type: ignore[arg-type]
    return Job(name, "material", "red brick", "", seed, None, values, RowLocation("m.csv", 2))


def run(
    jobs: list[Job], prior: Prior, out: Path, lockstep: int = 2, stop: Callable[[], bool] = lambda: False
) -> list[TaskResult]:
    prints = [f"print-{j.id}" for j in jobs]
    return material(jobs, prior, out, fingerprints=prints, lockstep=lockstep, stop=stop)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record_of(folder: Path) -> dict[str, object]:
    record = read_record(folder)
    assert record is not None
    return record


def texture_in(path: Path) -> np.ndarray:
    document = pygltflib.GLTF2().load(path)
    view = document.bufferViews[document.images[0].bufferView]
    data = document.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_set_has_its_map_as_a_file_and_on_a_ball_that_repeats_it(prior: Prior, tmp_path: Path) -> None:
    (result,) = run([job(preview=True, texture_size=64, repeats=3)], prior, tmp_path)
    assert result.state == "done", result.message
    folder = tmp_path / "one"
    names = ["asset.glb", "asset_base_colour.png", "preview.png", "record.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    image = np.asarray(Image.open(folder / "asset_base_colour.png"))
    assert image.shape == (64, 64, 3) and (texture_in(folder / "asset.glb") == image).all()
    assert Image.open(folder / "preview.png").size == (1024, 512)
    document = json.loads(pygltflib.GLTF2().load(folder / "asset.glb").to_json())
    texture = document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    assert texture["extensions"] == {"KHR_texture_transform": {"scale": [6.0, 3.0]}}
    assert document["extensionsUsed"] == ["KHR_texture_transform"]
    assert {document["samplers"][0][wrap] for wrap in ("wrapS", "wrapT")} == {pygltflib.REPEAT}
    record = record_of(folder)
    assert set(record["outputs"]) == set(names) - {"record.json"}  # type: ignore[call-overload]
    assert record["bake"]["maps"] == {"base_colour": "baseColorTexture"}  # type: ignore[index]
    extras = inspect_glb(folder / "asset.glb")["provenance"]
    assert extras["recipe"] == "material" and extras["mesh_sha256"] is None
    validate_glb(folder / "asset.glb")


def test_same_job_same_bytes_whatever_the_neighbours_and_interruptions(prior: Prior, tmp_path: Path) -> None:
    run([job("one"), job("two", 5)], prior, tmp_path / "a")
    assert [result.state for result in run([job("two", 5)], prior, tmp_path / "b", stop=lambda: True)] == [
        "interrupted"
    ]
    for before in (1, 4, 8):
        calls = itertools.chain([False] * before, itertools.repeat(True))
        (late,) = run([job("two", 5)], prior, tmp_path / "b", stop=lambda calls=calls: next(calls))  # type: ignore[misc]
        assert (late.state, late.stage) == ("interrupted", "sample")
        assert not (tmp_path / "b" / "two" / "record.json").exists()
    # The prior is as it was: an interruption inside a sample leaves no padding behind.
    modules = [m for m in (*prior.unet.modules(), *prior.vae.modules()) if hasattr(m, "padding_mode")]
    assert {m.padding_mode for m in modules} == {"zeros"}
    run([job("two", 5)], prior, tmp_path / "b", lockstep=1)
    for name in ("asset.glb", "asset_base_colour.png"):
        assert digest(tmp_path / "a" / "two" / name) == digest(tmp_path / "b" / "two" / name)
    assert digest(tmp_path / "a/one/asset_base_colour.png") != digest(tmp_path / "a/two/asset_base_colour.png")


def test_variants_are_ranked_and_written(prior: Prior, tmp_path: Path) -> None:
    run([job(seeds=2, seed=7, preview=True, texture_size=64)], prior, tmp_path)
    record = record_of(tmp_path / "one")
    variants = record["variants"]
    assert isinstance(variants, list) and len(variants) == 2
    assert variants[0]["score"] >= variants[1]["score"]
    other = f"seed-{variants[1]['seed']}"
    assert {f"{other}.glb", f"{other}_base_colour.png", f"{other}.png"} <= set(record["outputs"])  # type: ignore[call-overload]


def test_the_record_has_figures_of_the_texture(prior: Prior, tmp_path: Path) -> None:
    run([job()], prior, tmp_path)
    record = record_of(tmp_path / "one")
    quality, settings = record["quality"], record["resolved_settings"]
    assert isinstance(quality, dict) and isinstance(settings, dict)
    # Four times what the tiny prior draws at once: 8 latents, of 4 pixels each.
    assert settings["texture_size"] == 128 and settings["sample_size"] == 32 and settings["repeats"] == 1
    image = np.asarray(Image.open(tmp_path / "one" / "asset_base_colour.png"), float)
    across = max(np.abs(image - np.roll(image, 1, axis)).mean(axis=(1 - axis, 2))[0] for axis in (0, 1))
    assert quality["wrap_step"] == pytest.approx(across, abs=0.01)
    assert quality["coverage"] == 1 and quality["prior_pixels_per_radius"] == quality["texels_per_radius"]
    assert quality["gradient"] > 0 and quality["contrast"] > 0 and 0 <= quality["faded"] < 1


def test_a_texture_far_larger_than_its_sample_is_warned_of(prior: Prior, tmp_path: Path) -> None:
    large, drawn = job("large", texture_size=256, sample_size=16), job("drawn", texture_size=256, sample_size=64)
    results = run([large, drawn], prior, tmp_path)
    assert any("scaled up from a sample of 64" in warning for warning in results[0].warnings)
    assert not any("scaled up" in warning for warning in results[1].warnings)
    assert np.asarray(Image.open(tmp_path / "large" / "asset_base_colour.png")).shape == (256, 256, 3)


def test_doublings_keep_borders_together(prior: Prior) -> None:
    tile = sample_tile(prior, "red brick", steps=4, seed=2, size=8, doublings=2)
    assert tile.image.shape == (128, 128, 3)
    assert tile.wrap == pytest.approx(wrap_step(tile.image))
    # Three sizes, each drawn at least once.
    assert tile.evaluations >= 4 + 2
    again = sample_tile(prior, "red brick", steps=4, seed=2, size=8, doublings=2)
    assert (again.image == tile.image).all()
    # No repetition of the smaller tile remains.
    assert np.abs(tile.image - np.roll(tile.image, 64, axis=1)).mean() > 0.01


@pytest.mark.parametrize(
    ("size", "native", "multiple", "expected"),
    [(128, 32, 4, (32, 2)), (64, 32, 4, (32, 1)), (16, 32, 4, (16, 0)), (80, 32, 4, (40, 1)), (96, 32, 4, (48, 1)),
     (72, 32, 8, (72, 0)), (128, 64, 8, (64, 1))],
)  # fmt: skip
def test_a_sample_grows_from_the_least_tile_that_the_prior_draws_well(
    size: int, native: int, multiple: int, expected: tuple[int, int]
) -> None:
    assert base_size(size, native, multiple) == expected


@pytest.mark.parametrize("size", [96, 320, 1024])
def test_a_resized_map_still_tiles(size: int) -> None:
    """Resizing and shifting along the surface may be swapped: the filter sees what lies across the borders."""
    image = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    (one,) = texture_maps(Tile(image, 0.0, 0), size)
    (other,) = texture_maps(Tile(np.roll(image, (16, 8), (0, 1)), 0.0, 0), size)
    moved = np.roll(one.image.astype(int), (size // 2, size // 4), (0, 1))
    assert np.abs(moved - other.image).max() <= 1


def test_the_ball_is_closed_upright_and_unmirrored() -> None:
    ball = preview_ball()
    mesh = ball.mesh
    assert is_closed(mesh)
    centre = mesh.vertices[mesh.faces].mean(axis=1)
    assert (np.einsum("fi,fi->f", face_normals(mesh.vertices, mesh.faces), centre) > 0).all()
    assert ball.uv.min() == 0 and ball.uv.max() == 1
    # In front, at +Z, the middle of the texture; u grows to the right, v downwards.
    uv, position = ball.uv[ball.uv_faces].mean(axis=1), centre
    front = (position[:, 2] > 0.45) & (np.abs(position[:, 1]) < 0.1)
    assert np.abs(uv[front] - 0.5).max() < 0.1
    assert np.corrcoef(uv[front, 0], position[front, 0])[0, 1] > 0.99
    assert np.corrcoef(uv[front, 1], position[front, 1])[0, 1] < -0.99


def test_pictures_of_a_repeated_texture_show_it_as_if_laid_out() -> None:
    ball = preview_ball()
    frame = normalise(ball.mesh.vertices, radius=0.6)
    image = np.random.default_rng(1).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    repeated = render_views(ball, image, frame, views=2, size=64, tiling=(4, 2))
    laid_out = render_views(ball, np.tile(image, (2, 4, 1)), frame, views=2, size=64, tiling=(1, 1))
    assert np.abs(repeated.astype(int) - laid_out).mean() < 2
