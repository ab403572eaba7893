"""Matches LoRA files to a prior's layers, and textual inversions to its text encoders, by names and shapes alone.

Loads neither torch nor tensors, so a file's header is enough. A mismatch raises ValueError with the reason, without
the file's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
T = TypeVar("T")

_UNSUPPORTED = ("dora_scale", "lora_magnitude", "hada_", "lokr_", "lora_mid", "diff_b", "oft_")
# The layer's name, then the matrix (or alpha).
_KEY = re.compile(
    r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?)?"
    r"(?:[._](?P<down>lora_down|lora_A|down)|[._](?P<up>lora_up|lora_B|up))(?:\.default)?\.weight$"
)
# Flattened prefixes of the three networks in the trainers' formats.
_NETWORKS = (
    ("lora_unet_", "unet"), ("unet_", "unet"), ("lora_te2_", "text2"), ("text_encoder_2_", "text2"),
    ("lora_te1_", "text"), ("lora_te_", "text"), ("text_encoder_", "text"),
)  # fmt: skip
# Maximum length of a quoted name in a message.
_QUOTED = 100


@dataclass(frozen=True)
class LoraMatch:
    """One layer of a LoRA: the ``layer`` of ``network`` that it changes (a key of ``match_lora``'s ``networks``), and
    the names of its tensors; ``alpha`` is "" if there is none."""

    network: str
    layer: str
    down: str
    up: str
    alpha: str


def match_lora(tensors: Shapes, networks: Mapping[str, Shapes]) -> list[LoraMatch]:
    """Returns the layers of a LoRA file with ``tensors``, in the formats of kohya's scripts, diffusers and PEFT.

    ``networks`` maps "unet", "text" and "text2" to the shapes of the weights that a LoRA can change, by flattened name.
    Raises ValueError for other kinds of adapters (DoRA, LoHa, LoKr) and for another model.
    """
    if strange := next((n for n in tensors if any(word in n for word in _UNSUPPORTED)), None):
        raise ValueError(f"of another kind than LoRA ({_name(strange)}); only plain LoRA is supported")
    pairs: dict[str, dict[str, str]] = {}
    alphas: dict[str, str] = {}
    for name, shape in tensors.items():
        if name.endswith(".alpha"):
            if math.prod(shape) != 1:
                raise ValueError(f"its tensor {_name(name)} is not a single number")
            alphas[flat(name.removesuffix(".alpha"))] = name
        elif match := _KEY.match(name):
            pairs.setdefault(flat(match["layer"]), {})["down" if match["down"] else "up"] = name
        else:
            raise ValueError(f"not a LoRA: it has a tensor {_name(name)}")
    if not pairs:
        raise ValueError("not a LoRA: it has no matrices")
    matches = []
    for layer, pair in pairs.items():
        network, short = _network(layer)
        known = networks.get(network, {})
        diffusers_name = _find(known, short)
        if diffusers_name is None:
            raise ValueError(f"its layer {_name(layer)} is not in this prior (made for another model?)")
        if set(pair) != {"down", "up"}:
            raise ValueError(f"its layer {_name(layer)} is missing a matrix")
        _check_shapes(layer, tensors[pair["down"]], tensors[pair["up"]], known[diffusers_name])
        matches.append(LoraMatch(network, diffusers_name, pair["down"], pair["up"], alphas.get(layer, "")))
    return matches


def _check_shapes(layer: str, down: Shape, up: Shape, weight: Shape) -> None:
    """Raises ValueError unless up (out, r[, 1, 1]) times down (r, in[, k, k]) has the shape ``weight``."""
    if min(len(down), len(up)) < 2 or 0 in (*down, *up):
        raise ValueError(
            f"its layer {_name(layer)} has matrices of the shapes {down} and {up}, which do not form a LoRA"
        )
    if len(weight) == 2:
        down = (down[0], math.prod(down[1:]))
    elif len(down) == 2:
        down = (*down, 1, 1)
    flat_up = (up[0], math.prod(up[1:]))
    product_shape = (up[0], *down[1:])
    if product_shape != weight:
        raise ValueError(
            f"its layer {_name(layer)} is for weights {product_shape}, this prior's are {weight}; it was made for "
            "another model"
        )
    if flat_up[1] != down[0]:
        raise ValueError(f"its layer {_name(layer)} has matrices of the ranks {down[0]} and {flat_up[1]}: damaged")


def flat(name: str) -> str:
    """Replaces "." by "_" in ``name``, the form common to all trainers."""
    return re.sub(r"[._]+", "_", name)


def _name(name: str) -> str:
    return name if len(name) <= _QUOTED else f"{name[: _QUOTED - 3]}..."


def _network(layer: str) -> tuple[str, str]:
    for prefix, network in _NETWORKS:
        if layer.startswith(prefix):
            return network, layer.removeprefix(prefix)
    # The file contains only the UNet's layers.
    return "unet", layer.removeprefix("base_model_model_")


def _find(known: Shapes, layer: str) -> str | None:
    layer = layer.removeprefix("text_model_").replace("_processor_to_", "_to_")
    return next((name for name in (layer, f"{layer}_0") if name in known), None)


def with_original_names(layers: Mapping[str, T], unet_config: Any) -> dict[str, T]:
    """``layers`` of a UNet by flattened name, each also by the name that it has in a single file."""
    return _with_names(layers, original_blocks(unet_config), _INSIDE)


def with_diffusers_names(layers: Mapping[str, T], unet_config: Any) -> dict[str, T]:
    """``layers`` of a UNet in a single file, by flattened name, each also by the name that diffusers has for it."""
    blocks = {original: diffusers_name for diffusers_name, original in original_blocks(unet_config).items()}
    return _with_names(layers, blocks, {original: diffusers_name for diffusers_name, original in _INSIDE.items()})


def _with_names(layers: Mapping[str, T], blocks: Mapping[str, str], inside: Mapping[str, str]) -> dict[str, T]:
    """``layers``, each also by its other name. ``blocks`` renames blocks, ``inside`` their layers."""
    named = dict(layers)
    flattened = {flat(before): flat(after) for before, after in blocks.items()}
    for name, layer in layers.items():
        for before, after in flattened.items():
            if name == before or name.startswith(f"{before}_"):
                suffix = name.removeprefix(before)
                named.setdefault(after + inside.get(suffix, suffix), layer)
    return named


def original_blocks(config: Any) -> dict[str, str]:
    """Maps a UNet's block names in diffusers to those of the single-file layout (input_blocks, output_blocks)."""
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
                index = 2 if "CrossAttn" in kind else 1
                names[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number}.{index}.conv"
            number += 1
    return names


# Inside a residual block, flattened; attention blocks are named alike in both layouts.
_INSIDE = {"_conv1": "_in_layers_2", "_conv2": "_out_layers_3", "_time_emb_proj": "_emb_layers_1",
           "_conv_shortcut": "_skip_connection"}  # fmt: skip


def match_concepts(stem: str, tensors: Shapes, widths: Sequence[int]) -> dict[str, list[str]]:
    """Returns the words of a textual inversion file ``stem`` with ``tensors``: for each word its tensors' names, one
    per text encoder. ``widths`` are the embedding widths of the encoders.

    Files of diffusers contain their words. For files of other trainers (``emb_params``; ``clip_l`` and ``clip_g`` for
    SDXL) the word is the file's name without its ending. Raises ValueError if the file does not fit the prior.
    """
    if not tensors:
        raise ValueError("not a textual inversion: it has no vectors")
    if "clip_l" in tensors and "clip_g" in tensors:
        words = {stem: ["clip_l", "clip_g"]}
    elif "emb_params" in tensors:
        words = {stem: ["emb_params"]}
    elif any(_KEY.match(name) for name in tensors):
        raise ValueError("a LoRA, not a textual inversion; name it in the field 'lora'")
    else:
        words = {name: [name] for name in tensors}
    spelled: set[str] = set()
    for word, names in words.items():
        if problem := _word_problem(word):
            raise ValueError(problem)
        if word.lower() in spelled:
            raise ValueError(f"its word {_name(word)!r} occurs twice")
        spelled.add(word.lower())
        shapes = [tensors[name] for name in names]
        if any(not shape or 0 in shape for shape in shapes):
            raise ValueError(f"its word {_name(word)!r} has no vectors")
        if [shape[-1] for shape in shapes] != list(widths):
            raise ValueError(
                f"its vectors have {', '.join(str(shape[-1]) for shape in shapes)} numbers, this prior's text "
                f"encoders take {', '.join(map(str, widths))}; it was made for another model"
            )
    return words


def _word_problem(word: str) -> str:
    """Returns why ``word`` can never occur in a prompt, which has only single blanks; "" if it can."""
    if not word.strip():
        return "one of its words is empty; give it a name"
    if word != " ".join(word.split()) or not word.isprintable():
        return f"its word {_name(word)!r} has blanks in it that no prompt has; rename it"
    return ""


def vectors_of(shapes: Sequence[Shape]) -> int:
    """Returns the number of tokens of a word whose tensors have these ``shapes``."""
    return max(math.prod(shape[:-1]) for shape in shapes)
