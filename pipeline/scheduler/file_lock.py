"""One builder per asset: a lock file in the asset's folder, held by the process that builds it.

The lock is the kernel's (``flock``), not the file's existence: it is gone when its holder dies, however it
dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.asset_layout import LOCK


def lock(path: Path) -> int | None:
    """A descriptor that holds the lock file at ``path`` until it is closed; None when another process holds it.

    Raises OSError where the file cannot be made.
    """
    return _try_lock(path)


@contextlib.contextmanager
def asset_lock(folder: Path, *, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Holds ``folder`` for this process inside the block. Yields False when another process holds it.

    ``wait_seconds`` is how long to try. The folder is made where missing, and the lock file removed at the
    end. A file system that has no locks gives no exclusion, and True. Raises OSError when the folder cannot
    be made, or is a link that leaves its own parent.
    """
    _require_inside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    while (descriptor := _try_lock(folder / LOCK)) is None:
        if time.monotonic() >= deadline:
            yield False
            return
        time.sleep(0.05)
    try:
        yield True
    finally:
        # Removed while still held: whoever opened the old file sees that it is no longer the one at the path.
        with contextlib.suppress(OSError):
            os.unlink(folder / LOCK)
        os.close(descriptor)


def _require_inside(folder: Path) -> None:
    if folder.is_symlink() and not folder.resolve().is_relative_to(folder.parent.resolve()):
        raise OSError(errno.ELOOP, "it is a link that leaves the output folder", str(folder))


def _try_lock(path: Path) -> int | None:
    """A locked descriptor of the file at ``path``, or None when another holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                return None
            return descriptor  # no locks on this file system
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its last holder removed the file between our open and our lock
