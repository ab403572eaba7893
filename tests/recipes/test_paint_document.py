"""A glTF that is painted goes out as the artist's own file: the recipe end to end on a tiny prior."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import FEATURES, box, png
from gltf_compare import read, same_but_for_materials
from PIL import Image
from real.validator import reports
from test_paint import digest, job, run

from pipeline import cli
from pipeline.export.record import read_record
from pipeline.prior.load import Prior
from pipeline.recipes import document_paint, recipe_version
from pipeline.recipes.paint_settings import PaintOptions

PATTERN = np.zeros((64, 64, 3), np.uint8)
PATTERN[..., 0], PATTERN[..., 1] = np.arange(64)[None, :] * 4, np.arange(64)[:, None] * 4


def make(base: str, names: tuple[str, ...], path: Path) -> Path:
    made = box(base)
    for name in names:
        FEATURES[name](made)
    path.write_bytes(made.glb())
    return path


def painted(path: Path, prior: Prior, out: Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
    (outcome,) = run([job(path, **{"unwrap_seconds": 20.0, **settings})], prior, out)
    assert outcome.state == "done", outcome
    record = read_record(out / "one")
    assert record is not None
    return out / "one" / "asset.glb", record


@pytest.mark.parametrize(
    ("base", "features"),
    [
        ("kept", ("skinned", "animated", "morphed", "camera")),
        ("welded", ("skinned", "sparse_morphed", "two_materials", "coloured")),
        ("bare", ("gpu_instanced", "light", "two_scenes")),
        ("welded", ("variants", "second_uv", "mirrored")),
        ("kept", ("no_material", "instanced", "with_extras")),
    ],
)
def test_the_asset_is_the_artists(base: str, features: tuple[str, ...], prior: Prior, tmp_path: Path) -> None:
    path = make(base, features, tmp_path / "in.glb")
    asset, record = painted(path, prior, tmp_path / "out", preview=True)
    before, after = read(path), read(asset)
    keys = {(m, p) for m, mesh in enumerate(before.json["meshes"]) for p, _ in enumerate(mesh["primitives"])}
    shown = keys - {(1, 0)} if "two_scenes" in features else keys
    same_but_for_materials(before, after, shown)
    extras = after.json["asset"]["extras"]
    assert extras["author"] == "somebody" and extras["latentkiln"]["prompt"] == "a red brick cube"
    assert after.json["asset"]["generator"] == "an artist's tool"
    parts = record["document"]["painted"]
    assert sum(part["primitives"] for part in parts) == len(shown)
    assert all(part["uv"].startswith("kept" if base == "kept" else "new") for part in parts)
    assert record["recipe_version"] == "12" and extras["latentkiln"]["document"]["painted"] == parts


def test_interrupted_and_resumed_it_is_the_same_to_the_byte(prior: Prior, tmp_path: Path) -> None:
    path = make("welded", ("skinned", "two_materials"), tmp_path / "in.glb")
    whole, _ = painted(path, prior, tmp_path / "whole")
    calls = iter([False] * 5 + [True] * 100)
    (first,) = run([job(path, unwrap_seconds=20.0)], prior, tmp_path / "parts", stop=lambda: next(calls))
    assert first.state == "interrupted"
    again, record = painted(path, prior, tmp_path / "parts")
    assert record["resumed_from_step"] > 0 and digest(again) == digest(whole)


def test_a_metal_stays_a_metal_and_that_is_said(prior: Prior, tmp_path: Path) -> None:
    path = make("kept", (), tmp_path / "in.glb")
    _, record = painted(path, prior, tmp_path / "out")
    assert "hull: the material is a metal, and so is what is painted; metallic: 0 changes that" in record["warnings"]
    asset, record = painted(path, prior, tmp_path / "other", metallic=0.0)
    assert not any("metal" in warning for warning in record["warnings"])
    surface = read(asset).json["materials"][0]["pbrMetallicRoughness"]
    assert surface["metallicFactor"] == 0 and surface["roughnessFactor"] == 0.4


def test_only_what_is_targeted_changes(prior: Prior, tmp_path: Path) -> None:
    path = make("welded", ("shared_material", "skinned"), tmp_path / "in.glb")
    asset, record = painted(path, prior, tmp_path / "out", target=["lid *"], preview=True)
    same_but_for_materials(read(path), read(asset), {(1, 0)})
    (part,) = record["document"]["painted"]
    assert part["split"] is True and record["document"]["primitives_left"] == 1


def test_a_target_that_names_nothing_fails_the_row_and_the_check(
    prior: Prior, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make("kept", ("two_materials",), tmp_path / "in.glb")
    (outcome,) = run([job(path, target=["wheel_*"])], prior, tmp_path / "out")
    assert outcome.state == "failed"
    assert "target 'wheel_*' names no material, mesh or node of in.glb; there are: 'box mesh'" in outcome.message
    rows = [{"id": "a", "prompt": "a red brick cube", "mesh": "in.glb", "target": ["wheel_*"]}]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    assert cli.main(["check", str(tmp_path / "m.json")]) == 2
    assert "target: 'wheel_*' names no material, mesh or node of in.glb" in capsys.readouterr().out
    (tmp_path / "m.csv").write_text('id,prompt,mesh,target\na,a red brick cube,in.glb,"lid, box *"\n')
    assert cli.main(["check", str(tmp_path / "m.csv")]) == 0


def test_one_atlas_for_all_materials(prior: Prior, tmp_path: Path) -> None:
    path = make("kept", ("two_materials",), tmp_path / "in.glb")
    asset, _ = painted(path, prior, tmp_path / "out", textures="atlas")
    after = read(asset)
    same_but_for_materials(read(path), after, {(0, 0), (1, 0)})
    colours = [m["pbrMetallicRoughness"]["baseColorTexture"] for m in after.json["materials"]]
    assert len({after.texture(colour)[0] for colour in colours}) == 1 and len(after.json["images"]) == 1
    spans = [
        after.corners(mesh["primitives"][0])[f"TEXCOORD_{colour['texCoord']}"]
        for mesh, colour in zip(after.json["meshes"], colours, strict=True)
    ]
    assert not (spans[0].min(0) < spans[1].max(0)).all() or not (spans[1].min(0) < spans[0].max(0)).all()


def test_transparency_stays(prior: Prior, tmp_path: Path) -> None:
    path = make("kept", ("alpha_mask",), tmp_path / "in.glb")
    asset, _ = painted(path, prior, tmp_path / "out")
    after = read(asset)
    assert after.json["materials"][0]["alphaMode"] == "MASK"
    (data, _) = after.texture(after.json["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"])
    alpha = np.array(Image.open(io.BytesIO(data)))[..., 3]
    old = np.array(Image.open(io.BytesIO(png(1, channels=4))))[..., 3]
    scale = len(alpha) // len(old)
    # Where a texel of the old picture lies on the surface, the new one's middle has its alpha.
    middle = alpha[scale // 2 :: scale, scale // 2 :: scale].astype(int)
    assert np.median(np.abs(middle - old)) <= 12


@pytest.mark.parametrize(("base", "feature"), [("kept", "parented"), ("welded", "mirrored"), ("bare", "instanced")])
def test_a_pattern_is_neither_mirrored_nor_upside_down(
    base: str, feature: str, prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An asymmetric pattern is put where the maps are: what the file shows at a place of the world is what the surface
    has there, within a texel."""
    path = make(base, (feature,), tmp_path / "in.glb")
    seen: dict[str, Any] = {}
    original = document_paint.repainted

    def with_pattern(source: Any, settings: Any, maps: Any, **more: Any) -> Any:
        seen["layout"] = source.layout
        return original(source, settings, {"base_colour": PATTERN}, **more)

    monkeypatch.setattr("pipeline.recipes.paint.repainted", with_pattern)
    asset, _ = painted(path, prior, tmp_path / "out")
    after, layout = read(asset), seen["layout"]
    primitive = after.json["meshes"][0]["primitives"][0]
    shown = after.json["materials"][primitive["material"]]["pbrMetallicRoughness"]["baseColorTexture"]
    picture = np.array(Image.open(io.BytesIO(after.texture(shown)[0]))).astype(float)
    corner = after.corners(primitive)
    middle = corner["POSITION"].reshape(-1, 3, 3).mean(axis=1)
    uv = corner[f"TEXCOORD_{shown.get('texCoord', 0)}"].reshape(-1, 3, 2).mean(axis=1)
    if feature == "mirrored":
        middle = middle * (-1.5, 1, 1)
    if feature == "parented":
        middle = middle @ np.array([[0, 0, 2], [0, 2, 0], [-2, 0, 0]]).T + (1, 2, 3)
    whole = layout.uvmesh
    world = whole.mesh.vertices[whole.mesh.faces].mean(axis=1)
    expected = whole.uv[whole.uv_faces].mean(axis=1)
    for point, place in zip(middle, uv, strict=True):
        near = int(np.argmin(np.linalg.norm(world - point, axis=1)))
        texel = picture[min(int(place[1] * 64), 63), min(int(place[0] * 64), 63)]
        assert np.abs(texel[:2] / 4 - expected[near] * 64 + 0.5).max() <= 1


