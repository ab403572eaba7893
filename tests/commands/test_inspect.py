"""Inspecting assets: what ours say, and that no file whatever makes it stumble."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from pipeline.commands.inspect import inspect_asset
from pipeline.export.gltf import BASE_COLOUR, write_glb
from pipeline.export.inspect import InspectError, inspect_glb
from pipeline.export.record import write_record
from pipeline.mesh.mesh import Mesh, UVMesh

PROVENANCE = {
    "id": "roof",
    "fingerprint": "0123456789abcdef" * 4,
    "recipe": "paint",
    "recipe_version": "1",
    "prompt": "mossy slates\x1b[31m",
    "negative_prompt": "",
    "seed": 11,
    "prior": {"name": "embedded", "identity": "fedcba9876543210" * 4},
    "mesh_sha256": "77" * 32,
    "settings": {"steps": 300, "base_colour": None},
    "backends": {"device": "cuda"},
}
RECORD = {
    "id": "roof",
    "fingerprint": PROVENANCE["fingerprint"],
    "outputs": {},
    "inputs": {"mesh": {"name": "roof.obj"}, "job": {"settings": {}}},
    "backends": {"rasterise": "numba", "device": "cpu"},
    "timings": {"load": 0.25, "distill": 41.0},
    "lockstep": 4,
    "peak_rss_mb": 1234.5,
    "finished": 1_700_000_000.0,
    "warnings": ["a hole"],
    "unwrap": {"method": "xatlas", "reason": "the mesh has no texture coordinates"},
}


@pytest.fixture
def asset(tmp_path):
    folder = tmp_path / "roof"
    mesh = Mesh(
        vertices=np.array([[0, 0, 0], [4, 0, 0], [4, 3, 0], [0, 3, 0]]) + np.array([1e7 + 0.1, 0, 0]),
        faces=np.array([[0, 1, 2], [0, 2, 3]]),
    )
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    uvmesh = UVMesh(mesh, uv, mesh.faces, "input", "", np.zeros(2, np.int32))
    image = np.random.Generator(np.random.Philox(3)).integers(0, 255, (64, 128, 3)).astype(np.uint8)
    write_glb(folder / "asset.glb", uvmesh, {BASE_COLOUR: image}, name="roof", provenance=PROVENANCE)
    write_glb(
        folder / "jpeg.glb",
        uvmesh,
        {BASE_COLOUR: image},
        name="roof",
        provenance=PROVENANCE,
        image_format="jpeg",
    )
    return folder / "asset.glb"


def test_figures(asset):
    found = inspect_glb(asset)
    assert found["provenance"] == PROVENANCE
    assert found["bytes"] == asset.stat().st_size
    assert (found["triangles"], found["vertices"]) == (2, 4)
    low, high = found["bounds"]
    np.testing.assert_allclose(low, [1e7 + 0.1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(high, [1e7 + 4.1, 3, 0], atol=1e-6)
    texture = found["texture"]
    assert (texture["width"], texture["height"], texture["format"]) == (128, 64, "png")
    texture = inspect_glb(asset.with_name("jpeg.glb"))["texture"]
    assert (texture["width"], texture["height"], texture["format"]) == (128, 64, "jpeg")


def test_prints_what_a_person_asks_for(asset, capsys):
    assert inspect_asset(asset) == 0
    out = capsys.readouterr().out
    for expected in ("mossy slates", "11", "embedded", "paint (version 1)", PROVENANCE["fingerprint"]):
        assert expected in out
    assert "\x1b" not in out
    assert "128 x 64 PNG" in out
    assert "steps=300" in out
    assert "base_colour" not in out
    assert "device=cuda" in out
    assert "2 triangles" in out
    assert "times" not in out


def test_the_record_beside_it_adds_times_and_backends(asset, capsys):
    write_record(asset.parent, RECORD)
    assert inspect_asset(asset.parent) == 0  # an asset's folder will do
    out = capsys.readouterr().out
    assert "distill 41.0 s, load 0.2 s" in out
    assert "roof.obj (777777777777)" in out
    assert "1,234 MB" in out
    assert "2023-11-14 22:13:20 UTC" in out
    assert "a hole" in out
    assert "xatlas (the mesh has no texture coordinates)" in out


def test_a_record_that_is_not_this_assets_is_not_used(asset, capsys):
    write_record(asset.parent, RECORD | {"fingerprint": "ff" * 32})
    assert inspect_asset(asset) == 0
    out = capsys.readouterr().out
    assert "belongs to another asset" in out
    assert "distill" not in out
    (asset.parent / "record.json").write_text("{")
    assert inspect_asset(asset) == 0
    assert "not valid JSON" in capsys.readouterr().out


def test_json(asset, capsys):
    write_record(asset.parent, RECORD)
    assert inspect_asset(asset, json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["provenance"] == PROVENANCE
    assert found["record"]["timings"]["distill"] == 41
    assert found["record_problem"] is None


def glb(document: object, binary: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    tail = struct.pack("<I4s", len(binary), b"BIN\0") + binary if binary else b""
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(tail), len(text), 0x4E4F534A) + text + tail


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a GLB file"),
        (b"glTF", "not a GLB file"),
        (b"solid cube\n" * 9, "not a GLB file"),
        (struct.pack("<4sIIII", b"glTF", 1, 20, 0, 0x4E4F534A), "version 1"),
        (struct.pack("<4sIIII", b"glTF", 2, 999, 0, 0x4E4F534A), "truncated"),
        (struct.pack("<4sIIII", b"glTF", 2, 20, 0xFFFFFFFF, 0x4E4F534A), "damaged"),
        (struct.pack("<4sIIII", b"glTF", 2, 20, 0, 0x004E4942), "damaged"),
        (glb(b'{"asset"'), "cannot be parsed"),
        (glb(b"[" * 100_000), "cannot be parsed"),
        (glb(b"1" * 10_000), "cannot be parsed"),
        (glb(b"\xff\xfe\xfd"), "cannot be parsed"),
        (glb([]), "not an object"),
        (glb({}), "not made by latentkiln"),
        (glb({"asset": {"version": "2.0", "generator": "another"}}), "not made by latentkiln"),
        (glb({"asset": {"extras": {"latentkiln": "yes"}}}), "not made by latentkiln"),
        (glb({"asset": [1]}), "not made by latentkiln"),
    ],
)
def test_what_is_not_ours_is_said_in_one_line(tmp_path, capsys, data, reason):
    path = tmp_path / "x.glb"
    path.write_bytes(data)
    assert inspect_asset(path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert reason in captured.err
    assert captured.err.count("\n") == 1


def test_a_missing_file_is_said_in_one_line(tmp_path, capsys):
    assert inspect_asset(tmp_path / "none.glb") == 1
    assert "cannot be read" in capsys.readouterr().err
    assert inspect_asset(tmp_path) == 1  # a folder without an asset


ODD = [None, -1, 10**30, 1e308, True, "x", [], {}, [None], [[0]], {"a": 1}]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_values_in_every_place_are_survived(tmp_path, capsys, odd):
    ours = {"extras": {"latentkiln": PROVENANCE}}
    position = {"count": 3, "min": [0, 0, 0], "max": [1, 1, 1]}
    usual = {
        "asset": ours,
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [position, {"count": 3}],
        "nodes": [{"translation": [0, 0, 1]}],
        "images": [{"bufferView": 0}],
        "bufferViews": [{"byteOffset": 0, "byteLength": 30}],
    }
    documents = [usual | {key: odd} for key in usual if key != "asset"]
    documents += [usual | {key: [odd]} for key in usual if key != "asset"]
    documents += [usual | {"accessors": [position | {key: odd}]} for key in position]
    documents += [usual | {"nodes": [{"translation": [odd, 0, 0]}]}]
    documents += [usual | {"bufferViews": [{"byteOffset": odd, "byteLength": odd}]}]
    for key in PROVENANCE:
        documents.append(usual | {"asset": {"extras": {"latentkiln": PROVENANCE | {key: odd}}}})
    for document in documents:
        (tmp_path / "asset.glb").write_bytes(glb(document, b"\x89PNG" + bytes(30)))
        assert inspect_asset(tmp_path / "asset.glb") == 0
        assert inspect_asset(tmp_path / "asset.glb", json=True) == 0
    for key in RECORD:
        (tmp_path / "asset.glb").write_bytes(glb(usual))
        write_record(tmp_path, RECORD | {key: odd})
        assert inspect_asset(tmp_path) == 0
    capsys.readouterr()


def test_truncated_and_scrambled_assets_never_trace_back(asset):
    data = asset.read_bytes()
    head = min(len(data), 4000)
    random = np.random.Generator(np.random.Philox(5))
    spoilt = asset.with_name("spoilt.glb")
    outcomes = {"read": 0, "refused": 0}
    cuts = [*range(0, head, 61), len(data) - 1]
    for trial in range(400):
        broken = bytearray(data[: cuts[trial]] if trial < len(cuts) else data)
        if trial >= len(cuts):
            for at in random.integers(0, head, 1 + trial % 9):
                broken[at] = random.integers(0, 256)
        spoilt.write_bytes(broken)
        try:
            inspect_glb(spoilt)
            outcomes["read"] += 1
        except InspectError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def test_inspecting_imports_nothing_heavy():
    code = "import sys, pipeline.commands.inspect; print({'numpy', 'torch', 'PIL', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
