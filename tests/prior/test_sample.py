"""Sampling images from a prior: the same for the same seed, each image by itself, and written as one grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_prior import make_prior
from PIL import Image

from pipeline.cli import main
from pipeline.prior.load import Prior, load_prior
from pipeline.prior.sample import sample_images


def test_an_image_depends_on_its_seed_its_place_and_its_own_prompt(prior: Prior) -> None:
    both = sample_images(prior, ["a red cube", "a blue cube"], steps=3, seed=4)
    side = prior.sample_size * prior.vae_scale_factor
    assert both.shape == (2, 3, side, side)
    assert both.min() >= 0 and both.max() <= 1
    again = sample_images(prior, ["a red cube", "a red stone"], steps=3, seed=4)
    assert torch.equal(both[0], again[0])
    assert not torch.equal(both[1], again[1])
    assert not torch.equal(both[0], sample_images(prior, ["a red cube"], steps=3, seed=5)[0])


def test_guidance_of_none_forgets_the_prompt(prior: Prior) -> None:
    blue, red = (sample_images(prior, [p], steps=3, guidance_scale=0.0) for p in ("a blue cube", "a red cube"))
    assert torch.equal(blue, red)


@pytest.mark.parametrize(("own", "expected"), [(None, 7.5), (3.5, 3.5)])
def test_guidance_is_what_suits_the_prior(tmp_path: Path, own: float | None, expected: float) -> None:
    """Priors differ in it: 7.5 is usual for Stable Diffusion, the embedded one is best at less."""
    folder = make_prior(tmp_path / "prior")
    if own is not None:
        (folder / "latentkiln.json").write_text(json.dumps({"sample": {"guidance_scale": own}}))
    there = load_prior(str(folder))
    own_scale, told = (sample_images(there, ["a red cube"], steps=3, guidance_scale=g) for g in (None, expected))
    assert torch.equal(own_scale, told)


def test_a_size_of_ones_own(prior: Prior) -> None:
    assert sample_images(prior, ["a cube"], steps=2, size=12).shape[-1] == 12 * prior.vae_scale_factor


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


def test_larger_images_are_drawn_fewer_at_a_time(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory does not grow with the size asked for; the images are those of their seeds and places."""
    batches = []
    whole = Prior.decode

    def recording(self: Prior, latents: torch.Tensor) -> torch.Tensor:
        batches.append(len(latents))
        return whole(self, latents)

    monkeypatch.setattr(Prior, "decode", recording)
    images = sample_images(prior, ["a red cube"] * 5, steps=1, size=2 * prior.sample_size)
    assert batches == [4, 1]
    assert len(images) == 5 and not torch.equal(images[0], images[4])


def test_the_command_draws_the_size_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_prior(tmp_path / "prior")
    reduction = load_prior(str(folder)).vae_scale_factor
    words = ["prior", "sample", "a red cube", "--prior", str(folder), "--count", "1", "--steps", "1"]
    out = tmp_path / "grid.png"
    assert main([*words, "--size", "96", "--out", str(out)]) == 0
    assert Image.open(out).size == (960, 960)  # one image of 96 pixels, enlarged tenfold to be looked at
    capsys.readouterr()
    assert main([*words, "--size", str(10 * reduction + 1), "--out", str(tmp_path / "none.png")]) == 2
    error = capsys.readouterr().err.strip()
    assert f"--size {10 * reduction + 1}" in error and f"try {11 * reduction}" in error and "\n" not in error
    assert not (tmp_path / "none.png").exists()
