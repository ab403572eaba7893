"""Sampling images from a prior: the same for the same seed, each image by itself, and written as one grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_prior import make_prior
from PIL import Image

from pipeline.cli import main
from pipeline.prior.load import Prior
from pipeline.prior.sample import sample_images


def test_an_image_depends_on_its_seed_its_place_and_its_own_prompt(prior: Prior) -> None:
    both = sample_images(prior, ["a red cube", "a blue cube"], steps=3, seed=4)
    side = prior.sample_size * prior.reduction
    assert both.shape == (2, 3, side, side)
    assert both.min() >= 0 and both.max() <= 1
    again = sample_images(prior, ["a red cube", "a red stone"], steps=3, seed=4)
    assert torch.equal(both[0], again[0])
    assert not torch.equal(both[1], again[1])
    assert not torch.equal(both[0], sample_images(prior, ["a red cube"], steps=3, seed=5)[0])


def test_guidance_of_none_forgets_the_prompt(prior: Prior) -> None:
    blue, red = (sample_images(prior, [p], steps=3, guidance_scale=0.0) for p in ("a blue cube", "a red cube"))
    assert torch.equal(blue, red)


def test_a_size_of_ones_own(prior: Prior) -> None:
    assert sample_images(prior, ["a cube"], steps=2, size=12).shape[-1] == 12 * prior.reduction


def test_the_command_writes_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_prior(tmp_path / "prior")
    out = tmp_path / "grid.png"
    words = [
        "prior",
        "sample",
        "a red wurst",
        "--prior",
        str(folder),
        "--count",
        "3",
        "--steps",
        "2",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "wurst" in printed.out + printed.err
    image = np.asarray(Image.open(out))
    assert image.ndim == 3 and image.std() > 0
    assert main(["prior", "sample", "  ", "--prior", str(folder), "--out", str(out)]) == 2
