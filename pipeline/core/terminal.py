"""Prints all output of the command: escapes untrusted text for the terminal and reports failed writes.

Ids, messages, names and settings may be untrusted. Characters that a terminal acts on (C0 and C1 controls,
bidirectional overrides, line separators) and lone surrogates are printed as escapes, ``\\x1b`` or ``\\u202e``.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import IO

# C0, DEL and C1; Arabic letter mark, directional marks, line and paragraph separators, embeddings, overrides and
# isolates; surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_REASONS = {errno.EPIPE: "its reader has ended", errno.EBADF: "it is closed", errno.EIO: "its terminal was closed"}
# A word of a command line as ``shell_join`` writes it.
_WORD = r"""(?:[A-Za-z0-9_@%+=:,./~*-]|'[^']*'|"'"|\$'(?:[^'\\]|\\.)*')+"""
_COMMAND = re.compile(rf"latentkiln run(?: {_WORD})+")


class OutputLost(Exception):
    """Standard output cannot be written.

    ``reason`` is a short phrase. ``reader_gone``: the reader of a pipe has ended, as ``head`` does. This is not an
    OSError, so no handler for file errors catches it.
    """

    def __init__(self, reason: str, *, reader_gone: bool = False):
        super().__init__(reason)
        self.reason, self.reader_gone = reason, reader_gone


def escape(text: str) -> str:
    """Returns ``text`` on one line, with all characters that a terminal acts on as escapes."""
    return _UNSAFE.sub(_escaped, text)


def printable(text: str) -> str:
    """Returns ``text`` with every unprintable character as an escape, also invisible ones, which ``escape`` keeps."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def excerpt(value: object) -> str:
    """Returns the first 60 characters of ``value`` as text, printable, to quote untrusted input in a message."""
    return printable(str(value)[:60])


def _escaped(match: re.Match[str]) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(match[0])
    code = ord(match[0])
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def safe_json(value: object, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """``value`` as ASCII JSON text without control characters, except the line ends of ``indent``.

    Numbers that are not finite, which an untrusted file may contain, become null: JSON cannot represent them.
    """
    try:
        text = json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False)
    except ValueError:
        text = json.dumps(_with_finite_numbers(value), indent=indent, sort_keys=sort_keys, allow_nan=False)
    return text.replace("\x7f", "\\u007f")


def _with_finite_numbers(value: object) -> object:
    """A JSON ``value`` with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _with_finite_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_finite_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def escape_json(text: str) -> str:
    """Replaces characters that a terminal acts on in JSON ``text`` by JSON escapes. Keeps line ends.

    JSON allows these characters only inside strings, where the escape has the same meaning.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def shell_join(words: Iterable[str]) -> str:
    """Returns a printable command line that a shell splits into ``words``.

    Works as ``shlex.join``, but quotes words with control characters as ``$'...'``.
    """
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if not _UNSAFE.search(word):
        return shlex.quote(word)
    text = word.replace("\\", "\\\\").replace("'", "\\'")

    def code(match: re.Match[str]) -> str:
        point = ord(match[0])
        if 0xDC80 <= point <= 0xDCFF:
            # A byte of a file name that is not UTF-8.
            return f"\\x{point - 0xDC00:02x}"
        # A C1 character has two bytes in UTF-8, so \x would not do.
        return f"\\x{point:02x}" if point < 0x80 else f"\\u{point:04x}"

    return f"$'{_UNSAFE.sub(code, text)}'"


def is_run_command(text: str) -> bool:
    """Tells whether ``text`` is one ``latentkiln run`` command of plain words, safe to show to the user."""
    return _COMMAND.fullmatch(text) is not None


def say(*fields: object, end: str = "\n", flush: bool = False) -> None:
    """Prints ``fields``, escaped and separated by tabs. Raises OutputLost."""
    write("\t".join(escape(str(field)) for field in fields) + end, flush=flush)


def say_json(value: object, *, indent: int | None = None, flush: bool = False) -> None:
    """Prints ``value`` as JSON (``safe_json``). Raises OutputLost."""
    write(safe_json(value, indent=indent) + "\n", flush=flush)


def complain(text: str) -> None:
    """Prints an escaped line on standard error. Never raises, since no other stream is left to report to."""
    if sys.stderr is not None:
        with contextlib.suppress(OutputLost):
            _put(sys.stderr, escape(text) + "\n", flush=True)


def write(text: str, *, flush: bool = False) -> None:
    """Writes ``text``, which must be escaped, to standard output. Raises OutputLost."""
    _put(_stdout(), text, flush=flush)


def flush() -> None:
    """Flushes standard output. Raises OutputLost."""
    _put(_stdout(), "", flush=True)


def _stdout() -> IO[str] | None:
    """Returns standard output, also inside ``own_stdout``, where ``print`` writes elsewhere."""
    return sys.stdout if _own is None else _own


_own: IO[str] | None = None


@contextlib.contextmanager
def writing_to(stream: IO[str]) -> Iterator[None]:
    """Makes this module write to ``stream`` instead of ``sys.stdout`` inside the block."""
    global _own
    before, _own = _own, stream
    try:
        yield
    finally:
        _own = before


def _put(stream: IO[str] | None, text: str, *, flush: bool = False) -> None:
    if stream is None:
        raise OutputLost(_REASONS[errno.EBADF])
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        if flush:
            stream.flush()
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
        raise OutputLost(reason, reader_gone=error.errno == errno.EPIPE) from None
    except ValueError:
        # Python raises ValueError for a closed stream.
        raise OutputLost(_REASONS[errno.EBADF]) from None


class Display(io.TextIOBase):
    """A stream for the live display of a run. Drops output after a failed write; ``lost`` then holds the reason."""

    def __init__(self, stream: IO[str] | None = None):
        # Looked up once: rich's live display replaces sys.stdout by a stream that writes to this one.
        self._stream = sys.stdout if stream is None else stream
        self.lost = ""

    def write(self, text: str) -> int:
        """Writes ``text``, or drops it. Returns its length."""
        if not self.lost:
            try:
                _put(self._stream, text)
            except OutputLost as error:
                self.lost = error.reason
        return len(text)

    def flush(self) -> None:
        if not self.lost:
            try:
                _put(self._stream, "", flush=True)
            except OutputLost as error:
                self.lost = error.reason

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the underlying stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"


def prepare_streams() -> None:
    """Makes the process's standard streams usable.

    Text that the encoding lacks becomes escapes. A closed stream (``>&-``) keeps its descriptor number, so that no
    other file gets it.
    """
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        stream = getattr(sys, name)
        if stream is None and not _is_open(number):
            descriptor = os.open(os.devnull, flags)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            # Standard output is read-only here, so that a write to it fails and is reported.
            mode = "r" if name == "stdin" else "w"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        if name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def silence_stdout() -> None:
    """Discards buffered and later output, so that Python does not report the broken stream at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, _stdout().fileno())  # type: ignore[union-attr]  # None has no such attribute
        os.close(descriptor)
