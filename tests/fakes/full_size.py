"""Stable Diffusion in its full size with random weights, made from our configs: for memory and time, not for pictures.

Nothing is downloaded. The weights are small enough that 50 layers of them give finite numbers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fake_prior import WORDS, word_vocabulary


def make_full_size(folder: Path, kind: str = "sd1", *, seed: int = 0) -> Path:
    """Writes ``kind`` (a folder of ``pipeline/prior/configs``) in bfloat16, in the diffusers layout; 2.1 GB for sd1."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from pipeline.prior.single_file import CONFIGS

    configs = CONFIGS / kind
    shutil.copytree(configs, folder)
    index = json.loads((configs / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index))
    _save(folder / "unet", diffusers.UNet2DConditionModel, seed)
    _save(folder / "vae", diffusers.AutoencoderKL, seed + 1)
    _save(folder / "text_encoder", CLIPTextModel, seed + 2)
    if (configs / "text_encoder_2").is_dir():
        _save(folder / "text_encoder_2", CLIPTextModelWithProjection, seed + 3)
        (folder / "latent_rgb.json").write_text(json.dumps({"matrix": [[0.1] * 3] * 4, "bias": [0.5] * 3}))
    vocabulary, merges = word_vocabulary(WORDS)
    for part in ("tokenizer", "tokenizer_2"):
        if (configs / part).is_dir():
            CLIPTokenizer(
                vocab=vocabulary, merges=merges, model_max_length=77, unk_token="<|endoftext|>",
                pad_token="<|endoftext|>",
            ).save_pretrained(folder / part)  # fmt: skip
    return folder


def _save(folder: Path, cls: Any, seed: int) -> None:
    """Fills one network in place, in bfloat16 from the start: never more than one copy of it is in memory."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        if hasattr(cls, "load_config"):
            model = cls.from_config(json.loads((folder / "config.json").read_text()))
        else:
            model = cls(cls.config_class.from_pretrained(folder))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0, 0.5 * fan_in**-0.5, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    model.save_pretrained(folder, safe_serialization=True)
