"""Checkpoints of one scene: parameters, optimiser and step in one safetensors file, written atomically.

No random-generator state is needed: every draw is keyed by (seed, purpose, step).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.core.atomic import replacing
from pipeline.core.plain import is_plain

_FORMAT = "latentkiln-checkpoint-1"


def save(path: Path, tensors: Mapping[str, torch.Tensor], *, key: str, step: int) -> None:
    """Writes ``tensors`` with the number of finished steps. ``key`` names the job and all that must match."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(flat, temporary, metadata={"format": _FORMAT, "key": key, "step": str(step)})


def load(path: Path, *, key: str) -> tuple[dict[str, torch.Tensor], int] | None:
    """What ``save`` wrote, or None when there is none, it is damaged, or it belongs to another job."""
    if not is_plain(path):
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            if metadata.get("format") != _FORMAT or metadata.get("key") != key:
                return None
            # Cloned: the file's pages must not stay mapped while the loop writes over the tensors.
            return {name: stream.get_tensor(name).clone() for name in stream.keys()}, int(metadata["step"])  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
