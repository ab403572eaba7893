"""The cache of this node: inputs by the hash of their content, and scratch folders.

All files lie below one folder (``$LATENTKILN_CACHE``, or ``latentkiln`` in the user's cache folder). They can be
deleted at any time between runs. Inputs are used only after their hash was checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.atomic import TEMPORARY_PREFIX, write_json
from pipeline.core.hashing import sha256_bytes
from pipeline.core.home import CACHE_VARIABLE, cache_root
from pipeline.core.location import RemotePath
from pipeline.storage.store import ObjectMeta

__all__ = [
    "CACHE_VARIABLE",
    "cache_root",
    "commit",
    "entry_folder",
    "exclusive",
    "record_hash",
    "recorded_hash",
    "scratch_folder",
    "staging",
]


def scratch_folder(out: RemotePath) -> Path:
    """Return the local folder in which assets of ``out`` are built before they are published."""
    return cache_root() / "scratch" / sha256_bytes(out.url.encode())[:20]


def recorded_hash(location: RemotePath, meta: ObjectMeta) -> str:
    """Return the hash of the cached content of ``location``, whose current state is ``meta``; "" if not cached."""
    with contextlib.suppress(OSError, ValueError):
        note = json.loads(_hash_file(location).read_bytes())
        if isinstance(note, dict) and (note.get("url"), note.get("tag")) == (location.url, meta.etag) and meta.etag:
            return str(note.get("sha256", ""))
    return ""


def record_hash(location: RemotePath, meta: ObjectMeta, sha256: str) -> None:
    """Record the hash of the content that ``location`` has in the state ``meta``."""
    write_json(_hash_file(location), {"url": location.url, "tag": meta.etag, "sha256": sha256})


def entry_folder(sha256: str) -> Path:
    """Return the folder of the cached files with the hash ``sha256``. It may not exist."""
    return cache_root() / "inputs" / sha256[:2] / sha256


@contextlib.contextmanager
def staging() -> Iterator[Path]:
    """Make an empty folder for files that will be committed to the cache. Removed at the end of the block."""
    folder = cache_root() / "inputs" / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit(folder: Path, sha256: str) -> Path:
    """Move the files of a staging folder into the cache as ``sha256``. Return their new folder."""
    target = entry_folder(sha256)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        goal = target / path.relative_to(folder)
        goal.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, goal)
    return target


@contextlib.contextmanager
def exclusive(location: RemotePath) -> Iterator[None]:
    """Let one process of this node at a time fetch ``location``; the others then find it in the cache."""
    path = cache_root() / "locks" / sha256_bytes(location.url.encode())[:32]
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # On a file system without locks a file may be fetched twice, which does no harm.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _hash_file(location: RemotePath) -> Path:
    return cache_root() / "inputs" / "seen" / f"{sha256_bytes(location.url.encode())[:32]}.json"
