"""An FBX or USD that is painted goes out as a glTF document with its skeleton, shapes and animations."""

from __future__ import annotations

from pathlib import Path

import pytest
from gltf_compare import read
from test_paint import job, run

from pipeline.export.record import read_record
from pipeline.mesh.convert.to_gltf import to_gltf
from pipeline.prior.load import Prior

FOREIGN = Path(__file__).parents[1] / "data" / "foreign"


@pytest.mark.parametrize("name", ["rig.fbx", "rig.usdc", "tree.fbx"])
def test_what_the_conversion_keeps_is_in_the_asset(name: str, prior: Prior, tmp_path: Path) -> None:
    (outcome,) = run([job(FOREIGN / name, unwrap_seconds=20.0)], prior, tmp_path)
    assert outcome.state == "done", outcome
    before, after = to_gltf(FOREIGN / name).json, read(tmp_path / "one" / "asset.glb").json
    for key in ("nodes", "skins", "animations", "cameras"):
        # Accessors are numbered anew where vertices were split; what refers to nodes is not.
        names = [entry.get("name") for entry in before.get(key, [])]
        assert [entry.get("name") for entry in after.get(key, [])] == names
    assert [node.get("children") for node in after["nodes"]] == [node.get("children") for node in before["nodes"]]
    assert after["images"] and after["asset"]["extras"]["latentkiln"]["prompt"] == "a red brick cube"
    record = read_record(tmp_path / "one")
    assert record is not None and record["recipe_version"] == "12"
