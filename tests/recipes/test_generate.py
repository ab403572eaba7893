"""The generate recipe end to end on a tiny prior: files, bytes, resume, sketches, refinement, failures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bake.atlas import texel_map
from pipeline.core.job import Job, RowLocation, no_report
from pipeline.core.location import InputFile
from pipeline.export.inspect import inspect_glb
from pipeline.export.record import read_record
from pipeline.fields.grid.layout import GridSettings
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.fields.radiance_field import FieldSettings, RadianceField
from pipeline.fields.radiance_field_scene import LatentToRgb, RadianceFieldScene
from pipeline.mesh.load import load_mesh
from pipeline.prior.defaults import GenerateDefaults
from pipeline.prior.load import Prior
from pipeline.raster.camera import OrbitSettings, sample_orbit_cameras
from pipeline.recipes.asset_build import RowContext
from pipeline.recipes.build import start
from pipeline.recipes.generate import Generate, generate, render_picture, scene_settings
from pipeline.recipes.generate_settings import GenerateOptions, GenerateSettings, resolve_generate
from pipeline.recipes.mesh_extraction import density_grid, extract_mesh, latent_texture
from pipeline.uv.unwrap import unwrap

SMALL = {
    "steps": 4, "views": 2, "view_size": 8, "supersample": 1, "learning_rate": 0.001, "samples_step": 0.08,
    "grid_levels": 3, "grid_finest": 32, "grid_log2_table": 10, "occupancy_resolution": 16, "mesh_resolution": 24,
    "face_budget": 300, "texture_size": 64, "unwrap_seconds": 20, "preview": False, "background": "random",
    "lambda_sparsity": 0.1, "lambda_shape": 20.0, "view_words": True,
    "radius_min": 1.9, "radius_max": 2.2, "fov_min": 40, "fov_max": 48,
    "refine_steps": 3, "refine_guidance_scale": 2.0, "refine_learning_rate": 0.0001, "refine_t_max": 0.5,
}  # fmt: skip
BALL = [{"shape": "sphere", "position": [0.0, 0.0, 0.0], "rotation": [0.0, 0.0, 0.0], "size": [0.8, 0.8, 0.8]}]


pytestmark = pytest.mark.usefixtures("every_asset_is_valid")


def resolved() -> GenerateSettings:
    return resolve_generate(GenerateOptions(**SMALL), vars(GenerateDefaults()))  # type: ignore[arg-type]


def job(name: str = "one", seed: int = 0, mesh: Path | None = None, **settings: object) -> Job:
    values = GenerateOptions(**{**SMALL, **settings}).model_dump(mode="json")  # type: ignore[arg-type]
    sketch = InputFile(mesh) if mesh else None
    return Job(name, "generate", "a red stone", "", seed, sketch, values, RowLocation("m.csv", 2))


def run(jobs: list[Job], prior: Prior, out: Path, stop: Callable[[], bool] = lambda: False, **more):  # type: ignore[no-untyped-def]
    prints = [f"print-{j.id}" for j in jobs]
    return generate(jobs, prior, out, fingerprints=prints, lockstep=2, stop=stop, **more)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scene(prior: Prior, seed: int = 0, refine: bool = False) -> RadianceFieldScene:
    settings = resolved()
    grid = GridSettings(levels=3, base=16, finest=32, log2_table=10)
    field = RadianceField(FieldSettings(grid=grid, channels=prior.latent_channels), seed)
    return RadianceFieldScene(
        field, OccupancyGrid(16), scene_settings(settings), prior.latent_rgb, seed, refine=prior if refine else None
    )


def test_an_asset_from_nothing_but_a_prompt(prior: Prior, tmp_path: Path) -> None:
    assert [o.state for o in run([job(preview=True), job("two", seed=1)], prior, tmp_path)] == ["done", "done"]
    record = read_record(tmp_path / "one")
    assert record is not None
    assert set(record["outputs"]) == {"asset.glb", "preview.png"}
    assert record["recipe"] == "generate" and record["inputs"]["mesh"] == {"name": None, "sha256": None}
    assert {"grid", "volume", "rasterise"} <= set(record["backends"])
    assert record["mesh_stats"]["faces"] <= 300
    provenance = inspect_glb(tmp_path / "one" / "asset.glb")["provenance"]
    assert provenance["prompt"] == "a red stone" and provenance["recipe"] == "generate"
    assert digest(tmp_path / "one/asset.glb") != digest(tmp_path / "two/asset.glb")
    mesh = load_mesh(tmp_path / "one" / "asset.glb")
    assert np.abs(mesh.vertices).max() <= 1 + 1e-6


def test_the_same_job_gives_the_same_bytes_whatever_its_neighbours(prior: Prior, tmp_path: Path) -> None:
    run([job(), job("neighbour", seed=9)], prior, tmp_path / "a")
    run([job()], prior, tmp_path / "b")
    assert digest(tmp_path / "a/one/asset.glb") == digest(tmp_path / "b/one/asset.glb")


@pytest.mark.parametrize(("after", "moments"), [("nothing", (6, 19)), ("refined", (25,)), ("patches", (25,))])
def test_interrupted_and_resumed_it_ends_in_the_same_bytes(
    prior: Prior, tmp_path: Path, after: str, moments: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.painting.multiview_sampling.CANDIDATES", 4)
    # More steps than one look at the occupancy: what it remembers must survive as well.
    settings: dict[str, object] = {"steps": 20, "refine": after == "refined", "refine_steps": 5}
    settings |= {"texturing": "patches" if after == "patches" else "views", "texture_steps": 5}
    run([job(**settings)], prior, tmp_path / "whole")
    for moment in moments:
        calls = 0

        def stop(last: int = moment) -> bool:
            nonlocal calls
            calls += 1
            return calls == last

        assert [o.state for o in run([job(**settings)], prior, tmp_path / f"{moment}", stop)] == ["interrupted"]
        (outcome,) = run([job(**settings)], prior, tmp_path / f"{moment}")
        assert outcome.state == "done"
        assert digest(tmp_path / f"{moment}/one/asset.glb") == digest(tmp_path / "whole/one/asset.glb")


def test_the_surface_is_painted_by_patches(prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.painting.multiview_sampling.CANDIDATES", 8)
    stages = []
    patches = {"texturing": "patches", "texture_steps": 6}
    jobs = [job("painted", seeds=2, **patches), job("projected")]
    report_for = lambda index: lambda stage, done, total: stages.append((index, stage))  # noqa: E731
    assert [o.state for o in run(jobs, prior, tmp_path, report_for=report_for)] == ["done", "done"]
    painted, projected = (read_record(tmp_path / name) for name in ("painted", "projected"))
    assert painted is not None and projected is not None
    assert {"texture", "texture_prior", "texture_scene", "prepare_texture"} <= set(painted["timings"])
    assert "texture" not in projected["timings"]
    assert (0, "texture 2/2") in stages and (0, "distill 2/2") in stages
    assert not any(stage.startswith("texture") for index, stage in stages if index == 1)
    one, other = (load_mesh(tmp_path / name / "asset.glb") for name in ("painted", "projected"))
    if painted["variants"][0]["seed"] == 0:
        assert np.array_equal(one.vertices, other.vertices)
    assert painted["bake"]["views"] == 2 and projected["bake"]["views"] == 40


def test_patches_begin_with_the_colours_of_the_field(prior: Prior, tmp_path: Path) -> None:
    """The field says how far right a place is: so does each texel of its surface."""
    made = scene(prior)
    for step in range(3):
        made.occupancy.update(made.field.density, 0, step)
    settings = resolved()
    mesh = extract_mesh(made, settings)
    uvmesh = unwrap(mesh, texture_size=64)
    made.field.forward = lambda points: (torch.ones(len(points)), points[:, :1].expand(-1, 4))  # type: ignore[method-assign]
    latents = latent_texture(made, uvmesh, 32)
    assert latents.shape == (4, 32, 32) and latents.dtype == torch.float32
    texels = texel_map(uvmesh, 32)
    centre = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    right = texels.position[texels.mask][:, 0] + centre[0]
    found = latents[0].numpy()[texels.mask]
    # Places lie a little below the surface.
    assert np.abs(found - right).max() < 0.05 and np.corrcoef(found, right)[0, 1] > 0.99


def test_a_sketched_surface_is_where_the_sketch_takes_it_to_be(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense ball with a soft rim: rays lose half their light farther in than where opacity over 0.2 is one half."""
    axis = np.linspace(-1, 1, 48)
    radius = np.sqrt(sum(x**2 for x in np.meshgrid(axis, axis, axis, indexing="ij")))
    density = (20 * np.clip((0.7 - radius) / 0.3, 0, 1)).astype(np.float32)
    monkeypatch.setattr("pipeline.recipes.mesh_extraction.density_grid", lambda scene, resolution: density)
    settings = resolved()
    free, sketched = (extract_mesh(scene(prior), settings, sketched=given) for given in (False, True))
    outer = np.linalg.norm(sketched.vertices, axis=1).mean()
    assert outer == pytest.approx(0.7 - 0.3 * (np.log(2) / 0.2) / 20, abs=0.02)
    assert np.linalg.norm(free.vertices, axis=1).mean() < outer - 0.02
    density /= 10  # nowhere as dense as the sketch wants it on its surface, but it shows
    thin = extract_mesh(scene(prior), settings, sketched=True)
    assert 0.3 < np.linalg.norm(thin.vertices, axis=1).mean() < outer


