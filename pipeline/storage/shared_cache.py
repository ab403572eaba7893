"""Files that any node may make and all nodes must share, such as texture coordinates found under a time limit.

The node that is first to publish a file decides its content; the others use that. An output root at a URL owns a
``SharedCache`` and keeps it open while rows are built. A folder without one is local.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.atomic import write_bytes
from pipeline.core.location import RemotePath
from pipeline.storage.errors import PreconditionFailed, StorageError
from pipeline.storage.store import ABSENT, deadline, store_of

_MAX_BYTES = 1 << 30
_DEADLINE_SECONDS = 20.0


class SharedCache:
    """A local ``folder`` whose files are shared at ``location``.

    All methods take the path of a file right in ``folder``. None of them raises StorageError: without the store each
    node works with its own files.
    """

    def __init__(self, folder: Path, location: RemotePath):
        self.folder, self._location = folder, location

    def fetch(self, path: Path) -> None:
        """Fetch ``path`` if it does not exist here and another node has published it."""
        if path.is_file():
            return
        with contextlib.suppress(FileNotFoundError, StorageError), deadline(_DEADLINE_SECONDS):
            self._download(path)

    def publish(self, path: Path) -> bool:
        """Share ``path``, which was just made. Return True if another node was first: ``path`` then has its content."""
        try:
            with deadline(_DEADLINE_SECONDS):
                remote = self._location / path.name
                store_of(remote).write(remote, path.read_bytes(), expect=ABSENT)
        except PreconditionFailed:
            with contextlib.suppress(FileNotFoundError, StorageError):
                self._download(path)
                return True
        except StorageError:
            pass
        return False

    def replace(self, path: Path) -> None:
        """Share ``path`` in place of what the URL holds, because that cannot be used."""
        remote = self._location / path.name
        with contextlib.suppress(StorageError, PreconditionFailed), deadline(_DEADLINE_SECONDS):
            store_of(remote).write(remote, path.read_bytes())

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Make this the cache that ``open_cache`` finds for ``folder``, inside the block."""
        before = _open_caches.get(self.folder)
        _open_caches[self.folder] = self
        try:
            yield
        finally:
            if before is None:
                del _open_caches[self.folder]
            else:
                _open_caches[self.folder] = before

    def _download(self, path: Path) -> None:
        remote = self._location / path.name
        write_bytes(path, store_of(remote).read(remote, _MAX_BYTES)[0])


# Caches in use, by folder: recipes know the folder only.
_open_caches: dict[Path, SharedCache] = {}


def open_cache(folder: Path) -> SharedCache | None:
    """Return the cache that is open for ``folder``, None for a local folder."""
    return _open_caches.get(folder)
