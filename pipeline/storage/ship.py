"""Copies of files that keep changing: checkpoints to where another node can read them, a run's files for readers.

A ``Shipper`` looks at its files every few seconds and uploads those that changed. It spends at most a tenth of the
time on it, however slow the store, and never stops the work it watches: what could not be copied is tried again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.core.atomic import TEMPORARY_PREFIX, atomic_write
from pipeline.core.location import RemotePath
from pipeline.storage.errors import Clash, StorageError
from pipeline.storage.store import patience, store_of

_MAX_BYTES = 4 << 30
# At most this share of the time is spent on uploads.
_SHARE = 0.1
_PATIENCE_SECONDS = 20.0

Pair = tuple[Path, RemotePath]


class Shipper:
    """Copies ``files()`` (local path, place) whenever they have changed, in a thread, while the context lasts.

    ``allowed()`` is asked before each upload. ``problem`` holds one line about the last upload that failed.
    """

    def __init__(
        self, files: Callable[[], Iterable[Pair]], *, seconds: float = 15.0, allowed: Callable[[], bool] = lambda: True
    ):
        self._files, self._seconds, self._allowed = files, seconds, allowed
        self._sent: dict[Path, tuple[int, int]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self.problem = ""

    def __enter__(self) -> Shipper:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def ship(self) -> None:
        """Uploads what has changed since the last time, now."""
        self.problem = ""
        for path, place in self._files():
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                mark = (stat.st_mtime_ns, stat.st_ino)
                if self._sent.get(path) == mark or not self._allowed():
                    continue
                # The writer replaces the file as a whole: what is open here stays one version.
                data = path.read_bytes()
                try:
                    with patience(_PATIENCE_SECONDS):
                        store_of(place).write(place, data)
                    self._sent[path] = mark
                except (StorageError, Clash) as error:
                    self.problem = str(error)

    def _run(self) -> None:
        pause = self._seconds
        while not self._end.wait(pause):
            begun = time.monotonic()
            with contextlib.suppress(OSError):
                self.ship()
            pause = max(self._seconds, (time.monotonic() - begun) / _SHARE)


def files_below(folder: Path, place: RemotePath) -> list[Pair]:
    """Every file below ``folder`` with its place below ``place``; temporary files are left out."""
    return [
        (path, place / path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(TEMPORARY_PREFIX)
    ]


def pull(place: RemotePath, folder: Path) -> int:
    """Copies every file below ``place`` into ``folder``; how many there were. Raises StorageError, OSError."""
    store, count = store_of(place), 0
    for name in store.files(place):
        # A name is a stranger's: nothing may be written outside the folder.
        if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
            continue
        with contextlib.suppress(FileNotFoundError):
            data = store.read(place / name, _MAX_BYTES)[0]
            with atomic_write(folder / name) as temporary:
                temporary.write_bytes(data)
            count += 1
    return count