def test_patches_and_refinement_exclude_each_other(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="patches would paint over the result of refine; allowed with refine: views"):
        GenerateOptions(refine=True, texturing="patches")
    row = Job("x", "generate", "a stone", "", 0, None, {"refine": True}, RowLocation("m", 1))
    defaults = replace(prior.generate_defaults, texturing="patches")
    monkeypatch.setattr(prior, "generate_defaults", defaults)
    assert Generate().resolve(row, prior).texturing == "views"
    assert Generate().resolve(replace(row, settings={}), prior).texturing == "patches"


def test_a_sketch_gives_the_shape(prior: Prior, tmp_path: Path) -> None:
    """The tiny prior knows nothing, so with a weak guidance the sketch alone decides."""
    more = {"steps": 80, "guidance_scale": 0.0, "lambda_shape": 3000.0, "sigma_shape": 0.1, "mesh_resolution": 40}
    more["learning_rate"] = 0.01
    left, right = ([{**BALL[0], "position": [x, 0.0, 0.0], "size": [0.7, 0.9, 0.7]}] for x in (-0.4, 0.4))
    outcomes = run([job("left", shapes=left, **more), job("right", shapes=right, **more)], prior, tmp_path)
    assert [o.state for o in outcomes] == ["done", "done"]
    centres = [load_mesh(tmp_path / name / "asset.glb").vertices.mean(axis=0) for name in ("left", "right")]
    assert centres[0][0] < -0.15 and centres[1][0] > 0.15


