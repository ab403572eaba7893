"""Reads untrusted CSV, JSON and JSON Lines files as raw rows, in bounded memory.

Readers do not interpret fields. A reader yields a ``RawRow`` for each row, and a ``Problem`` for each error that makes
the file unusable (``Problem.unusable``). It continues after a problem if possible.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.core.location import Location, RemotePath
from pipeline.manifest.encodings import NotUtf16, as_plain
from pipeline.manifest.problems import Problem, join_or, quoted, suggestion
from pipeline.storage.errors import StorageError
from pipeline.storage.store import store_of

MAX_LINE = 1 << 20
MAX_CELL = 128 << 10
MAX_JSON = 256 << 20
MAX_REMOTE = 1 << 30
MAX_COLUMNS = 1000
BLOCK_BYTES = 256 << 10

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = (",", ";", "\t")


@dataclass(slots=True)
class RawRow:
    """One row as it is in the file: ``row`` is its number as in ``core.job.RowLocation``.

    ``text``: all values are text (CSV). ``errors``: (field, message) pairs of errors in the row's form. ``broken``:
    values may be assigned to the wrong names. ``inherited``: names whose values come from the manifest's defaults.
    """

    row: int
    values: Mapping[str, object]
    text: bool = False
    errors: tuple[tuple[str, str], ...] = ()
    broken: bool = False
    inherited: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fields:
    """The field names that a reader knows, and the columns that a table needs.

    ``required`` maps each needed column to one that can replace it ("" if none can).
    """

    known: Collection[str]
    required: Mapping[str, str]


Reader = Callable[[BinaryIO, str, Fields], Iterator[RawRow | Problem]]


def read_rows(path: Location, fields: Fields) -> Iterator[RawRow | Problem]:
    """Yields the rows of the manifest at ``path`` (or URL), in the format of its ending."""
    name = str(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        ending = quoted(path.suffix) if path.suffix else "no ending"
        yield _file_problem(name, f"a manifest's name ends in {join_or(READERS)}; this one has {ending}")
        return
    if isinstance(path, RemotePath):
        try:
            data = store_of(path).read(path, MAX_REMOTE)[0]
        except FileNotFoundError:
            yield _file_problem(name, "the manifest cannot be read: there is no file at this URL")
        except StorageError as error:
            yield _file_problem(name, f"the manifest cannot be read: {error.message.removeprefix(f'{name}: ')}")
        else:
            yield from _read(reader, io.BytesIO(data), name, fields)
        return
    try:
        # Without O_NONBLOCK, opening a named pipe would block forever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        yield _file_problem(name, f"the manifest cannot be read: {reason}")
        return
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        yield _file_problem(name, "the manifest is not a regular file; allowed: the path of a file")
        return
    with os.fdopen(descriptor, "rb", BLOCK_BYTES) as stream:
        try:
            yield from _read(reader, stream, name, fields)
        except OSError as error:
            yield _file_problem(name, f"the manifest cannot be read: {error.strerror or error}")


def _read(reader: Reader, stream: BinaryIO, name: str, fields: Fields) -> Iterator[RawRow | Problem]:
    """Yields the rows of ``stream``. It may be UTF-16 with a byte order mark, or have the line ends of old Macs."""
    try:
        yield from reader(as_plain(stream), name, fields)
    except NotUtf16 as error:
        yield _file_problem(name, f"the file begins as UTF-16, but {error}; save it as UTF-8")


def _file_problem(file: str, message: str, row: int = 0, field: str = "") -> Problem:
    return Problem(file, row, field, message, unusable=True)


class Lines:
    """Decoded lines with their ends, bounded in length. Collects one problem of each kind of encoding error."""

    def __init__(self, stream: BinaryIO, file: str):
        self.stream = stream
        self.file = file
        self.number = 0
        self.problems: list[Problem] = []
        self._over = False
        self._said: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        # Whole blocks, because that is faster; a block with an error is decoded line by line.
        while not self._over and (block := self.stream.read(BLOCK_BYTES)):
            block += self.stream.readline(MAX_LINE + 1)
            text = self._decode_plain(block)
            for line in self._decode_faulty(block) if text is None else io.StringIO(text, newline="\n"):
                if text is not None:
                    self.number += 1
                yield line

    def _decode_plain(self, block: bytes) -> str | None:
        """Decodes a block of whole lines, or returns None if a line is too long or not valid text."""
        if len(block) > MAX_LINE or b"\0" in block:
            return None
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError:
            return None
        return text if self.number else text.removeprefix("\ufeff")

    def _decode_faulty(self, block: bytes) -> Iterator[str]:
        for line in io.BytesIO(block):
            self.number += 1
            if self.number == 1:
                line = line.removeprefix(_BOM)
            if len(line) > MAX_LINE:
                self._report_once("long", f"the line is longer than {MAX_LINE} bytes; allowed: shorter lines")
                self._over = True
                return
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x} at position {error.start + 1} of the line"
                self._report_once("utf", f"this is not UTF-8 ({byte}); save it as UTF-8")
                text = line.decode("utf-8", errors="replace")
            if "\0" in text:
                self._report_once("nul", "the line contains a NUL byte; allowed: text")
                text = text.replace("\0", "")
            yield text

    def _report_once(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self.problems.append(_file_problem(self.file, message, self.number))

    def take_problems(self) -> list[Problem]:
        """The problems since the last call."""
        problems, self.problems = self.problems, []
        return problems


def read_csv(stream: BinaryIO, file: str, fields: Fields) -> Iterator[RawRow | Problem]:
    """Reads CSV with a header line, as spreadsheets write it.

    The delimiter is ``,`` ``;`` or tab, whichever gives the most known names in the header, unless a line ``sep=``
    before the header sets it. A row's number is its first line. A field whose cell is empty or missing is left out.
    Unnamed columns at the end of the header are ignored, as are blanks before a cell.
    """
    lines = Lines(stream, file)
    source = iter(lines)
    first = _first_text(source)
    separator_line = _SEP_LINE.fullmatch(first.strip(" \r\n"))
    if separator_line:
        first = _first_text(source)
    yield from lines.take_problems()
    if not first:
        if not lines.number or separator_line:
            yield _file_problem(file, "the manifest is empty; its first line must name the columns")
        return
    skipped = lines.number - 1
    delimiter = separator_line["delimiter"] if separator_line else _delimiter(first, fields)

    def remaining_lines() -> Iterator[str]:
        yield first
        yield from source

    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(remaining_lines(), delimiter=delimiter, strict=True, skipinitialspace=True)
    header: list[str] | None = None
    while True:
        start = skipped + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield from lines.take_problems()
            yield _file_problem(file, _csv_reason(str(error)), start)
            return
        if lines.problems:
            yield from lines.take_problems()
        if cells is None:
            return
        if header is None:
            header = _without_empty_end([cell.strip() for cell in cells])
            wrong = list(_header_problems(header, file, start, fields))
            yield from wrong
            if wrong:
                return
            continue
        if len(cells) > len(header):
            # Ignore surplus delimiters at the end of a row, which spreadsheets write.
            cells = _without_empty_end(cells)
            if len(cells) > len(header):
                yield _too_long(cells, header, start)
                continue
        values = {name: text for name, cell in zip(header, cells, strict=False) if (text := cell.strip())}
        if values:
            yield RawRow(start, values, text=True)


# Excel's line that sets the delimiter.
_SEP_LINE = re.compile(r"""(?P<quote>"?)sep=(?P<delimiter>[^\w\s"'\\]|\t)(?P=quote)""", re.IGNORECASE)


def _first_text(lines: Iterator[str]) -> str:
    """Returns the next line that is not blank; "" at the end."""
    return next((line for line in lines if line.strip()), "")


def _without_empty_end(cells: list[str]) -> list[str]:
    """Removes empty cells at the end."""
    count = len(cells)
    while count and not cells[count - 1].strip():
        count -= 1
    return cells[:count]


def _delimiter(line: str, fields: Fields) -> str:
    """Returns the delimiter that gives the most known names in the header; the comma in a tie."""

    def count(delimiter: str) -> int:
        try:
            cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            return 0
        return sum(cell.strip() in fields.known for cell in cells)

    return max(_DELIMITERS, key=count)


def _csv_reason(error: str) -> str:
    if "field larger" in error:
        return f'a cell is longer than {MAX_CELL} characters; is a quote (") not closed?'
    if "unexpected end" in error:
        return 'a quote (") that opens in this row is not closed before the file ends'
    if "new-line character" in error:
        return "the line contains a carriage return without a line feed; allowed: line ends as on Linux or Windows"
    if "expected after" in error:
        return 'text follows a closing quote (") in this row; write a quote inside a quoted cell twice ("")'
    return f"not valid CSV: {error}"


def _header_problems(header: list[str], file: str, row: int, fields: Fields) -> Iterator[Problem]:
    known = [name for name in header if name in fields.known]
    if len(header) > MAX_COLUMNS:
        yield _file_problem(file, f"{len(header)} columns; allowed: at most {MAX_COLUMNS}", row, "header")
        return
    if not known:
        names = " and ".join(fields.required)
        hint = "; names are written in lower case" if any(name.lower() in fields.known for name in header) else ""
        yield _file_problem(file, f"the first line must name the columns, among them {names}{hint}", row, "header")
        return
    for number, name in enumerate(header, start=1):
        if not name:
            yield _file_problem(file, f"column {number} has no name", row, "header")
        elif name in header[: number - 1]:
            yield _file_problem(file, f"column {number} is named {quoted(name)} like an earlier column", row, "header")
    for name, instead in fields.required.items():
        if name not in header and not (instead and instead in header):
            near = next((other for other in header if other and suggestion(other, [name])), None)
            hint = f"; is {quoted(near)} a misspelling of it?" if near and near not in fields.known else ""
            if instead and not hint:
                hint = f"; a row without one needs another {instead}: add a column '{instead}'"
            yield _file_problem(file, f"the required column '{name}' is missing{hint}", row, "header")


def _too_long(cells: list[str], header: list[str], row: int) -> RawRow:
    advice = "put cells that contain a delimiter into quotes"
    message = f"{len(cells)} cells, but the header has {len(header)} columns; {advice}"
    # Use only the id of such a row. It is usually the first cell, before the shifted ones.
    first = {header[0]: cells[0].strip()} if header[0] == "id" and cells[0].strip() else {}
    return RawRow(row, first, text=True, errors=(("cells", message),), broken=True)


class _Object(dict[str, object]):
    """A JSON object with repeated keys. The last value counts."""

    twice: tuple[str, ...] = ()


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    keys: set[str] = set()
    marked = _Object(value)
    marked.twice = tuple(dict.fromkeys(key for key, _ in pairs if key in keys or keys.add(key)))  # type: ignore[func-returns-value]
    return marked


# NaN and Infinity are not JSON, but many programs write them: an error of their row, not of the file.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs,
    parse_constant={"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.__getitem__,
)


def decode_json(text: str) -> tuple[object, str]:
    """Returns the value of a JSON text and "", or None and an error."""
    try:
        if text.startswith("{"):
            # Fast path for a typical line of JSON Lines, without white space around it.
            value, end = _DECODER.raw_decode(text)
            if end == len(text):
                return value, ""
        return _DECODER.decode(text), ""
    except json.JSONDecodeError as error:
        position = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        return None, f"not valid JSON at {position}: {error.msg[:1].lower()}{error.msg[1:]}"
    except RecursionError:
        return None, "not usable: the JSON is nested too deeply"
    except ValueError:
        return None, "not usable: the JSON contains a number with too many digits"


def _json_row(value: object, row: int) -> RawRow:
    if not isinstance(value, dict):
        message = f'the row is {_noun(value)}; allowed: an object like {{"prompt": "...", "mesh": "..."}}'
        return RawRow(row, {}, errors=(("row", message),), broken=True)
    errors: tuple[tuple[str, str], ...] = ()
    if isinstance(value, _Object):
        errors = tuple((key, "the key occurs twice in this row") for key in value.twice)
    return RawRow(row, {key: item for key, item in value.items() if item is not None}, errors=errors)


def _noun(value: object) -> str:
    return quoted(value) if isinstance(value, (bool, type(None), dict, list)) else (
        "text" if isinstance(value, str) else "a number"
    )  # fmt: skip


def read_jsonl(stream: BinaryIO, file: str, fields: Fields) -> Iterator[RawRow | Problem]:
    """JSON Lines: one object per line; blank lines are skipped. A row's number is its line."""
    lines = Lines(stream, file)
    for line in lines:
        if lines.problems:
            yield from lines.take_problems()
        text = line.rstrip()
        if not text:
            continue
        value, reason = decode_json(text)
        if reason:
            yield _file_problem(file, reason, lines.number)
        else:
            yield _json_row(value, lines.number)
    yield from lines.take_problems()


def read_json(stream: BinaryIO, file: str, fields: Fields) -> Iterator[RawRow | Problem]:
    """Reads JSON: a list of rows, or ``{"defaults": {...}, "rows": [...]}``. Rows are numbered from 1."""
    data = stream.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        yield _file_problem(file, f"larger than {MAX_JSON >> 20} MiB; write large manifests as JSON Lines (.jsonl)")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield _file_problem(
            file, f"this is not UTF-8 (byte 0x{data[error.start]:02x} in line {line}); save it as UTF-8"
        )
        return
    del data
    value, reason = decode_json(text)
    if reason:
        yield _file_problem(file, reason)
        return
    defaults: dict[str, object] = {}
    if isinstance(value, dict):
        wrong = list(_envelope_problems(value, file, fields))
        yield from wrong
        if wrong:
            return
        defaults = {key: item for key, item in value.get("defaults", {}).items() if item is not None}
        value = value["rows"]
    elif not isinstance(value, list):
        yield _file_problem(file, f'the manifest is {_noun(value)}; allowed: a list of rows, or {{"rows": [...]}}')
        return
    if defaults:
        # Row 0 holds the defaults, which the consumer checks first.
        yield RawRow(0, defaults)
    for number, item in enumerate(value, start=1):
        row = _json_row(item, number)
        if defaults and not row.broken:
            row.inherited = frozenset(defaults.keys() - row.values.keys())
            row.values = {**defaults, **row.values}
        yield row


def _envelope_problems(value: dict[str, object], file: str, fields: Fields) -> Iterator[Problem]:
    allowed = ("defaults", "rows", "$schema")
    if "rows" not in value and any(key in fields.known for key in value):
        yield _file_problem(file, "this is a single row; put it into a list: [ {...} ]")
        return
    for key in getattr(value, "twice", ()):
        yield _file_problem(file, f"the key {quoted(key)} occurs twice")
    for key in value:
        if key not in allowed:
            yield _file_problem(
                file, f"unknown key {quoted(key)}; allowed: 'defaults' and 'rows'{suggestion(key, allowed)}"
            )
    if not isinstance(value.get("rows"), list):
        actual = _noun(value["rows"]) if "rows" in value else "missing"
        yield _file_problem(file, f"it is {actual}; allowed: a list of rows", field="rows")
    defaults = value.get("defaults", {})
    if not isinstance(defaults, dict):
        yield _file_problem(file, f"it is {_noun(defaults)}; allowed: an object", field="defaults")
        return
    for key in getattr(defaults, "twice", ()):
        yield _file_problem(file, f"the key {quoted(key)} occurs twice", field="defaults")


READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
}
