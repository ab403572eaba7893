"""Files that any node may make and all nodes must share, like texture coordinates found under a time limit.

A local folder is tied to a place; whoever makes a file in it offers it, and whoever misses one asks for it. What was
there first counts. A folder that is tied to nothing costs nothing.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from pipeline.core.atomic import write_bytes
from pipeline.core.location import RemotePath
from pipeline.storage.errors import PreconditionFailed, StorageError
from pipeline.storage.store import ABSENT, deadline, store_of

_MAX_BYTES = 1 << 30
_DEADLINE_SECONDS = 20.0
_remote_folders: dict[Path, RemotePath] = {}


def attach(folder: Path, location: RemotePath) -> None:
    """From now on the files of ``folder`` are shared at ``location``."""
    _remote_folders[folder] = location


def fetch(path: Path) -> None:
    """Fetches ``path`` where it is not there and another node has made it. Never raises StorageError."""
    location = _remote_folders.get(path.parent)
    if location is None or path.is_file():
        return
    with contextlib.suppress(FileNotFoundError, StorageError), deadline(_DEADLINE_SECONDS):
        write_bytes(path, store_of(location).read(location / path.name, _MAX_BYTES)[0])


def publish(path: Path) -> bool:
    """Shares ``path``, just made. True where another node was first: then ``path`` is what that one made.

    A store that cannot be reached is no reason to stop: publishing will say so.
    """
    location = _remote_folders.get(path.parent)
    if location is None:
        return False
    try:
        with deadline(_DEADLINE_SECONDS):
            store_of(location).write(location / path.name, path.read_bytes(), expect=ABSENT)
    except PreconditionFailed:
        with contextlib.suppress(FileNotFoundError, StorageError):
            write_bytes(path, store_of(location).read(location / path.name, _MAX_BYTES)[0])
            return True
    except StorageError:
        pass
    return False


def replace(path: Path) -> None:
    """Shares ``path`` in the place of what lies there and cannot be used. Never raises StorageError."""
    location = _remote_folders.get(path.parent)
    if location is not None:
        with contextlib.suppress(StorageError, PreconditionFailed), deadline(_DEADLINE_SECONDS):
            store_of(location).write(location / path.name, path.read_bytes())
