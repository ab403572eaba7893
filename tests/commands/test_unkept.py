"""What a mesh file holds beside its shape and is not in an asset is told: in ``check`` and in the record."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.mesh.readers.unkept import unkept

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
DOCUMENT: Mapping[str, Any] = {
    "asset": {"version": "2.0"},
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}]}],
    "nodes": [{"mesh": 0}],
    "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
}
TWO = [{"primitives": [{"attributes": {"POSITION": 0}, "material": 0}, {"attributes": {"POSITION": 0}, "material": 2}]}]


def write(path: Path, content: str | bytes | Mapping[str, Any]) -> Path:
    data = json.dumps(content) if isinstance(content, Mapping) else content
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"skins": [{}], "animations": [{}, {}], "cameras": [{}], "scenes": [{}, {}], "meshes": TWO}, ""),
        (
            {"meshes": [{"primitives": [{"attributes": {}, "extensions": {"KHR_draco_mesh_compression": {}}}]}]},
            "the compression of primitives that get new texture coordinates",
        ),
        (
            {"bufferViews": [{"extensions": {"EXT_meshopt_compression": {}}}]},
            "the compression of primitives that get new texture coordinates",
        ),
        # A stranger's JSON may hold anything: that is told when the mesh is read.
        ({"meshes": 7, "nodes": [7, None], "materials": {}, "skins": "x", "animations": None}, ""),
        ({"meshes": [{"primitives": [{"attributes": 5, "material": "x"}]}], "extensions": 3}, ""),
    ],
)
def test_gltf(change: Mapping[str, Any], told: str, tmp_path: Path) -> None:
    document = {**DOCUMENT, **change}
    assert unkept(write(tmp_path / "a.gltf", document)) == told
    text = json.dumps(document).encode()
    chunk = struct.pack("<I4s", len(text), b"JSON") + text
    assert unkept(write(tmp_path / "a.glb", struct.pack("<4sII", b"glTF", 2, 12 + len(chunk)) + chunk)) == told


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.obj", f"mtllib a.mtl\no box\n{TRIANGLE}usemtl red\nf 1 2 3\n", ""),
        (
            "a.obj",
            f"o box\ng a\n{TRIANGLE}usemtl red\nf 1 2 3\no lid\n  g b\ng a\nusemtl blue\nf 1 2 3\nusemtl red\nf 3 2 1",
            "its 2 objects (they become one), its 2 groups (they become one), 1 of 2 materials",
        ),
        (
            "a.obj",
            "v 0 0 0 1 0 0\nv 1 0 0 0 1 0\r\nv 0 1 0 1 0 0\nf 1 2 3\nl 1 2\n",
            "vertex colours",
        ),
        ("a.obj", "v 0 0 0 1.0\nv 1 0 0 1.0\nv 0 1 0 1.0\nf 1 2 3\n", ""),
        (
            "a.ply",
            "ply\nformat ascii 1.0\ncomment TextureFile a.png\nelement vertex 3\nproperty float x\nproperty uchar red\n"
            "element face 1\nproperty list uchar int vertex_indices\nproperty uchar red\nelement edge 2\n"
            "property int vertex1\nend_header\n",
            "the texture that it names, vertex colours, face colours, the elements edge",
        ),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nend_header\n", ""),
        ("a.off", "COFF\n3 1 0\n0 0 0 255 0 0 255\n1 0 0 255 0 0 255\n0 1 0 255 0 0 255\n3 0 1 2\n", "vertex colours"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 255 0 0\n", "face colours"),
        ("a.off", "OFF 3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", ""),
        ("a.stl", b"\0" * 80 + struct.pack("<I", 1) + b"\0" * 48 + b"\x1f\x80", "colours of its facets"),
        ("a.stl", b"\0" * 80 + struct.pack("<I", 1) + b"\0" * 50, ""),
        ("a.stl", "solid a\nendsolid a\nsolid b\nendsolid b\n", "its 2 solids (they become one)"),
        ("a.off", "", ""),
        ("a.stl", "", ""),
        ("a.glb", b"glTF", ""),
        ("a.gltf", "[" * 100_000, ""),
    ],
)
def test_other_formats(name: str, content: str | bytes, told: str, tmp_path: Path) -> None:
    assert unkept(write(tmp_path / name, content)) == told


def test_check_says_it_in_one_line_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.obj", f"o a\n{TRIANGLE}f 1 2 3\no b\nusemtl x\nf 1 3 2\nusemtl y\nv 0 0 1\nf 1 2 4\n")
    manifest = write(tmp_path / "m.csv", "id,prompt,mesh\nhero,red brick,a.obj\nother,red brick,a.obj\n")
    assert cli.main(["check", str(manifest)]) == 0
    line = "mesh: warning: not kept in the asset: its 2 objects (they become one), 1 of 2 materials"
    found = [text for text in capsys.readouterr().out.splitlines() if "not kept" in text]
    assert found == [f"{manifest}:2: {line}", f"{manifest}:3: {line}"]
    # A sketch only says roughly which shape.
    rows = [{"recipe": "generate", "prompt": "a red box", "sketch": "a.obj"}]
    assert cli.main(["check", str(write(tmp_path / "m.json", json.dumps(rows)))]) == 0
    assert "warning" not in capsys.readouterr().out
