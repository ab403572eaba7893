"""Reads STL, binary and text. Uses positions only; facet normals follow from the corners."""

from __future__ import annotations

import codecs
import re

import numpy as np

from pipeline.core.errors import MeshError
from pipeline.mesh.readers.raw import RawMesh, parse_numbers, plain_numbers

_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_HEADER = 84
# Counts that mean "unknown".
_UNCOUNTED = (0, 0xFFFFFFFF)


def read_stl(data: bytes, name: str, max_faces: int) -> RawMesh:
    """Reads an STL from its bytes. Raises MeshError."""
    if data.removeprefix(codecs.BOM_UTF8)[:5].lower() == b"solid":
        data = data.removeprefix(codecs.BOM_UTF8)
    claimed = int.from_bytes(data[80:_HEADER], "little") if len(data) >= _HEADER else -1
    # Binary files may begin with "solid" too, so check the length.
    if claimed >= 0 and len(data) == _HEADER + claimed * _FACET.itemsize:
        return _read_binary(data, claimed, name, max_faces)
    if _is_text(data):
        return _read_text(data, name, max_faces)
    if claimed < 0:
        raise MeshError(f"{name}: {len(data)} bytes are too few for an STL file")
    held = (len(data) - _HEADER) // _FACET.itemsize
    if claimed in _UNCOUNTED and held:
        # Some programs stream facets and never write their count.
        mesh = _read_binary(data, held, name, max_faces)
        mesh.warnings.append(f"its header claims {claimed} facets; the {held} in the file were read")
        return mesh
    if 0 < claimed <= held:
        mesh = _read_binary(data, claimed, name, max_faces)
        more = f"its header claims {claimed} facets, but the file has {held}: " if held > claimed else ""
        mesh.warnings.append(f"{more}bytes after the last facet were ignored")
        return mesh
    raise MeshError(f"{name}: it claims {claimed} facets, but has only {held}: truncated, or not an STL file")


def _is_text(data: bytes) -> bool:
    """Tells whether the file is text: it begins with "solid", as binary files may too, then has a facet or the end."""
    begin = data[:65536].lstrip().lower()
    if not begin.startswith(b"solid") or b"\0" in begin[:1024]:
        return False
    return len(data) <= 1024 or b"facet" in begin or b"endsolid" in begin


def _read_binary(data: bytes, count: int, name: str, max_faces: int) -> RawMesh:
    if count > max_faces:
        raise MeshError(f"{name}: {count} faces are more than max_faces = {max_faces}")
    facets = np.frombuffer(data, _FACET, count=count, offset=_HEADER)
    positions = facets["corners"].reshape(-1, 3).astype(np.float64)
    return RawMesh(positions, np.arange(3 * count).reshape(-1, 3))


def _read_text(data: bytes, name: str, max_faces: int) -> RawMesh:
    # Skip the lines with the solids' names, which may be any text.
    text = re.sub(rb"(?m)^([ \t]*(?:end)?solid)\b[^\r\n]*", rb"\1", data.lower())
    facets = len(re.findall(rb"\bendfacet\b", text))
    if facets > max_faces:
        raise MeshError(f"{name}: {facets} faces are more than max_faces = {max_faces}")
    corners = re.findall(rb"\bvertex[ \t]+([^\r\n]*)", text)
    if re.search(rb"\bendsolid\b", text) is None or len(corners) != 3 * facets:
        raise MeshError(f"{name}: the text ends early or a facet does not have three corners: truncated STL")
    values = parse_numbers(plain_numbers(b" ".join(corners)))
    if len(values) != 9 * facets:
        raise MeshError(f"{name}: facet {len(values) // 9 + 1} holds something that is not a number")
    return RawMesh(values.reshape(-1, 3), np.arange(3 * facets).reshape(-1, 3))
