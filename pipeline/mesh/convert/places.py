"""Finds files that a foreign file names: beside it or below, and nowhere else. Imports no numpy."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PureWindowsPath

_MOST_ENTRIES = 20_000
_BESIDE = ("", "textures", "Textures", "tex", "maps")


def file_beside(names: list[str], folder: Path, stem: str = "") -> Path | None:
    """The first file that one of ``names`` (paths as a foreign file writes them) means in ``folder`` or below.

    Absolute paths and paths that lead outside count by their last part only. Follows no link out of the folder.
    """
    try:
        root = folder.resolve()
    except (OSError, RuntimeError):
        return None
    for name in names:
        if not name or "\0" in name or len(name) > 4096:
            continue
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            continue
        candidates = []
        if not (name.startswith(("/", "\\")) or PureWindowsPath(name).drive or ".." in parts):
            candidates.append(folder.joinpath(*parts))
        candidates += [folder / beside / parts[-1] for beside in (*_BESIDE, f"{stem}.fbm")]
        for candidate in candidates:
            if (path := _inside(candidate, root)) is not None:
                return path
        for beside in ("", "textures", "Textures"):
            if (path := _other_case(folder / beside, parts[-1])) and (inside := _inside(path, root)):
                return inside
    return None


def _inside(path: Path, root: Path) -> Path | None:
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        real = path.resolve()
        if real.is_relative_to(root) and real.is_file():
            return real
    return None


def _other_case(folder: Path, name: str) -> Path | None:
    """The file in ``folder`` whose name differs from ``name`` by case only: Windows takes both for one."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST_ENTRIES:
                break
            if entry.name.casefold() == name.casefold():
                return Path(entry.path)
    return None
