"""What files of strangers can hide: another Unicode form of a name, a pointer of Git LFS, words for a terminal."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_ADVICE = "it is a Git LFS pointer, not the file itself; fetch that with: git lfs pull"


def is_lfs_pointer(data: bytes | memoryview) -> bool:
    """Whether a file that begins with ``data`` is what Git LFS leaves in the place of a file that was not fetched."""
    return bytes(data[: len(_POINTER)]) == _POINTER


def path_on_disk(path: Path) -> Path:
    """``path`` as its names are spelled on disk, where only the Unicode normal form differs; else as it is.

    A name typed on one system ("é" as one character) may have been written by another ("e" and an accent).
    """
    if str(path).isascii():
        return path
    try:
        if os.path.lexists(path):
            return path
        parent = path.parent if path.parent == path else path_on_disk(path.parent)
        wanted = unicodedata.normalize("NFC", path.name)
        with os.scandir(parent) as entries:
            same = sorted(entry.name for entry in entries if unicodedata.normalize("NFC", entry.name) == wanted)
    except (OSError, ValueError):
        return path
    return parent / same[0] if same else path


def plain(text: object) -> str:
    """A stranger's words as they are quoted in a message: short, and nothing in them that a terminal obeys."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[:60])
