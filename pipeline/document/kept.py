"""A glTF file as it came: its JSON with all keys in their order, and its bytes. It is edited and written again.

All data that a document has at hand lie in one buffer, number 0, which is the binary chunk of the GLB that goes out.
Nothing in it moves while the document is edited: new data are appended. ``document.garbage`` cuts out what nobody uses.
"""

from __future__ import annotations

import contextlib
import copy
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import LatentkilnError, MeshError
from pipeline.core.files import path_on_disk
from pipeline.mesh.convert.references import CONVERTED
from pipeline.mesh.readers.gltf_buffers import Buffers
from pipeline.mesh.readers.gltf_file import (
    MESHOPT,
    Object,
    buffer_path,
    inline_data,
    is_fallback,
    is_inline,
    parse_document,
    split_file,
)
from pipeline.mesh.readers.gltf_json import GltfJson
from pipeline.mesh.readers.mesh_bytes import read_mesh_bytes

ENDINGS = (".gltf", ".glb", *CONVERTED)
"""Endings of the files that are documents: glTF as it came, and what is converted to it."""

PROVENANCE_KEY = "latentkiln"
_MIMES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"\xabKTX 20\xbb": "image/ktx2"}
_ENDINGS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass
class GltfDocument:
    """``json``: the document with the keys of its objects in their order. ``data``: the bytes of buffer 0. ``name`` is
    the file's, for messages. ``warnings``: one line for each thing that stays a mere reference."""

    name: str
    json: Object
    data: bytearray
    warnings: list[str] = field(default_factory=list)

    def copy(self) -> GltfDocument:
        """A document that can be edited without a change of this one."""
        return GltfDocument(self.name, copy.deepcopy(self.json), bytearray(self.data), list(self.warnings))

    def items(self, key: str) -> list[Object]:
        """The list ``key`` of the document, which is made where it is missing."""
        value: list[Object] = self.json.setdefault(key, [])
        return value

    def add(self, key: str, item: Object) -> int:
        """Append ``item`` to the list ``key``. Returns its number."""
        items = self.items(key)
        items.append(item)
        return len(items) - 1

    def add_view(self, data: bytes, **properties: object) -> int:
        """Append ``data`` to the buffer, at a multiple of four bytes. Returns the number of its new buffer view."""
        self.data.extend(bytes(-len(self.data) % 4))
        if not self.items("buffers"):
            self.items("buffers").append({"byteLength": 0})
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **properties}
        self.data.extend(data)
        self.json["buffers"][0]["byteLength"] = len(self.data)
        return self.add("bufferViews", view)

    def use_extension(self, name: str) -> None:
        """Name an extension among those that the document uses."""
        used: list[object] = self.json.setdefault("extensionsUsed", [])
        if name not in used:
            used.append(name)

    def glb(self) -> bytes:
        """The document as a GLB file."""
        text = json_bytes(self.json)
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        if self.data:
            data = bytes(self.data) + bytes(-len(self.data) % 4)
            chunks += struct.pack("<I4s", len(data), b"BIN\0") + data
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


@contextlib.contextmanager
def document_errors(name: str) -> Iterator[None]:
    """Turns what a damaged document may raise anywhere into a MeshError of one line."""
    try:
        yield
    except LatentkilnError:
        raise
    except RecursionError:
        raise MeshError(f"{name}: its JSON is nested too deeply") from None
    except MemoryError:
        raise MeshError(f"{name}: there is not enough memory to read it") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        raise MeshError(
            f"{name}: it cannot be read: damaged, or unlike other glTF files; open it in the program that made it and "
            "export it again"
        ) from error


