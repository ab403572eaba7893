"""Converts text files of other programs to UTF-8 with line ends in LF or CR LF."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from typing import BinaryIO, cast

_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# Within the first bytes a file shows how its lines end.
PEEKED_BYTES = 64 << 10


class NotUtf16(ValueError):
    """A file has the byte order mark of UTF-16 but is not valid UTF-16."""


def as_plain(stream: BinaryIO) -> BinaryIO:
    """Returns a manifest's bytes as UTF-8 with lines that end in LF or CR LF. ``stream`` is seekable.

    Converts UTF-16 with a byte order mark to UTF-8. If the first line ends in CR alone, as on old Macs and in Excel's
    "CSV (Macintosh)", converts every CR and CR LF to LF; otherwise keeps lone CRs. Returns other files unchanged.
    Reading raises NotUtf16 if the byte order mark was wrong.
    """
    encoding = _UTF16.get(stream.read(2))
    if encoding:
        stream = _Recoded.open(stream, _from_utf16(encoding))
        head = cast(io.BufferedReader, stream).peek(PEEKED_BYTES)
    else:
        stream.seek(0)
        head = stream.read(PEEKED_BYTES)
        stream.seek(0)
    ends = [at for at in (head.find(b"\r"), head.find(b"\n")) if at >= 0]
    first = min(ends, default=len(head))
    lone = head[first : first + 1] == b"\r" and head[first + 1 : first + 2] != b"\n"
    return _Recoded.open(stream, _line_ends()) if lone and first + 1 < PEEKED_BYTES else stream


# Converts a block of bytes; the flag marks the last one.
_Recode = Callable[[bytes, bool], bytes]


class _Recoded(io.RawIOBase):
    """A stream that converts the blocks of another stream with ``recode``."""

    def __init__(self, stream: BinaryIO, recode: _Recode):
        self._stream, self._recode, self._ready, self._ended = stream, recode, b"", False

    @classmethod
    def open(cls, stream: BinaryIO, recode: _Recode) -> BinaryIO:
        return io.BufferedReader(cls(stream, recode), PEEKED_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer)  # type: ignore[arg-type]
        while not self._ready and not self._ended:
            block = self._stream.read(PEEKED_BYTES)
            self._ended = not block
            self._ready = self._recode(block, self._ended)
        chunk, self._ready = self._ready[: len(target)], self._ready[len(target) :]
        target[: len(chunk)] = chunk
        return len(chunk)


def _from_utf16(encoding: str) -> _Recode:
    decoder = codecs.getincrementaldecoder(encoding)()

    def recode(block: bytes, last: bool) -> bytes:
        try:
            return decoder.decode(block, last).encode("utf-8")
        except UnicodeDecodeError as error:
            raise NotUtf16(f"contains bytes that are not ({error.reason})") from None

    return recode


def _line_ends() -> _Recode:
    held = b""

    def recode(block: bytes, last: bool) -> bytes:
        nonlocal held
        block = held + block
        # A CR at the end of a block may be the first half of a CR LF.
        held = b"\r" if block.endswith(b"\r") and not last else b""
        return block[: len(block) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    return recode
