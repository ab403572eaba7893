"""Files and folders that are what they seem: no link is followed, and nothing but a regular file is read.

An output folder may come from a stranger. A link in it would have us read, write or delete elsewhere, and a named pipe
would have us wait for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_LINK = "it is a link, and none is followed in an output folder; remove it"


def open_plain(path: Path) -> BinaryIO:
    """The regular file at ``path``, open for reading bytes. Raises OSError; also for a link or anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, _LINK, str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def is_plain(path: Path) -> bool:
    """Whether ``path`` is a regular file, and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def refuse_links(folder: Path, names: Iterable[str | Path]) -> None:
    """Raises OSError where one of ``names`` in ``folder``, or a folder on the way to it, is a link, or neither a file
    nor a folder. What is not there is none."""
    for name in names:
        path = folder
        for part in Path(name).parts:
            path = path / part
            try:
                mode = os.lstat(path).st_mode
            except (FileNotFoundError, NotADirectoryError):
                break
            if stat.S_ISLNK(mode):
                raise OSError(errno.ELOOP, _LINK, str(path))
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise OSError(errno.EINVAL, "it is neither a file nor a folder; remove it", str(path))


def files_below(folder: Path) -> list[Path]:
    """The paths of everything below ``folder``, relative to it; links are named, not followed."""
    found = []
    for base, folders, files in os.walk(folder):
        found += [Path(base, name).relative_to(folder) for name in (*folders, *files)]
    return found
