"""LoRA files and textual inversions of single rows, applied for the length of one call and then gone.

The networks themselves are never changed: a LoRA adds its product to the outputs of the layers it names (forward
hooks), a textual inversion takes the place of token embeddings. Without adapters not one instruction differs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.core.errors import PriorError
from pipeline.core.job import AdapterFile
from pipeline.prior.adapter_marks import adapter_marks

_UNSUPPORTED = ("dora_scale", "lora_magnitude", "hada_", "lokr_", "lora_mid", "diff_b", "oft_")
# What names a layer, then which of its two matrices (or alpha) it is.
_KEY = re.compile(
    r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?)?"
    r"(?:[._](?P<down>lora_down|lora_A|down)|[._](?P<up>lora_up|lora_B|up))(?:\.default)?\.weight$"
)
# Prefixes, flattened, of the three networks in the formats that trainers write.
_NETWORKS = (
    ("lora_unet_", "unet"), ("unet_", "unet"), ("lora_te2_", "text2"), ("text_encoder_2_", "text2"),
    ("lora_te1_", "text"), ("lora_te_", "text"), ("text_encoder_", "text"),
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """One file. Equal content and weight are equal adapters, wherever the file lies."""

    path: Path
    content: str
    weight: float = 1.0

    @property
    def _key(self) -> tuple[str, float]:
        return self.content, self.weight

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@dataclass(frozen=True)
class Adapters:
    """What one row adds to the prior; usable as a key. ``concepts``' names count too: a prompt uses them."""

    loras: tuple[Adapter, ...] = ()
    concepts: tuple[Adapter, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.loras or self.concepts)

    @property
    def in_unet(self) -> Adapters:
        """What of it changes the UNet: rows that agree in this can share a call."""
        return Adapters(self.loras)


NONE = Adapters()


def read_files(files: Sequence[AdapterFile]) -> Adapters:
    """The adapters of a row. Raises PriorError when a file cannot be read."""
    made = [
        (file.kind, Adapter(file.path, f"{mark['name']}:{mark['sha256']}", file.weight))
        for file, mark in zip(files, adapter_marks(files), strict=True)
    ]
    return Adapters(tuple(a for kind, a in made if kind == "lora"), tuple(a for kind, a in made if kind == "concept"))


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() != ".safetensors":
        raise PriorError(f"{path}: only .safetensors is read; pickled files can run code and are refused")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise PriorError(f"{path}: no safetensors file ({error})") from None


# LoRA ---------------------------------------------------------------------------------------------------------------


@dataclass
class LoraLayer:
    """output += scale up(down(input)); ``down`` (r, in[, k, k]), ``up`` (out, r[, 1, 1])."""

    module: nn.Module
    down: Tensor
    up: Tensor
    scale: float

    def add(self, value: Tensor, output: Tensor) -> Tensor:
        # An offloaded layer comes to the device and goes again: the matrices follow what it is given.
        down, up = self.down.to(value), self.up.to(value)
        if isinstance(self.module, nn.Conv2d):
            m = self.module
            inner = nn.functional.conv2d(value, down, None, m.stride, m.padding, m.dilation)  # type: ignore[arg-type]
            return output + self.scale * nn.functional.conv2d(inner, up)
        return output + self.scale * nn.functional.linear(nn.functional.linear(value, down), up)


