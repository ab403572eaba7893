"""SD 2.x, SDXL and single files: loaded from what is on the machine alone, and guided as diffusers' parts say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_variants import make_diffusers, make_single_file, tokenizer, word_vocabulary

from pipeline.core.errors import PriorError
from pipeline.core.rng import torch_generator
from pipeline.core.scene import View
from pipeline.optimize.prompts import PromptTable
from pipeline.optimize.sds import GuidanceRequest, SdsSettings, sample_noise, sds_gradients
from pipeline.prior import single_file
from pipeline.prior.identity import find_prior, prior_identity
from pipeline.prior.load import Prior, load_prior
from pipeline.prior.vocabulary import find_vocabulary, unpack

KINDS = ("sd1", "sd2-768-v", "sdxl")
PROMPTS = ("a red cube", "a blue brick", "a stone cube", "red stone")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("variants")
    return {kind: make_diffusers(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def priors(folders: dict[str, Path]) -> dict[str, Prior]:
    return {kind: load_prior(folder) for kind, folder in folders.items()}


def query(prior: Prior, seed: int, scale: float, negative: str) -> GuidanceRequest:
    latents = torch.randn(1, 4, 8, 8, generator=torch_generator(seed, "z"))
    t, eps = sample_noise(SdsSettings(scale), prior, seed, 0, 10, (1, 4, 8, 8))
    table = PromptTable(prior, PROMPTS[seed % 4], negative, view_words=False, close_up=False)
    return GuidanceRequest(latents, table.text([View("front", False)]), table.negative(1), t, eps, scale)


def straight_line(folder: Path, q: GuidanceRequest, prompt: str, negative: str) -> torch.Tensor:
    """w(t) (eps_hat - eps) from diffusers' own pipeline: its prompt encoding, UNet and scheduler, nothing of ours."""
    import diffusers

    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    added: list[Any] = [None, None]
    with torch.no_grad():
        if hasattr(pipe, "text_encoder_2"):
            # Without a negative prompt, as its users call it, SDXL steers away from zeros.
            told, empty, told_pool, empty_pool = pipe.encode_prompt(prompt, negative_prompt=negative or None)
            side = pipe.unet.config.sample_size * pipe.vae_scale_factor
            ids = pipe._get_add_time_ids(
                (side, side), (0, 0), (side, side), torch.float32, pipe.text_encoder_2.config.projection_dim
            )
            added = [{"text_embeds": pool, "time_ids": ids} for pool in (empty_pool, told_pool)]
        else:
            told, empty = pipe.encode_prompt(prompt, "cpu", 1, True, negative_prompt=negative)
        scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
        noisy = scheduler.add_noise(q.latents, q.eps, q.t)
        outs = [
            pipe.unet(noisy, q.t, encoder_hidden_states=text, added_cond_kwargs=more).sample
            for text, more in zip((empty, told), added, strict=True)
        ]
        guided = outs[0] + q.guidance_scale * (outs[1] - outs[0])
        abar = scheduler.alphas_cumprod[q.t].view(-1, 1, 1, 1)
        if scheduler.config.prediction_type == "v_prediction":
            guided = abar.sqrt() * guided + (1 - abar).sqrt() * noisy
    return abar.sqrt() * (1 - abar) * (guided - q.eps)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_what_diffusers_parts_give_for_any_lockstep(
    kind: str, folders: dict[str, Path], priors: dict[str, Prior]
) -> None:
    prior = priors[kind]
    rows = [
        query(prior, 0, 7.5, ""),
        query(prior, 1, 100.0, "blue"),
        query(prior, 2, 0.0, ""),
        query(prior, 3, 30.0, "red"),
    ]
    expected = [
        straight_line(folders[kind], q, PROMPTS[i], negative)
        for i, (q, negative) in enumerate(zip(rows, ("", "blue", "", "red"), strict=True))
    ]
    for width in (1, 2, 4):
        mine = [g for i in range(0, 4, width) for g in sds_gradients(prior, rows[i : i + width], width)]
        for found, wanted, row in zip(mine, expected, rows, strict=True):
            # Guidance multiplies a difference of two float32 outputs: so it does their rounding.
            scale = max(1.0, row.guidance_scale / 10) * max(1.0, float(wanted.abs().max()))
            assert (found - wanted).abs().max() < 1e-5 * scale
    alone = sds_gradients(prior, [rows[1]], 4)[0]
    assert torch.equal(alone, sds_gradients(prior, rows, 4)[1])
    assert torch.equal(alone, sds_gradients(prior, [rows[3], rows[2], rows[1]], 4)[2])


