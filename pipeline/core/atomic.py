"""Atomic file writes: write a temporary file beside the target, flush it, rename it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.process.liveness import is_alive
from pipeline.core.terminal import escape_json

TEMPORARY_PREFIX = ".tmp-"
_DAY_SECONDS = 86_400
# Rust's notation of errno.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in ``path``'s folder and renames it to ``path`` when the block succeeds.

    The temporary name contains the process id and a random part, so two processes never share one. When the block
    raises, the temporary file is removed and ``path`` stays unchanged. An OSError that leaves the block names ``path``,
    also an OSError that safetensors has wrapped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}{path.suffix}"
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes an OSError that leaves the block name ``path`` if it names no file or a temporary one.

    Python names no file in errors of write(2), and a temporary name means nothing to the user.
    """
    try:
        yield
    except OSError as error:
        name = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes, Path)) else None
        temporary = name is not None and name.parent == path.parent and name.name.startswith(TEMPORARY_PREFIX)
        if error.errno is not None and (error.filename is None or temporary):
            error.filename = str(path)
        raise
    except Exception as error:
        number = _OS_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def remove_stale_temporaries(folder: Path) -> int:
    """Removes temporary files in ``folder`` whose writer has ended. Returns their number.

    A writer has ended if no process has its id, or if the file is a day old (the writer may have run on another
    machine).
    """
    removed = 0
    if folder.is_symlink():
        return 0
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        number = path.name.removeprefix(TEMPORARY_PREFIX).split("-")[0]
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_mtime > _DAY_SECONDS
            if old or (number.isdigit() and not is_alive(int(number))):
                path.unlink()
                removed += 1
    return removed


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Writes ``value`` atomically as indented JSON with sorted keys.

    Escapes control characters of terminals and lone surrogates (file names that are not UTF-8).
    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (escape_json(text) + "\n").encode())
