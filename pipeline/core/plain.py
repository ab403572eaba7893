"""Reads only regular files and follows no links.

An output folder may be untrusted. A link in it would make us read, write or delete files elsewhere, and a named pipe
would block us forever.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_LINK = "it is a link, and links in an output folder are not followed; remove it"


def open_plain(path: Path) -> BinaryIO:
    """Opens the regular file at ``path`` for reading bytes. Raises OSError, also for a link or a special file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, _LINK, str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def is_plain(path: Path) -> bool:
    """Tells whether ``path`` is a regular file and not a link."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def refuse_links(folder: Path, names: Iterable[str | Path]) -> None:
    """Raises OSError if one of ``names`` in ``folder``, or a parent below ``folder``, is a link or a special file.

    Missing files are accepted.
    """
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
    """Lists all files and folders below ``folder``, relative to it. Lists links but does not follow them."""
    paths = []
    for base, folders, files in os.walk(folder):
        paths += [Path(base, name).relative_to(folder) for name in (*folders, *files)]
    return paths
