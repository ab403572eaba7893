"""One builder per asset: the process that builds an asset locks a file in its folder.

The lock is the kernel's (``flock``), not the existence of the file. The kernel releases it when the holder dies.
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
    """Lock the file at ``path``. Return the descriptor that holds the lock until it is closed.

    Returns None if another process holds it. Raises OSError if the file cannot be made.
    """
    return _try_lock(path)


@contextlib.contextmanager
def asset_lock(folder: Path, *, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Lock the asset's ``folder`` inside the block. Yields False if another process holds the lock.

    Tries for ``wait_seconds``. Makes the folder if it is missing and removes the lock file at the end. On a file system
    without locks it yields True without exclusion. Raises OSError if the folder cannot be made, or is a link to a place
    outside its parent.
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
        # Removed while still locked, so that a process which opened this file sees that the path has another one.
        with contextlib.suppress(OSError):
            os.unlink(folder / LOCK)
        os.close(descriptor)


def _require_inside(folder: Path) -> None:
    if folder.is_symlink() and not folder.resolve().is_relative_to(folder.parent.resolve()):
        raise OSError(errno.ELOOP, "it is a link that leaves the output folder", str(folder))


def _try_lock(path: Path) -> int | None:
    """Return a locked descriptor of the file at ``path``, or None if another process holds the lock."""
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
        os.close(descriptor)  # the last holder removed the file after it was opened here
