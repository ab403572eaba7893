"""More tiny priors made by code: SD 2.x with v-prediction, SDXL, any of them as one file, LoRAs and learned words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from fake_prior import WORDS, word_vocabulary

LENGTH = 12


def make_diffusers(
    folder: Path,
    kind: str = "sd1",
    *,
    prediction_type: str | None = None,
    words: list[str] | None = None,
    seed: int = 0,
) -> Path:
    """A randomly initialised pipeline of ``kind`` (sd1, sd2, sd2-768-v, sdxl) in the layout of its big sister.

    As there: an AutoencoderKL of reduction 8, linear projections and a gelu encoder from 2.x on, two encoders, pooled
    embeddings, time ids and another scaling factor for SDXL.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        DDPMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(seed)
    xl = kind == "sdxl"
    new = kind != "sd1"
    vocabulary, merges = word_vocabulary(words or WORDS)
    tokenizers = [
        tokenizer(vocabulary, merges, "!" if n or kind.startswith("sd2") else "<|endoftext|>") for n in range(1 + xl)
    ]
    texts = [text_encoder(len(vocabulary), 16, "gelu" if kind.startswith("sd2") else "quick_gelu", projected=False)]
    if xl:
        texts.append(text_encoder(len(vocabulary), 24, "gelu", projected=True))
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=40 if xl else 16, attention_head_dim=[2, 4] if new else 2, use_linear_projection=new,
        transformer_layers_per_block=[1, 2] if xl else 1,
        **({"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8} if xl else {}),
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4,
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=4, sample_size=64,
        scaling_factor=0.13025 if xl else 0.18215, force_upcast=xl,
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
        prediction_type=prediction_type or ("v_prediction" if kind == "sd2-768-v" else "epsilon"),
    )  # fmt: skip
    common = {"vae": vae, "text_encoder": texts[0], "tokenizer": tokenizers[0], "unet": unet, "scheduler": scheduler}
    if xl:
        pipeline: Any = StableDiffusionXLPipeline(
            **common, text_encoder_2=texts[1], tokenizer_2=tokenizers[1], add_watermarker=False
        )
    else:
        pipeline = StableDiffusionPipeline(
            **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    if xl:
        write_map(folder)
    paint = {"guidance_scale": 5.0, "views": 1, "view_size": 8, "texture_size": 128, "learning_rate": 0.05}
    (folder / "latentkiln.json").write_text(json.dumps({"paint": paint}))
    return folder


def write_map(folder: Path) -> None:
    """A map from latents to colours, as ``prior fit-rgb`` writes it."""
    (folder / "latent_rgb.json").write_text(json.dumps({"matrix": [[0.1, 0.1, 0.1]] * 4, "bias": [0.5] * 3}))


def tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]], pad: str) -> Any:
    """A CLIP tokenizer; ``pad`` "!" pads with a token of its own, as SD 2.x does."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=LENGTH, pad_token=pad if pad in vocabulary else "a</w>",
        unk_token="<|endoftext|>",
    )  # fmt: skip


def text_encoder(tokens: int, width: int, act: str, *, projected: bool) -> Any:
    """A CLIP text encoder of two layers; ``projected`` with the projection that SDXL's second one has."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=tokens, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, projection_dim=width, hidden_act=act, bos_token_id=tokens - 2,
        eos_token_id=tokens - 1, pad_token_id=0,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


# Single files -------------------------------------------------------------------------------------------------------

_RESNET = (("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("out_layers.0", "norm2"), ("out_layers.3", "conv2"),
           ("emb_layers.1", "time_emb_proj"), ("skip_connection", "conv_shortcut"))  # fmt: skip
_OPEN_CLIP = (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
              ("self_attn.out_proj", "attn.out_proj"))  # fmt: skip


def make_single_file(folder: Path, target: Path, kind: str, *, sidecar: bool = True, metadata: Any = None) -> Path:
    """The pipeline in ``folder`` as one checkpoint in the original layout, and its configs as the sidecar.

    The names are made the other way round than any loader does it.
    """
    from safetensors.torch import load_file, save_file

    def part(name: str, file: str = "diffusion_pytorch_model") -> dict[str, Any]:
        return load_file(folder / name / f"{file}.safetensors")

    tensors = {f"model.diffusion_model.{n}": t for n, t in _unet(part("unet"), folder).items()}
    tensors |= {f"first_stage_model.{n}": t for n, t in _vae(part("vae")).items()}
    first = part("text_encoder", "model")
    if kind == "sd1":
        tensors |= _clip(first, "cond_stage_model.transformer.")
    elif kind == "sdxl":
        tensors |= _clip(first, "conditioner.embedders.0.transformer.")
        tensors |= _open_clip(part("text_encoder_2", "model"), "conditioner.embedders.1.model.")
    else:
        tensors |= _open_clip(first, "cond_stage_model.model.")
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, target, metadata=metadata)
    if sidecar:
        shutil.copytree(
            folder, target.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors", "model_index.json")
        )
    return target


