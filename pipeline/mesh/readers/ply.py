"""PLY, text and binary of either byte order, with polygons of any size or strips of triangles.

Texture coordinates come per vertex (s t, u v, texture_u texture_v) or per face corner (the list ``texcoord``);
v starts at the bottom.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.core.terminal import excerpt
from pipeline.mesh.readers.polygons import triangulate
from pipeline.mesh.readers.raw import RawMesh, parse_numbers, plain_numbers, strip_faces

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "int64": "i8", "uint64": "u8", "float": "f4", "double": "f8", "float32": "f4", "float64": "f8",
}  # fmt: skip
_COORDINATES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))
_LONGEST_HEADER = 1 << 16
_LONGEST_WALK = 10_000_000
_END = re.compile(rb"(?:\r\n|\n|\r)end_header[ \t]*(\r\n|\n|\r|\Z)")


@dataclass
class _Property:
    name: str
    kind: str
    length_kind: str = ""  # not empty: a list


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)

    def add(self, prop: _Property) -> None:
        """Appends a property. Of two with one name, the first counts."""
        if any(prop.name == other.name for other in self.properties):
            prop.name += f" {len(self.properties)}"
        self.properties.append(prop)


# A list's values of all entries, and (count,) lengths.
_Lists = tuple[NDArray[np.number], NDArray[np.int64]]
# Maps each property to (count,) values, or for a list to its lists.
_Columns = dict[str, NDArray[np.number] | _Lists]


def read_ply(data: bytes, name: str, max_faces: int) -> RawMesh:
    """Reads a PLY from its bytes. Raises MeshError."""
    data = data.removeprefix(codecs.BOM_UTF8)
    encoding, elements, starts = _header(data, name)
    for element in elements:
        if element.name == "face" and element.count > max_faces:
            raise MeshError(f"{name}: {element.count} faces are more than max_faces = {max_faces}")
        if element.name == "vertex" and element.count == 0:
            raise MeshError(f"{name}: it has no vertices")
    if encoding == "ascii":
        text = _Text(parse_numbers(plain_numbers(data[starts[0] :])), name)
        return _mesh(_elements(text, elements), name, max_faces)
    order = "<" if encoding == "binary_little_endian" else ">"
    for start in starts[:-1]:
        source = _Binary(data, start, order, name)
        with contextlib.suppress(MeshError):
            tables = _elements(source, elements, to_the_end=True)
            if source.at == len(data):
                return _mesh(tables, name, max_faces)
    return _mesh(_elements(_Binary(data, starts[-1], order, name), elements), name, max_faces)


def _elements(source: _Text | _Binary, elements: list[_Element], *, to_the_end: bool = False) -> dict[str, _Columns]:
    """Reads vertices, faces and strips; with ``to_the_end`` also later elements (edges, materials)."""
    tables: dict[str, _Columns] = {}
    for element in elements:
        columns = source.element(element)
        if element.name in ("vertex", "face", "tristrips") and element.count:
            tables.setdefault(element.name, columns)
        if "vertex" in tables and len(tables) > 1 and not to_the_end:
            break
    return tables


def _mesh(tables: dict[str, _Columns], name: str, max_faces: int) -> RawMesh:
    vertex, face = tables.get("vertex", {}), tables.get("face", {})
    axes = _scalars(vertex, "xyz")
    if axes is None:
        raise MeshError(f"{name}: its vertices have no x, y and z")
    positions = np.stack(axes, axis=1).astype(np.float64)
    lists = _lists(face)
    if lists is None:
        return _of_strips(positions, vertex, tables.get("tristrips", {}), name)
    values, counts = lists
    corners = _indices(values, name)
    triangles, notes = triangulate(positions, corners, counts, name=name, max_faces=max_faces)
    mesh = RawMesh(positions, corners[triangles], warnings=notes)
    _take_normals(vertex, mesh)
    mesh.uv, mesh.uv_faces = _texture_coordinates(vertex, face, counts, triangles, mesh)
    numbers = face.get("texnumber")
    if mesh.uv is not None and isinstance(numbers, np.ndarray) and len(textures := np.unique(numbers)) > 1:
        mesh.warnings.append(f"its texture coordinates refer to {len(textures)} textures and are used as if for one")
    return mesh


def _scalars(columns: _Columns, names: Iterable[str]) -> list[NDArray[np.number]] | None:
    """The values of the properties ``names``; None if one is missing or a list."""
    values = [columns.get(name) for name in names]
    arrays = [array for array in values if isinstance(array, np.ndarray)]
    return arrays if len(arrays) == len(values) else None


def _lists(columns: _Columns) -> _Lists | None:
    """The vertex indices of faces or strips, under either of the usual names."""
    lists = columns.get("vertex_indices", columns.get("vertex_index"))
    return lists if isinstance(lists, tuple) else None


def _of_strips(positions: NDArray[np.float64], vertex: _Columns, strips: _Columns, name: str) -> RawMesh:
    """Makes a mesh of triangle strips, or without triangles."""
    lists = _lists(strips)
    if lists is None:
        return RawMesh(positions, np.empty((0, 3), np.int64))
    values, counts = lists
    # A strip ends at the end of a list and at each -1 in it.
    index = np.insert(_indices(values, name), np.cumsum(counts), -1)
    mesh = RawMesh(positions, strip_faces(index))
    _take_normals(vertex, mesh)
    mesh.uv, mesh.uv_faces = _vertex_uv(vertex, mesh)
    return mesh


def _take_normals(vertex: _Columns, mesh: RawMesh) -> None:
    if axes := _scalars(vertex, ("nx", "ny", "nz")):
        mesh.normals = np.stack(axes, axis=1).astype(np.float64)
        mesh.normal_faces = mesh.faces


def _texture_coordinates(
    vertex: _Columns, face: _Columns, counts: NDArray[np.int64], triangles: NDArray[np.int64], mesh: RawMesh
) -> tuple[NDArray[np.float64] | None, NDArray[np.int64] | None]:
    """Texture coordinates per corner if faces have them (none for faces whose list has another length), else per
    vertex."""
    listed = face.get("texcoord")
    if isinstance(listed, tuple) and len(listed[0]):
        values, lengths = listed
        complete = lengths == 2 * counts
        if complete.any():
            # Corner c of polygon p has its pair at starts[p] + 2 c.
            polygon = np.repeat(np.arange(len(counts)), counts)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            at = (np.cumsum(lengths) - lengths)[polygon] + 2 * within
            has = complete[polygon]
            uv = np.zeros((len(polygon), 2))
            uv[has, 0], uv[has, 1] = values[at[has]], 1.0 - values[at[has] + 1]
            return uv, np.where(has, np.arange(len(polygon)), -1)[triangles]
    return _vertex_uv(vertex, mesh)


def _vertex_uv(vertex: _Columns, mesh: RawMesh) -> tuple[NDArray[np.float64] | None, NDArray[np.int64] | None]:
    """Texture coordinates per vertex, under any of the usual names."""
    for names in _COORDINATES:
        if axes := _scalars(vertex, names):
            u, v = (axis.astype(np.float64) for axis in axes)
            return np.stack([u, 1.0 - v], axis=1), mesh.faces
    return None, None


def _header(data: bytes, name: str) -> tuple[str, list[_Element], list[int]]:
    """Returns (encoding, elements, possible offsets of the data, the likelier one first). Raises MeshError.

    Lines may end in blanks, and the line end of the last line may differ from the others.
    """
    first = data[:_LONGEST_HEADER].splitlines()[:1]
    if not first or first[0].rstrip() != b"ply":
        raise MeshError(f"{name}: it does not begin with ply: empty or not a PLY file")
    terminator = _END.search(data, 0, _LONGEST_HEADER)
    if terminator is None:
        raise MeshError(f"{name}: its header has no end: truncated, or not a PLY file")
    encoding, elements = "", []
    for line in data[: terminator.start()].splitlines()[1:]:
        words = line.decode("ascii", "replace").split()
        try:
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "format":
                encoding = words[1]
            elif words[0] == "element":
                elements.append(_Element(words[1], int(words[2])))
                if elements[-1].count < 0:
                    raise ValueError
            elif words[0] == "property":
                elements[-1].add(_property(words))
            else:
                raise ValueError
        except (ValueError, IndexError, KeyError):
            shown = excerpt(line.decode("ascii", "replace"))
            raise MeshError(f"{name}: the header line '{shown}' cannot be understood") from None
    if encoding not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise MeshError(f"{name}: its format '{excerpt(encoding)}' is not a PLY format")
    starts = [terminator.end()]
    if terminator[1] == b"\r\n" and re.match(rb"[^\r\n]*\r(?!\n)", data):
        # Lines end in CR alone: this LF may be data.
        starts.insert(0, terminator.end() - 1)
    return encoding, elements, starts


def _property(words: list[str]) -> _Property:
    """Parses the property of a header line. Raises ValueError, IndexError or KeyError for an invalid line."""
    if words[1] != "list":
        return _Property(words[2], _TYPES[words[1]])
    if _TYPES[words[2]].startswith("f"):
        raise ValueError
    return _Property(words[4], _TYPES[words[3]], _TYPES[words[2]])


def _indices(values: NDArray[np.number], name: str) -> NDArray[np.int64]:
    """Converts vertex indices of any type to integers."""
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
            raise MeshError(f"{name}: a face holds something that is not an index")
        values = np.clip(values, -2, 2**53)  # -1 separates strips; lower values are wrong and stay wrong
    return values.astype(np.int64)


def _check_walk(element: _Element, name: str) -> None:
    """Raises MeshError if reading entries one by one would take minutes."""
    if element.count > _LONGEST_WALK:
        kind = excerpt(element.name)
        raise MeshError(f"{name}: {element.count} {kind} entries of uneven length are too many to read")


class _Rows:
    """The entries of an element, read one by one: the values of each property."""

    def __init__(self, element: _Element):
        self.lists: dict[str, list[NDArray[np.number]]] = {p.name: [] for p in element.properties if p.length_kind}
        self.scalars: dict[str, list[np.number]] = {p.name: [] for p in element.properties if not p.length_kind}

    def columns(self) -> _Columns:
        """The entries, joined."""
        columns: _Columns = {name: _native(np.array(values)) for name, values in self.scalars.items()}
        for name, rows in self.lists.items():
            lengths = np.array([len(row) for row in rows], np.int64)
            columns[name] = (_native(np.concatenate(rows)) if rows else np.empty(0), lengths)
        return columns


class _Text:
    """Reads elements from one array of numbers."""

    def __init__(self, values: NDArray[np.float64], name: str):
        self.values, self.at, self.name = values, 0, name

    def element(self, element: _Element) -> _Columns:
        properties, count = element.properties, element.count
        if not properties:
            return {}
        left = len(self.values) - self.at
        if count * len(properties) > left:
            raise self._short(element)
        if not any(p.length_kind for p in properties):
            block = self.values[self.at : self.at + count * len(properties)].reshape(count, len(properties))
            self.at += block.size
            return {p.name: block[:, i] for i, p in enumerate(properties)}
        return self._uniform(element) or self._walk(element)

    def _uniform(self, element: _Element) -> _Columns | None:
        """Reads the common case: every list has the length of the first row's."""
        if element.count == 0:
            return {p.name: (np.empty(0), np.empty(0, np.int64)) for p in element.properties}
        at, spans = self.at, []
        for prop in element.properties:
            if prop.length_kind and at < len(self.values):
                length = self.values[at]
                if not 0 <= length <= len(self.values) - at or length != int(length):
                    return None
                spans.append((at - self.at, int(length)))
                at += 1 + int(length)
            else:
                spans.append((at - self.at, -1))
                at += 1
        values_per_row = at - self.at
        if values_per_row * element.count > len(self.values) - self.at:
            return None
        block = self.values[self.at : self.at + values_per_row * element.count].reshape(element.count, values_per_row)
        columns: _Columns = {}
        for prop, (offset, length) in zip(element.properties, spans, strict=True):
            if length < 0:
                columns[prop.name] = block[:, offset]
            elif (block[:, offset] != length).any():
                return None
            else:
                lengths = np.full(element.count, length, np.int64)
                columns[prop.name] = (block[:, offset + 1 : offset + 1 + length].reshape(-1), lengths)
        self.at += values_per_row * element.count
        return columns

    def _walk(self, element: _Element) -> _Columns:
        _check_walk(element, self.name)
        values, at, end = self.values, self.at, len(self.values)
        rows = _Rows(element)
        for _ in range(element.count):
            for prop in element.properties:
                if at >= end:
                    raise self._short(element)
                if prop.length_kind:
                    length = values[at]
                    if not (0 <= length <= end - at - 1 and length == int(length)):
                        raise self._short(element)
                    rows.lists[prop.name].append(values[at + 1 : at + 1 + int(length)])
                    at += 1 + int(length)
                else:
                    rows.scalars[prop.name].append(values[at])
                    at += 1
        self.at = at
        return rows.columns()

    def _short(self, element: _Element) -> MeshError:
        return MeshError(
            f"{self.name}: the numbers of its {element.count} {excerpt(element.name)} entries end early or cannot be "
            "read: truncated or damaged"
        )


