"""``status`` and ``inspect`` show a record's figures of quality, and do not quote ``seam_ratio``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.core.hashing import sha256_file
from pipeline.export.gltf import write_glb
from pipeline.export.record import write_record
from pipeline.mesh.ball import preview_ball

QUALITY = {
    "gradient": 18.24, "contrast": 31.0, "faded": 0.041, "texels_per_radius": 170.3, "prior_pixels_per_radius": 160.0,
    "coverage": 0.983, "chart_seam": 1.26,
}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output root with one finished asset."""
    folder = tmp_path / "out" / "one"
    folder.mkdir(parents=True)
    asset = folder / "asset.glb"
    pixels = np.full((8, 8, 3), 90, np.uint8)
    write_glb(asset, preview_ball(), {"base_colour": pixels}, name="one", provenance={"fingerprint": "f"})
    outputs = {"asset.glb": {"sha256": sha256_file(asset), "bytes": asset.stat().st_size}}
    record = {"id": "one", "fingerprint": "f", "recipe": "paint", "outputs": outputs, "warnings": ["soft"]}
    write_record(folder, {**record, "quality": QUALITY, "bake": {"seam_ratio": 0.2}})
    return tmp_path / "out"


def test_status_compares_by_the_figures(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(out)]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "gradient 18.2, contrast 31.0, faded 4%, chart seams 1.3 of 255; soft" in line
    assert main(["status", str(out), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["quality"] == QUALITY


def test_inspect_prints_all_of_them(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(out / "one")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("quality")]
    assert line.split(maxsplit=1)[1] == (
        "gradient 18.2, contrast 31.0, faded 4%, 170 texels a radius, 160 prior pixels a radius, covered 98%, "
        "chart seams 1.3 of 255"
    )
    assert "seam_ratio" not in line


def test_a_damaged_asset_says_what_is_wrong_instead(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "one" / "asset.glb").write_bytes(b"cut")
    assert main(["status", str(out)]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "damaged" in line and "gradient" not in line