def _unet(tensors: dict[str, Any], folder: Path) -> dict[str, Any]:
    from pipeline.prior.adapter_layers import original_blocks

    blocks = original_blocks(json.loads((folder / "unet" / "config.json").read_text()))
    found = {}
    for name, tensor in tensors.items():
        ours = max((b for b in blocks if name.startswith(f"{b}.")), key=len)
        inside = name.removeprefix(f"{ours}.")
        if ".resnets." in f".{ours}":
            for theirs, mine in _RESNET:
                inside = re.sub(rf"^{re.escape(mine)}\.", f"{theirs}.", inside)
        found[f"{blocks[ours]}.{inside}"] = tensor
    return found


def _vae(tensors: dict[str, Any]) -> dict[str, Any]:
    found = {}
    deep = max(int(m[1]) for n in tensors if (m := re.match(r"decoder\.up_blocks\.(\d+)", n)))
    for name, tensor in tensors.items():
        name = re.sub(
            r"^(encoder|decoder)\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}", name
        )
        name = re.sub(r"\.mid_block\.attentions\.0\.", ".mid.attn_1.", name)
        for mine, theirs in (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            if ".mid.attn_1." in name:
                name = name.replace(f".{mine}.", f".{theirs}.")
        if ".mid.attn_1." in name and tensor.dim() == 2:
            tensor = tensor[..., None, None]
        name = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down.\1.block.\2", name)
        name = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
        name = re.sub(
            r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"decoder.up.{deep - int(m[1])}.block.{m[2]}", name
        )
        name = re.sub(
            r"decoder\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"decoder.up.{deep - int(m[1])}.upsample", name
        )
        found[name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")] = tensor
    return found


def _clip(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}


def _open_clip(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    import torch

    tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if ".self_attn.q_proj." in name:
            layer, ending = re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name).groups()  # type: ignore[union-attr]
            three = [tensors[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{ending}"] = torch.cat(three)
        elif ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif name == "embeddings.position_embedding.weight":
            found["positional_embedding"] = tensor
        else:
            short = name.replace("embeddings.token_embedding", "token_embedding").replace(
                "final_layer_norm", "ln_final"
            )
            short = short.replace("encoder.layers.", "transformer.resblocks.")
            for mine, theirs in _OPEN_CLIP:
                short = short.replace(mine, theirs)
            found[short] = tensor
    # The last layer, which SD 2.x has and does not use.
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


# Adapters -----------------------------------------------------------------------------------------------------------

UNET_LAYERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.proj_in",
    "up_blocks.0.resnets.0.conv1",
)
TEXT_LAYERS = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")


def make_lora(
    path: Path, prior: Any, style: str = "kohya", *, seed: int = 0, rank: int = 2, alpha: float = 1.0
) -> dict[str, Any]:
    """Writes a LoRA for ``prior`` in the naming of a trainer; the weight changes it stands for, by layer.

    ``style``: kohya, kohya-original (blocks named as in single files), diffusers, peft, old.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors, changes = {}, {}
    encoder = prior.text.models[0]
    for network, model, layers in (("unet", prior.unet, UNET_LAYERS), ("text_encoder", encoder, TEXT_LAYERS)):
        for layer in layers:
            if style == "kohya-original" and network != "unet":
                continue
            weight = model.get_submodule(layer).weight
            down = torch.randn((rank, *weight.shape[1:]), generator=generator)
            up = torch.randn((weight.shape[0], rank) + (1, 1) * (weight.dim() == 4), generator=generator)
            product = torch.einsum("or,r...->o...", up.flatten(1), down)
            scaled = style.startswith("kohya")
            changes[f"{network}.{layer}"] = product * (alpha / rank if scaled else 1.0)
            keys = _lora_keys(style, network, layer, down, up, prior)
            tensors |= keys
            if scaled:
                tensors[next(iter(keys)).split(".")[0] + ".alpha"] = torch.tensor(alpha)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return changes


def _lora_keys(style: str, network: str, layer: str, down: Any, up: Any, prior: Any) -> dict[str, Any]:
    from pipeline.prior.adapter_layers import original_blocks

    if network == "text_encoder":
        layer = f"text_model.{layer}"
    if style == "kohya-original":
        blocks = original_blocks(prior.unet.config)
        ours = max((b for b in blocks if layer.startswith(f"{b}.")), key=len)
        layer = blocks[ours] + layer.removeprefix(ours).replace(".conv1", ".in_layers.2")
    if style.startswith("kohya"):
        name = f"lora_{'unet' if network == 'unet' else 'te'}_{layer.replace('.', '_')}"
        return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    if style == "peft":
        return {f"{network}.{layer}.lora_A.weight": down, f"{network}.{layer}.lora_B.weight": up}
    if style == "diffusers" or ".to_" not in layer:
        kind = "lora_linear_layer" if network == "text_encoder" else "lora"
        return {f"{network}.{layer}.{kind}.down.weight": down, f"{network}.{layer}.{kind}.up.weight": up}
    before, after = layer.rsplit(".to_", 1)
    name = f"{network}.{before}.processor.to_{after.removesuffix('.0')}_lora"
    return {f"{name}.down.weight": down, f"{name}.up.weight": up}


def make_concept(path: Path, widths: list[int], word: str | None = None, *, vectors: int = 2, seed: int = 0) -> Path:
    """A textual inversion: diffusers' naming with ``word``, else that of other trainers."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(vectors, width, generator=generator) for width in widths]
    if len(made) == 2:
        save_file({"clip_l": made[0], "clip_g": made[1]}, path)
    else:
        save_file({word or "emb_params": made[0]}, path)
    return path
