"""Each record has the figures of quality, whatever painted the asset."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_generate import job as generate_job
from test_paint import job as paint_job

from pipeline.commands.quality import quality_figures, quality_text
from pipeline.export.record import read_record
from pipeline.prior.load import Prior
from pipeline.recipes.generate import generate
from pipeline.recipes.paint import paint

SURFACE = {
    "gradient", "contrast", "faded", "texels_per_radius", "prior_pixels_per_radius", "coverage", "chart_seam",
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [{"distillation": "score"}, {"distillation": "patches"}, {"distillation": "material"},
     {"refine": True, "refine_steps": 1, "distillation": "score"}],
)  # fmt: skip
def test_a_painted_asset_has_all_figures(prior: Prior, cube: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    (result,) = paint([paint_job(cube, **settings)], prior, tmp_path, fingerprints=["p"], lockstep=1)
    assert result.state == "done", result.message
    record = read_record(tmp_path / "one")
    assert record is not None and set(record["quality"]) == SURFACE
    quality = record["quality"]
    assert 0 < quality["coverage"] <= 1 and 0 <= quality["faded"] <= 1
    assert quality["texels_per_radius"] > 0 and quality["prior_pixels_per_radius"] > 0
    assert record["timings"]["measure"] >= 0


def test_a_generated_asset_has_all_figures(prior: Prior, tmp_path: Path) -> None:
    ball = [{"shape": "sphere", "position": [0.0] * 3, "rotation": [0.0] * 3, "size": [0.8] * 3}]
    (result,) = generate([generate_job(shapes=ball)], prior, tmp_path, fingerprints=["p"], lockstep=1)
    assert result.state == "done", result.message
    record = read_record(tmp_path / "one")
    assert record is not None and set(record["quality"]) == SURFACE


def test_patches_say_how_many_pixels_the_prior_drew(prior: Prior, cube: Path, tmp_path: Path) -> None:
    """Half the height of a patch: about twice the pixels."""
    densities = []
    for name, height in (("high", 1.6), ("low", 0.8)):
        job = paint_job(cube, name, distillation="patches", patch_height=height, steps=24)
        paint([job], prior, tmp_path, fingerprints=["p"], lockstep=1)
        record = read_record(tmp_path / name)
        assert record is not None
        densities.append(record["quality"]["prior_pixels_per_radius"])
    # Patches of 8 latents, of 4 pixels each.
    assert densities[0] == pytest.approx(8 * 4 / 1.6, rel=0.35)
    assert densities[1] == pytest.approx(2 * densities[0], rel=0.25)


def test_figures_of_a_strange_record_are_left_out() -> None:
    strange = {"gradient": "<b>", "contrast": True, "faded": float("nan"), "coverage": 10**400, "chart_seam": 1.25}
    assert quality_figures({"quality": strange}) == {"chart_seam": 1.25}
    assert quality_text({"quality": {"gradient": 12.34, "faded": 0.031}}) == "gradient 12.3, faded 3%"
    assert quality_text({"quality": [1]}) == quality_text({}) == quality_text(None) == ""
