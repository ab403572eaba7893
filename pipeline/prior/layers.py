"""The layers of a prior that a LoRA can change, and the widths of its text encoders.

Reads only headers and configs. Loads no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import PriorError
from pipeline.prior import single_file
from pipeline.prior.adapter_layers import Shapes, flat, with_diffusers_names, with_original_names
from pipeline.prior.hub import variant_of, weights_variant
from pipeline.prior.identity import read_config


@dataclass(frozen=True)
class PriorLayers:
    """``networks``: argument of ``match_lora``; ``widths``: embedding width of each text encoder."""

    networks: dict[str, Shapes]
    widths: list[int]


def prior_layers(folder: Path, file: Path | None = None) -> PriorLayers:
    """Reads the layers of the prior in ``folder``, or in the single ``file``. Raises PriorError on failure."""
    try:
        if file is not None:
            kind = single_file.family(file)
            configs = [single_file.config_folder(file, kind, part) for part in _text_components(kind == "sdxl")]
            config = read_config(single_file.config_folder(file, kind, "unet"), "unet")
            stored = _matrices(single_file.read_header(file).shapes, single_file.UNET)
            unet = with_diffusers_names(stored, config)
        else:
            has_second = (folder / "text_encoder_2").is_dir()
            configs = [folder for _ in _text_components(has_second)]
            files = [path for path in sorted((folder / "unet").glob("*.safetensors")) if _is_loaded(path)]
            shapes = {name: s for path in files for name, s in single_file.read_header(path).shapes.items()}
            unet = with_original_names(_matrices(shapes), read_config(folder, "unet"))
        texts = [
            read_config(where, part) for where, part in zip(configs, _text_components(len(configs) > 1), strict=True)
        ]
        networks: dict[str, Shapes] = {"unet": unet}
        networks |= {name: _text_layers(text) for name, text in zip(("text", "text2"), texts, strict=False)}
        return PriorLayers(networks, [int(text["hidden_size"]) for text in texts])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, json.JSONDecodeError) as error:
        where = file or folder
        raise PriorError(f"{where}: its configs cannot be understood ({type(error).__name__}: {error})") from None


def _text_components(has_second: bool) -> list[str]:
    return ["text_encoder", "text_encoder_2"] if has_second else ["text_encoder"]


def _is_loaded(path: Path) -> bool:
    """Tells whether the file is loaded, i.e. not a copy in another number format."""
    return variant_of(path.name) == (weights_variant(other.name for other in path.parent.iterdir()) or "")


def _matrices(shapes: Shapes, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Weights of linear and convolutional layers below ``prefix``, by flattened name."""
    return {
        flat(name.removeprefix(prefix).removesuffix(".weight")): shape
        for name, shape in shapes.items()
        if name.startswith(prefix) and name.endswith(".weight") and len(shape) in (2, 4)
    }


def _text_layers(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Weights of a CLIP text encoder, by flattened name."""
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    shapes: dict[str, tuple[int, ...]] = {"text_projection": (int(config.get("projection_dim", width)), width)}
    for number in range(min(int(config["num_hidden_layers"]), 1000)):
        layer = f"encoder_layers_{number}"
        shapes |= {f"{layer}_self_attn_{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        shapes |= {f"{layer}_mlp_fc1": (inner, width), f"{layer}_mlp_fc2": (width, inner)}
    return shapes
