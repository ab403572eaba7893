"""Checkpoints of one scene: parameters, optimiser and step in one safetensors file, written atomically.

A checkpoint has a checksum of its content. It is used only if checksum, names, shapes and dtypes are as expected and
all numbers are finite. A damaged file must neither change an asset's bytes nor make its row fail again and again.

A checkpoint holds no state of random generators, because every draw is keyed by (seed, purpose, step). Tensors are
stored contiguous; the scene that loads them copies them into its own memory layout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.core.atomic import atomic_write
from pipeline.core.errors import LatentkilnError
from pipeline.core.hashing import sha256_tensors
from pipeline.core.plain import is_plain

_FORMAT = "latentkiln-checkpoint-2"
# The most characters of an untrusted file that a message quotes.
_QUOTED = 80


class CheckpointError(LatentkilnError):
    """A checkpoint that cannot be used; the message is one line. A ``damaged`` one is of no use to any run."""

    stage = "distill"

    def __init__(self, message: str, *, damaged: bool = True):
        super().__init__(message)
        self.damaged = damaged


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """The spec of ``tensor``."""
        return cls(tuple(tensor.shape), tensor.dtype)


Specs = Mapping[str, TensorSpec]


def save(path: Path, tensors: Mapping[str, torch.Tensor], *, key: str, step: int) -> None:
    """Write ``tensors`` with the number of finished steps. ``key`` identifies the run that may load them."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": _FORMAT, "key": key, "step": str(step), "sha256": _digest(flat, key, step)}
    with atomic_write(path) as temporary:
        save_file(flat, temporary, metadata=metadata)


def load(
    path: Path, *, key: str, steps: int, required: Specs, optional: Sequence[Specs] = ()
) -> tuple[dict[str, torch.Tensor], int] | None:
    """Load the tensors that ``save`` wrote, contiguous in host memory, and the number of finished steps. None if there
    is no file.

    Args:
        key: as given to ``save``.
        steps: total number of steps, the upper bound of finished ones.
        required: the tensors that the file must hold.
        optional: groups of tensors; the file holds all or none of a group.

    Raises CheckpointError if the file is damaged, of another format or job, or contains other tensors. Checks names,
    shapes and dtypes before it reads a tensor, which bounds the memory for an untrusted file.
    """
    if not is_plain(path):
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            step = _checked_head(metadata, key, steps)
            _check_specs(stream, required, optional)
            # Clone, because the file's pages must not stay mapped while the loop overwrites the tensors.
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
    """Remove a useless checkpoint. One that cannot be removed is overwritten later."""
    with contextlib.suppress(OSError):
        path.unlink()


def _checked_head(metadata: Mapping[str, str], key: str, steps: int) -> int:
    """The number of finished steps. Raises CheckpointError, KeyError, ValueError."""
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"its format is {_quoted(metadata.get('format'))}, not {_FORMAT}", damaged=False)
    if metadata.get("key") != key:
        raise CheckpointError("it belongs to other inputs or settings, or to another prior or version", damaged=False)
    step = int(metadata["step"])
    if not 0 <= step <= steps:
        raise CheckpointError(f"it is from step {step} of only {steps}")
    return step


class _Slice(Protocol):
    """A tensor of an open safetensors file, not read yet."""

    def get_shape(self) -> Sequence[int]: ...

    def get_dtype(self) -> str: ...


class _OpenFile(Protocol):
    """The part of an open safetensors file that is used here."""

    def keys(self) -> Sequence[str]: ...

    def get_slice(self, name: str) -> _Slice: ...


def _check_specs(stream: _OpenFile, required: Specs, optional: Sequence[Specs]) -> None:
    """Raises CheckpointError unless the open file holds the expected tensors."""
    stored_names = set(stream.keys())
    expected = dict(required)
    for group in optional:
        if stored_names & set(group):
            expected |= group
    if missing := sorted(set(expected) - stored_names):
        raise CheckpointError(f"it lacks {missing[0]}")
    if extra := sorted(stored_names - set(expected)):
        raise CheckpointError(f"it holds {_quoted(extra[0])}, which this scene does not have")
    for name, spec in expected.items():
        stored = stream.get_slice(name)
        shape, dtype = tuple(stored.get_shape()), str(stored.get_dtype())
        if shape != spec.shape or dtype != _STORED[spec.dtype]:
            expected_layout = f"{_STORED[spec.dtype]} {list(spec.shape)}"
            raise CheckpointError(f"{name} is {dtype} {list(shape)}, not {expected_layout}")


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
    """Checksum of contiguous ``tensors`` in host memory, their names, shapes and dtypes, and of key and step."""
    entries = {
        name: (_STORED[tensor.dtype], tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().data)
        for name, tensor in tensors.items()
    }
    return sha256_tensors([_FORMAT, key, step], entries)


def _quoted(value: object) -> str:
    """``value`` on one line, without control characters, shortened."""
    text = repr(value) if isinstance(value, str) else " ".join(repr(str(value))[1:-1].split())
    return text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "..."
