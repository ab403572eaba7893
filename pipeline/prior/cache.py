"""This user's cache of results that are slow to compute. Loads no torch.

It may be deleted at any time. ``LATENTKILN_CACHE`` sets another folder.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from pipeline.core.atomic import write_json
from pipeline.core.hashing import canonical_json, sha256_bytes, sha256_file
from pipeline.core.home import CACHE_VARIABLE, cache_root

__all__ = ["CACHE_VARIABLE", "cache_folder", "file_hash", "read_entry", "write_entry"]

_HASHES = "hashes.json"
_CHECKSUM = "sha256"
LARGE_FILE_BYTES = 16 << 20
_MOST_HASHES = 4096


def cache_folder() -> Path:
    """Returns this user's cache folder. It may not exist yet."""
    return cache_root()


def read_entry(name: str) -> dict[str, Any]:
    """Returns the JSON object in the cache's file ``name``; empty if it is missing or damaged (by its checksum)."""
    try:
        value = json.loads((cache_folder() / name).read_text(encoding="utf-8"))
        if isinstance(value, dict) and value.pop(_CHECKSUM, None) == sha256_bytes(canonical_json(value)):
            return value
    except (OSError, ValueError, RecursionError):
        pass
    return {}


def write_entry(name: str, value: dict[str, Any]) -> None:
    """Writes the cache's file ``name`` with a checksum. Ignores a cache that cannot be written."""
    with contextlib.suppress(OSError):
        write_json(cache_folder() / name, value | {_CHECKSUM: sha256_bytes(canonical_json(value))})


def file_hash(path: Path) -> str:
    """Hex sha256 of a file, computed once per process while its size, times and inode do not change.

    Caches hashes of large files on disk: checkpoints have gigabytes, and every ``plan`` needs their hash.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    if key not in known_hashes:
        if len(known_hashes) >= _MOST_HASHES:
            known_hashes.clear()
        known_hashes[key] = sha256_file(path) if stat.st_size < LARGE_FILE_BYTES else _cached_hash(path, key)
    return known_hashes[key]


# Hashes computed by this process, by path, size, times and inode.
known_hashes: dict[str, str] = {}


def _cached_hash(path: Path, key: str) -> str:
    known = read_entry(_HASHES)
    if isinstance(known.get(key), str):
        return str(known[key])
    digest = sha256_file(path)
    # Read again: another process may have added an entry meanwhile.
    known = read_entry(_HASHES)
    if len(known) >= _MOST_HASHES:
        known = {}
    write_entry(_HASHES, known | {key: digest})
    return digest
