"""USD becomes a document that shows the same, and nothing outside its folder is opened."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from converted import (
    FOREIGN,
    at_time,
    corners,
    document_of,
    farthest,
    glb_of,
    image,
    material_named,
    node_named,
    values,
)
from fbx_text import CORNER_UV, POINTS, POLYGONS

from pipeline.core.errors import MeshError
from pipeline.mesh.convert.to_gltf import to_gltf
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh_hash import mesh_sha256

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))
import validator

HEADER = '#usda 1.0\n(\n    defaultPrim = "World"\n    metersPerUnit = {unit}\n    upAxis = "{up}"\n)\n'


def tuples(values: object) -> str:
    return "[" + ", ".join("(" + ", ".join(f"{x:.9g}" for x in row) + ")" for row in values) + "]"  # type: ignore[attr-defined]


def mesh(more: str = "", points: object = POINTS, orientation: str = "rightHanded") -> str:
    faces = [polygon if orientation == "rightHanded" else polygon[::-1] for polygon in POLYGONS]
    uv, at = [], 0
    for polygon in POLYGONS:
        own = CORNER_UV[at : at + len(polygon)]
        uv += list(own if orientation == "rightHanded" else own[::-1])
        at += len(polygon)
    return f"""def Mesh "Flag" (prepend apiSchemas = ["MaterialBindingAPI"])
{{
    uniform token subdivisionScheme = "none"
    uniform token orientation = "{orientation}"
    int[] faceVertexCounts = {[len(face) for face in faces]}
    int[] faceVertexIndices = {[vertex for face in faces for vertex in face]}
    point3f[] points = {tuples(points)}
    texCoord2f[] primvars:st = {tuples(uv)} (interpolation = "faceVarying")
{more}
}}
"""


def world(body: str, unit: float = 1.0, up: str = "Y", more: str = "") -> str:
    return HEADER.format(unit=unit, up=up) + f'def Xform "World"{more}\n{{\n{body}\n}}\n'


def written(folder: Path, text: str, name: str = "flag.usda") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def expected(linear: np.ndarray, shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    vertices = np.array([vertex for polygon in POLYGONS for vertex in polygon])
    points = np.array(POINTS, float) @ linear.T + shift
    uv = np.array(CORNER_UV)
    return np.concatenate([points[vertices], uv[:, :1], 1 - uv[:, 1:]], axis=1)


Z_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


@pytest.mark.parametrize("name", ["flag.usdc", "flag.usdz", "tree.usda"])
def test_a_usd_of_blender_shows_what_its_glb_shows(name: str) -> None:
    assert farthest(corners(FOREIGN / name), corners(FOREIGN / f"{name.split('.')[0]}.glb")) < 2e-6


@pytest.mark.parametrize(("unit", "up"), [(1.0, "Y"), (0.01, "Y"), (0.0254, "Z"), (1.0, "Z")])
def test_axes_and_units_become_those_of_gltf(unit: float, up: str, tmp_path: Path) -> None:
    path = written(tmp_path, world(mesh(), unit, up))
    assert farthest(corners(path), expected(unit * (Z_UP if up == "Z" else np.eye(3)))) < 1e-6


def test_a_left_handed_mesh_is_not_turned_inside_out(tmp_path: Path) -> None:
    right = load_mesh(written(tmp_path, world(mesh())))
    left = load_mesh(written(tmp_path, world(mesh(orientation="leftHanded")), "left.usda"))
    normals = []
    for found in (right, left):
        corner = found.vertices[found.faces]
        normals.append(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]).sum(axis=0))
    assert np.allclose(normals[0], normals[1], atol=1e-6)
    assert farthest(corners(written(tmp_path, world(mesh()))), corners(tmp_path / "left.usda")) < 1e-6


def test_a_sheared_transform_is_kept(tmp_path: Path) -> None:
    rows = "( (1, 0, 0, 0), (0.5, 2, 0, 0), (0, 0.25, 1, 0), (3, 4, 5, 1) )"
    order = 'uniform token[] xformOpOrder = ["xformOp:transform"]'
    body = f'def Xform "Bent"\n{{\nmatrix4d xformOp:transform = {rows}\n{order}\n{mesh()}\n}}'
    linear = np.array([[1, 0.5, 0], [0, 2, 0.25], [0, 0, 1]])
    assert farthest(corners(written(tmp_path, world(body))), expected(linear, (3, 4, 5))) < 2e-6


MATERIALS = """
def Scope "Looks" {
    def Material "Red" {
        token outputs:surface.connect = </World/Looks/Red/Shader.outputs:surface>
        def Shader "Shader" {
            uniform token info:id = "UsdPreviewSurface"
            color3f inputs:diffuseColor.connect = </World/Looks/Red/Picture.outputs:rgb>
            float inputs:roughness.connect = </World/Looks/Red/Rough.outputs:g>
            float inputs:metallic.connect = </World/Looks/Red/Rough.outputs:b>
            float inputs:clearcoat = 0.5
            token outputs:surface
        }
        def Shader "Picture" {
            uniform token info:id = "UsdUVTexture"
            asset inputs:file = @./maps/stripes.png@
            token inputs:wrapS = "clamp"
            float2 inputs:st.connect = </World/Looks/Red/Move.outputs:result>
            float3 outputs:rgb
        }
        def Shader "Move" {
            uniform token info:id = "UsdTransform2d"
            float2 inputs:scale = (2, 3)
            float2 inputs:translation = (0.25, 0.5)
            float2 inputs:in.connect = </World/Looks/Red/Reader.outputs:result>
            float2 outputs:result
        }
        def Shader "Rough" {
            uniform token info:id = "UsdUVTexture"
            asset inputs:file = @./maps/stripes.png@
            float2 inputs:st.connect = </World/Looks/Red/Reader.outputs:result>
            float outputs:g
            float outputs:b
        }
        def Shader "Reader" {
            uniform token info:id = "UsdPrimvarReader_float2"
            string inputs:varname = "st"
            float2 outputs:result
        }
    }
    def Material "Green" {
        token outputs:surface.connect = </World/Looks/Green/Shader.outputs:surface>
        def Shader "Shader" {
            uniform token info:id = "UsdPreviewSurface"
            color3f inputs:diffuseColor = (0, 1, 0)
            float inputs:opacity = 0.5
            token outputs:surface
        }
    }
}
"""
SUBSET = """
    rel material:binding = </World/Looks/Red>
    def GeomSubset "part" (prepend apiSchemas = ["MaterialBindingAPI"])
    {
        uniform token elementType = "face"
        uniform token familyName = "materialBind"
        int[] indices = [2]
        rel material:binding = </World/Looks/Green>
    }
