"""Rows that ask for maps: what they may hold, what they build, and that rows without them are as they were."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from gltf_shading import Glb
from PIL import Image
from pydantic import ValidationError

from pipeline.core.errors import PriorError
from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.export.record import read_record
from pipeline.manifest.schema import RECIPES
from pipeline.prior import material_folder
from pipeline.prior.defaults import MAP_NAMES, MaterialDefaults, read_defaults
from pipeline.prior.job_check import JobChecker
from pipeline.prior.load import Prior
from pipeline.prior.material_estimator import MaterialMaps
from pipeline.recipes.map_settings import MapName, MapOptions
from pipeline.recipes.material import material
from pipeline.recipes.material_settings import MaterialOptions
from pipeline.recipes.paint import Paint, paint
from pipeline.recipes.paint_settings import PaintOptions

pytestmark = pytest.mark.usefixtures("every_asset_is_valid")

EVERY = ["normal", "metallic_roughness", "occlusion", "emissive", "height"]


class Stub:
    """An estimator that sees the same waves in every picture."""

    identity = "stub"

    def estimate(self, pictures: np.ndarray, *, tileable: bool = False) -> MaterialMaps:
        count, _, rows, columns = pictures.shape
        wave = np.sin(2 * np.pi * np.arange(rows, dtype=np.float32) / rows * 4)
        height = np.broadcast_to(wave[:, None], (count, 1, rows, columns)).astype(np.float32)
        plane = np.ones_like(height)
        return MaterialMaps(pictures * 0.5, plane * 0.4, plane, height, np.full_like(pictures, 0.8))


@pytest.fixture
def telling(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> Prior:
    """A prior with an estimator of another make."""
    monkeypatch.setitem(vars(prior), "material_estimator", Stub())
    return prior


def job(mesh: Path | None, recipe: str = "paint", **settings: object) -> Job:
    model = PaintOptions if recipe == "paint" else MaterialOptions
    values = {"steps": 2, "preview": False, "texture_size": 128, **settings}
    if recipe == "paint":
        values = {"distillation": "material", **values}
    dumped = model(**values).model_dump(mode="json")
    return Job("one", recipe, "red brick", "", 0, InputFile(mesh) if mesh else None, dumped, RowLocation("m.csv", 2))


def built(row: Job, prior: Prior, out: Path) -> tuple[Path, dict]:
    build = paint if row.recipe == "paint" else material
    (outcome,) = build([row], prior, out, fingerprints=["print"], lockstep=1, stop=lambda: False)
    assert outcome.state == "done", outcome.message
    record = read_record(out / "one")
    assert record is not None
    return out / "one", dict(record)


def test_a_row_with_every_map(telling: Prior, cube: Path, tmp_path: Path) -> None:
    folder, record = built(job(cube, maps=EVERY, normal_convention="directx"), telling, tmp_path)
    files = {p.name for p in folder.iterdir()}
    assert files >= {f"asset_{name}.png" for name in ("base_colour", *EVERY)} and files >= set(record["outputs"])
    bake = record["bake"]
    assert bake["map_sources"] == {
        "base_colour": "estimated", "normal": "estimated", "metallic_roughness": "estimated", "height": "estimated",
        "emissive": "derived", "occlusion": "measured",
    }  # fmt: skip
    assert bake["estimator"] == "stub" and bake["confidence"]["height"] == 0.8 and bake["height_span"] > 0
    glb = Glb(folder / "asset.glb")
    packed = glb.image(glb.material["pbrMetallicRoughness"]["metallicRoughnessTexture"])
    assert packed is not None and np.allclose(packed[..., 1], 0.4, atol=0.01) and packed[..., 2].min() == 1
    normal, inside = np.asarray(Image.open(folder / "asset_normal.png")), glb.image(glb.material["normalTexture"])
    assert inside is not None and np.ptp(inside[..., 1]) > 0.1
    # Green runs the other way in the file, and in the file alone.
    np.testing.assert_allclose(normal[..., 1] / 255, np.minimum(256 / 255 - inside[..., 1], 1), atol=1e-6)
    np.testing.assert_allclose(normal[..., 0] / 255, inside[..., 0], atol=1e-6)
    height = np.asarray(Image.open(folder / "asset_height.png"))
    assert height.dtype == np.uint16 or height.max() > 60000
    settings = record["resolved_settings"]
    assert settings["maps"] == ["base_colour", *EVERY] and settings["normal_convention"] == "directx"


def test_the_same_row_gives_the_same_bytes(telling: Prior, cube: Path, tmp_path: Path) -> None:
    first, _ = built(job(cube, maps=EVERY), telling, tmp_path / "a")
    second, _ = built(job(cube, maps=EVERY), telling, tmp_path / "b")
    for path in sorted(first.glob("asset*")):
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256((second / path.name).read_bytes()).digest()


def test_the_light_may_stay_in_the_base_colour(telling: Prior, cube: Path, tmp_path: Path) -> None:
    plain, _ = built(job(cube), telling, tmp_path / "plain")
    kept, record = built(job(cube, maps=["normal"], delight="off"), telling, tmp_path / "kept")
    without, _ = built(job(cube, maps=["normal"]), telling, tmp_path / "without")
    images = [Glb(f / "asset.glb") for f in (plain, kept, without)]
    colours = [g.image(g.material["pbrMetallicRoughness"]["baseColorTexture"]) for g in images]
    assert (colours[0] == colours[1]).all() and record["bake"]["map_sources"]["base_colour"] == "sampled"
    assert colours[2].max() < 0.6 * colours[0].max()


def test_factors_need_no_map_and_no_estimator(prior: Prior, cube: Path, tmp_path: Path) -> None:
    folder, record = built(job(cube, metallic=1.0, roughness=0.25), prior, tmp_path / "a")
    surface = Glb(folder / "asset.glb").material["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (1.0, 0.25)
    assert "map_sources" not in record["bake"] and sorted(record["outputs"]) == ["asset.glb"]
    _, patches = built(job(cube, distillation="patches", metallic=1.0), prior, tmp_path / "b")
    assert patches["status"] == "done"


def test_a_tileable_set_has_maps(telling: Prior, tmp_path: Path) -> None:
    names = ["normal", "metallic_roughness", "height"]
    folder, record = built(job(None, "material", maps=names), telling, tmp_path)
    images = {n: np.asarray(Image.open(folder / f"asset_{n}.png")) for n in ("base_colour", *names)}
    assert all(image.shape[:2] == (128, 128) for image in images.values())
    assert record["bake"]["maps"]["normal"] == "normalTexture"
    assert record["bake"]["map_sources"]["normal"] == "estimated"
    # Waves run down the picture: the normal leans up and down, and wraps around.
    lean = images["normal"].astype(float) - 128
    assert np.abs(lean[..., 1]).max() > 20 and np.abs(lean[..., 0]).max() <= 1
    assert np.abs(lean[0, :, 1] - lean[-1, :, 1]).max() <= 1.5 * np.abs(np.diff(lean[..., 1], axis=0)).max()


def test_rows_that_ask_for_no_maps_have_the_settings_they_had() -> None:
    new = set(MapOptions.model_fields)
    for recipe in ("paint", "material"):
        model = RECIPES[recipe].model
        assert not new & set(model().model_dump()) and not new & set(json.loads(model().model_dump_json()))
    assert PaintOptions(maps=["height", "normal", "height"]).model_dump()["maps"] == [
        "base_colour", "normal", "height",
    ]  # fmt: skip


def test_the_prior_may_recommend_maps(telling: Prior, cube: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recommended = MaterialDefaults(maps=["occlusion", "normal"])
    monkeypatch.setattr(telling, "material_defaults", recommended)
    assert Paint().resolve(job(cube), telling).maps == ["base_colour", "normal", "occlusion"]
    assert Paint().resolve(job(cube, maps=["base_colour"]), telling).maps == ["base_colour"]
    assert Paint().resolve(job(cube, distillation="patches"), telling).maps == ["base_colour"]


def test_a_prior_that_recommends_an_unknown_map_is_refused(tmp_path: Path) -> None:
    assert get_args(MapName) == MAP_NAMES
    (tmp_path / "latentkiln.json").write_text('{"material": {"maps": ["normals"]}}')
    with pytest.raises(PriorError, match="maps has 'normals'"):
        read_defaults(tmp_path, "material", MaterialDefaults)


def test_a_row_that_needs_an_estimator_is_refused_before_anything_is_built(
    prior: Prior, cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedded prior's estimator serves all priors; here it is gone.
    monkeypatch.setattr(material_folder, "EMBEDDED_FOLDER", tmp_path)
    checker = JobChecker(prior.name, prior.folder, allow_unknown=True)
    assert "network that estimates materials" in checker.reason(job(cube, maps=["normal"]))
    for fine in ({"maps": ["occlusion"]}, {"maps": ["metallic_roughness"], "metallic": 1.0, "roughness": 0.2}, {}):
        assert checker.reason(job(cube, **fine)) == ""


@pytest.mark.parametrize("way", ["score", "patches"])
def test_other_ways_of_painting_have_maps_from_views_of_the_asset(
    telling: Prior, cube: Path, tmp_path: Path, way: str
) -> None:
    folder, record = built(job(cube, distillation=way, maps=EVERY), telling, tmp_path / "maps")
    glb = Glb(folder / "asset.glb")
    packed = glb.image(glb.material["pbrMetallicRoughness"]["metallicRoughnessTexture"])
    assert packed is not None
    np.testing.assert_allclose(packed[..., 1], 0.4, atol=0.02)
    np.testing.assert_allclose(packed[..., 2], 1, atol=0.02)
    plain = Glb(built(job(cube, distillation=way), telling, tmp_path / "plain")[0] / "asset.glb")
    after, before = (g.image(g.material["pbrMetallicRoughness"]["baseColorTexture"]) for g in (glb, plain))
    # The stand-in says that half of the colour is light.
    assert after is not None and before is not None and after.mean() == pytest.approx(before.mean() / 2, rel=0.1)
    assert record["bake"]["map_sources"]["normal"] == "estimated" and record["bake"]["height_span"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"roughness": 0.2, "roughness_min": 0.1}, "roughness is given, and roughness_min too"),
        ({"roughness_min": 0.5, "roughness_max": 0.4}, "roughness_min at most roughness_max"),
        ({"metallic": 1.5}, "less than or equal to 1"),
        ({"maps": ["colour"]}, "Input should be"),
        ({"delight": "no"}, "Input should be"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PaintOptions(**values)


def test_a_tileable_set_has_no_mesh_to_measure() -> None:
    with pytest.raises(ValidationError, match="measured on a mesh"):
        MaterialOptions(maps=["occlusion"])
