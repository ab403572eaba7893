"""Temporary folders that only this user can open, removed when the process ends or by a later process after a kill.

Other users share the temporary directory. We never reuse a folder because of its name and never follow a link to one:
``mkdtemp`` creates it with mode 0700. The owning process holds a lock on a file inside, which the kernel releases
however the process ends.
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
    """Yields a new, empty folder (mode 0700) and removes it after the block.

    ``longest_root`` limits the length of the parent's path in bytes, for sockets in the folder. Raises OSError if no
    temporary directory is usable.
    """
    folder, lock = _make(longest_root)
    try:
        yield folder
    finally:
        _remove(folder, lock)


def lasting_folder() -> Path:
    """Returns this process's private folder, the same at each call. It is removed at exit. Raises OSError."""
    pid = os.getpid()
    if pid not in lasting_folders:
        folder, lock = _make(None)
        lasting_folders[pid] = folder
        atexit.register(_remove_own, pid, folder, lock)
    return lasting_folders[pid]


def sweep(root: Path) -> int:
    """Removes the private folders in ``root`` that killed processes of this user left. Returns their number.

    Removes only folders of this module: a real folder of this user with a marker file whose lock is free.
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
    """Tells whether only this user (and root) can change the content of an existing ``folder`` or replace it.

    A link does not count as a folder. Groups with write access are not trusted, except the user's own group, or all
    with ``trust_group``.
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
    """Creates ``folder`` (mode 0700), or accepts an existing one if ``is_own``. Returns False if it is unusable."""
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
    """Tells whether only root and this user can rename our entries in a parent folder."""
    if info.st_mode & stat.S_ISVTX:
        return True
    return info.st_uid in (0, os.geteuid()) and not _open_to_others(info, trust_group)


def _roots(longest: int | None) -> list[Path]:
    """Temporary directories in which others cannot rename our entries, the default one first."""
    named = (tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR") or "/tmp", "/dev/shm")
    roots = []
    for root in dict.fromkeys(Path(name) for name in named):
        with contextlib.suppress(OSError):
            fits = longest is None or len(os.fsencode(root)) <= longest
            if fits and root.is_absolute() and _is_trusted(os.stat(root)):
                roots.append(root)
    return roots


def _make(longest: int | None) -> tuple[Path, int | None]:
    problem = OSError(errno.EACCES, "no temporary directory can be used; set TMPDIR to a folder of yours", "/tmp")
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
    """Marks ``folder`` as in use. Returns None on a file system without locks, where ``sweep`` keeps it."""
    coming = folder / f"{_OWNER}.new"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(coming, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, _MARK)
        # Rename only after locking: ``sweep`` takes an unlocked marker for a dead process's.
        os.rename(coming, folder / _OWNER)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _lock_if_stale(folder: Path) -> int | None:
    """Locks a folder whose process has ended. Returns None if it is in use or not one of ours."""
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
    if os.getpid() == pid:  # not in a forked child
        _remove(folder, lock)
