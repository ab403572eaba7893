"""Reads the bytes of a mesh file within a limit."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import MeshError
from pipeline.core.files import POINTER_ADVICE, is_lfs_pointer


def read_mesh_bytes(path: Path, max_bytes: int) -> bytes:
    """The bytes of the file at ``path``. Raises MeshError, in one line, if there are more than ``max_bytes``, if it
    cannot be read, and for a Git LFS pointer."""
    name = path.name
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise MeshError(f"{name}: {size} bytes are more than is allowed ({max_bytes})")
        data = path.read_bytes()
    except OSError as error:
        raise MeshError(f"{name}: it cannot be read ({error.strerror or error})") from None
    if is_lfs_pointer(data):
        raise MeshError(f"{name}: {POINTER_ADVICE}")
    return data
