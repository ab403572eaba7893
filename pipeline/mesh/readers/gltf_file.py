"""The parts of a glTF file: the chunks of a .glb, its JSON, and external buffers. Imports no numpy."""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import struct
import urllib.parse
from pathlib import Path
from typing import Any

from pipeline.core.errors import MeshError
from pipeline.core.files import path_on_disk
from pipeline.core.terminal import excerpt

_MAGIC = b"glTF"
_LARGEST_JSON = 1 << 28
# A JSON object of an untrusted glTF, which the reader checks value by value.
Object = dict[str, Any]
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")


def glb_chunks(data: bytes, name: str) -> tuple[bytes, bytes | None]:
    """(JSON bytes, binary chunk or None) of a GLB. Raises MeshError."""
    if len(data) < 20 or data[:4] != _MAGIC:
        raise MeshError(f"{name}: it does not begin with glTF: empty or not a GLB file")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise MeshError(f"{name}: it is glTF version {version}; only version 2 can be read")
    if length > len(data):
        raise MeshError(f"{name}: it claims {length} bytes, but has {len(data)}: truncated")
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, at)
        if at + 8 + size > length:
            raise MeshError(f"{name}: a chunk of {size} bytes reaches beyond its end: truncated or damaged")
        chunks.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    if b"JSON" not in chunks:
        raise MeshError(f"{name}: it has no JSON chunk: damaged")
    return chunks[b"JSON"], chunks.get(b"BIN\0")


def parse_document(text: bytes, name: str) -> Object:
    """The glTF JSON as a dictionary. Raises MeshError."""
    if len(text) > _LARGEST_JSON:
        raise MeshError(f"{name}: its JSON has {len(text)} bytes, which is too large")
    try:
        # Some writers pad the JSON chunk of a .glb with NUL instead of blanks.
        document = json.loads(text.rstrip(b"\0").decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise MeshError(f"{name}: its JSON cannot be parsed: empty, truncated or not glTF") from None
    if not isinstance(document, dict) or not isinstance(document.get("asset"), dict):
        raise MeshError(f"{name}: its JSON is not a glTF document (it has no asset)")
    version = str(document["asset"].get("version", ""))
    if not version.startswith("2"):
        shown = excerpt(version) or "unknown"
        raise MeshError(f"{name}: it is glTF version {shown}; only version 2 can be read")
    return document


def buffer_path(uri: str, folder: Path, name: str, what: str = "buffer") -> Path:
    """Returns the path of a buffer's ``uri``, which must lie in ``folder`` or below. ``what`` names it in messages.

    Raises MeshError."""
    decoded = urllib.parse.unquote(uri)
    quoted = excerpt(uri)
    if urllib.parse.urlsplit(uri).scheme or decoded.startswith(("/", "\\")) or "\0" in decoded:
        raise MeshError(f"{name}: its {what} '{quoted}' is not a relative path; nothing is fetched from elsewhere")
    try:
        path = path_on_disk(folder / decoded).resolve()
        inside, exists = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "not a usable name"
        raise MeshError(f"{name}: its {what} '{quoted}' cannot be opened ({reason})") from None
    if not inside:
        raise MeshError(f"{name}: its {what} '{quoted}' lies outside the file's own folder")
    if not exists:
        raise MeshError(f"{name}: its {what} '{quoted}' does not exist; copy it beside the file")
    return path


def split_file(data: bytes, name: str) -> tuple[bytes, bytes | None]:
    """(JSON bytes, binary chunk or None) of a .gltf or .glb. The content decides, because files get renamed.

    Raises MeshError.
    """
    if name.lower().endswith(".glb") and not data[:64].removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        return glb_chunks(data, name)
    return glb_chunks(data, name) if data[:4] == _MAGIC else (data, None)


def document_of(path: Path) -> Object | None:
    """The glTF JSON of the .gltf or .glb at ``path``, read without its binary chunk; None for a damaged .glb.

    Raises MeshError for a damaged .gltf, OSError if the file cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(20)
        if len(head) < 20 or head[:4] != _MAGIC:
            text = head + stream.read()
        else:
            # The length is untrusted: bound it by the file's size.
            text = stream.read(min(int.from_bytes(head[12:16], "little"), path.stat().st_size))
    try:
        return parse_document(text, path.name)
    except MeshError:
        if path.suffix.lower() == ".glb":
            return None
        raise


def outside_uris(document: Object) -> list[str]:
    """Returns the URIs of a document's external buffers in order, without fallback buffers, which we never open."""
    buffers = document.get("buffers")
    uris = [
        buffer.get("uri")
        for buffer in (buffers if isinstance(buffers, list) else ())
        if isinstance(buffer, dict) and not is_fallback(buffer)
    ]
    return [uri for uri in uris if isinstance(uri, str) and not is_inline(uri)]


def image_uris(document: Object) -> list[str]:
    """Returns the URIs of a document's images in files of their own, in order."""
    images = document.get("images")
    uris = [image.get("uri") for image in (images if isinstance(images, list) else ()) if isinstance(image, dict)]
    return [uri for uri in uris if isinstance(uri, str) and not is_inline(uri)]


def is_fallback(buffer: Object) -> bool:
    """Tells whether a buffer is only for readers that cannot decode meshopt. It may be missing."""
    extensions = buffer.get("extensions")
    marks = [extensions.get(name) for name in MESHOPT] if isinstance(extensions, dict) else []
    return any(isinstance(value, dict) and value.get("fallback") is True for value in marks)


def is_inline(uri: str) -> bool:
    """Tells whether ``uri`` is a data URI."""
    return uri[:5].lower() == "data:"


def inline_data(uri: str) -> bytes:
    """Decodes a data URI. Accepts percent-encoding, line breaks and missing "=" at the end, as writers produce them.

    Raises ValueError with a readable reason for other data.
    """
    head, comma, body = uri[5:].partition(",")
    if not comma:
        raise ValueError("they have no comma before them")
    data = urllib.parse.unquote_to_bytes(body)
    if not head.lower().replace(" ", "").endswith(";base64"):
        return data
    data = b"".join(data.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error:
        raise ValueError("they are not base64") from None
