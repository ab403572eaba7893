"""DAE and 3DS become documents by assimp: geometry, nodes and materials; the rest is named as lost."""

from __future__ import annotations

import signal
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from converted import FOREIGN, corners, farthest, glb_of, image, material_named, node_named
from fbx_text import CORNER_UV, POINTS, POLYGONS

from pipeline.core.errors import MeshError
from pipeline.mesh.convert import assimp
from pipeline.mesh.convert.child import installed
from pipeline.mesh.convert.references import files_beside
from pipeline.mesh.convert.to_gltf import conversion_losses, to_gltf
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh_hash import mesh_sha256
from pipeline.mesh.readers.unkept import unkept

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))
import validator

Z_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def expected(linear: np.ndarray, shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    vertices = np.array([vertex for polygon in POLYGONS for vertex in polygon])
    points = np.array(POINTS, float) @ linear.T + shift
    uv = np.array(CORNER_UV)
    return np.concatenate([points[vertices], uv[:, :1], 1 - uv[:, 1:]], axis=1)


def numbers(values: object) -> str:
    return " ".join(f"{x:.9g}" for row in values for x in row)  # type: ignore[attr-defined]


def dae(up: str = "Z_UP", unit: float = 0.01, more: str = "") -> str:
    index = " ".join(f"{vertex} {n}" for n, vertex in enumerate(v for polygon in POLYGONS for v in polygon))
    uv = "".join(f'<param name="{axis}" type="float"/>' for axis in "ST")
    xyz = "".join(f'<param name="{axis}" type="float"/>' for axis in "XYZ")
    return f"""<?xml version="1.0" encoding="utf-8"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><unit name="own" meter="{unit}"/><up_axis>{up}</up_axis></asset>
<library_images><image id="img" name="img"><init_from>my%20stripes.png</init_from></image></library_images>
<library_effects><effect id="fx"><profile_COMMON>
<newparam sid="s"><surface type="2D"><init_from>img</init_from></surface></newparam>
<newparam sid="t"><sampler2D><source>s</source></sampler2D></newparam>
<technique sid="common"><phong><diffuse><texture texture="t" texcoord="UV"/></diffuse></phong></technique>
</profile_COMMON></effect></library_effects>
<library_materials><material id="mat" name="Red &amp; co"><instance_effect url="#fx"/></material></library_materials>
<library_geometries><geometry id="g" name="Flag mesh"><mesh>
<source id="p"><float_array id="pa" count="{3 * len(POINTS)}">{numbers(POINTS)}</float_array><technique_common>
<accessor source="#pa" count="{len(POINTS)}" stride="3">{xyz}</accessor></technique_common></source>
<source id="u"><float_array id="ua" count="{2 * len(CORNER_UV)}">{numbers(CORNER_UV)}</float_array><technique_common>
<accessor source="#ua" count="{len(CORNER_UV)}" stride="2">{uv}</accessor></technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#p"/></vertices>
<polylist material="m" count="{len(POLYGONS)}"><input semantic="VERTEX" source="#v" offset="0"/>
<input semantic="TEXCOORD" source="#u" offset="1" set="0"/>
<vcount>{" ".join(str(len(polygon)) for polygon in POLYGONS)}</vcount><p>{index}</p></polylist>
</mesh></geometry></library_geometries>{more}
<library_visual_scenes><visual_scene id="sc" name="sc"><node id="n" name="Flag node"><translate>1 2 3</translate>
<instance_geometry url="#g"><bind_material><technique_common><instance_material symbol="m" target="#mat">
<bind_vertex_input semantic="UV" input_semantic="TEXCOORD" input_set="0"/></instance_material></technique_common>
</bind_material></instance_geometry></node></visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#sc"/></scene></COLLADA>"""


def chunk(kind: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack("<HI", kind, len(body) + 6) + body


def tds(*more: bytes) -> bytes:
    """A 3DS of the flag, with one vertex for each corner, as the format wants it for its texture coordinates."""
    vertices = [vertex for polygon in POLYGONS for vertex in polygon]
    triangles, at = [], 0
    for polygon in POLYGONS:
        triangles += [(at, at + n, at + n + 1) for n in range(1, len(polygon) - 1)]
        at += len(polygon)
    points = struct.pack("<H", len(vertices)) + b"".join(struct.pack("<3f", *POINTS[v]) for v in vertices)
    uv = struct.pack("<H", len(vertices)) + b"".join(struct.pack("<2f", *pair) for pair in CORNER_UV)
    faces = struct.pack("<H", len(triangles)) + b"".join(struct.pack("<4H", *t, 7) for t in triangles)
    group = chunk(
        0x4130, b"Red\0", struct.pack("<H", len(triangles)), struct.pack(f"<{len(triangles)}H", *range(len(triangles)))
    )
    mesh = chunk(0x4100, chunk(0x4110, points), chunk(0x4140, uv), chunk(0x4120, faces, group))
    colour = chunk(0xA020, chunk(0x0011, bytes((255, 128, 0))))
    material = chunk(0xAFFF, chunk(0xA000, b"Red\0"), colour, chunk(0xA200, chunk(0xA300, b"STRIPES.PNG\0")))
    return chunk(0x4D4D, chunk(0x3D3D, material, chunk(0x4000, b"Flag\0", mesh), *more))


def written(folder: Path, data: str | bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(("up", "axes"), [("Y_UP", np.eye(3)), ("Z_UP", Z_UP)])
def test_a_dae_is_in_metres_and_y_up_and_keeps_its_names(up: str, axes: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "my stripes.png").write_bytes((FOREIGN / "stripes.png").read_bytes())
    path = written(tmp_path, dae(up), "flag.dae")
    shift = tuple(0.01 * (axes @ [1, 2, 3]))
    assert farthest(corners(path), expected(0.01 * axes, shift)) < 1e-6
    document = to_gltf(path)
    assert document.json["meshes"][node_named(document, "Flag node")["mesh"]]["name"] == "Flag mesh"
    texture = material_named(document, "Red & co")["pbrMetallicRoughness"]["baseColorTexture"]
    assert image(document, texture) == (FOREIGN / "stripes.png").read_bytes()
    assert document.losses == ()
    validator.validate_glb(glb_of(document, tmp_path / "a.glb"), infos=True)


def test_what_a_dae_loses_is_named_once_each(tmp_path: Path) -> None:
    more = '<library_animations><animation id="a"/></library_animations>'
    more += '<library_cameras><camera id="c"/><camera id="d"/></library_cameras>'
    path = written(tmp_path, dae(more=more), "flag.dae")
    _, losses = conversion_losses(path)
    assert losses[:2] == ["animations", "cameras"]
    assert "animations, cameras" in unkept(path)


def test_a_3ds_keeps_geometry_material_and_texture(tmp_path: Path) -> None:
    path = written(tmp_path, tds(), "flag.3ds")
    without = mesh_sha256(path)
    (tmp_path / "stripes.png").write_bytes((FOREIGN / "stripes.png").read_bytes())
    assert mesh_sha256(path) != without
    assert farthest(corners(path), expected(Z_UP)) < 1e-6
    document = to_gltf(path)
    texture = material_named(document, "Red")["pbrMetallicRoughness"]["baseColorTexture"]
    assert image(document, texture) == (FOREIGN / "stripes.png").read_bytes()
    validator.validate_glb(glb_of(document, tmp_path / "a.glb"), infos=True)


def test_what_a_3ds_loses_is_named(tmp_path: Path) -> None:
    light = chunk(0x4000, b"Lamp\0", chunk(0x4600, struct.pack("<3f", 1, 2, 3)))
    path = written(tmp_path, tds(light), "flag.3ds")
    assert "lights" in to_gltf(path).losses


def test_assimp_reads_an_fbx_that_ufbx_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    path = FOREIGN / "flag_z_up.fbx"
    monkeypatch.setattr("pipeline.mesh.convert.child.installed", lambda module: module != "ufbx" and installed(module))
    assert farthest(corners(path), corners(FOREIGN / "flag.glb")) < 2e-6
    losses = " ".join(to_gltf(path).losses)
    assert "pip install 'latentkiln[formats]'" in losses
    assert "skins" in losses


@pytest.mark.parametrize("name", ["a.dae", "a.3ds"])
def test_a_damaged_file_is_one_line(name: str, tmp_path: Path) -> None:
    whole = dae().encode() if name == "a.dae" else tds()
    for data in (whole[: len(whole) // 2], b"nonsense", bytes(400)):
        with pytest.raises(MeshError) as raised:
            load_mesh(written(tmp_path, data, name))
        assert raised.value.message.startswith(f"{name}: ")
        assert "\n" not in raised.value.message


@pytest.mark.parametrize("name", ["a.dae", "a.3ds", "a.fbx"])
def test_another_format_under_this_ending_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(100))
    gltf = (
        '{"asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "scene": 0, "nodes": [{"mesh": 0}],'
        f' "buffers": [{{"uri": "{tmp_path / "secret.bin"}", "byteLength": 100}}],'
        ' "bufferViews": [{"buffer": 0, "byteLength": 72}],'
        ' "accessors": [{"bufferView": 0, "componentType": 5126, "count": 6, "type": "VEC3"}],'
        ' "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}]}'
    )
    with pytest.raises(MeshError, match=rf"^{name}: "):
        to_gltf(written(tmp_path, gltf, name))


def test_chunks_of_a_hostile_3ds_end() -> None:
    assert assimp.tds_losses(chunk(0x4D4D, struct.pack("<HI", 0x3D3D, 0)) * 1000) == []
    nested = b""
    for _ in range(3000):
        nested = chunk(0x3D3D, nested)
    assert assimp.tds_losses(nested) == []


@pytest.mark.parametrize("ending", ["fbx", "dae", "3ds", "obj"])
@pytest.mark.parametrize(
    "unit",
    [
        b"<init_from>" + b" " * 4095, b"<node " + b"a" * 1990 + b">", b"<!--", b"<!-- -->", b"RelativeFilename   ",
        b"RelativeFilenameS\xff\xff\0\0", b"\0\xa3\xff\0\0\0" + b"a" * 250, b"mtllib   ", b"; \n", b"MM\6\0\0\0",
    ],
    ids=range(10),
)  # fmt: skip
def test_looking_for_names_in_a_hostile_file_ends(ending: str, unit: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, unit * (4_000_000 // len(unit)), f"a.{ending}")
    # Where the time grows with the square of the size, this takes hours.
    signal.alarm(120)
    try:
        files_beside(path)
        with pytest.raises(MeshError):
            to_gltf(path)
        assimp.dae_losses(path.read_bytes())
        assimp.tds_losses(path.read_bytes())
    finally:
        signal.alarm(0)
