"""Reads provenance and figures from an untrusted GLB, without heavy imports.

Reads only the file's header, its JSON chunk and a few bytes of the image, whatever the file's size.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.core.errors import LatentkilnError

PROVENANCE_KEY = "latentkiln"
_JSON, _BIN = 0x4E4F534A, 0x004E4942
# Our own files have a few kilobytes of JSON. The limit bounds the memory for a hostile length.
_MAX_JSON = 64 << 20
_IMAGE_HEAD = 64 << 10
_TRIANGLES = 4


class InspectError(LatentkilnError):
    """A file is not a readable GLB, or not made by latentkiln."""

    stage = "inspect"


def inspect_glb(path: Path) -> dict[str, Any]:
    """Reads the provenance and figures of a GLB made by latentkiln.

    Keys: ``provenance`` (the argument of ``write_glb``), ``generator``, ``bytes``, ``triangles``, ``vertices``,
    ``bounds`` (lowest and highest corner in the input's coordinates), ``texture`` (``width``, ``height``,
    ``format``, ``bytes``) of the painted base colour, and ``parts``: of a document that was painted, for each material
    its ``material``, ``primitives``, ``texture``, and ``painted`` (what was changed, or None). Unknown values are None.
    Raises InspectError, in one line, for a file that cannot be read, is not a GLB or was not made by latentkiln.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            document, binary = _read_json(stream, size, path)
            asset = _dict(document.get("asset"))
            provenance = _dict(asset.get("extras")).get(PROVENANCE_KEY)
            if not isinstance(provenance, dict):
                raise InspectError(f"{path}: not made by latentkiln (no provenance in asset.extras)")
            parts = _parts(document, _dict(provenance.get("document")), stream, binary)
            texture = next((part["texture"] for part in parts if part["painted"]), None) if parts else None
            return {
                "provenance": provenance,
                "generator": _text(asset.get("generator")),
                "bytes": size,
                **_figures(document, simple=not parts),
                "texture": texture if parts else _texture(_item(document, "images", 0), document, stream, binary),
                "parts": parts,
            }
    except OSError as error:
        raise InspectError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_json(stream: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], tuple[int, int]]:
    """Returns the JSON chunk, and start and length of the binary chunk (length 0 if there is none)."""
    stream.seek(0)
    head = stream.read(20)
    if len(head) < 20 or head[:4] != b"glTF":
        raise InspectError(f"{path}: not a GLB file (no glTF header)")
    version, total, length, kind = struct.unpack("<IIII", head[4:])
    if version != 2:
        raise InspectError(f"{path}: glTF version {version} is not supported, only 2")
    if total > size:
        raise InspectError(f"{path}: truncated: {size} bytes of {total}")
    if kind != _JSON or length > _MAX_JSON or 20 + length > size:
        raise InspectError(f"{path}: not a valid GLB file (its JSON chunk is damaged)")
    try:
        document = json.loads(stream.read(length))
    except (ValueError, RecursionError):
        raise InspectError(f"{path}: not a valid GLB file (its JSON cannot be parsed)") from None
    if not isinstance(document, dict):
        raise InspectError(f"{path}: not a valid GLB file (its JSON is not an object)")
    start = 20 + length + -length % 4
    stream.seek(start)
    head = stream.read(8)
    if len(head) == 8:
        length, kind = struct.unpack("<II", head)
        if kind == _BIN and start + 8 + length <= size:
            return document, (start + 8, length)
    return document, (0, 0)


def _parts(
    document: dict[str, Any], painted: dict[str, Any], stream: BinaryIO, binary: tuple[int, int]
) -> list[dict[str, Any]]:
    """Returns the parts of an artist's document, in the order of its materials; [] for a document of our own."""
    if not painted:
        return []
    counts: dict[int, int] = {}
    for mesh in _list(document.get("meshes")):
        for primitive in _list(_dict(mesh).get("primitives")):
            number = _dict(primitive).get("material")
            number = number if isinstance(number, int) else -1
            counts[number] = counts.get(number, 0) + 1
    changes = {_dict(each).get("number"): _dict(each) for each in _list(painted.get("painted"))}
    parts = []
    for number in sorted({*counts, *(key for key in changes if isinstance(key, int))}):
        material = _item(document, "materials", number)
        colour = _dict(_dict(material.get("pbrMetallicRoughness")).get("baseColorTexture"))
        image = _item(document, "images", _item(document, "textures", colour.get("index")).get("source"))
        parts.append(
            {
                "material": _text(material.get("name")) or ("none" if number < 0 else f"material {number}"),
                "primitives": counts.get(number, 0),
                "texture": _texture(image, document, stream, binary),
                "painted": changes.get(number),
            }
        )
    return parts


def _figures(document: dict[str, Any], *, simple: bool) -> dict[str, Any]:
    """Returns triangles, vertices and bounds of all primitives. Bounds include the node's translation; None unless the
    document is a ``simple`` one of our own, with one node."""
    triangles = vertices = 0
    lows: list[list[float]] = []
    highs: list[list[float]] = []
    for mesh in _list(document.get("meshes")):
        for primitive in _list(_dict(mesh).get("primitives")):
            primitive = _dict(primitive)
            position = _item(document, "accessors", _dict(primitive.get("attributes")).get("POSITION"))
            index = _item(document, "accessors", primitive.get("indices"))
            count = _count(position.get("count"))
            vertices += count
            if primitive.get("mode", _TRIANGLES) == _TRIANGLES:
                triangles += _count(index.get("count", count)) // 3
            low, high = _numbers(position.get("min")), _numbers(position.get("max"))
            if low and high:
                lows.append(low)
                highs.append(high)
    bounds = None
    if lows and simple:
        shift = _numbers(_item(document, "nodes", 0).get("translation")) or [0.0] * 3
        bounds = [
            [min(axis) + s for axis, s in zip(zip(*lows, strict=True), shift, strict=True)],
            [max(axis) + s for axis, s in zip(zip(*highs, strict=True), shift, strict=True)],
        ]
    return {"triangles": triangles, "vertices": vertices, "bounds": bounds}


def _texture(
    image: dict[str, Any], document: dict[str, Any], stream: BinaryIO, binary: tuple[int, int]
) -> dict[str, Any] | None:
    """Returns size and format of an embedded image."""
    view = _item(document, "bufferViews", image.get("bufferView"))
    offset, length = _count(view.get("byteOffset", 0)), _count(view.get("byteLength"))
    if not length or offset + length > binary[1]:
        return None
    stream.seek(binary[0] + offset)
    head = stream.read(min(length, _IMAGE_HEAD))
    header = _png_size(head) or _jpeg_size(head)
    if header is None:
        return None
    width, height, kind = header
    return {"width": width, "height": height, "format": kind, "bytes": length}


def _png_size(head: bytes) -> tuple[int, int, str] | None:
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR" or len(head) < 24:
        return None
    width, height = struct.unpack(">II", head[16:24])
    return width, height, "png"


def _jpeg_size(head: bytes) -> tuple[int, int, str] | None:
    """Reads the size from a JPEG's frame header."""
    if head[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return width, height, "jpeg"
        at += 2 + max(length, 2)
    return None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _numbers(value: object) -> list[float]:
    """Returns three numbers, or None."""
    items = _list(value)
    usable = len(items) == 3 and all(isinstance(x, (int, float)) and abs(x) < 1e300 for x in items)
    return [float(x) for x in items] if usable else []


def _item(document: dict[str, Any], key: str, index: object) -> dict[str, Any]:
    """Returns ``document[key][index]`` if it is an object, else an empty one."""
    items = _list(document.get(key))
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(items):
        return {}
    return _dict(items[index])
