"""Loads the networks of a prior from a diffusers folder or a single file. Downloads and unpickles nothing.

Constructs only the classes listed below, whatever ``model_index.json`` says.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import PriorError
from pipeline.prior import single_file
from pipeline.prior.hub import weights_variant
from pipeline.prior.identity import PriorIdentity, read_config
from pipeline.prior.vocabulary import find_vocabulary

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
VAES = ("AutoencoderTiny", "AutoencoderKL")


@dataclass
class Components:
    """The networks of a prior, in float32 or as stored. ``tokenizers`` and ``texts`` have one entry, or two for SDXL.

    ``zero_empty``: the embedding of an empty negative prompt is zero, not that of "" (SDXL).
    """

    pipeline: str
    tokenizers: list[Any]
    texts: list[Any]
    unet: Any
    vae: Any
    scheduler: Any
    zero_empty: bool = False

    @property
    def is_xl(self) -> bool:
        return self.pipeline == "StableDiffusionXLPipeline"


def load_components(identity: PriorIdentity, dtype: torch.dtype = torch.float32) -> Components:
    """Loads every network of the prior. Loads the UNet directly in ``dtype``, because float32 may exceed the memory.

    Raises PriorError, in one line, for missing, damaged or unsupported files.
    """
    path = identity.file or identity.folder
    try:
        _silence()
        components = _from_file(identity.file, dtype) if identity.file else _from_folder(identity.folder, dtype)
    except PriorError:
        raise
    except Exception as error:  # diffusers and transformers raise many kinds for a damaged folder
        reason = " ".join(str(error).split())[:300]
        raise PriorError(f"{path}: cannot be loaded ({type(error).__name__}: {reason})") from error
    channels, latents = int(components.unet.config.in_channels), int(components.vae.config.latent_channels)
    if channels != latents:
        raise PriorError(
            f"{path}: its UNet takes {channels} channels and its autoencoder has {latents}; inpainting, "
            "upscaling and editing models are not supported"
        )
    return components


def _silence() -> None:
    # Neither library may read files outside the folder.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import diffusers
    from transformers.utils import logging

    for library in (logging, diffusers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _checked_pipeline(path: Path, index: dict[str, Any]) -> str:
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise PriorError(f"{path}: a {name} is not supported; supported: {', '.join(PIPELINES)}")
    return str(name)


def _checked_vae(path: Path, index: dict[str, Any]) -> Any:
    import diffusers

    entry = index.get("vae")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name not in VAES:
        raise PriorError(f"{path}: the autoencoder {name!r} is not supported; supported: {', '.join(VAES)}")
    return getattr(diffusers, str(name))


def _from_folder(folder: Path, dtype: torch.dtype) -> Components:
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    index = read_config(folder, "", "model_index.json")
    pipeline, vae = _checked_pipeline(folder, index), _checked_vae(folder, index)

    def weights(component: str, cls: Any, **options: Any) -> Any:
        component_folder = folder / component
        variant = weights_variant(p.name for p in component_folder.iterdir()) if component_folder.is_dir() else None
        return cls.from_pretrained(
            component_folder, local_files_only=True, use_safetensors=True, variant=variant, **options
        )

    classes = [("", CLIPTextModel)] + ([("_2", CLIPTextModelWithProjection)] if "XL" in pipeline else [])
    return Components(
        pipeline,
        [CLIPTokenizer.from_pretrained(folder / f"tokenizer{n}", local_files_only=True) for n, _ in classes],
        [weights(f"text_encoder{n}", cls) for n, cls in classes],
        weights("unet", diffusers.UNet2DConditionModel, dtype=dtype),
        weights("vae", vae),
        diffusers.DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True),  # type: ignore[no-untyped-call]  # diffusers
        bool(index.get("force_zeros_for_empty_prompt", "XL" in pipeline)),
    )


def _from_file(path: Path, dtype: torch.dtype) -> Components:
    import diffusers
    from safetensors.torch import load_file
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind, index = single_file.describe(path)
    pipeline, vae_class = _checked_pipeline(path, index), _checked_vae(path, index)
    tensors = load_file(path)

    def converted(component: str, cls: Any, prefix: str, **options: Any) -> Any:
        component_tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        config = str(single_file.config_folder(path, kind, component))
        return cls.from_single_file(
            component_tensors, config=config, subfolder=component, local_files_only=True, **options
        )

    def text(component: str, cls: Any, prefix: str) -> Any:
        config = cls.config_class.from_pretrained(single_file.config_folder(path, kind, component) / component)
        return _text_model(path, cls(config), tensors, prefix)

    beside = single_file.sidecar(path) / "vae"
    if any(beside.glob(f"*{single_file.SUFFIX}")):
        vae = vae_class.from_pretrained(beside, local_files_only=True, use_safetensors=True)
    elif not any(name.startswith(single_file.VAE) for name in tensors):
        raise PriorError(f"{path}: it has no autoencoder; put one in the diffusers layout into {beside}")
    else:
        vae = converted("vae", vae_class, single_file.VAE)
    numbers = ("", "_2") if kind == "sdxl" else ("",)
    if kind == "sdxl":
        texts = [
            text("text_encoder", CLIPTextModel, "conditioner.embedders.0.transformer."),
            text("text_encoder_2", CLIPTextModelWithProjection, "conditioner.embedders.1.model."),
        ]
    else:
        prefix = "cond_stage_model.transformer." if kind == "sd1" else "cond_stage_model.model."
        texts = [text("text_encoder", CLIPTextModel, prefix)]
    scheduler = single_file.config_folder(path, kind, "scheduler") / "scheduler"
    return Components(
        pipeline,
        [_tokenizer(path, kind, f"tokenizer{n}") for n in numbers],
        texts,
        converted("unet", diffusers.UNet2DConditionModel, single_file.UNET, dtype=dtype),
        vae,
        diffusers.DDPMScheduler.from_pretrained(scheduler, local_files_only=True),  # type: ignore[no-untyped-call]  # diffusers
        bool(index.get("force_zeros_for_empty_prompt", kind == "sdxl")),
    )


def _tokenizer(path: Path, kind: str, component: str) -> Any:
    """Returns a tokenizer with the family's settings (SD 2.x pads with "!") and this machine's vocabulary."""
    from transformers import CLIPTokenizer

    folder = single_file.config_folder(path, kind, component)
    if (folder / component / "tokenizer.json").is_file():
        return CLIPTokenizer.from_pretrained(folder / component, local_files_only=True)
    settings = read_config(folder, component, "tokenizer_config.json")
    vocabulary, merges = find_vocabulary(path)
    known = ("model_max_length", "bos_token", "eos_token", "unk_token", "pad_token")
    make: Any = CLIPTokenizer
    return make(vocab=vocabulary, merges=merges, **{key: settings[key] for key in known if key in settings})


# Names in OpenCLIP's text encoder (SD 2.x, SDXL's second) and in transformers.
_OPEN_CLIP = (
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.(\d+)\.ln_1\.", r"encoder.layers.\1.layer_norm1."),
    (r"^transformer\.resblocks\.(\d+)\.ln_2\.", r"encoder.layers.\1.layer_norm2."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
)


def _text_model(path: Path, model: Any, tensors: dict[str, torch.Tensor], prefix: str) -> Any:
    """Loads the checkpoint's weights under ``prefix``, in CLIP's or OpenCLIP's naming, into ``model``.

    SD 2.x does not use its encoder's last layer. The config omits it, and so do we.
    """
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        short = name.removeprefix(prefix).removeprefix("text_model.")
        if short == "text_projection":
            converted["text_projection.weight"] = tensor.T.contiguous()
            continue
        for pattern, replacement in _OPEN_CLIP:
            short = re.sub(pattern, replacement, short)
        if "in_proj_" in short:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                converted[short.replace("in_proj_", f"{letter}_proj.")] = third.contiguous()
        else:
            converted[short] = tensor
    # Some releases of transformers nest the encoder one level deeper.
    expected = {name: name.removeprefix("text_model.") for name in model.state_dict()}
    missing = [name for name, short in expected.items() if short not in converted and "position_ids" not in name]
    if missing:
        raise PriorError(f"{path}: its text encoder lacks {len(missing)} tensors, the first for {missing[0]}")
    model.load_state_dict(
        {name: converted[short] for name, short in expected.items() if short in converted}, strict=False
    )
    return model
