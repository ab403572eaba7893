"""Applies LoRA files and textual inversions of single rows for one call.

The networks' weights never change: a LoRA adds its product to the outputs of its layers with forward hooks, and a
textual inversion replaces token embeddings. Calls without adapters run the same instructions as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.core.errors import PriorError
from pipeline.core.job import AdapterFile
from pipeline.core.terminal import excerpt
from pipeline.prior.adapter_hashes import adapter_hashes
from pipeline.prior.adapter_layers import flat, match_concepts, match_lora, with_original_names


@dataclass(frozen=True)
class Adapter:
    """One adapter file. Adapters are equal if content and weight are equal, whatever their paths."""

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
    """The adapters of one row, hashable. The names of ``concepts`` matter too, because prompts use them."""

    loras: tuple[Adapter, ...] = ()
    concepts: tuple[Adapter, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.loras or self.concepts)

    @property
    def in_unet(self) -> Adapters:
        """The adapters that change the UNet. Rows with equal ones can share a call."""
        return Adapters(self.loras)


NO_ADAPTERS = Adapters()


def read_files(files: Sequence[AdapterFile]) -> Adapters:
    """Returns the adapters of a row. Raises PriorError if a file cannot be read."""
    adapters = [
        (file.kind, Adapter(file.file.local(), f"{mark['name']}:{mark['sha256']}", file.weight))
        for file, mark in zip(files, adapter_hashes(files), strict=True)
    ]
    return Adapters(
        tuple(a for kind, a in adapters if kind == "lora"), tuple(a for kind, a in adapters if kind == "concept")
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() != ".safetensors":
        raise PriorError(f"{path}: only .safetensors is read; pickled files can run code and are refused")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise PriorError(f"{path}: not a safetensors file ({error})") from None
    for name, tensor in tensors.items():
        # Not every operation knows the types of eight bits; and one NaN would spoil every pixel of the row.
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise PriorError(f"{path}: {excerpt(name)} has NaN or infinite numbers: damaged, or its training diverged")
    return tensors


# LoRA ---------------------------------------------------------------------------------------------------------------


@dataclass
class LoraLayer:
    """output += scale up(down(input)); ``down`` (r, in[, k, k]), ``up`` (out, r[, 1, 1])."""

    module: nn.Module
    down: Tensor
    up: Tensor
    scale: float

    def add(self, value: Tensor, output: Tensor) -> Tensor:
        # An offloaded layer moves between devices, so the matrices follow its input.
        down, up = self.down.to(value), self.up.to(value)
        if isinstance(self.module, nn.Conv2d):
            m = self.module
            inner = nn.functional.conv2d(value, down, None, m.stride, m.padding, m.dilation)
            return output + self.scale * nn.functional.conv2d(inner, up)
        return output + self.scale * nn.functional.linear(nn.functional.linear(value, down), up)


@dataclass
class Lora:
    """A LoRA matched to a prior: its layers in each network."""

    layers: dict[str, list[LoraLayer]]

    @contextlib.contextmanager
    def active(self, network: str) -> Iterator[None]:
        """Applies the LoRA to ``network`` ("unet", "text", "text2") inside the block."""
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
    """Reads a LoRA file in the format of kohya's scripts, diffusers or PEFT. ``config`` is the UNet's.

    Raises PriorError for other kinds of adapters (DoRA, LoHa, LoKr) and for another model.
    """
    path, tensors = adapter.path, _tensors(adapter.path)
    modules = {name: lora_layers(network, config if name == "unet" else None) for name, network in networks.items()}
    shapes = {
        network: {name: tuple(module.weight.shape) for name, module in key_match.items()}  # type: ignore[arg-type]
        for network, key_match in modules.items()
    }
    try:
        matches = match_lora({name: tuple(tensor.shape) for name, tensor in tensors.items()}, shapes)
    except ValueError as error:
        raise PriorError(f"{path}: {error}") from None
    layers: dict[str, list[LoraLayer]] = {}
    for match in matches:
        down, up = tensors[match.down], tensors[match.up]
        rank = down.shape[0]
        alpha = float(tensors[match.alpha]) if match.alpha else float(rank)
        module = modules[match.network][match.layer]
        layers.setdefault(match.network, []).append(_fitted_layer(module, down, up, adapter.weight * alpha / rank))
    return Lora(layers)


def _fitted_layer(module: nn.Module, down: Tensor, up: Tensor, scale: float) -> LoraLayer:
    """Converts the layer's matrices to the module's shape, dtype and device."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    if weight.dim() == 2:
        down, up = down.flatten(1), up.flatten(1)
    elif down.dim() == 2:
        down, up = down[..., None, None], up.flatten(1)[..., None, None]
    return LoraLayer(module, down.to(weight), up.to(weight).reshape(*up.shape[:2], *(1,) * (weight.dim() - 2)), scale)


def lora_layers(network: nn.Module, unet_config: Any) -> dict[str, nn.Module]:
    """Layers a LoRA can name, by flattened name; those of a UNet also by the name they have in a single file."""
    modules: dict[str, nn.Module] = {
        flat(name).removeprefix("text_model_"): module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    return modules if unet_config is None else with_original_names(modules, unet_config)


# Textual inversion --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Concept:
    """A learned word: ``word`` as in prompts, and for each text encoder its vectors (n, D)."""

    word: str
    vectors: tuple[Tensor, ...]


def read_concepts(adapter: Adapter, widths: list[int]) -> list[Concept]:
    """Reads the words of a textual inversion file. ``widths``: D of each text encoder.

    Files of diffusers contain their words. For files of other trainers (``emb_params``; ``clip_l`` and ``clip_g`` for
    SDXL) the word is the file's name without its ending. Raises PriorError if the file does not fit the prior.
    """
    path, tensors = adapter.path, _tensors(adapter.path)
    try:
        words = match_concepts(path.stem, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, widths)
    except ValueError as error:
        raise PriorError(f"{path}: {error}") from None
    return [
        Concept(word, tuple(tensors[name].reshape(-1, tensors[name].shape[-1]) for name in names))
        for word, names in words.items()
    ]
