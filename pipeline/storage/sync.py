"""Upload files that keep changing: checkpoints for other nodes, and a run's files for readers.

A ``FileSync`` checks its files every few seconds and uploads those that changed. It spends at most a tenth of the time
on uploads, however slow the store is. An upload that fails is tried again and does not stop the build.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.core.atomic import TEMPORARY_PREFIX, atomic_write
from pipeline.core.location import RemotePath
from pipeline.storage.errors import PreconditionFailed, StorageError
from pipeline.storage.store import deadline, store_of

_MAX_BYTES = 4 << 30
# At most this share of the time is spent on uploads.
_SHARE = 0.1
_DEADLINE_SECONDS = 20.0

LocalAndRemote = tuple[Path, RemotePath]


class FileSync:
    """Uploads ``files()``, pairs of local and remote path, in a thread whenever they change, inside the context.

    ``allowed()`` is checked before each upload. ``problem`` is one line about the last upload that failed.
    """

    def __init__(
        self,
        files: Callable[[], Iterable[LocalAndRemote]],
        *,
        seconds: float = 15.0,
        allowed: Callable[[], bool] = lambda: True,
    ):
        self._files, self._seconds, self._allowed = files, seconds, allowed
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="file sync", daemon=True)
        self.problem = ""

    def __enter__(self) -> FileSync:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def sync(self) -> None:
        """Upload now what has changed since the last time."""
        self.problem = ""
        for path, location in self._files():
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                mark = (stat.st_mtime_ns, stat.st_ino)
                if self._uploaded.get(path) == mark or not self._allowed():
                    continue
                # The writer replaces the whole file, so the open file is one version.
                data = path.read_bytes()
                try:
                    with deadline(_DEADLINE_SECONDS):
                        store_of(location).write(location, data)
                    self._uploaded[path] = mark
                except (StorageError, PreconditionFailed) as error:
                    self.problem = str(error)

    def _run(self) -> None:
        pause = self._seconds
        while not self._end.wait(pause):
            start_time = time.monotonic()
            with contextlib.suppress(OSError):
                self.sync()
            pause = max(self._seconds, (time.monotonic() - start_time) / _SHARE)


def files_below(folder: Path, location: RemotePath) -> list[LocalAndRemote]:
    """Return every file below ``folder`` with its path below ``location``, without temporary files."""
    return [
        (path, location / path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(TEMPORARY_PREFIX)
    ]


def download_folder(location: RemotePath, folder: Path) -> int:
    """Copy every file below ``location`` into ``folder``. Return their number. Raises StorageError, OSError."""
    store, count = store_of(location), 0
    for name in store.files(location):
        # Names come from the store and are not trusted: nothing may be written outside the folder.
        if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
            continue
        with contextlib.suppress(FileNotFoundError):
            data = store.read(location / name, _MAX_BYTES)[0]
            with atomic_write(folder / name) as temporary:
                temporary.write_bytes(data)
            count += 1
    return count
