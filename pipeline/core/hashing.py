"""Canonical JSON and content hashes, for fingerprints and records."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK_BYTES = 1 << 20


def canonical_json(value: object) -> bytes:
    """Returns UTF-8 JSON of ``value`` with sorted keys and no spaces. Equal values give equal bytes.

    Whole floats are written as integers, so ``15`` and ``15.0`` in a manifest mean the same.
    Raises ``ValueError`` for NaN or infinity.
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _canonical(value: object) -> object:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    return value


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tensors(head: object, tensors: Mapping[str, tuple[str, Sequence[int], memoryview]]) -> str:
    """Hex sha256 of named tensors, each as (dtype, shape, flat bytes in C order), and of the JSON value ``head``.

    The order of ``tensors`` does not matter. Raises ``ValueError`` as ``canonical_json`` does.
    """
    names = sorted(tensors)
    described = [[name, tensors[name][0], [int(side) for side in tensors[name][1]]] for name in names]
    digest = hashlib.sha256(canonical_json([head, described]))
    for name in names:
        digest.update(tensors[name][2])
    return digest.hexdigest()


def sha256_arrays(head: object, arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """``sha256_tensors`` of NumPy ``arrays`` in any memory layout."""
    entries = {name: (array.dtype.str, array.shape, memoryview(array.tobytes())) for name, array in arrays.items()}
    return sha256_tensors(head, entries)
