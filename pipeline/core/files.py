"""Pitfalls of input files: Unicode normal forms of names, Git LFS pointers."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_ADVICE = "it is a Git LFS pointer, not the file itself; fetch that with: git lfs pull"


def is_lfs_pointer(data: bytes | memoryview) -> bool:
    """Tells whether a file that begins with ``data`` is the Git LFS pointer of a file that was not fetched."""
    return bytes(data[: len(_POINTER)]) == _POINTER


def path_on_disk(path: Path) -> Path:
    """Returns ``path`` with each name in the Unicode normal form that the disk uses; otherwise unchanged.

    Some systems write "é" as one character, others as "e" and an accent.
    """
    if str(path).isascii():
        return path
    try:
        if os.path.lexists(path):
            return path
        parent = path.parent if path.parent == path else path_on_disk(path.parent)
        normalised = unicodedata.normalize("NFC", path.name)
        with os.scandir(parent) as entries:
            same = sorted(entry.name for entry in entries if unicodedata.normalize("NFC", entry.name) == normalised)
    except (OSError, ValueError):
        return path
    return parent / same[0] if same else path
