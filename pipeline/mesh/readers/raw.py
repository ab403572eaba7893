"""The result type of the readers, and helpers that several readers share."""

from __future__ import annotations

import codecs
import contextlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError

_NumberT = TypeVar("_NumberT", np.float64, np.int64)


@dataclass
class RawMesh:
    """Unchecked triangles of a file; ``mesh.assemble`` describes the fields."""

    positions: NDArray[np.float64]
    faces: NDArray[np.int64]
    uv: NDArray[np.floating] | None = None
    uv_faces: NDArray[np.int64] | None = None
    normals: NDArray[np.floating] | None = None
    normal_faces: NDArray[np.int64] | None = None
    double_sided: NDArray[np.bool_] | None = None
    warnings: list[str] = field(default_factory=list)


# Microsoft's C library prints values that are not finite as -1.#IND00, 1.#QNAN, 1.#INF, -nan(ind).
_NOT_A_NUMBER = re.compile(rb"(?i)[-+]?(?:1\.#(?:IND|[QS]NAN)\d*|nan\(\w*\))")
_INFINITY = re.compile(rb"(?i)1\.#INF\d*")


def plain_text(data: bytes, name: str) -> bytes:
    """Returns the bytes of a text file without a byte order mark, with values that are not finite as nan or inf.

    Raises MeshError for UTF-16 and binary data, of which a reader would silently skip faces.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise MeshError(f"{name}: it is UTF-16 text; save it as UTF-8")
    data = data.rstrip(b"\0")  # some writers round a file's size up
    if (at := data.find(b"\0")) >= 0:
        raise MeshError(f"{name}: it is not text (byte {at + 1} is NUL): damaged, or another kind of file")
    return plain_numbers(data.removeprefix(codecs.BOM_UTF8))


def plain_numbers(text: bytes) -> bytes:
    """Replaces Microsoft's notation of values that are not finite by nan or inf; its "#" starts no comment."""
    if b"1.#" in text:
        text = _INFINITY.sub(b"inf", text)
    return _NOT_A_NUMBER.sub(b"nan", text) if b"1.#" in text or b"(" in text else text


def parse_numbers(text: bytes) -> NDArray[np.float64]:
    """Parses the numbers of whitespace-separated ``text``, up to the first word that is not one."""
    return _parsed(text, np.float64, float)


def parse_integers(text: bytes) -> NDArray[np.int64]:
    """As ``parse_numbers``, for integers."""
    return _parsed(text, np.int64, int)


def _parsed(text: bytes, dtype: type[_NumberT], number: Callable[[bytes], float]) -> NDArray[_NumberT]:
    if not text.strip():
        return np.empty(0, dtype)
    with warnings.catch_warnings():
        # Stopping at an invalid number is deprecated; newer versions raise instead.
        warnings.simplefilter("ignore", DeprecationWarning)
        with contextlib.suppress(ValueError):
            return np.fromstring(text, dtype=dtype, sep=" ")
    numbers = []
    for word in text.split():
        if b"_" in word:
            break  # Python's digit groups, which no mesh format has
        try:
            numbers.append(number(word))
        except ValueError:
            break
    return np.array(numbers, dtype)


def tokens_per_line(text: bytes, lines: int) -> NDArray[np.int64]:
    """(lines,) number of whitespace-separated words in each line of ``text``."""
    if not text:
        return np.zeros(lines, np.int64)
    byte = np.frombuffer(text, np.uint8)
    word = byte > 32
    starts = word.copy()
    starts[1:] &= ~word[:-1]
    line = np.cumsum(byte == 10)
    return np.bincount(line[starts], minlength=lines)[:lines]


def number_lines(
    lines: Sequence[bytes], *, columns: int, label: str, name: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Parses the numbers of each line. Returns (all numbers, number per line).

    Raises MeshError if a line has fewer than ``columns`` numbers or an invalid one.
    """
    text = b"\n".join(lines)
    counts = tokens_per_line(text, len(lines))
    short = counts < columns
    if short.any():
        at = int(np.argmax(short))
        raise MeshError(f"{name}: {label} {at + 1} has {int(counts[at])} numbers, {columns} are needed")
    values = parse_numbers(text)
    if len(values) != counts.sum():
        at = int(np.searchsorted(np.cumsum(counts), len(values), side="right"))
        raise MeshError(f"{name}: {label} {at + 1} holds something that is not a number")
    return values, counts


def first_columns(values: NDArray[np.float64], counts: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """(lines, columns) leading numbers of each line, from the result of ``number_lines``."""
    if len(counts) and (counts == counts[0]).all():
        return values.reshape(len(counts), -1)[:, :columns]
    starts = np.cumsum(counts) - counts
    result: NDArray[np.float64] = values[starts[:, None] + np.arange(columns)]
    return result


def strip_faces(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """(F, 3) triangles of concatenated strips (n,) with -1 between them. Flips every second triangle."""
    if len(index) < 3:
        return np.empty((0, 3), np.int64)
    position = np.arange(len(index))
    begin = np.maximum.accumulate(np.where(index == -1, position + 1, 0))
    first, second, third = index[:-2], index[1:-1], index[2:]
    odd = (position - begin)[:-2] % 2 == 1
    faces = np.stack([first, np.where(odd, third, second), np.where(odd, second, third)], axis=1)
    result: NDArray[np.int64] = faces[(faces != -1).all(axis=1)]
    return result
