"""Reserves standard output for this program's own lines."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from pipeline.core.terminal import writing_to


@contextlib.contextmanager
def own_stdout() -> Iterator[TextIO]:
    """Yields a stream to standard output and redirects all other output of the block to standard error.

    Redirects prints of Python libraries, compiled code and child processes, so a reader gets only documented lines.
    """
    before = sys.stdout
    before.flush()
    with contextlib.ExitStack() as stack:
        stream = before
        with contextlib.suppress(io.UnsupportedOperation, OSError, ValueError):
            if before.fileno() == 1:
                real = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)  # never 2, even if that is closed
                stack.callback(_give_back, real)
                stream = stack.enter_context(_LineStream(real, before.encoding))
                _to_stderr()
        sys.stdout = sys.stderr or stack.enter_context(open(os.devnull, "w"))
        try:
            with writing_to(stream):
                yield stream
        finally:
            sys.stdout = before


class _LineStream(io.TextIOWrapper):
    """A text stream on a descriptor that stays open when the stream is closed.

    Closing raises nothing: each line was flushed when it was written, and errors were raised then.
    """

    def __init__(self, descriptor: int, encoding: str):
        raw = open(descriptor, "wb", buffering=0, closefd=False)  # noqa: SIM115 - closed with this
        super().__init__(io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=True)

    def close(self) -> None:
        """Closes the stream."""
        with contextlib.suppress(OSError, ValueError):
            super().close()


def _to_stderr() -> None:
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def _give_back(real: int) -> None:
    os.dup2(real, 1)
    os.close(real)
