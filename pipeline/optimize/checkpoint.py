"""Checkpoints of one scene: parameters, optimiser and step in one safetensors file, written atomically.

A checkpoint carries a checksum of all it holds, and is read only where checksum, names, shapes and dtypes are as
expected and every number is finite: a file that was damaged on a disk or on its way from a store must neither end in
other bytes nor stop its row at every try.

No random-generator state is needed: every draw is keyed by (seed, purpose, step). Memory layout is not kept: tensors
are stored contiguous, and who takes them back copies them into tensors laid out as their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.core.atomic import atomic_write
from pipeline.core.errors import LatentkilnError
from pipeline.core.hashing import sha256_tensors
from pipeline.core.plain import is_plain

_FORMAT = "latentkiln-checkpoint-2"
# What a message quotes of a file that may come from anybody.
_QUOTED = 80


class CheckpointError(LatentkilnError):
    """A checkpoint that cannot be used; one line why. ``damaged``: it is good for no other run either."""

    stage = "distill"

    def __init__(self, message: str, *, damaged: bool = True):
        super().__init__(message)
        self.damaged = damaged


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor of a checkpoint must be."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """The spec of ``tensor``."""
        return cls(tuple(tensor.shape), tensor.dtype)


Specs = Mapping[str, TensorSpec]


def save(path: Path, tensors: Mapping[str, torch.Tensor], *, key: str, step: int) -> None:
    """Writes ``tensors`` with the number of finished steps. ``key`` names the job and all that must match."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": _FORMAT, "key": key, "step": str(step), "sha256": _digest(flat, key, step)}
    with atomic_write(path) as temporary:
        save_file(flat, temporary, metadata=metadata)


def load(
    path: Path, *, key: str, steps: int, required: Specs, optional: Sequence[Specs] = ()
) -> tuple[dict[str, torch.Tensor], int] | None:
    """The tensors that ``save`` wrote, contiguous in host memory, and the number of finished steps; None where there
    is no file.

    Args:
        key: as given to ``save``.
        steps: the most steps that can be finished.
        required: the tensors that must be there.
        optional: groups of tensors, each of which is there as a whole or not at all.

    Raises CheckpointError where the file is damaged, of another format or job, or holds anything else. No tensor is
    read before its name, shape and dtype are known to be right: a file of a stranger takes no more memory than that.
    """
    if not is_plain(path):
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            step = _checked_head(metadata, key, steps)
            _check_specs(stream, required, optional)
            # Cloned: the file's pages must not stay mapped while the loop writes over the tensors.
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"it cannot be read ({type(error).__name__}: {_quoted(error)})") from None
    if metadata.get("sha256") != _digest(tensors, key, step):
        raise CheckpointError("its content does not match its checksum")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name} holds numbers that are not finite")
    return tensors, step


def discard(path: Path) -> None:
    """Removes a checkpoint that is good for nothing. One that cannot be removed is written over later."""
    with contextlib.suppress(OSError):
        path.unlink()


def _checked_head(metadata: Mapping[str, str], key: str, steps: int) -> int:
    """The number of finished steps. Raises CheckpointError, KeyError, ValueError."""
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"its format is {_quoted(metadata.get('format'))}, not {_FORMAT}", damaged=False)
    if metadata.get("key") != key:
        raise CheckpointError("it is of other inputs or settings, or of another prior or version", damaged=False)
    step = int(metadata["step"])
    if not 0 <= step <= steps:
        raise CheckpointError(f"it is of step {step}, of {steps}")
    return step


def _check_specs(stream: Any, required: Specs, optional: Sequence[Specs]) -> None:
    """Raises CheckpointError unless the open file holds what is expected."""
    there = set(stream.keys())
    expected = dict(required)
    for group in optional:
        if there & set(group):
            expected |= group
    if missing := sorted(set(expected) - there):
        raise CheckpointError(f"it lacks {missing[0]}")
    if extra := sorted(there - set(expected)):
        raise CheckpointError(f"it holds {_quoted(extra[0])}, which this scene does not have")
    for name, spec in expected.items():
        stored = stream.get_slice(name)
        shape, dtype = tuple(stored.get_shape()), str(stored.get_dtype())
        if shape != spec.shape or dtype != _STORED[spec.dtype]:
            wanted = f"{_STORED[spec.dtype]} {list(spec.shape)}"
            raise CheckpointError(f"{name} is {dtype} {list(shape)}, not {wanted}")


# The names that safetensors gives to the dtypes of a scene's state.
_STORED = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _digest(tensors: Mapping[str, torch.Tensor], key: str, step: int) -> str:
    """Checksum of contiguous ``tensors`` in host memory, and of all that says what they are."""
    entries = {
        name: (_STORED[tensor.dtype], tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().data)
        for name, tensor in tensors.items()
    }
    return sha256_tensors([_FORMAT, key, step], entries)


def _quoted(value: object) -> str:
    """``value`` on one line, without control characters, shortened."""
    text = repr(value) if isinstance(value, str) else " ".join(repr(str(value))[1:-1].split())
    return text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "..."
