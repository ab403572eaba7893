"""Gives a primitive a further set of texture coordinates. Where a vertex needs two, it is split with all it carries.

V rows of the vertex table, F faces of the primitive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.document.kept import GltfDocument
from pipeline.document.references import DRACO
from pipeline.document.surface import DocumentSurface, Key
from pipeline.mesh.readers.gltf_file import Object

_ARRAY_BUFFER, _ELEMENT_BUFFER, _FLOAT, _TRIANGLES = 34962, 34963, 5126, 4
_SHORT, _INT = 5123, 5125
# Index 65,535 restarts a primitive with 16-bit indices.
_SHORT_INDICES = 65_535
# A table of more rows per used one is shared with other primitives: a split primitive takes its own rows only.
_SHARED_TABLE = 3


@dataclass(frozen=True)
class _Split:
    """rows (V',) of the old table that the new one repeats; faces (F, 3) into it; uv (V', 2)."""

    rows: NDArray[np.int64]
    faces: NDArray[np.int64]
    uv: NDArray[np.float32]
    is_table: bool  # whether the rows are those of the old table, so that nothing but the coordinates is new


def add_uv_set(
    document: GltfDocument, surface: DocumentSurface, key: Key, corner_uv: NDArray[np.float32], number: int
) -> int:
    """Add the texture coordinates ``corner_uv`` (F, 3, 2), NaN where a corner has none, as set ``number``.

    Numbers must not have gaps: the sets between the last one and ``number`` repeat the new one. ``surface`` is that of
    the document before any change. Returns how many vertices were added by splitting. Raises MeshError.
    """
    rows = surface.table_rows(key)
    count = surface.reader.buffers.layout(surface.primitive(key).attributes.accessors["POSITION"])[1]
    primitive = document.json["meshes"][key[0]]["primitives"][key[1]]
    packed = DRACO in (primitive.get("extensions") or {})
    split = _split(rows, corner_uv, count, packed=packed)
    if not split.is_table:
        _rewrite(document, surface, key, primitive, split)
    accessor = _add_accessor(document, split.uv, {"componentType": _FLOAT, "type": "VEC2"})
    attributes = primitive["attributes"]
    for each in range(number + 1):
        if each == number or f"TEXCOORD_{each}" not in attributes:
            attributes[f"TEXCOORD_{each}"] = accessor
    return len(split.rows) - len(np.unique(split.rows))


def next_uv_set(document: GltfDocument, keys: tuple[Key, ...]) -> int:
    """The number of a set of texture coordinates that none of the primitives ``keys`` has."""
    count = 0
    for mesh, number in keys:
        names = document.json["meshes"][mesh]["primitives"][number]["attributes"]
        while f"TEXCOORD_{count}" in names:
            count += 1
    return count


def _split(rows: NDArray[np.int64], corner_uv: NDArray[np.float32], count: int, *, packed: bool) -> _Split:
    """One new row for each distinct pair of row and coordinate; the first of a row keeps its place in the table."""
    row, uv = rows.reshape(-1), _without_gaps(rows, corner_uv).reshape(-1, 2)
    uv = uv + np.float32(0)  # minus zero becomes zero
    bits = np.ascontiguousarray(uv).view(np.uint32).astype(np.uint64)
    pair = np.stack([row.astype(np.uint64), bits[:, 0] << np.uint64(32) | bits[:, 1]], axis=1)
    _, first, number = np.unique(pair, axis=0, return_index=True, return_inverse=True)
    number = number.reshape(-1)
    # The first pair of a row, in the order of the corners.
    order = np.lexsort((first, row[first]))
    leads = np.ones(len(order), bool)
    leads[1:] = row[first][order][1:] != row[first][order][:-1]
    lead, extra = order[leads], order[~leads]
    extra = extra[np.argsort(first[extra])]
    used = row[first[lead]]
    shared = len(used) * _SHARED_TABLE < count
    whole = not (packed or shared)
    base = np.arange(count) if whole else used
    place = np.empty(len(first), np.int64)
    place[lead] = used if whole else np.arange(len(used))
    place[extra] = len(base) + np.arange(len(extra))
    new_rows = np.concatenate([base, row[first[extra]]])
    new_uv = np.zeros((len(new_rows), 2), np.float32)
    new_uv[place] = uv[first]
    return _Split(new_rows, place[number].reshape(-1, 3), new_uv, whole and not len(extra))


def _without_gaps(rows: NDArray[np.int64], corner_uv: NDArray[np.float32]) -> NDArray[np.float32]:
    """``corner_uv`` where corners that have none take what the same row has elsewhere, else the face's, else 0."""
    lacking = np.isnan(corner_uv).any(axis=2)
    if not lacking.any():
        return corner_uv
    result = corner_uv.copy()
    of_row = np.full((int(rows.max()) + 1, 2), np.nan, np.float32)
    of_row[rows[~lacking]] = corner_uv[~lacking]
    result[lacking] = of_row[rows[lacking]]
    return np.nan_to_num(result, nan=0.0)