def json_bytes(value: Object) -> bytes:
    """``value`` as compact JSON in UTF-8, keys in their order."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only escape
        return json.dumps(value, separators=(",", ":")).encode()


def add_provenance(document: GltfDocument, provenance: Mapping[str, object]) -> None:
    """Put our provenance beside what the artist has in ``asset.extras``."""
    asset = document.json["asset"]
    extras = asset.get("extras")
    if extras is not None and not isinstance(extras, dict):
        extras = {"extras": extras}
    asset["extras"] = {**(extras or {}), PROVENANCE_KEY: dict(provenance)}


def load_document(path: Path, *, max_bytes: int = 1 << 30, max_faces: int = 2_000_000) -> GltfDocument:
    """Reads the .gltf or .glb at ``path`` with its buffers and images, which must lie in its folder or below.

    FBX, DAE, 3DS and USD are converted first; ``mesh.readers.unkept`` says what that loses. An image that is not at
    hand stays a reference, with a warning. Raises MeshError, in one line.
    """
    path = path_on_disk(Path(path))
    name = path.name
    data = read_mesh_bytes(path, max_bytes)
    if path.suffix.lower() in CONVERTED:
        # Imported here: most documents need no converter.
        from pipeline.mesh.convert.to_gltf import to_gltf

        data = to_gltf(path, max_faces=max_faces, max_bytes=max_bytes).glb()
    text, binary = split_file(data, name)
    with document_errors(name):
        checked = GltfJson(parse_document(text, name), name)
        buffers = Buffers(checked, binary, path.parent, max_faces, max_bytes)
        document = GltfDocument(name, checked.document, _merged(checked, buffers))
        _take_images_in(document, checked, path.parent, max_bytes - len(document.data))
    return document


def _merged(checked: GltfJson, buffers: Buffers) -> bytearray:
    """The bytes of all buffers, one behind the other; the JSON's buffers and views are changed to match.

    A fallback buffer, which repeats what is stored compressed, stays an entry without data where it has none.
    """
    entries = checked.array(checked.document, "buffers", "its JSON")
    data, starts, left = bytearray(), dict[int, int](), dict[int, int]()
    rest: list[Object] = []
    for number in range(len(entries)):
        entry = checked.item("buffers", number, "buffer")
        if is_fallback(entry) and not (isinstance(entry.get("uri"), str) and is_inline(entry["uri"])):
            left[number] = 1 + len(rest)
            rest.append({key: value for key, value in entry.items() if key != "uri"})
            continue
        stored = buffers.buffer(number)[: checked.integer(entry, "byteLength", 0)]
        data.extend(bytes(-len(data) % 4))
        starts[number] = len(data)
        data.extend(stored)
    if not starts:
        if rest:
            checked.document["buffers"] = [{"byteLength": 0}, *rest]
            _renumber(checked, starts, left)
        return data
    first = dict(entries[min(starts)])
    first.pop("uri", None)
    first["byteLength"] = len(data)
    checked.document["buffers"] = [first, *rest]
    _renumber(checked, starts, left)
    return data


def _renumber(checked: GltfJson, starts: Mapping[int, int], left: Mapping[int, int]) -> None:
    """Make all buffer views refer to the merged buffer."""
    for number, _ in enumerate(checked.array(checked.document, "bufferViews", "its JSON")):
        view = checked.item("bufferViews", number, "bufferView")
        extensions = checked.object(view, "extensions", f"bufferView {number}")
        for holder in [view, *(checked.object(extensions, name, "a bufferView") for name in MESHOPT)]:
            if "buffer" not in holder:
                continue
            buffer = checked.integer(holder, "buffer")
            if buffer in left:
                holder["buffer"] = left[buffer]
                continue
            if buffer not in starts:
                raise checked.error(f"bufferView {number} names buffer {buffer}, which does not exist")
            holder["buffer"] = 0
            if starts[buffer]:
                holder["byteOffset"] = checked.integer(holder, "byteOffset", 0) + starts[buffer]


def _take_images_in(document: GltfDocument, checked: GltfJson, folder: Path, left: int) -> None:
    """Append the images that lie in files beside the document to its buffer."""
    for number, _ in enumerate(checked.array(checked.document, "images", "its JSON")):
        image = checked.item("images", number, "image")
        uri = image.get("uri")
        if not isinstance(uri, str) or is_inline(uri):
            continue
        try:
            path = buffer_path(uri, folder, document.name, "image")
            if path.stat().st_size > left:
                raise MeshError("it is larger than is allowed")
            data = path.read_bytes()
        except (MeshError, OSError) as error:
            reason = error.message if isinstance(error, MeshError) else str(error.strerror)
            document.warnings.append(f"{reason.removeprefix(f'{document.name}: ')}; it stays a reference")
            continue
        left -= len(data)
        mime = image.get("mimeType") or mime_of(data) or _ENDINGS.get(path.suffix.lower())
        if mime is None:
            document.warnings.append(f"its image {path.name} is of an unknown type; it stays a reference")
            continue
        del image["uri"]
        image.setdefault("name", path.stem)
        image["bufferView"] = document.add_view(data)
        image["mimeType"] = mime


def mime_of(data: bytes) -> str | None:
    """The type of an image, from its first bytes; None if it is unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((mime for head, mime in _MIMES.items() if data.startswith(head)), None)


def image_bytes(document: GltfDocument, number: int) -> bytes | None:
    """The file of image ``number``; None if it is not at hand. Raises MeshError for damaged entries."""
    checked = GltfJson(document.json, document.name)
    image = checked.item("images", number, "image")
    uri = image.get("uri")
    if isinstance(uri, str):
        try:
            return inline_data(uri) if is_inline(uri) else None
        except ValueError:
            return None
    if "bufferView" not in image:
        return None
    return bytes(reader_buffers(document).view(image["bufferView"]))


def reader_buffers(document: GltfDocument, max_faces: int = 2_000_000) -> Buffers:
    """The accessors of the document as it stands."""
    checked = GltfJson(document.json, document.name)
    return Buffers(checked, bytes(document.data), Path("/nonexistent"), max_faces, len(document.data) + (1 << 30))
