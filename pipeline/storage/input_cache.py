"""Files of this node: inputs fetched once and kept by their content, scratch folders, what other nodes made before.

All of it lies below one folder (``$LATENTKILN_CACHE``, or ``latentkiln`` in the user's cache folder), can be deleted
at any time between runs, and is never read without its hash being checked.
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
    """The local folder in which assets of ``out`` are built before they are published."""
    return cache_root() / "scratch" / sha256_bytes(out.url.encode())[:20]


def recorded_hash(location: RemotePath, meta: ObjectMeta) -> str:
    """The hash under which ``location``, as it is ``meta`` now, was kept before; "" where it was not."""
    with contextlib.suppress(OSError, ValueError):
        note = json.loads(_hash_file(location).read_bytes())
        if isinstance(note, dict) and (note.get("url"), note.get("tag")) == (location.url, meta.etag) and meta.etag:
            return str(note.get("sha256", ""))
    return ""


def record_hash(location: RemotePath, meta: ObjectMeta, sha256: str) -> None:
    """Notes which content ``location`` had as it was ``meta``."""
    write_json(_hash_file(location), {"url": location.url, "tag": meta.etag, "sha256": sha256})


def entry_folder(sha256: str) -> Path:
    """The folder that holds the files whose content is named ``sha256``; it may not be there."""
    return cache_root() / "inputs" / sha256[:2] / sha256


@contextlib.contextmanager
def staging() -> Iterator[Path]:
    """An empty folder for files on their way into the cache, removed at the end."""
    folder = cache_root() / "inputs" / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit(folder: Path, sha256: str) -> Path:
    """Moves the files of a staged folder into the cache as ``sha256``. The folder they are in now."""
    target = entry_folder(sha256)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        goal = target / path.relative_to(folder)
        goal.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, goal)
    return target


@contextlib.contextmanager
def exclusive(location: RemotePath) -> Iterator[None]:
    """Only one process of this node is inside the block for ``location``: the others find what it fetched."""
    path = cache_root() / "locks" / sha256_bytes(location.url.encode())[:32]
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # A file system without locks gives no exclusion: then a file is fetched twice, and no harm done.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _hash_file(location: RemotePath) -> Path:
    return cache_root() / "inputs" / "seen" / f"{sha256_bytes(location.url.encode())[:32]}.json"
