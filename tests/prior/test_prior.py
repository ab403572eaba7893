"""The prior: found, hashed, loaded from its folder alone, and every constant read from its configs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_prior import make_prior

from pipeline.core.errors import PriorError
from pipeline.prior.identity import find_prior, prior_identity
from pipeline.prior.latent_rgb import LatentRgb, read_latent_rgb
from pipeline.prior.load import load_prior, to_image
from pipeline.prior.words import keep_known, surface_prompt, unknown_words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


def test_constants_come_from_the_configs(folder: Path, tmp_path: Path) -> None:
    prior = load_prior(folder)
    assert (prior.vae_scale_factor, prior.latent_channels, prior.sample_size) == (4, 4, 8)
    assert (prior.train_steps, prior.prediction_type) == (1000, "epsilon")
    other = load_prior(make_prior(tmp_path / "other", reduction=8, channels=3, prediction_type="v_prediction"))
    assert (other.vae_scale_factor, other.latent_channels, other.prediction_type) == (8, 3, "v_prediction")
    assert other.decode(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 64, 64)


def test_scaling_is_applied_both_ways(folder: Path) -> None:
    prior = load_prior(folder)
    image = torch.rand(1, 3, 32, 32)
    raw = prior.vae.encode(image * 2 - 1).latents
    assert torch.allclose(prior.encode(image), raw * 0.5)
    expected = ((prior.vae.decode(raw).sample + 1) / 2).clamp(0, 1)
    assert torch.allclose(prior.decode(raw * 0.5), expected, atol=1e-6)


def test_encode_lets_the_gradient_through(folder: Path) -> None:
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    load_prior(folder).encode(image).square().sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_v_prediction_is_converted_to_epsilon(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "v"
    shutil.copytree(folder, copy)
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"v_prediction"'))
    epsilon, velocity = load_prior(folder), load_prior(copy)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    text = epsilon.embed(["a red cube", "a blue cube"])
    abar = epsilon.alphas_cumprod[t].view(-1, 1, 1, 1)
    # Both hold the same network, so one's epsilon is the other's v.
    expected = abar.sqrt() * epsilon.predict_noise(x, t, text) + (1 - abar).sqrt() * x
    assert torch.allclose(velocity.predict_noise(x, t, text), expected, atol=1e-6)


def test_a_prompt_embeds_alike_in_any_company(folder: Path) -> None:
    prior = load_prior(folder)
    together = prior.embed(["a red brick", "a blue cube", "a red brick"])
    alone = load_prior(folder).embed(["a blue cube"])
    assert torch.equal(together.states[1], alone.states[0])
    assert torch.equal(together.states[0], together.states[2])
    assert not torch.equal(together.states[0], together.states[1])


def test_unknown_words_are_named_and_do_not_steer(folder: Path) -> None:
    prior = load_prior(folder)
    assert prior.unknown_words("a zebra-striped RED cube, zebra") == ["zebra", "striped"]
    assert torch.equal(prior.embed(["a zebra red cube"]).states, prior.embed(["a red cube"]).states)


def test_without_a_word_list_every_word_is_taken(tmp_path: Path) -> None:
    assert unknown_words(tmp_path, "anything goes") == []
    assert keep_known(tmp_path, "Anything, goes!") == "Anything, goes!"


def test_identity_follows_content_not_place(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(folder, copy)
    assert prior_identity(copy).identity == prior_identity(folder).identity
    (copy / "README.md").write_text("a card changes nothing")
    assert prior_identity(copy).identity == prior_identity(folder).identity
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert prior_identity(copy).identity != prior_identity(folder).identity


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda d: d / "nowhere", "no such prior"),
        (lambda d: (d / "empty").mkdir() or d / "empty", "model_index.json"),
        (lambda d: d / "model.ckpt", "pickled checkpoints"),
    ],
)
def test_a_prior_that_is_none_is_refused_in_one_line(make, part: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PriorError, match=part) as caught:
        find_prior(make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated weights", "no weights", "bad json", "pickle only", "foreign vae"])
def test_a_damaged_folder_is_one_line(damage: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(folder, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "bad json":
        (copy / "unet" / "config.json").write_text("{")
    elif damage == "pickle only":
        weights.rename(weights.with_suffix(".bin"))
    else:
        index = copy / "model_index.json"
        index.write_text(index.read_text().replace("AutoencoderTiny", "os.system"))
    with pytest.raises(PriorError) as caught:
        load_prior(copy)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


def test_the_linear_map_is_inverted_with_a_ridge() -> None:
    rng = np.random.default_rng(0)
    linear = LatentRgb(rng.normal(size=(4, 3)), np.array([0.4, 0.5, 0.6]))
    colour = np.array([0.9, 0.2, 0.1])
    assert np.allclose(linear.invert(colour, ridge=1e-9) @ linear.matrix + linear.bias, colour, atol=1e-4)
    assert np.linalg.norm(linear.invert(colour, ridge=10)) < np.linalg.norm(linear.invert(colour))


def test_stable_diffusions_map_is_the_published_one(tmp_path: Path) -> None:
    linear = read_latent_rgb(tmp_path, 4, 8)
    assert np.allclose(np.array([1, 0, 0, 0]) @ linear.matrix + linear.bias, (np.array([0.298, 0.207, 0.208]) + 1) / 2)
    with pytest.raises(PriorError, match="not Stable Diffusion's"):
        read_latent_rgb(tmp_path, 4, 4)


def test_a_damaged_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latent_rgb.json").write_text(json.dumps({"matrix": [[1, 2, 3]], "bias": [0, 0, 0]}))
    with pytest.raises(PriorError, match="4x3"):
        read_latent_rgb(tmp_path, 4, 4)


def test_images_are_rounded_and_clamped() -> None:
    image = to_image(torch.tensor([[[-1.0, 0.5]], [[0.2, 2.0]], [[1.0, 0.0]]]))
    assert image.tolist() == [[[0, 51, 255], [128, 255, 0]]]


@pytest.mark.parametrize(
    ("prompt", "surface"),
    [
        ("a mossy object", "a mossy surface"),
        ("a red brick castle", "a red brick surface"),
        ("A Red Brick CASTLE", "A Red Brick surface"),
        ("a wooden barrel with iron bands", "a wooden surface with iron bands"),
        ("a vase made of gold, shiny", "a surface made of gold, shiny"),
        ("a mossy stone, old", "a mossy stone surface, old"),
        ("a zebra", "a zebra surface"),
        ("a red mushroom", "a red mushroom"),  # no material is said: cap and stem have their own
        ("a white snowman", "a white snowman"),
        ("a red object", "a red surface"),
        ("a boxy thing", "a boxy surface"),
        ("a gold <object>", "a gold <object> surface"),  # a concept's name is no noun of ours
    ],
)
def test_close_ups_ask_for_the_surface(prompt: str, surface: str) -> None:
    assert surface_prompt(find_prior("embedded"), prompt) == surface


def test_other_priors_take_close_ups_as_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    assert load_prior(folder).surface_prompt("a mossy object") == "a mossy object"
    (tmp_path / "words.json").write_text('{"words": ["moss"]}')
    assert surface_prompt(tmp_path, "a mossy object") == "a mossy object"
    none = tmp_path / "none"
    none.mkdir()
    (none / "words.json").write_text(
        '{"words": [], "surface": "surface", "materials": {}, "objects": {}, "any_object": []}'
    )
    assert surface_prompt(none, "a mossy object") == "a mossy object"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "words.json").write_text('{"words": [], "surface": "surface", "materials": []}')
    with pytest.raises(PriorError, match="not a list of words"):
        surface_prompt(damaged, "a mossy object")
