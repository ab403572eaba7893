"""Reads accessors, buffer views and buffers of a glTF file, plain or compressed by meshopt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.core.files import POINTER_ADVICE, is_lfs_pointer
from pipeline.mesh.readers.gltf_file import MESHOPT, Object, buffer_path, inline_data, is_fallback, is_inline
from pipeline.mesh.readers.gltf_json import GltfJson

COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
# Limit on the bytes that decoding and sparse accessors copy, as a multiple of the allowed bytes.
_COPIES = 8


class Buffers:
    """The data of the document's accessors. Buffers must lie in ``folder``.

    Checks sizes before it allocates memory: ``max_bytes`` for all buffers, and four entries per allowed face for an
    accessor without a buffer view.
    """

    def __init__(self, json: GltfJson, binary: bytes | None, folder: Path, max_faces: int, max_bytes: int):
        self.json, self.binary, self.folder = json, binary, folder
        self.max_entries, self.left_bytes, self.left_copies = 4 * max_faces, max_bytes, _COPIES * max_bytes
        self.buffers: dict[int, bytes] = {}
        self.decoded: dict[int, memoryview] = {}

    def layout(self, index: object) -> tuple[Object, int, np.dtype, int]:
        """(accessor, count, dtype, width) of accessor ``index``. Raises MeshError."""
        accessor = self.json.item("accessors", index, "accessor")
        count = self.json.integer(accessor, "count")
        kind, form = accessor.get("componentType"), accessor.get("type")
        if not isinstance(kind, int) or kind not in COMPONENTS or not isinstance(form, str) or form not in WIDTHS:
            raise self.json.error(f"accessor {index} has an unknown type")
        dtype = np.dtype(COMPONENTS[kind])
        if form in ("MAT2", "MAT3") and dtype.itemsize < 4:
            raise self.json.error(f"accessor {index} has an unsupported matrix type")
        return accessor, count, dtype, WIDTHS[form]

    def accessor(self, index: object, rows: NDArray[np.int64] | None = None) -> NDArray[np.number]:
        """(count, width) values of an accessor, or only its ``rows``; normalised integers as floats.

        Raises MeshError.
        """
        values = self.stored(index, rows)
        return normalised(values) if self.layout(index)[0].get("normalized") is True else values

    def stored(self, index: object, rows: NDArray[np.int64] | None = None) -> NDArray[np.number]:
        """As ``accessor``, but values as they are stored: integers are not normalised."""
        accessor, count, dtype, width = self.layout(index)
        if "bufferView" in accessor:
            offset = self.json.integer(accessor, "byteOffset", 0)
            values = self._strided(accessor["bufferView"], offset, count, dtype, width)
        else:
            # Zeros, which sparse values replace. The limits of a buffer apply.
            if count * width * dtype.itemsize > self.left_bytes or count > self.max_entries:
                raise self.json.error(f"accessor {index} claims {count} entries, which is too many")
            self._copies(count * width * dtype.itemsize)
            values = np.zeros((count, width), dtype)
        sparse = self.json.object(accessor, "sparse", f"accessor {index}")
        if sparse:
            values = self._sparse(sparse, values, index)
        return values if rows is None else values[rows]

    def _sparse(self, sparse: Object, values: NDArray[np.number], index: object) -> NDArray[np.number]:
        """Replaces some of ``values`` by those of ``sparse``."""
        json, where = self.json, f"accessor {index}"
        changed = json.integer(sparse, "count")
        at, new = json.object(sparse, "indices", where), json.object(sparse, "values", where)
        kind = at.get("componentType")
        if not isinstance(kind, int) or kind not in COMPONENTS or np.dtype(COMPONENTS[kind]).kind != "u":
            raise json.error(f"the sparse entries of accessor {index} have an unknown type")
        positions = self._strided(
            at.get("bufferView"), json.integer(at, "byteOffset", 0), changed, np.dtype(COMPONENTS[kind]), 1
        )[:, 0]
        if len(positions) and int(positions.max()) >= len(values):
            raise json.error("a sparse accessor names an entry out of range")
        self._copies(values.nbytes)
        values = values.copy()
        values[positions.astype(np.int64)] = self._strided(
            new.get("bufferView"), json.integer(new, "byteOffset", 0), changed, values.dtype, values.shape[1]
        )
        return values

    def _strided(
        self, view_index: object, offset: int, count: int, dtype: np.dtype[np.number], width: int
    ) -> NDArray[np.number]:
        view = self.json.item("bufferViews", view_index, "bufferView")
        data = self.view(view_index)
        size = dtype.itemsize * width
        stride = self.json.integer(view, "byteStride", 0) or size
        if count == 0:
            return np.empty((0, width), dtype)
        if stride < size or offset + (count - 1) * stride + size > len(data):
            raise self.json.error(
                f"an accessor wants {count} entries of {size} bytes, but its buffer view has only "
                f"{len(data)} bytes: truncated or damaged"
            )
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))

    def view(self, index: object) -> memoryview:
        """The bytes of a buffer view, decompressed. Raises MeshError."""
        view = self.json.item("bufferViews", index, "bufferView")
        extensions = self.json.object(view, "extensions", f"bufferView {index}")
        packed = next((self.json.object(extensions, n, f"bufferView {index}") for n in MESHOPT if n in extensions), {})
        if packed and not self._is_at_hand(view.get("buffer")):
            number = int(str(index))
            if number not in self.decoded:
                self.decoded[number] = self._decoded(packed)
            return self.decoded[number]
        return self._part(view, "a buffer view")

    def _is_at_hand(self, index: object) -> bool:
        """Tells whether the uncompressed buffer of a compressed view is available and not a mere fallback."""
        buffer = self.json.item("buffers", index, "buffer")
        uri = buffer.get("uri")
        if uri is None:
            return index == 0 and self.binary is not None
        return isinstance(uri, str) and (is_inline(uri) or not is_fallback(buffer))

    def _part(self, view: Object, what: str) -> memoryview:
        data = self.buffer(view.get("buffer"))
        offset, length = self.json.integer(view, "byteOffset", 0), self.json.integer(view, "byteLength")
        if offset + length > len(data):
            raise self.json.error(
                f"{what} ends at byte {offset + length}, but its buffer has only {len(data)}: truncated or damaged"
            )
        return memoryview(data)[offset : offset + length]

    def _decoded(self, packed: Object) -> memoryview:
        """Decodes a meshopt view. The decoder is safe on hostile bytes; we bound the claimed sizes."""
        import meshopt

        count, stride = self.json.integer(packed, "count"), self.json.integer(packed, "byteStride")
        mode, kind = packed.get("mode"), packed.get("filter", "NONE")
        if count * stride > self.left_bytes or count > self.max_entries:
            raise self.json.error(f"its meshopt data claim {count} entries of {stride} bytes, which is too many")
        if count == 0 or stride == 0:
            return memoryview(b"")
        data = np.frombuffer(self._part(packed, "its meshopt data"), np.uint8)
        self._copies(count * stride)
        self.left_bytes -= count * stride
        try:
            if not isinstance(mode, str) or not isinstance(kind, str):
                raise ValueError("their mode or filter is not a string")
            if stride > 256 or (mode != "ATTRIBUTES" and stride not in (2, 4)):
                raise ValueError(f"rows of {stride} bytes are not allowed")
            decoded = meshopt.decode_gltf_buffer(data, count, stride, mode, kind)
        except Exception as error:
            reason = " ".join(str(error).split())[:80]
            raise self.json.error(f"its meshopt data cannot be decoded ({reason})") from None
        return memoryview(np.ascontiguousarray(decoded).view(np.uint8).reshape(-1).tobytes())

    def buffer(self, index: object) -> bytes:
        """The bytes of a buffer, at least as many as it claims. Raises MeshError."""
        buffer = self.json.item("buffers", index, "buffer")
        number = int(str(index))
        if number in self.buffers:
            return self.buffers[number]
        uri = buffer.get("uri")
        if uri is None:
            if index != 0 or self.binary is None:
                raise self.json.error(f"buffer {index} has no data")
            data = self.binary
        elif not isinstance(uri, str):
            raise self.json.error(f"the uri of buffer {index} is not text")
        elif is_inline(uri):
            try:
                data = inline_data(uri)
            except ValueError as error:
                raise self.json.error(f"the inline data of buffer {index} cannot be read: {error}") from None
        else:
            data = self._file(uri)
        self.left_bytes -= len(data)
        length = self.json.integer(buffer, "byteLength", 0)
        if len(data) < length:
            raise self.json.error(
                f"buffer {index} should have {length} bytes, but has {len(data)}: truncated; copy the file again"
            )
        self.buffers[number] = data
        return data

    def _file(self, uri: str) -> bytes:
        path = buffer_path(uri, self.folder, self.json.name)
        try:
            if path.stat().st_size > self.left_bytes:
                raise self.json.error("its buffers are larger than is allowed")
            data = path.read_bytes()
        except OSError as error:
            raise self.json.error(f"its buffer {path.name} cannot be read ({error.strerror or error})") from None
        if is_lfs_pointer(data):
            raise MeshError(f"{self.json.name}: its buffer {path.name}: {POINTER_ADVICE}")
        return data

    def _copies(self, size: int) -> None:
        self.left_copies -= size
        if self.left_copies < 0:
            raise self.json.error("its accessors unpack to more bytes than are allowed")


def normalised(values: NDArray[np.number]) -> NDArray[np.number]:
    """Converts normalised integers to floats in [0, 1] or [-1, 1]."""
    if values.dtype.kind == "f":
        return values
    top = np.iinfo(values.dtype.str).max
    result: NDArray[np.number] = np.maximum(values.astype(np.float32) / np.float32(top), np.float32(-1.0))
    return result


def as_component(values: NDArray[np.number], dtype: np.dtype[np.number]) -> NDArray[np.number]:
    """Converts a decoder's (n, k) values to the accessor's ``dtype``."""
    if values.dtype == dtype or dtype.kind == "f":
        return values.astype(dtype)
    if values.dtype.kind == "f":
        limits = np.iinfo(dtype.str)
        result: NDArray[np.number] = np.clip(np.rint(np.nan_to_num(values)), limits.min, limits.max).astype(dtype)
        return result
    # Same width, other signedness.
    return values.astype(dtype)
