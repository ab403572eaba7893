"""Priors in one ``.safetensors`` file, in Stable Diffusion's original layout. Loads no torch.

Names and shapes in the file's header identify the model. Its configs are ours (``configs/``); none are downloaded. A
sidecar folder with the file's name without the ending may add files in the diffusers layout: ``tokenizer/``, another
``vae/``, ``latent_rgb.json``, ``latentkiln.json``, or configs that replace ours.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import PriorError
from pipeline.prior.hub import COMPONENTS

SUFFIX = ".safetensors"
CONFIGS = Path(__file__).parent / "configs"
CONFIG_NAMES = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}

UNET = "model.diffusion_model."
VAE = "first_stage_model."
_FIRST = f"{UNET}input_blocks.0.0.weight"
_ATTENTION = "transformer_blocks.0.attn2.to_k.weight"
_XL_LABELS = f"{UNET}label_emb.0.0.weight"
_XL_TEXT = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"
_LARGEST_HEADER = 64 << 20
# First bytes of other kinds of files that get the same ending.
_NOT_SAFETENSORS = {
    b"version https://git-lfs.github.com/spec/": "it is a Git LFS pointer, not the file itself; run: git lfs pull",
    b"PK\x03\x04": "it is a zip file, as of pickled weights, which can run code; convert it to safetensors",
    b"\x80\x02": "it is a pickle, which can run code; convert it to safetensors",
    b"\x80\x03": "it is a pickle, which can run code; convert it to safetensors",
    b"\x80\x04": "it is a pickle, which can run code; convert it to safetensors",
    b"\x80\x05": "it is a pickle, which can run code; convert it to safetensors",
    b"<!DOCTYPE": "it is a web page, as a download that needs a login leaves; download it again",
    b"<html": "it is a web page, as a download that needs a login leaves; download it again",
}
_LONGEST_MARK = max(map(len, _NOT_SAFETENSORS))
# Training steps of the 2.x checkpoint that predicts epsilon; the one that predicts v has others.
_SD2_BASE_STEPS = 875_000


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file: ``shapes`` of its tensors by name, and its free ``metadata``."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_header(path: Path, largest: int = _LARGEST_HEADER) -> Header:
    """Reads only the header, of at most ``largest`` bytes. Raises PriorError if ``path`` is not a complete safetensors
    file, as far as the header and the file's size show."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_LONGEST_MARK)
            if len(head) < 8:
                raise ValueError(f"it has {len(head)} bytes")
            (length,) = struct.unpack("<Q", head[:8])
            if length > size - 8:
                # Check this last: the length of a valid header may look like the start of a pickle.
                other = next((what for mark, what in _NOT_SAFETENSORS.items() if head.startswith(mark)), "")
                raise ValueError(other or f"its header of {length} bytes is longer than the file: truncated or damaged")
            if length > largest:
                raise ValueError(f"its header is longer than {largest >> 20} MiB")
            stream.seek(8)
            value = json.loads(stream.read(length))
        metadata = value.pop("__metadata__", None) or {}
        shapes = {str(name): tuple(int(n) for n in entry["shape"]) for name, entry in value.items()}
        _check_offsets(value, size - 8 - length)
        return Header(shapes, {str(key): str(text) for key, text in metadata.items()})
    except OSError as error:
        raise PriorError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise PriorError(f"{path}: not a safetensors file ({_one_line(error)})") from None


def _check_offsets(entries: dict[str, Any], size: int) -> None:
    """Raises ValueError unless the tensors are contiguous in ``size`` bytes, and each fits its shape."""
    end = 0
    for begin, stop, name, entry in sorted((*e["data_offsets"], n, e) for n, e in entries.items()):
        count = math.prod(entry["shape"])
        bits = re.search(r"[0-9]+", str(entry["dtype"]))
        # BOOL has no number of bits in its name. The library checks unknown types.
        width = 1 if entry["dtype"] == "BOOL" else int(bits[0]) // 8 if bits else 0
        if begin != end or stop < begin or min(entry["shape"], default=0) < 0:
            raise ValueError(f"the position of its tensor {name[:60]} is wrong: damaged")
        if width and width * count != stop - begin:
            raise ValueError(f"its tensor {name[:60]} has {stop - begin} bytes for {count} numbers: damaged")
        end = stop
    if end > size:
        raise ValueError(f"it is truncated: it has {size} of the {end} bytes of its tensors")
    if end < size:
        raise ValueError(f"{size - end} bytes follow its tensors: damaged")


def _one_line(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "its header is not JSON"
    return (
        " ".join(str(error).split())[:200] if isinstance(error, ValueError | struct.error) else "its header is damaged"
    )


def family(path: Path) -> str:
    """Returns the file's family in ``configs/``: sd1, sd2, sd2-768-v or sdxl. Raises PriorError for other models."""
    header = read_header(path)
    shapes = header.shapes
    first = shapes.get(_FIRST)
    if first is None:
        raise PriorError(
            f"{path}: not a complete Stable Diffusion checkpoint (it has no {_FIRST}); a LoRA or a textual inversion "
            "belongs in a manifest's 'lora' or 'concept', and a lone UNet into a diffusers folder"
        )
    if len(first) != 4 or first[1] != 4:
        raise PriorError(f"{path}: its UNet takes {first[1]} channels; inpainting and the like are not supported")
    if _XL_LABELS in shapes:
        if _XL_TEXT not in shapes:
            raise PriorError(f"{path}: an SDXL refiner, or an SDXL file without its text encoders, is not supported")
        return "sdxl"
    widths = {shape[1] for name, shape in shapes.items() if name.startswith(UNET) and name.endswith(_ATTENTION)}
    if "cond_stage_model.model.token_embedding.weight" in shapes:
        return "sd2-768-v" if _predicts_v(path, header) else "sd2"
    if "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight" in shapes:
        return "sd1"
    raise PriorError(f"{path}: it has no text encoder of SD 1.x, 2.x or SDXL (its UNet reads {sorted(widths)})")


def _predicts_v(path: Path, header: Header) -> bool:
    """Tells whether an SD 2.x file predicts v: by its metadata, else by its training steps, else yes, as for most."""
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    if stated:
        return stated.startswith("v")
    if "global_step" not in header.shapes:
        return True
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as stream:
        return int(stream.get_tensor("global_step")) != _SD2_BASE_STEPS


def sidecar(path: Path) -> Path:
    """Returns the file's sidecar folder. It may not exist."""
    return path.with_suffix("")


def config_folder(path: Path, kind: str, component: str) -> Path:
    """Returns the folder with the config of ``component`` in a subfolder: the sidecar, else ours. ``kind``: the
    family."""
    name = CONFIG_NAMES.get(component.removesuffix("_2"), "config.json")
    sidecar_path = sidecar(path)
    return sidecar_path if (sidecar_path / component / name).is_file() else CONFIGS / kind


def describe(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns the file's family, and the pipeline's index (as ``model_index.json``)."""
    kind = family(path)
    sidecar_path = sidecar(path) / "model_index.json"
    index = sidecar_path if sidecar_path.is_file() else CONFIGS / kind / "model_index.json"
    return kind, json.loads(index.read_text(encoding="utf-8"))


def deciding_files(path: Path, kind: str) -> list[Path]:
    """Lists all files besides the checkpoint that determine the model's output: our configs and the sidecar's."""
    files = []
    for component in COMPONENTS:
        folder = config_folder(path, kind, component) / component
        if folder.is_dir():
            files += sorted(p for p in folder.iterdir() if p.suffix in {".json", ".txt", SUFFIX})
    files += sorted(p for p in sidecar(path).glob("*.json"))
    return files