def test_rows_of_other_formats_keep_their_fingerprints() -> None:
    assert recipe_version("paint", "a.obj") == "11" and recipe_version("paint", "a.GLB") == "12"
    assert recipe_version("generate", "a.glb") == recipe_version("generate", "")
    assert {"target", "textures", "uv_set", "variant", "package"}.isdisjoint(PaintOptions().model_dump())
    assert PaintOptions(target=["a"]).model_dump()["target"] == ["a"]


def test_inspect_and_diff_show_what_was_painted(
    prior: Prior, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make("welded", ("two_materials", "skinned"), tmp_path / "in.glb")
    asset, _ = painted(path, prior, tmp_path / "out", target=["hull"])
    assert cli.main(["inspect", str(asset)]) == 0
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    parts = [text for label, text in lines if label == "part"]
    assert parts == ["hull: 1 primitive, 32 x 32 PNG, painted, new TEXCOORD_1", "lid: 1 primitive, the artist's"]
    assert cli.main(["diff", str(path), str(asset.parent)]) == 0
    assert "the same but for materials" in capsys.readouterr().out


def test_the_package_of_files_is_the_same_document(
    prior: Prior, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make("welded", ("skinned", "normal_map"), tmp_path / "in.glb")
    asset, record = painted(path, prior, tmp_path / "out", package="gltf")
    # The old base colour is the occlusion, too.
    images = [f"asset-image-{number}.png" for number in range(3)]
    assert sorted(record["outputs"]) == [*images, "asset.bin", "asset.glb", "asset.gltf"]
    assert cli.main(["diff", str(asset), str(asset.with_suffix(".gltf"))]) == 0
    assert capsys.readouterr().out == "the same\n"
    (report,) = reports([asset.with_suffix(".gltf")])
    # It is given no files beside the document; diff has read them above.
    assert {issue["code"] for issue in report["issues"]["messages"]} <= {"UNUSED_OBJECT", "IO_ERROR"}


def test_seeds_and_other_formats_of_a_document(prior: Prior, tmp_path: Path) -> None:
    path = make("kept", ("skinned", "two_materials"), tmp_path / "in.glb")
    settings = {"seeds": 2, "formats": ["glb", "obj", "ply"], "image_format": "jpeg"}
    _, record = painted(path, prior, tmp_path / "out", **settings)
    assets = [name for name in record["outputs"] if name.endswith(".glb")]
    assert len(assets) == 2 and {"asset.obj", "asset.ply"} <= set(record["outputs"])
    for name in assets:
        after = read(tmp_path / "out" / "one" / name)
        same_but_for_materials(read(path), after, {(0, 0), (1, 0)})
        assert {image["mimeType"] for image in after.json["images"]} == {"image/jpeg"}