def test_a_distilled_unet_without_a_middle_is_guided_alike(folders: dict[str, Path], tmp_path: Path) -> None:
    """As BK-SDM and its like: the same classes with blocks left out."""
    from diffusers import UNet2DConditionModel

    copy = tmp_path / "distilled"
    shutil.copytree(folders["sd1"], copy)
    config = json.loads((copy / "unet" / "config.json").read_text())
    shutil.rmtree(copy / "unet")
    torch.manual_seed(3)
    UNet2DConditionModel.from_config({**config, "mid_block_type": None}).save_pretrained(copy / "unet")
    row = query(load_prior(copy), 0, 7.5, "")
    (found,) = sds_gradients(load_prior(copy), [row], 1)
    wanted = straight_line(copy, row, PROMPTS[0], "")
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_constants_of_each_kind(priors: dict[str, Prior]) -> None:
    assert {kind: prior.prediction_type for kind, prior in priors.items()} == {
        "sd1": "epsilon", "sd2-768-v": "v_prediction", "sdxl": "epsilon",
    }  # fmt: skip
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for kind, scaling in (("sdxl", 0.13025), ("sd1", 0.18215)):
        with torch.no_grad():
            raw = priors[kind].vae.encode(image * 2 - 1).latent_dist.mean
        torch.testing.assert_close(priors[kind].encode(image), raw * scaling)
    assert all(prior.vae_scale_factor == 8 for prior in priors.values())
    text = priors["sdxl"].embed(["a red cube"])
    assert text.states.shape == (1, 12, 40) and text.pooled is not None and text.pooled.shape == (1, 24)
    assert priors["sd1"].embed(["a red cube"]).pooled is None


def test_sdxl_steers_away_from_zeros_only_where_no_negative_prompt_is(priors: dict[str, Prior]) -> None:
    prior = priors["sdxl"]
    assert not prior.embed([""], negative=True).states.any()
    assert prior.embed([""]).states.any() and prior.embed(["blue"], negative=True).states.any()
    assert priors["sd1"].embed([""], negative=True).states.any()


def test_sdxl_needs_a_map_of_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "xl"
    shutil.copytree(folders["sdxl"], copy)
    (copy / "latent_rgb.json").unlink()
    with pytest.raises(PriorError, match="prior fit-rgb"):
        load_prior(copy)
    assert load_prior(copy, fitted=False).vae_scale_factor == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_is_its_folder(
    kind: str, folders: dict[str, Path], priors: dict[str, Prior], tmp_path: Path
) -> None:
    path = make_single_file(folders[kind], tmp_path / "model.safetensors", kind)
    assert single_file.family(path) == kind
    mine, folder = load_prior(path), priors[kind]
    assert mine.name == "model" and (mine.prediction_type, mine.vae_scale_factor) == (folder.prediction_type, 8)
    a, b = mine.embed(["a red cube", ""]), folder.embed(["a red cube", ""])
    assert torch.equal(a.states, b.states)
    if a.pooled is not None and b.pooled is not None:
        assert torch.allclose(a.pooled, b.pooled, atol=1e-5)
    assert (a.pooled is None) == (b.pooled is None)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    assert torch.allclose(mine.predict_noise(x, t, a), folder.predict_noise(x, t, b), atol=1e-5)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(mine.encode(image), folder.encode(image))
    assert torch.equal(mine.decode(x), folder.decode(x))


def test_which_model_a_file_is_and_what_it_is_not(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    v = make_single_file(folders["sd2-768-v"], tmp_path / "v.safetensors", "sd2-768-v", sidecar=False)
    assert single_file.family(v) == "sd2-768-v"
    tensors = load_file(v)
    stated = tmp_path / "stated.safetensors"
    save_file(tensors, stated, metadata={"modelspec.prediction_type": "epsilon"})
    assert single_file.family(stated) == "sd2"
    save_file(tensors | {"global_step": torch.tensor(875_000)}, stated)
    assert single_file.family(stated) == "sd2"
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for change, part in (
        ({first: torch.zeros(8, 9, 3, 3)}, "inpainting"),
        ({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}, "refiner"),
    ):
        save_file(tensors | change, stated)
        with pytest.raises(PriorError, match=part):
            single_file.family(stated)
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, stated)
    with pytest.raises(PriorError, match="belongs in a manifest's 'lora'"):
        find_and_identify(stated)


def find_and_identify(path: Path) -> str:
    return prior_identity(find_prior(path)).identity


