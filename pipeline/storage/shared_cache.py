"""Files that any node may make and all nodes must share, such as texture coordinates found under a time limit.

The node that is first to publish a file decides its content; the others use that. An output root at a URL owns a
``SharedCache``, which a build passes to the code that makes such files. A local output root has none.
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
        """Share ``path`` in place of the URL's entry, because that cannot be used."""
        remote = self._location / path.name
        with contextlib.suppress(StorageError, PreconditionFailed), deadline(_DEADLINE_SECONDS):
            store_of(remote).write(remote, path.read_bytes())

    def _download(self, path: Path) -> None:
        remote = self._location / path.name
        write_bytes(path, store_of(remote).read(remote, _MAX_BYTES)[0])