def test_a_sketch_that_cannot_be_used_is_one_failed_row(prior: Prior, tmp_path: Path) -> None:
    bad = tmp_path / "bad.obj"
    bad.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    outcomes = run([job("flat", mesh=bad), job("good")], prior, tmp_path / "out")
    assert [o.state for o in outcomes] == ["failed", "done"]
    assert "sketch encloses nothing" in outcomes[0].message and "\n" not in outcomes[0].message


def test_an_empty_field_is_told_not_exported(prior: Prior, tmp_path: Path) -> None:
    (outcome,) = run([job(density_threshold=9e5)], prior, tmp_path)
    assert outcome.state == "failed" and outcome.stage == "surface"
    assert "density_threshold" in outcome.message
    assert not (tmp_path / "one" / "asset.glb").exists()


def test_settings_that_only_the_prior_completes_are_compared_too(prior: Prior, tmp_path: Path) -> None:
    (outcome,) = run([job(radius_min=1.7, radius_max=None)], prior, tmp_path)  # the paper's radius_max is 1.5
    assert outcome.state == "failed" and "radius_min is 1.7 and radius_max is 1.5" in outcome.message


def test_density_is_asked_for_near_occupied_cells_only(prior: Prior) -> None:
    made = scene(prior)
    everywhere = density_grid(made, 20)
    assert (everywhere > 0).all()
    axis = np.linspace(-1, 1, 20)
    point = torch.tensor([[axis[3], axis[11], axis[7]]], dtype=torch.float32)
    assert everywhere[3, 11, 7] == pytest.approx(made.field.density(point).item(), rel=1e-4)
    made.occupancy.binary[:] = 0
    made.occupancy.binary[8, 8, 8] = 1
    some = density_grid(made, 20)
    assert 0 < (some > 0).sum() < 200
    assert np.array_equal(some[some > 0], everywhere[some > 0])