def _rewrite(document: GltfDocument, surface: DocumentSurface, key: Key, primitive: Object, split: _Split) -> None:
    """Give the primitive accessors of its own, uncompressed, with the rows of ``split``."""
    attributes = primitive["attributes"]
    old = document.json["accessors"]
    for name in list(attributes):
        values = surface.stored(key, name, split.rows)
        attributes[name] = _add_accessor(document, values, old[attributes[name]])
    json = surface.reader.json
    for target in primitive.get("targets") or ():
        for name in list(target):
            if surface.reader.buffers.layout(target[name])[1] <= int(split.rows.max()):
                raise json.error(f"accessor {target[name]} has fewer entries than there are vertices")
            values = surface.reader.buffers.stored(target[name], split.rows)
            sparse = "sparse" in old[target[name]]
            target[name] = _add_accessor(document, values, old[target[name]], sparse=sparse)
    short = len(split.rows) <= _SHORT_INDICES
    index = split.faces.reshape(-1).astype("<u2" if short else "<u4")
    view = document.add_view(index.tobytes(), target=_ELEMENT_BUFFER)
    accessor = {"bufferView": view, "componentType": _SHORT if short else _INT, "count": len(index), "type": "SCALAR"}
    primitive["indices"] = document.add("accessors", accessor)
    if primitive.get("mode", _TRIANGLES) != _TRIANGLES:
        primitive["mode"] = _TRIANGLES
    extensions = primitive.get("extensions")
    if extensions and extensions.pop(DRACO, None) is not None and not extensions:
        del primitive["extensions"]


def _add_accessor(document: GltfDocument, values: NDArray[np.number], like: Object, *, sparse: bool = False) -> int:
    """Append ``values`` (V, width) as an accessor with the properties of ``like``. Returns its number.

    ``sparse``: only the rows that are not zero are stored.
    """
    accessor = {key: value for key, value in like.items() if key not in ("bufferView", "byteOffset", "sparse")}
    accessor["count"] = len(values)
    if "min" in like or "max" in like:
        accessor["min"], accessor["max"] = values.min(axis=0).tolist(), values.max(axis=0).tolist()
    rows = np.flatnonzero(values.any(axis=1))
    if sparse and len(rows) < len(values) // 2:
        if len(rows):
            short = len(values) <= _SHORT_INDICES
            index = document.add_view(rows.astype("<u2" if short else "<u4").tobytes())
            accessor["sparse"] = {
                "count": len(rows),
                "indices": {"bufferView": index, "componentType": _SHORT if short else _INT},
                "values": {"bufferView": document.add_view(np.ascontiguousarray(values[rows]).tobytes())},
            }
        return document.add("accessors", accessor)
    data, stride = _rows_of_four(values)
    properties: Object = {"byteStride": stride} if stride else {}
    accessor["bufferView"] = document.add_view(data, **properties, target=_ARRAY_BUFFER)
    return document.add("accessors", accessor)


def _rows_of_four(values: NDArray[np.number]) -> tuple[bytes, int]:
    """The bytes of ``values``, each row padded to a multiple of four, and the stride; 0 where nothing is padded."""
    values = np.ascontiguousarray(values)
    size = values.itemsize * values.shape[1]
    if size % 4 == 0:
        return values.tobytes(), 0
    stride = -(-size // 4) * 4
    padded = np.zeros((len(values), stride), np.uint8)
    padded[:, :size] = values.view(np.uint8).reshape(len(values), size)
    return padded.tobytes(), stride