class _Binary:
    """Reads elements from packed bytes."""

    def __init__(self, data: bytes, start: int, order: str, name: str):
        self.data, self.at, self.order, self.name = data, start, order, name

    def element(self, element: _Element) -> _Columns:
        properties = element.properties
        if not properties:
            return {}
        smallest = sum(np.dtype(p.length_kind or p.kind).itemsize for p in properties)
        if element.count * smallest > len(self.data) - self.at:
            raise self._short(element)
        return self._uniform(element) or self._walk(element)

    def _uniform(self, element: _Element) -> _Columns | None:
        """Reads one structured array if every list has the length of the first row's."""
        fields: list[tuple[str, np.dtype[np.number]] | tuple[str, np.dtype[np.number], tuple[int]]] = []
        at = self.at
        for i, prop in enumerate(element.properties):
            kind = np.dtype(self.order + prop.kind)
            if prop.length_kind:
                length_kind = np.dtype(self.order + prop.length_kind)
                length = 0
                if element.count:
                    if at + length_kind.itemsize > len(self.data):
                        return None
                    length = int(np.frombuffer(self.data, length_kind, 1, at)[0])
                if not 0 <= length <= (len(self.data) - at) // kind.itemsize:
                    return None
                fields += [(f"n{i}", length_kind), (f"p{i}", kind, (length,))]
                at += length_kind.itemsize + length * kind.itemsize
            else:
                fields.append((f"p{i}", kind))
                at += kind.itemsize
        row = np.dtype(fields)
        if row.itemsize * element.count > len(self.data) - self.at:
            return None
        table = np.frombuffer(self.data, row, element.count, self.at)
        columns: _Columns = {}
        for i, prop in enumerate(element.properties):
            if prop.length_kind:
                lengths = table[f"n{i}"].astype(np.int64)
                if len(lengths) and (lengths != lengths[0]).any():
                    return None
                columns[prop.name] = (_native(table[f"p{i}"].reshape(-1)), lengths)
            else:
                columns[prop.name] = _native(table[f"p{i}"])
        self.at += row.itemsize * element.count
        return columns

    def _walk(self, element: _Element) -> _Columns:
        _check_walk(element, self.name)
        data, at, end = self.data, self.at, len(self.data)
        kinds = [
            (
                p.name,
                np.dtype(self.order + p.kind),
                np.dtype(self.order + p.length_kind) if p.length_kind else None,
            )
            for p in element.properties
        ]
        byte_order: Literal["little", "big"] = "little" if self.order == "<" else "big"
        rows = _Rows(element)
        for _ in range(element.count):
            for prop, kind, length_kind in kinds:
                length = 1
                if length_kind is not None:
                    if at + length_kind.itemsize > end or length_kind.kind == "f":
                        raise self._short(element)
                    length = int.from_bytes(
                        data[at : at + length_kind.itemsize], byte_order, signed=length_kind.kind == "i"
                    )
                    at += length_kind.itemsize
                if length < 0 or at + length * kind.itemsize > end:
                    raise self._short(element)
                row = np.frombuffer(data, kind, length, at)
                if length_kind is not None:
                    rows.lists[prop].append(row)
                else:
                    rows.scalars[prop].append(row[0])
                at += length * kind.itemsize
        self.at = at
        return rows.columns()

    def _short(self, element: _Element) -> MeshError:
        return MeshError(
            f"{self.name}: the bytes of its {element.count} {excerpt(element.name)} entries end early: truncated"
        )


def _native(values: NDArray[np.number]) -> NDArray[np.number]:
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("=")))