def test_the_refined_view_begins_as_the_linear_map_of_the_latent_view(prior: Prior) -> None:
    latent, refined = scene(prior), scene(prior, refine=True)
    rng = np.random.default_rng(0)
    cameras = sample_orbit_cameras(rng, 2, OrbitSettings(radius=(1.9, 2.2)))
    image, weight, _ = latent.render_views(cameras, 8, 1)
    rgb, _, _ = refined.render_views(cameras, 8, 1)
    grey = torch.from_numpy(prior.latent_rgb.invert(np.full(3, 0.5))).float().view(1, -1, 1, 1)
    own = image - (1 - weight)[:, None] * grey
    layer = LatentToRgb(prior.latent_rgb)
    mapped = torch.einsum("vchw,cd->vdhw", own, layer.matrix) + weight[:, None] * layer.bias.view(1, 3, 1, 1)
    assert torch.allclose(rgb, (mapped + (1 - weight)[:, None] * 0.5).clamp(0, 1), atol=1e-5)


def test_refinement_trains_layer_and_field_through_the_encoder(prior: Prior) -> None:
    made = scene(prior, refine=True)
    rendering = made.render(0, 10)
    assert rendering.latents.shape == (2, prior.latent_channels, 8, 8)
    rendering.latents.square().sum().backward()
    assert made.layer is not None
    for parameter in (made.layer.matrix, made.layer.bias, made.field.table):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_pictures_have_no_depth_where_rays_pass(prior: Prior) -> None:
    made = scene(prior)
    cameras = sample_orbit_cameras(np.random.default_rng(1), 1, OrbitSettings(radius=(1.9, 2.2)))
    for step in range(3):
        made.occupancy.update(made.field.density, 0, step)
    shown, depth = render_picture(made, cameras, 16, prior)
    assert shown.shape == (1, 3, 16 * prior.vae_scale_factor, 16 * prior.vae_scale_factor)
    # The blob at the centre stops rays about the camera's distance away; the corners see past it.
    assert depth[0, 8, 8] == pytest.approx(np.linalg.norm(cameras.eye[0]), abs=0.5)
    assert np.isinf(depth[0, 0, 0])


def test_variants_of_a_field_in_every_format(prior: Prior, tmp_path: Path) -> None:
    (outcome,) = run([job(seeds=2, formats=["obj", "ply"], turntable=True)], prior, tmp_path)
    assert outcome.state == "done"
    record = read_record(tmp_path / "one")
    assert record is not None and len(record["variants"]) == 2
    other = f"seed-{record['variants'][1]['seed']}"
    names = {f"{stem}{end}" for stem in ("asset", other) for end in (".glb", ".obj", ".mtl", ".ply")}
    sheets = {"depth.png", "normal.png", f"{other}-depth.png", f"{other}-normal.png"}
    assert names | sheets <= set(record["outputs"])
    assert load_mesh(tmp_path / "one" / "asset.obj").faces.shape == load_mesh(tmp_path / "one/asset.glb").faces.shape


def first_scene(row: Job, prior: Prior, out: Path) -> RadianceFieldScene:
    """The scene that a row of ``generate`` begins with."""
    context = RowContext(row, "print", out / row.id, no_report)
    (variant,) = start(Generate(), context, prior, out, 1).variants
    assert variant.scenes.grown is not None
    return variant.scenes.grown


def test_the_recipe_resolves_what_the_row_leaves_out(prior: Prior, tmp_path: Path) -> None:
    row = Job("x", "generate", "a stone", "", 0, None, {}, RowLocation("m", 1))
    settings = Generate().resolve(row, prior)
    # The tiny prior has no word on generate: the paper's figures.
    assert (settings.steps, settings.grid_finest, settings.fov_max, settings.front) == (5000, 2048, 70.0, "+z")
    defaults = vars(prior.generate_defaults).keys() - {"sketch_guidance_scale"}
    assert all(getattr(settings, name) is not None for name in defaults)
    assert first_scene(row, prior, tmp_path).settings.view_size == 64


def test_a_sketch_has_guidance_of_its_own_and_all_of_the_scene(
    prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(prior.generate_defaults, scene_radius=0.8, guidance_scale=8.0, sketch_guidance_scale=5.0)
    monkeypatch.setattr(prior, "generate_defaults", own)

    def used(**given: object) -> tuple[float, float | None]:
        row = Job("x", "generate", "a stone", "", 0, None, {**SMALL, **given}, RowLocation("m", 1))
        settings = Generate().resolve(row, prior)
        return first_scene(row, prior, tmp_path).field.settings.radius, settings.guidance_scale

    ball = [{"shape": "sphere", "size": 1.0}]
    assert (used(), used(shapes=ball)) == ((0.8, 8.0), (2.0, 5.0))
    assert used(shapes=ball, scene_radius=0.7, guidance_scale=6.0) == (0.7, 6.0)
