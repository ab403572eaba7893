"""What all recipes share beyond the first phase: refinement in RGB, variants from several seeds, their ranking."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from real.validator import validate_glbs

from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.export.gltf import BASE_COLOUR
from pipeline.export.record import read_record
from pipeline.mesh.load import load_mesh
from pipeline.mesh.normalise import normalise
from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.painted_mesh import CameraSettings
from pipeline.painting.refined_mesh import RefinedMesh, RefinedMeshSettings
from pipeline.prior.load import Prior, load_prior
from pipeline.recipes.asset_build import Asset
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions
from pipeline.recipes.ranking import score_asset, score_images
from pipeline.uv.unwrap import unwrap


@pytest.fixture(scope="module")
def embedded() -> Prior:
    return load_prior("embedded")


def job(mesh: Path, name: str = "one", seed: int = 0, **settings: object) -> Job:
    values = PaintOptions(**{"steps": 4, "preview": False, **settings}).model_dump(mode="json")  # type: ignore[arg-type]
    return Job(name, "paint", "a red brick cube", "", seed, InputFile(mesh), values, RowLocation("m.csv", 2))


def run(jobs: list[Job], prior: Prior, out: Path, stop: Callable[[], bool] = lambda: False, **more):  # type: ignore[no-untyped-def]
    return paint(jobs, prior, out, fingerprints=[f"print-{j.id}" for j in jobs], lockstep=2, stop=stop, **more)


def texture_of(glb: Path) -> bytes:
    """The image chunk of a GLB that holds one image, as bytes."""
    import pygltflib

    document = pygltflib.GLTF2().load(str(glb))
    view = document.bufferViews[document.images[0].bufferView]
    return bytes(document.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength])


def test_refinement_goes_on_from_the_decoded_texture(prior: Prior, cube: Path, tmp_path: Path) -> None:
    plain, refined = job(cube, "plain"), job(cube, "refined", refine=True, refine_steps=3)
    assert [o.state for o in run([plain, refined], prior, tmp_path)] == ["done", "done"]
    record = read_record(tmp_path / "refined")
    assert record is not None
    assert record["resolved_settings"]["refine_steps"] == 3
    assert {"distill_prior", "refine_prior", "refine_scene"} <= set(record["timings"])
    assert texture_of(tmp_path / "plain" / "asset.glb") != texture_of(tmp_path / "refined" / "asset.glb")
    validate_glbs([tmp_path / "refined" / "asset.glb"])


def test_the_first_refined_view_is_the_decoded_texture_itself(prior: Prior, cube: Path) -> None:
    uvmesh = unwrap(load_mesh(cube), texture_size=64, mode="box")
    vertices = normalise(uvmesh.mesh.vertices).apply(uvmesh.mesh.vertices)
    views = MeshRenderer(vertices, uvmesh.mesh.faces, uvmesh.uv, uvmesh.uv_faces, CameraSettings(), 3)
    texture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    scene = RefinedMesh(views, texture, prior, RefinedMeshSettings(2, 8, 0.01), seed=3)
    assert torch.equal(scene.texture.detach(), texture)
    rendering = scene.render(0, 10)
    assert rendering.latents.shape == (2, prior.latent_channels, 8, 8)
    # Nothing pulls at colours that have not moved yet.
    assert rendering.extra_loss is not None and rendering.extra_loss.item() == 0
    rendering.latents.sum().backward()
    assert scene.texture.grad is not None and scene.texture.grad.abs().sum() > 0


def test_an_interrupted_refinement_ends_in_the_same_bytes(prior: Prior, cube: Path, tmp_path: Path) -> None:
    settings = {"refine": True, "refine_steps": 6}
    run([job(cube, **settings)], prior, tmp_path / "whole")
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls == 9  # in the middle of the refinement: 4 latent steps and the checks around them came before

    (outcome,) = run([job(cube, **settings)], prior, tmp_path / "halved", stop)
    assert outcome.state == "interrupted"
    assert not (tmp_path / "halved" / "one" / "asset.glb").exists()
    (outcome,) = run([job(cube, **settings)], prior, tmp_path / "halved")
    assert outcome.state == "done"
    assert (tmp_path / "halved/one/asset.glb").read_bytes() == (tmp_path / "whole/one/asset.glb").read_bytes()
    assert not (tmp_path / "halved" / "one" / ".work").exists()


def test_variants_stay_beside_the_best_and_are_what_their_seeds_make(prior: Prior, cube: Path, tmp_path: Path) -> None:
    (outcome,) = run([job(cube, seeds=3, seed=5)], prior, tmp_path)
    assert outcome.state == "done"
    record = read_record(tmp_path / "one")
    assert record is not None
    ranked = record["variants"]
    assert sorted(v["seed"] for v in ranked) == [5, 6, 7]
    assert [v["score"] for v in ranked] == sorted((v["score"] for v in ranked), reverse=True)
    best = ranked[0]["seed"]
    files = {"asset.glb", *(f"seed-{v['seed']}.glb" for v in ranked[1:])}
    assert set(record["outputs"]) == files
    for seed in (5, 6, 7):
        run([job(cube, f"alone-{seed}", seed=seed)], prior, tmp_path)
        name = "asset.glb" if seed == best else f"seed-{seed}.glb"
        assert texture_of(tmp_path / "one" / name) == texture_of(tmp_path / f"alone-{seed}" / "asset.glb")
    # Built again with one seed, the others' files go.
    run([job(cube, seeds=1, seed=5)], prior, tmp_path)
    assert not list((tmp_path / "one").glob("seed-*"))


def test_variants_that_were_done_are_not_done_again(prior: Prior, cube: Path, tmp_path: Path) -> None:
    """Three variants at a lockstep of two: the third is interrupted when the first two are through."""
    run([job(cube, seeds=3, steps=5)], prior, tmp_path / "whole")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked >= 10

    (outcome,) = run([job(cube, seeds=3, steps=5)], prior, tmp_path / "halved", stop)
    assert outcome.state == "interrupted"
    left = {path.parent.name for path in (tmp_path / "halved/one/.work").rglob("latent.safetensors")}
    assert {"0", "1"} <= left
    steps: list[int] = []
    (outcome,) = run(
        [job(cube, seeds=3, steps=5)],
        prior,
        tmp_path / "halved",
        report_for=lambda index: lambda stage, done, total: steps.append(done) if stage.startswith("distill") else None,
    )
    assert outcome.state == "done"
    assert 0 < len(steps) <= 5
    for name in ("asset.glb", *(f"seed-{seed}.glb" for seed in range(3))):
        if (tmp_path / "whole" / "one" / name).exists():
            assert (tmp_path / "halved/one" / name).read_bytes() == (tmp_path / "whole/one" / name).read_bytes()


def test_a_variant_that_fails_leaves_the_others(
    prior: Prior, cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.recipes import paint as module

    real = module.bake_base_colour

    def bake(latent: torch.Tensor, *rest: object):  # type: ignore[no-untyped-def]
        if not hasattr(bake, "failed"):
            bake.failed = True  # type: ignore[attr-defined]
            raise ValueError("a bad texel")
        return real(latent, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "bake_base_colour", bake)
    (outcome,) = run([job(cube, seeds=2)], prior, tmp_path)
    assert outcome.state == "done"
    assert any("seed 0" in warning and "a bad texel" in warning for warning in outcome.warnings)
    record = json.loads((tmp_path / "one" / "record.json").read_text())
    assert [v["error"] is None for v in record["variants"]] == [True, False]


def coloured(prior: Prior, cube: Path, rgb: tuple[int, int, int]) -> Asset:
    uvmesh = unwrap(load_mesh(cube), texture_size=64, mode="box")
    pixels = np.broadcast_to(np.array(rgb, np.uint8), (64, 64, 3)).copy()
    return Asset(uvmesh, {BASE_COLOUR: pixels}, {}, normalise(uvmesh.mesh.vertices, radius=0.6))


def test_the_ranking_prefers_the_right_asset(embedded: Prior, cube: Path) -> None:
    red, blue = coloured(embedded, cube, (190, 40, 30)), coloured(embedded, cube, (40, 60, 190))
    for prompt, right, wrong in (("a red cube", red, blue), ("a blue cube", blue, red)):
        good, bad = (score_asset(asset, embedded, prompt, view_words=False) for asset in (right, wrong))
        assert good > bad
    assert score_asset(red, embedded, "a red cube", view_words=True) == score_asset(
        red, embedded, "a red cube", view_words=True
    )


def test_an_empty_prompt_scores_nothing(prior: Prior) -> None:
    images = np.full((2, 32, 32, 3), 90, np.uint8)
    assert score_images(images, ["", ""], prior) == pytest.approx(0, abs=1e-6)
