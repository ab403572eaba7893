"""A tiny latent diffusion prior in the diffusers layout, made by code in a second: for tests of the plumbing."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ["a", "red", "blue", "brick", "stone", "cube", "front", "side", "back", "view", "close", "up"]


def make_prior(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    reduction: int = 4,
    channels: int = 4,
    words: list[str] | None = WORDS,
    seed: int = 0,
) -> Path:
    """Writes a randomly initialised StableDiffusionPipeline of a few thousand parameters to ``folder``."""
    import torch
    from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    vocabulary, merges = word_vocabulary(words or WORDS)
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=12, pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    end = vocabulary["<|endoftext|>"]
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=12, projection_dim=16, bos_token_id=end - 1,
            eos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    blocks = {2: 2, 4: 3, 8: 4}[reduction]
    vae = AutoencoderTiny(
        latent_channels=channels, encoder_block_out_channels=(8,) * blocks, decoder_block_out_channels=(8,) * blocks,
        num_encoder_blocks=(1,) * blocks, num_decoder_blocks=(1,) * blocks, scaling_factor=0.5,
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
    if words is not None:
        (folder / "words.json").write_text(json.dumps({"words": words}))
    latent_rgb = {"matrix": [[0.1, 0.1, 0.1]] * channels, "bias": [0.5] * 3, "r2": [0.9] * 3}
    (folder / "latent_rgb.json").write_text(json.dumps(latent_rgb))
    paint = {"guidance_scale": 5.0, "views": 2, "view_size": 8, "texture_size": 64, "learning_rate": 0.05}
    (folder / "latentkiln.json").write_text(json.dumps({"paint": {**paint, "view_words": True}}))
    return folder


def word_vocabulary(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP BPE tables in which each word is one token: letters first, then each word's merges."""
    tokens = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [","]
    tokens += [f"{token}</w>" for token in tokens]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            tokens.append(pieces[0])
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, merges
