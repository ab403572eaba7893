"""What a reader hands over, and the helpers that several readers share."""

from __future__ import annotations

import codecs
import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError

# Polygons with more corners than this are fanned without looking for ears: ear clipping takes their square.
LARGEST_CLIPPED_POLYGON = 512
# ... and so are all that follow when the squares of those that were clipped add up to this: half a minute at the worst.
LARGEST_CLIPPED_WORK = 4_000_000


@dataclass
class RawMesh:
    """Triangles as the file has them, unchecked; see ``mesh.assemble`` for the meaning of the fields."""

    positions: NDArray
    faces: NDArray
    uv: NDArray | None = None
    uv_faces: NDArray | None = None
    normals: NDArray | None = None
    normal_faces: NDArray | None = None
    warnings: list[str] = field(default_factory=list)


def plain_text(data: bytes, name: str) -> bytes:
    """The bytes of a text file without a byte order mark. Raises MeshError for what is no text of one byte a letter:
    a reader would skip what it does not know, and lose faces without a word."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise MeshError(f"{name}: it is UTF-16 text; save it as UTF-8")
    data = data.rstrip(b"\0")  # some writers round a file's size up
    if (at := data.find(b"\0")) >= 0:
        raise MeshError(f"{name}: it is no text (byte {at + 1} is NUL): damaged, or another kind of file")
    return data.removeprefix(codecs.BOM_UTF8)


def parse_numbers(text: bytes, dtype: type = np.float64) -> NDArray:
    """All numbers of whitespace-separated ``text``, up to the first thing that is not one."""
    if not text.strip():
        return np.empty(0, dtype)
    with warnings.catch_warnings():
        # Stopping at what is no number is announced as deprecated; newer versions raise instead.
        warnings.simplefilter("ignore", DeprecationWarning)
        with contextlib.suppress(ValueError):
            return np.fromstring(text, dtype=dtype, sep=" ")
    number = int if np.issubdtype(dtype, np.integer) else float
    found = []
    for word in text.split():
        if b"_" in word:
            break  # Python's own digit groups: no mesh format has them
        try:
            found.append(number(word))
        except ValueError:
            break
    return np.array(found, dtype)


def tokens_per_line(text: bytes, lines: int) -> NDArray[np.int64]:
    """(lines,) how many whitespace-separated words each of the newline-separated lines of ``text`` has."""
    if not text:
        return np.zeros(lines, np.int64)
    byte = np.frombuffer(text, np.uint8)
    word = byte > 32
    starts = word.copy()
    starts[1:] &= ~word[:-1]
    line = np.cumsum(byte == 10)
    return np.bincount(line[starts], minlength=lines)[:lines]


def number_lines(
    lines: Sequence[bytes], *, columns: int, what: str, name: str, dtype: type = np.float64
) -> tuple[NDArray, NDArray[np.int64]]:
    """Numbers of each line: (all of them in one array, how many each line has).

    Raises MeshError when a line has fewer than ``columns`` or something that is not a number.
    """
    text = b"\n".join(lines)
    counts = tokens_per_line(text, len(lines))
    short = counts < columns
    if short.any():
        at = int(np.argmax(short))
        raise MeshError(f"{name}: {what} {at + 1} has {int(counts[at])} numbers, {columns} are needed")
    values = parse_numbers(text, dtype)
    if len(values) != counts.sum():
        at = int(np.searchsorted(np.cumsum(counts), len(values), side="right"))
        raise MeshError(f"{name}: {what} {at + 1} holds something that is not a number")
    return values, counts


def first_columns(values: NDArray, counts: NDArray[np.int64], columns: int) -> NDArray:
    """(lines, columns) the leading numbers of each line, of what ``number_lines`` returned."""
    if len(counts) and (counts == counts[0]).all():
        return values.reshape(len(counts), -1)[:, :columns]
    starts = np.cumsum(counts) - counts
    return values[starts[:, None] + np.arange(columns)]


def triangulate(
    positions: NDArray, corners: NDArray[np.int64], counts: NDArray[np.int64], *, name: str, max_faces: int
) -> tuple[NDArray[np.int64], int]:
    """Cuts polygons into triangles, in the order of the polygons.

    positions (P, 3); corners (C,) the vertex of each polygon corner, polygon after polygon; counts (N,) corners
    of each. Returns ((F, 3) int64 indices into ``corners``, number of polygons left out for having fewer than
    three corners). Quads are cut along the diagonal that keeps both halves facing one way (the shorter one
    where both do); larger polygons are fanned where convex and ear-clipped where not.
    """
    counts = np.asarray(counts, np.int64)
    pieces = np.maximum(counts - 2, 0)
    total = int(pieces.sum())
    if total > max_faces:
        raise MeshError(f"{name}: {total} faces are more than max_faces = {max_faces}")
    if len(corners) and (corners.min() < 0 or corners.max() >= len(positions)):
        wrong = int(corners.max()) if corners.max() >= len(positions) else int(corners.min())
        raise MeshError(
            f"{name}: a face names vertex {wrong} (counting from 0), but there are only {len(positions)}: "
            "the index is out of range"
        )
    starts = np.cumsum(counts) - counts
    offsets = np.cumsum(pieces) - pieces
    faces = np.empty((total, 3), np.int64)
    work = LARGEST_CLIPPED_WORK
    for size in np.unique(counts[counts >= 3]):
        which = np.flatnonzero(counts == size)
        index = starts[which][:, None] + np.arange(size)
        with np.errstate(all="ignore"):
            local, work = _cut(positions, corners, index, int(size), work)
        faces[offsets[which][:, None] + np.arange(size - 2)] = local
    return faces, int(np.count_nonzero(counts < 3))


def strip_faces(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """(F, 3) triangles of strips (n,) of vertices, one behind the other with -1 between; every second one is turned."""
    if len(index) < 3:
        return np.empty((0, 3), np.int64)
    place = np.arange(len(index))
    begin = np.maximum.accumulate(np.where(index == -1, place + 1, 0))
    first, second, third = index[:-2], index[1:-1], index[2:]
    odd = (place - begin)[:-2] % 2 == 1
    faces = np.stack([first, np.where(odd, third, second), np.where(odd, second, third)], axis=1)
    return faces[(faces != -1).all(axis=1)]


def _cut(
    positions: NDArray, corners: NDArray, index: NDArray[np.int64], size: int, work: int
) -> tuple[NDArray[np.int64], int]:
    """((n, size - 2, 3) triangles of n polygons with ``size`` corners each, work left); ``index`` (n, size)."""
    if size == 3:
        return index[:, None, :], work
    points = np.asarray(positions, np.float64)[corners[index]]
    if size == 4:
        side = points[:, [1, 2, 3, 0]] - points
        # Normal at each corner: the cut through corners 0 and 2 is good when 1 and 3 turn the same way.
        turn = np.cross(np.roll(side, 1, axis=1), side)
        through02 = np.einsum("ni,ni->n", turn[:, 1], turn[:, 3])
        through13 = np.einsum("ni,ni->n", turn[:, 0], turn[:, 2])
        length02 = np.linalg.norm(points[:, 2] - points[:, 0], axis=1)
        length13 = np.linalg.norm(points[:, 3] - points[:, 1], axis=1)
        # A hair of preference for the first diagonal, so that rounding doesn't decide about parallelograms.
        other = np.where((through02 > 0) == (through13 > 0), length13 < length02 * (1 - 1e-6), through13 > through02)
        cuts = np.where(other[:, None, None], [[0, 1, 3], [1, 2, 3]], [[0, 1, 2], [0, 2, 3]])
        return index[np.arange(len(index))[:, None, None], cuts], work
    fan = np.stack([np.zeros(size - 2, np.int64), np.arange(1, size - 1), np.arange(2, size)], axis=1)
    result = index[:, fan]
    if size > LARGEST_CLIPPED_POLYGON:
        return result, work
    side = np.roll(points, -1, axis=1) - points
    turn = np.cross(np.roll(side, 1, axis=1), side)
    normal = np.cross(points, np.roll(points, -1, axis=1)).sum(axis=1)
    convex = (np.einsum("nsi,ni->ns", turn, normal) >= 0).all(axis=1)
    for row in np.flatnonzero(~convex)[: work // size**2]:
        result[row] = index[row][_clip_ears(points[row], normal[row])]
        work -= size**2
    return result, work


def _clip_ears(points: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.int64]:
    """(s - 2, 3) triangles of one polygon (s, 3), projected along its normal; always ends."""
    size = len(points)
    length = np.linalg.norm(normal)
    if not np.isfinite(length) or length == 0 or not np.isfinite(points).all():
        return np.stack([np.zeros(size - 2, np.int64), np.arange(1, size - 1), np.arange(2, size)], axis=1)
    axis = int(np.argmax(np.abs(normal)))
    flat = np.delete(points, axis, axis=1)
    # Dropping the y axis mirrors the plane, as does looking at it from behind.
    if (normal[axis] < 0) != (axis == 1):
        flat = flat * np.array([1.0, -1.0])

    def area(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    left = list(range(size))
    triangles = []
    while len(left) > 3:
        ear = 0  # where rounding leaves no ear, any corner is cut: the count of triangles must come out
        for i in range(len(left)):
            before, here, after = left[i - 1], left[i], left[(i + 1) % len(left)]
            a, b, c = flat[before], flat[here], flat[after]
            if area(a, b, c) <= 0:
                continue
            others = flat[[k for k in left if k not in (before, here, after)]]
            inside = (area(a, b, others) >= 0) & (area(b, c, others) >= 0) & (area(c, a, others) >= 0)
            if not inside.any():
                ear = i
                break
        triangles.append((left[ear - 1], left[ear], left[(ear + 1) % len(left)]))
        left.pop(ear)
    triangles.append((left[0], left[1], left[2]))
    return np.array(triangles, np.int64)
