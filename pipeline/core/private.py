"""Folders that only this user can open: made anew under a name nobody can guess, removed at the end or after a kill.

The temporary directory is shared with other users. A folder there is never accepted because its name fits, and never
reached through a link: it is made (``mkdtemp``, mode 0700), and it belongs to a process by a lock on a file inside,
which the kernel releases however the process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "lk-"
_NAME = re.compile(r"lk-[a-z0-9_]{8}")
_OWNER, _MARK = ".owner", b"a temporary folder of latentkiln\n"

_swept: set[Path] = set()
# The private folder of a process until it ends, by process id: a forked child makes one of its own.
lasting_folders: dict[int, Path] = {}


@contextlib.contextmanager
def private_folder(*, longest_root: int | None = None) -> Iterator[Path]:
    """A new, empty folder (0700) for the length of the block.

    ``longest_root`` is how many bytes the path of the folder that holds it may have, for sockets inside. Raises OSError
    where no temporary directory can be used.
    """
    folder, lock = _make(longest_root)
    try:
        yield folder
    finally:
        _remove(folder, lock)


def lasting_folder() -> Path:
    """A private folder that is there until this process ends: the same one at every call. Raises OSError."""
    pid = os.getpid()
    if pid not in lasting_folders:
        folder, lock = _make(None)
        lasting_folders[pid] = folder
        atexit.register(_remove_own, pid, folder, lock)
    return lasting_folders[pid]


def sweep(root: Path) -> int:
    """Removes private folders in ``root`` that killed processes of this user left; returns how many.

    Only what this module has made is touched: a real folder of this user with a mark inside whose lock is free.
    """
    removed = 0
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(root) if _NAME.fullmatch(name)]
        for name in names:
            if (lock := _lock_if_stale(root / name)) is not None:
                _remove(root / name, lock)
                removed += 1
    return removed


def is_own(folder: Path, *, trust_group: bool = False) -> bool:
    """Whether only this user (and root) can change what lies in an existing ``folder``, or put another in its place.

    A link is no folder. A group that may write is a stranger unless it is this user's own, or ``trust_group``.
    """
    try:
        info = os.lstat(folder)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or _open_to_others(info, trust_group):
            return False
        real = Path(os.path.realpath(folder))
        return all(_is_trusted(os.stat(parent), trust_group) for parent in real.parents)
    except OSError:
        return False


def make_own(folder: Path) -> bool:
    """Makes ``folder`` (0700), or takes the one that is there if ``is_own``. False where it cannot be used."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        return is_own(folder) and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def _open_to_others(info: os.stat_result, trust_group: bool = False) -> bool:
    by_group = info.st_mode & stat.S_IWGRP and info.st_gid != info.st_uid and not trust_group
    return bool(info.st_mode & stat.S_IWOTH or by_group)


def _is_trusted(info: os.stat_result, trust_group: bool = False) -> bool:
    """Of a parent: nobody but root and this user can rename what is ours in it."""
    if info.st_mode & stat.S_ISVTX:
        return True
    return info.st_uid in (0, os.geteuid()) and not _open_to_others(info, trust_group)


def _roots(longest: int | None) -> list[Path]:
    """Temporary directories in which others cannot rename what is ours, the usual one first."""
    named = (tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR") or "/tmp", "/dev/shm")
    roots = []
    for root in dict.fromkeys(Path(name) for name in named):
        with contextlib.suppress(OSError):
            fits = longest is None or len(os.fsencode(root)) <= longest
            if fits and root.is_absolute() and _is_trusted(os.stat(root)):
                roots.append(root)
    return roots


def _make(longest: int | None) -> tuple[Path, int | None]:
    problem = OSError(errno.EACCES, "no temporary directory can be used; name one of yours in TMPDIR", "/tmp")
    for root in _roots(longest):
        if root not in _swept:
            _swept.add(root)
            sweep(root)
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        except OSError as error:
            problem = error
            continue
        return folder, _mark(folder)
    raise problem


def _mark(folder: Path) -> int | None:
    """Marks ``folder`` as in use; None on a file system without locks, where nobody will sweep it up."""
    coming = folder / f"{_OWNER}.new"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(coming, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, _MARK)
        # Under its name only now that it is locked: a mark without a lock is a dead process's.
        os.rename(coming, folder / _OWNER)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _lock_if_stale(folder: Path) -> int | None:
    """The lock of a folder whose process is gone; None when it is in use, or not one of ours."""
    mark = -1
    try:
        inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(inside).st_uid != os.geteuid():
            return None
        mark = os.open(_OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=inside)
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(mark).st_uid == os.geteuid() and os.read(mark, 64) == _MARK:
            mark, lock = -1, mark
            return lock
    except OSError:
        pass
    finally:
        os.close(inside)
        if mark >= 0:
            os.close(mark)
    return None


def _remove(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _remove_own(pid: int, folder: Path, lock: int | None) -> None:
    if os.getpid() == pid:  # a forked child ends, too
        _remove(folder, lock)
