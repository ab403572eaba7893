"""Collects the JSON and the buffer of a new glTF document, and writes it as a GLB."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

Object = dict[str, Any]
_COMPONENTS = {"f4": 5126, "u1": 5121, "u2": 5123, "u4": 5125}
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963


class GltfBuilder:
    """A glTF document under construction: ``json`` without what is still empty, and one buffer."""

    def __init__(self, generator: str):
        self.json: Object = {"asset": {"version": "2.0", "generator": generator}}
        self._chunks: list[bytes] = []
        self._size = 0

    def add(self, kind: str, item: Object) -> int:
        """Appends ``item`` to the list ``kind`` of the document; returns its number."""
        items: list[Object] = self.json.setdefault(kind, [])
        items.append(item)
        return len(items) - 1

    def use_extension(self, name: str) -> None:
        """Names an extension as used."""
        used: list[str] = self.json.setdefault("extensionsUsed", [])
        if name not in used:
            used.append(name)

    def view(self, data: bytes, target: int = 0) -> int:
        """Appends ``data`` to the buffer, aligned to four bytes; returns the number of its buffer view."""
        item: Object = {"buffer": 0, "byteOffset": self._size, "byteLength": len(data)}
        if target:
            item["target"] = target
        padded = data + b"\0" * (-len(data) % 4)
        self._chunks.append(padded)
        self._size += len(padded)
        return self.add("bufferViews", item)

    def accessor(self, values: NDArray[np.generic], dtype: str, kind: str, *, bounds: bool = False) -> int:
        """Appends vertex data, matrices or keys: (n, k), or (n,) for SCALAR; returns the number of the accessor."""
        table = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
        target = _ARRAY_BUFFER if kind in ("VEC2", "VEC3", "VEC4") else 0
        return self._accessor(table, dtype, kind, target, bounds)

    def indices(self, values: NDArray[np.integer], vertices: int) -> int:
        """Appends the indices of triangles into so many ``vertices``."""
        dtype = "u2" if vertices < 65535 else "u4"
        table = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<")).reshape(-1)
        return self._accessor(table, dtype, "SCALAR", _ELEMENT_BUFFER, False)

    def keys(self, values: NDArray[np.floating], kind: str, *, bounds: bool = False) -> int:
        """Appends keys of an animation, float32."""
        return self._accessor(np.ascontiguousarray(values, np.dtype("<f4")), "f4", kind, 0, bounds)

    def _accessor(self, table: NDArray[np.generic], dtype: str, kind: str, target: int, bounds: bool) -> int:
        item: Object = {
            "bufferView": self.view(table.tobytes(), target),
            "componentType": _COMPONENTS[dtype],
            "count": len(table),
            "type": kind,
        }
        if bounds:
            rows = table.reshape(len(table), -1).astype(np.float64)
            item["min"], item["max"] = rows.min(axis=0).tolist(), rows.max(axis=0).tolist()
        return self.add("accessors", item)

    def finish(self) -> tuple[Object, bytes]:
        """The document and its buffer."""
        data = b"".join(self._chunks)
        if data:
            self.json["buffers"] = [{"byteLength": len(data)}]
        return self.json, data


def glb_bytes(document: Object, buffer: bytes) -> bytes:
    """The document as GLB."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    head = text.encode("utf-8", "replace")
    head += b" " * (-len(head) % 4)
    buffer += b"\0" * (-len(buffer) % 4)
    chunks = struct.pack("<I4s", len(head), b"JSON") + head
    if buffer:
        chunks += struct.pack("<I4s", len(buffer), b"BIN\0") + buffer
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