"""


def test_materials_subsets_textures_and_their_transform_are_kept(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "stripes.png").write_bytes((FOREIGN / "stripes.png").read_bytes())
    document = to_gltf(written(tmp_path, world(MATERIALS + mesh(SUBSET))))
    red, green = (material_named(document, name) for name in ("Red", "Green"))
    texture = red["pbrMetallicRoughness"]["baseColorTexture"]
    assert image(document, texture) == (FOREIGN / "stripes.png").read_bytes()
    # v' = 3 v + 0.5 from the bottom is 3 v - 2.5 from the top.
    assert texture["extensions"]["KHR_texture_transform"]["scale"] == pytest.approx([2, 3])
    assert texture["extensions"]["KHR_texture_transform"]["offset"] == pytest.approx([0.25, -2.5])
    assert document.json["samplers"][document.json["textures"][texture["index"]]["sampler"]]["wrapS"] == 33071
    # Green and blue of one image are roughness and metallic as glTF has them: it is taken as it is.
    both = red["pbrMetallicRoughness"]["metallicRoughnessTexture"]
    assert image(document, both) == (FOREIGN / "stripes.png").read_bytes()
    assert green["alphaMode"] == "BLEND"
    assert green["pbrMetallicRoughness"]["baseColorFactor"] == pytest.approx([0, 1, 0, 0.5])
    primitives = document.json["meshes"][0]["primitives"]
    assert [p["extras"]["usd"] for p in primitives] == ["/World/Flag", "/World/Flag/part"]
    assert [len(values(document, p["indices"])) for p in primitives] == [12, 3]
    assert document.losses == ("the clear coat of the material 'Red'",)


def test_skin_and_animation_move_as_in_the_glb(tmp_path: Path) -> None:
    ours, theirs = document_of(FOREIGN / "rig.usdc"), document_of(FOREIGN / "rig.glb")
    for frame in range(7):
        a, b = (at_time(d, frame / 24, tmp_path / f"{n}.glb") for n, d in (("ours", ours), ("theirs", theirs)))
        assert farthest(corners(a), corners(b)) < 1e-5, frame


def test_a_moving_node_is_baked_at_every_frame(tmp_path: Path) -> None:
    body = (
        'def Xform "Mover" {\n double3 xformOp:translate.timeSamples = { 0: (0, 0, 0), 12: (6, 0, 0) }\n'
        ' uniform token[] xformOpOrder = ["xformOp:translate"]\n' + mesh() + "}"
    )
    text = world(body).replace('upAxis = "Y"', 'upAxis = "Y"\n    timeCodesPerSecond = 24')
    document = to_gltf(written(tmp_path, text))
    for frame, x in ((0, 0.0), (5, 2.5), (12, 6.0)):
        path = at_time(document, frame / 24, tmp_path / "posed.glb")
        assert farthest(corners(path), expected(np.eye(3), (x, 0, 0))) < 1e-5
    sampler = document.json["animations"][0]["samplers"][0]
    assert len(values(document, sampler["input"])) == 13


def test_instances_share_a_mesh_and_variants_are_named(tmp_path: Path) -> None:
    written(tmp_path, world(mesh()), "part.usda")
    body = "\n".join(
        f'def Xform "Copy{n}" (instanceable = true\n prepend references = @./part.usda@) {{\n'
        f'double3 xformOp:translate = ({n}, 0, 0)\nuniform token[] xformOpOrder = ["xformOp:translate"]\n}}'
        for n in range(3)
    )
    variants = (
        ' (\n prepend variantSets = "size"\n variants = { string size = "big" }\n)\n{\n'
        ' variantSet "size" = {\n"big" {\ncustom double side = 2\n}\n"small" {\ncustom double side = 1\n}\n}\n'
    )
    text = world(body).replace('def Xform "World"\n{\n', f'def Xform "World"{variants}')
    document = to_gltf(written(tmp_path, text))
    assert len(document.json["meshes"]) == 1
    assert sum("mesh" in node for node in document.json["nodes"]) == 3
    assert document.losses == ("1 of 2 variants 'size' of /World",)


def test_layers_outside_the_folder_are_not_opened(tmp_path: Path) -> None:
    secret = written(tmp_path, world(mesh()).replace('"Flag"', '"Secret"'), "secret.usda")
    inside = tmp_path / "asset"
    written(inside, world(mesh()), "part.usda")
    (inside / "link.usda").symlink_to(secret)
    names = ["../secret.usda", str(secret), "link.usda", "https://example.invalid/a.usda", "part.usda[a]", "a.abc"]
    body = "\n".join(
        f'def Xform "R{n}" (prepend {kind} = @{name}@) {{}}'
        for n, (name, kind) in enumerate((name, kind) for name in names for kind in ("references", "payload"))
    )
    body += (
        '\ndef Xform "V" (\n prepend variantSets = "look"\n '
        'variants = { string look = "a" }\n)\n{\nvariantSet "look" = {\n'
        '"a" (prepend references = @../secret.usda@) {\n}\n}\n}\n'
    )
    text = world(body + "\n" + mesh()).replace(")\ndef", "    subLayers = [@../secret.usda@, @./part.usda@]\n)\ndef", 1)
    document = to_gltf(written(inside, text))
    assert not [node for node in document.json["nodes"] if node.get("name") == "Secret"]
    assert node_named(document, "Flag")
    assert len(document.losses) == len(names)
    assert sum("outside" in loss for loss in document.losses) >= 3


def test_value_clips_are_not_followed(tmp_path: Path) -> None:
    secret = written(tmp_path, world(mesh(), up="Y"), "secret.usda")
    clips = (
        f" (\n clips = {{ dictionary default = {{ asset[] assetPaths = [@{secret}@]\n"
        ' double2[] active = [(0, 0)]\n double2[] times = [(0, 0)]\n string primPath = "/World" } }\n)'
    )
    document = to_gltf(written(tmp_path / "asset", world(mesh(), more=clips)))
    assert any("value clips" in loss for loss in document.losses)


def test_the_hash_covers_layers_and_textures(tmp_path: Path) -> None:
    written(tmp_path, world(mesh()), "part.usda")
    (tmp_path / "maps").mkdir()
    picture = tmp_path / "maps" / "stripes.png"
    picture.write_bytes(b"one")
    body = MATERIALS + 'def Xform "R" (prepend references = @./part.usda@) {}'
    path = written(tmp_path, world(body))
    first = mesh_sha256(path)
    assert mesh_sha256(path) == first
    picture.write_bytes(b"two")
    second = mesh_sha256(path)
    written(tmp_path, world(mesh()) + "# changed\n", "part.usda")
    assert len({first, second, mesh_sha256(path)}) == 3


def test_a_package_with_a_path_that_leads_outside_is_refused(tmp_path: Path) -> None:
    for entry in ("../outside.usda", "/outside.usda", "a\\..\\b.usda", "a//b.usda"):
        path = tmp_path / "bad.usdz"
        with zipfile.ZipFile(path, "w") as package:
            package.writestr("top.usda", world(mesh()))
            info = zipfile.ZipInfo(entry)
            info.filename = entry
            package.writestr(info, "x")
        with pytest.raises(MeshError, match=r"bad.usdz: it holds a file with a path that leads outside; .*"):
            to_gltf(path)
    assert not (tmp_path / "outside.usda").exists()


def test_what_a_package_claims_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.usdz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for number in range(11):
            package.writestr(f"{number}.usda", b"\0" * (100 << 20))
    assert path.stat().st_size < 2 << 20
    with pytest.raises(MeshError, match=r"bomb.usdz: its files are larger than 1024 MiB"):
        to_gltf(path)


@pytest.mark.parametrize("data", [b"", b"#usda 1.0\ndef {", b"PXR-USDC" + bytes(100), b"PK\3\4" + bytes(40), b"text"])
def test_a_damaged_usd_is_one_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.usd"
    path.write_bytes(data)
    with pytest.raises(MeshError) as raised:
        load_mesh(path)
    assert raised.value.message.startswith("cut.usd: ")
    assert "\n" not in raised.value.message


def test_without_openusd_one_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.mesh.convert.child.installed", lambda module: False)
    path = written(tmp_path, world(mesh()))
    with pytest.raises(MeshError, match=r"^flag.usda: .*OpenUSD.* pip install 'latentkiln\[usd\]'$"):
        load_mesh(path)


def test_every_converted_usd_is_valid(tmp_path: Path) -> None:
    sources = [*sorted(FOREIGN.glob("*.usd?")), written(tmp_path, world(MATERIALS + mesh(SUBSET)))]
    validator.validate_glbs([glb_of(to_gltf(p), tmp_path / f"{n}.glb") for n, p in enumerate(sources)], infos=True)