@pytest.mark.parametrize("damage", ["cut off", "no json", "long header", "empty"])
def test_a_damaged_file_is_one_line(damage: str, folders: dict[str, Path], tmp_path: Path) -> None:
    path = make_single_file(folders["sd1"], tmp_path / "m.safetensors", "sd1")
    data = path.read_bytes()
    path.write_bytes(
        {"cut off": data[:-10], "no json": data[:8] + b"x" * 100, "long header": b"\xff" * 64, "empty": b""}[damage]
    )
    with pytest.raises(PriorError, match="not a safetensors file") as caught:
        load_prior(path)
    assert "\n" not in str(caught.value)


def test_a_files_identity_is_its_bytes_and_configs(folders: dict[str, Path], tmp_path: Path) -> None:
    path = make_single_file(folders["sd1"], tmp_path / "m.safetensors", "sd1")
    before = find_and_identify(path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(path, moved / path.name)
    shutil.copytree(path.with_suffix(""), moved / "m")
    assert find_and_identify(moved / path.name) == before
    scheduler = moved / "m" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"epsilon"', '"v_prediction"'))
    assert find_and_identify(moved / path.name) != before
    assert load_prior(moved / path.name).prediction_type == "v_prediction"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert find_and_identify(path) != before


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pkl"])
def test_pickles_are_refused_with_the_command_that_converts_them(suffix: str, tmp_path: Path) -> None:
    import re
    import subprocess
    import sys

    path = tmp_path / f"model{suffix}"
    getattr(torch, "save")({"state_dict": {"x": torch.arange(3)}, "epoch": 3}, path)  # noqa: B009
    with pytest.raises(PriorError, match="refused") as caught:
        load_prior(path)
    program = re.search(r'python -c "(.*)"', str(caught.value))
    assert program is not None and str(caught.value).endswith(f"{path} {tmp_path / 'model.safetensors'}")
    if suffix != ".ckpt":
        return  # the same program
    target = tmp_path / "model.safetensors"
    subprocess.run([sys.executable, "-c", program[1], path, target], check=True)
    from safetensors.torch import load_file

    assert list(load_file(target)) == ["x"]


def test_our_configs_are_the_published_architectures() -> None:
    """Numbers of parameters as published (UNet 860 M, 866 M and 2.6 G; text 123 M, 340 M, 695 M; decoder 84 M)."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    def count(kind: str, part: str, cls: Any) -> int:
        with torch.device("meta"):
            folder = single_file.CONFIGS / kind / part
            if cls.__module__.startswith("diffusers"):
                model = cls.from_config(json.loads((folder / "config.json").read_text()))
            else:
                model = cls(cls.config_class.from_pretrained(folder))
        return sum(p.numel() for p in model.parameters())

    unet, vae = diffusers.UNet2DConditionModel, diffusers.AutoencoderKL
    assert count("sd1", "unet", unet) == 859_520_964
    assert count("sd2", "unet", unet) == count("sd2-768-v", "unet", unet) == 865_910_724
    assert count("sdxl", "unet", unet) == 2_567_463_684
    assert {count(kind, "vae", vae) for kind in ("sd1", "sd2", "sdxl")} == {83_653_863}
    assert count("sd1", "text_encoder", CLIPTextModel) == 123_060_480
    assert count("sd2", "text_encoder", CLIPTextModel) == 340_387_840
    assert count("sdxl", "text_encoder_2", CLIPTextModelWithProjection) == 694_659_840


def test_the_vocabulary_comes_from_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("pipeline.prior.vocabulary.PACKAGES", ())
    path = tmp_path / "m.safetensors"
    with pytest.raises(PriorError, match="open_clip_torch"):
        find_vocabulary(path)
    vocabulary, merges = word_vocabulary(["red", "cube"])
    cached = tmp_path / "hub" / "models--org--sd" / "snapshots" / "abc" / "tokenizer"
    cached.mkdir(parents=True)
    (cached / "vocab.json").write_text(json.dumps(vocabulary))
    (cached / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    assert find_vocabulary(path) == (vocabulary, merges)
    assert tokenizer(*find_vocabulary(path), "<|endoftext|>")("red cube").input_ids[1] == vocabulary["red</w>"]


def test_packed_merges_make_clips_vocabulary(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "bpe.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write("header\n" + "\n".join(f"m{i} x" for i in range(60_000)))
    numbers, merges = unpack(path)
    # As CLIP counts: 256 bytes, 256 that end a word, 48,894 merges, two marks; "!" is 0, "a</w>" 320.
    assert len(numbers) == 49_408 and len(merges) == 48_894
    assert (numbers["!"], numbers["a</w>"], numbers["<|startoftext|>"], numbers["<|endoftext|>"]) == (
        0,
        320,
        49406,
        49407,
    )