@dataclass
class Lora:
    """A LoRA, matched to the networks of a prior: its layers in each."""

    layers: dict[str, list[LoraLayer]]

    @contextlib.contextmanager
    def active(self, network: str) -> Iterator[None]:
        """Adds the LoRA to ``network`` ("unet", "text", "text2") for the length of the block."""
        handles = [
            layer.module.register_forward_hook(lambda m, args, out, layer=layer: layer.add(args[0], out))
            for layer in self.layers.get(network, [])
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def read_lora(adapter: Adapter, networks: dict[str, nn.Module], config: Any) -> Lora:
    """A LoRA file as kohya's scripts, diffusers or PEFT write them. ``config``: the UNet's.

    Raises PriorError when it is of another kind (DoRA, LoHa, LoKr), or made for another model.
    """
    path, tensors = adapter.path, _tensors(adapter.path)
    if strange := next((n for n in tensors if any(word in n for word in _UNSUPPORTED)), None):
        raise PriorError(f"{path}: of another kind than LoRA ({strange}); only plain LoRA is supported")
    pairs: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        if name.endswith(".alpha"):
            alphas[_flat(name.removesuffix(".alpha"))] = float(tensor)
        elif found := _KEY.match(name):
            pairs.setdefault(_flat(found["layer"]), {})["down" if found["down"] else "up"] = tensor
        else:
            raise PriorError(f"{path}: no LoRA; it holds a tensor {name}")
    if not pairs:
        raise PriorError(f"{path}: no LoRA; it holds no matrices")
    known = {name: _modules(network, config if name == "unet" else None) for name, network in networks.items()}
    layers: dict[str, list[LoraLayer]] = {}
    for layer, pair in pairs.items():
        network, short = _network(layer)
        module = _find(known.get(network, {}), short)
        if module is None or set(pair) != {"down", "up"}:
            why = "is missing a matrix" if module is not None else "is not in this prior (made for another model?)"
            raise PriorError(f"{path}: its layer {layer} {why}")
        rank = pair["down"].shape[0]
        scale = adapter.weight * alphas.get(layer, float(rank)) / rank
        layers.setdefault(network, []).append(_fit(path, layer, module, pair["down"], pair["up"], scale))
    return Lora(layers)


def _fit(path: Path, name: str, module: nn.Module, down: Tensor, up: Tensor, scale: float) -> LoraLayer:
    """The layer with its matrices in the module's shape, dtype and place."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    if weight.dim() == 2:
        down, up = down.flatten(1), up.flatten(1)
    elif down.dim() == 2:
        down, up = down[..., None, None], up[..., None, None]
    if up.shape[:1] + down.shape[1:] != weight.shape or up.shape[1] != down.shape[0]:
        raise PriorError(
            f"{path}: its layer {name} is for weights {tuple(up.shape[:1] + down.shape[1:])}, this prior's are "
            f"{tuple(weight.shape)}; it was made for another model"
        )
    return LoraLayer(module, down.to(weight), up.to(weight), scale)


def _flat(name: str) -> str:
    return re.sub(r"[._]+", "_", name)


def _network(layer: str) -> tuple[str, str]:
    for prefix, network in _NETWORKS:
        if layer.startswith(prefix):
            return network, layer.removeprefix(prefix)
    # A file saved from the UNet alone.
    return "unet", layer.removeprefix("base_model_model_")


def _find(known: dict[str, nn.Module], layer: str) -> nn.Module | None:
    layer = layer.removeprefix("text_model_").replace("_processor_to_", "_to_")
    return known.get(layer) or known.get(f"{layer}_0")


def _modules(network: nn.Module, unet_config: Any) -> dict[str, nn.Module]:
    """Layers a LoRA can name, by flattened name; those of a UNet also by the name they have in a single file."""
    found: dict[str, nn.Module] = {
        _flat(name).removeprefix("text_model_"): module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    if unet_config is not None:
        blocks = {_flat(ours): _flat(theirs) for ours, theirs in original_blocks(unet_config).items()}
        for name, module in list(found.items()):
            for ours, theirs in blocks.items():
                if name == ours or name.startswith(f"{ours}_"):
                    inside = name.removeprefix(ours)
                    found.setdefault(theirs + _INSIDE.get(inside, inside), module)
    return found


def original_blocks(config: Any) -> dict[str, str]:
    """Names of a UNet's blocks in diffusers, and in the layout of single files (input_blocks, output_blocks)."""
    depth = len(config["block_out_channels"])
    layers = config["layers_per_block"]
    layers = [layers] * depth if isinstance(layers, int) else list(layers)
    names: dict[str, str] = {}
    number = 1
    for block, kind in enumerate(config["down_block_types"]):
        for layer in range(layers[block]):
            names[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{number}.0"
            if "CrossAttn" in kind:
                names[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if block < depth - 1:
            names[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    names |= {
        "conv_in": "input_blocks.0.0", "conv_out": "out.2", "conv_norm_out": "out.0",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    number = 0
    for block, kind in enumerate(config["up_block_types"]):
        for layer in range(layers[depth - 1 - block] + 1):
            names[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{number}.0"
            if "CrossAttn" in kind:
                names[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
            if layer == layers[depth - 1 - block] and block < depth - 1:
                place = 2 if "CrossAttn" in kind else 1
                names[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number}.{place}.conv"
            number += 1
    return names


# Inside a residual block, flattened; attention blocks are named alike in both layouts.
_INSIDE = {"_conv1": "_in_layers_2", "_conv2": "_out_layers_3", "_time_emb_proj": "_emb_layers_1",
           "_conv_shortcut": "_skip_connection"}  # fmt: skip


# Textual inversion --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Concept:
    """A learned word: ``word`` as it stands in prompts, and for each text encoder its vectors (n, D)."""

    word: str
    vectors: tuple[Tensor, ...]


def read_concepts(adapter: Adapter, widths: list[int]) -> list[Concept]:
    """The words of a textual-inversion file. ``widths``: D of each text encoder.

    A file of diffusers names its words; one of other trainers (``emb_params``; ``clip_l`` and ``clip_g`` for SDXL) is
    named in prompts by the file's name without its ending. Raises PriorError when it does not fit the prior.
    """
    path, tensors = adapter.path, _tensors(adapter.path)
    if "clip_l" in tensors and "clip_g" in tensors:
        words = {path.stem: [tensors["clip_l"], tensors["clip_g"]]}
    elif "emb_params" in tensors:
        words = {path.stem: [tensors["emb_params"]]}
    else:
        words = {name: [tensor] for name, tensor in tensors.items()}
    made = []
    for word, raw in words.items():
        vectors = tuple(vector.reshape(-1, vector.shape[-1]) for vector in raw)
        if [vector.shape[-1] for vector in vectors] != widths:
            raise PriorError(
                f"{path}: its vectors have {', '.join(str(v.shape[-1]) for v in vectors)} numbers, this prior's text "
                f"encoders take {', '.join(map(str, widths))}; it was made for another model"
            )
        made.append(Concept(word, vectors))
    return made
