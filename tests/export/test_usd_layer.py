"""The USD layer over an artist's file, and the USDZ: read back, the maps are where they belong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from converted import FOREIGN, corners, farthest, image, material_named, node_named
from PIL import Image

from pipeline.core.errors import ExportError
from pipeline.export.usd import PaintedMaterial, write_usd_layer, write_usdz
from pipeline.mesh.convert.to_gltf import Converted, to_gltf


def copied(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes((FOREIGN / name).read_bytes())
    (folder / "textures").mkdir(exist_ok=True)
    (folder / "textures" / "stripes.png").write_bytes((FOREIGN / "stripes.png").read_bytes())
    return path


def prims_of(document: Converted, material: str) -> tuple[str, ...]:
    number = next(n for n, m in enumerate(document.json["materials"]) if m["name"] == material)
    return tuple(
        primitive["extras"]["usd"]
        for mesh in document.json["meshes"]
        for primitive in mesh["primitives"]
        if primitive.get("material") == number
    )


def painted(folder: Path, document: Converted) -> PaintedMaterial:
    for name, colour in (("base.png", (250, 10, 20)), ("mr.png", (0, 100, 200)), ("normal.png", (128, 128, 255))):
        Image.new("RGB", (4, 4), colour).save(folder / name)
    maps = {"base_color": "base.png", "metallic_roughness": "mr.png", "normal": "normal.png"}
    (layer,) = {name for mesh in document.json["meshes"] for name in mesh["extras"]["uvSets"][:1]}
    return PaintedMaterial("Painted anew", prims_of(document, "Painted"), maps, uv_set=layer)


def check(document: Converted, folder: Path) -> None:
    material = material_named(document, "Painted_anew")
    factors = material["pbrMetallicRoughness"]
    assert image(document, factors["baseColorTexture"]) == (folder / "base.png").read_bytes()
    assert image(document, factors["metallicRoughnessTexture"]) == (folder / "mr.png").read_bytes()
    assert image(document, material["normalTexture"]) == (folder / "normal.png").read_bytes()
    names = {
        document.json["materials"][p["material"]]["name"] for m in document.json["meshes"] for p in m["primitives"]
    }
    # What was not painted keeps its material.
    assert names == {"Painted_anew", "Plain"}


@pytest.mark.parametrize("name", ["flag.usdc", "flag.usdz"])
def test_a_layer_binds_new_materials_and_leaves_the_source_as_it_is(name: str, tmp_path: Path) -> None:
    source = copied(tmp_path, name)
    before = source.read_bytes()
    layer = tmp_path / "flag_painted.usda"
    assert write_usd_layer(source, layer, [painted(tmp_path, to_gltf(source))]) == []
    assert source.read_bytes() == before
    assert f"@./{name}@" in layer.read_text()
    assert "points" not in layer.read_text()
    if name == "flag.usdc":  # a layer over a package is for other programs: we follow no packages
        check(to_gltf(layer), tmp_path)
        assert farthest(corners(layer), corners(source)) < 1e-7


@pytest.mark.parametrize("name", ["flag.usdc", "flag.usdz"])
def test_a_package_holds_everything(name: str, tmp_path: Path) -> None:
    source = copied(tmp_path, name)
    package = tmp_path / "painted.usdz"
    assert write_usdz(source, package, [painted(tmp_path, to_gltf(source))]) == []
    check(to_gltf(package), tmp_path)
    assert farthest(corners(package), corners(FOREIGN / "flag.glb")) < 2e-6
    with zipfile.ZipFile(package) as entries:
        assert entries.infolist()[0].filename == "model.usdc"
        for entry in entries.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            head = entry.header_offset + 30 + len(entry.filename.encode())
            extra = int.from_bytes(package.read_bytes()[entry.header_offset + 28 : entry.header_offset + 30], "little")
            assert (head + extra) % 64 == 0


def test_an_instance_that_is_painted_becomes_its_own(tmp_path: Path) -> None:
    part = tmp_path / "part.usda"
    part.write_bytes((FOREIGN / "tree.usda").read_bytes())
    source = tmp_path / "two.usda"
    source.write_text(
        '#usda 1.0\n(\n    defaultPrim = "World"\n    metersPerUnit = 1\n    upAxis = "Z"\n)\ndef Xform "World"\n{\n'
        + "".join(f'def Xform "C{n}" (\ninstanceable = true\nreferences = @./part.usda@\n)\n{{\n}}\n' for n in range(2))
        + "}\n"
    )
    document = to_gltf(source)
    paths = [n["extras"]["usd"] for n in document.json["nodes"] if "mesh" in n]
    (first, *_) = [path for path in paths if path.startswith("/World/C0")]
    layer = tmp_path / "two_painted.usda"
    write_usd_layer(source, layer, [PaintedMaterial("Red", (first,), base_color_factor=(1, 0, 0), roughness=0.25)])
    red = material_named(to_gltf(layer), "Red")["pbrMetallicRoughness"]
    assert red["baseColorFactor"] == [1, 0, 0, 1]
    assert red["roughnessFactor"] == 0.25
    names = [m["name"] for m in to_gltf(layer).json["materials"]]
    assert "Green" in names


def test_a_package_takes_no_file_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "asset"
    folder.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes((FOREIGN / "stripes.png").read_bytes())
    source = folder / "a.usda"
    body = f'def Mesh "M"\n{{\ncustom asset outer = @{secret}@\ncustom asset up = @../secret.png@\n}}\n'
    source.write_text(f'#usda 1.0\n(\n    defaultPrim = "M"\n)\n{body}')
    out = write_usdz(source, folder / "a.usdz", [])
    assert set(out) == {"secret.png"}
    with zipfile.ZipFile(folder / "a.usdz") as entries:
        assert entries.namelist() == ["model.usdc"]


def test_a_wrong_prim_or_map_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    source = copied(tmp_path, "flag.usdc")
    layer = tmp_path / "a.usda"
    for material, message in (
        (
            PaintedMaterial("a", ("/nothing",)),
            r"^a.usda: not written: flag.usdc: OpenUSD cannot write over it .it has no prim '/nothing'.; ",
        ),
        (PaintedMaterial("a", ("not a path",)), "is not the path of a prim"),
        (PaintedMaterial("a", ("/root",), {"glow": "x.png"}), "a material has no map 'glow'; use base_color"),
    ):
        with pytest.raises(ExportError, match=message):
            write_usd_layer(source, layer, [material])
    assert not layer.exists()
    assert not list(tmp_path.glob(".*partial*"))
    assert node_named(to_gltf(source), "Flag")
