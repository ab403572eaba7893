"""``latentkiln diff``: what differs between two glTF files, and whether it is more than materials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import FEATURES, Document, box

from pipeline import cli

CHANGES: dict[str, tuple[str, Callable[[Document], Any]]] = {
    "a node's name": ("nodes 0 'box node': name differs", lambda d: d.json["nodes"][0].update(name="crate")),
    "a transform": (
        "nodes 0 'box node': translation differs", lambda d: d.json["nodes"][0].update(translation=[1, 0, 0])
    ),
    "extras": ("nodes 0 'box node': extras differs", lambda d: d.json["nodes"][0].update(extras={"a": 1})),
    "a camera": ("cameras: added", FEATURES["camera"]),
    "an animation": ("animations 0 'turn': samplers differs", lambda d: _move(d, "animations")),
    "a bind matrix": ("skins 0: inverseBindMatrices differs", lambda d: _move(d, "skins")),
    "a position": ("mesh 0 'box mesh', primitive 0: POSITION differs", lambda d: _move(d, "POSITION")),
    "a weight": ("mesh 0 'box mesh', primitive 0: WEIGHTS_0 differs", lambda d: _move(d, "WEIGHTS_0")),
    "a morph delta": ("mesh 0 'box mesh', primitive 0: target 0 POSITION differs", lambda d: _move(d, "target")),
    "no joints": (
        "mesh 0 'box mesh', primitive 0: JOINTS_0 missing", lambda d: d.primitive["attributes"].pop("JOINTS_0")
    ),
    "a mesh less": ("mesh 0 'box mesh': 1 primitives became 0", lambda d: d.json["meshes"][0]["primitives"].clear()),
}  # fmt: skip


def made() -> Document:
    document = box("welded")
    for name in ("skinned", "animated", "morphed"):
        FEATURES[name](document)
    return document


def _move(document: Document, what: str) -> None:
    """Change the first number of an accessor."""
    json = document.json
    if what == "animations":
        number = json["animations"][0]["samplers"][0]["output"]
    elif what == "skins":
        number = json["skins"][0]["inverseBindMatrices"]
    elif what == "target":
        number = document.primitive["targets"][0]["POSITION"]
    else:
        number = document.primitive["attributes"][what]
    at = json["bufferViews"][json["accessors"][number]["bufferView"]]["byteOffset"]
    value = np.float32(0.125).tobytes()
    document.binary = document.binary[:at] + value + document.binary[at + 4 :]


def write(path: Path, document: Document) -> str:
    path.write_bytes(document.glb())
    return str(path)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_material_is_named_and_ends_in_one(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, edit = CHANGES[change]
    other = made()
    edit(other)
    assert cli.main(["diff", write(tmp_path / "a.glb", made()), write(tmp_path / "b.glb", other)]) == 1
    assert f"content: {line}" in capsys.readouterr().out


def test_other_materials_end_in_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = made()
    other.json["materials"][0]["pbrMetallicRoughness"] = {"baseColorTexture": {"index": other.texture(5)}}
    first = write(tmp_path / "a.glb", made())
    assert cli.main(["diff", first, first]) == 0
    assert capsys.readouterr().out == "the same\n"
    assert cli.main(["diff", first, write(tmp_path / "b.glb", other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same_but_for_materials"] is True
    assert {each["where"] for each in found["differences"]} == {"material 0 'hull'", "images"}


def test_vertices_that_are_split_are_the_same_surface(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = made()
    FEATURES["unindexed"](other)
    del other.primitive["targets"]
    plain = made()
    del plain.primitive["targets"]
    assert cli.main(["diff", write(tmp_path / "a.glb", plain), write(tmp_path / "b.glb", other)]) == 0
    assert "8 vertices became 36, with the same faces" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_ends_in_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "a.glb", made())
    (tmp_path / "b.glb").write_bytes(b"glTF")
    assert cli.main(["diff", first, str(tmp_path / "b.glb")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("latentkiln: error: b.glb: it does not begin with glTF") and error.count("\n") == 1
    assert cli.main(["diff", first, str(tmp_path / "none.glb")]) == 2
