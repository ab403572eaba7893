"""Reads the claimed sizes of a Draco stream before it is decoded.

The decoder allocates memory for the claimed sizes, and a kilobyte may claim a billion faces. The layout is that of the
Draco bitstream specification, version 2.2, the only one that glTF allows.
"""

from __future__ import annotations

import struct

_MESH = 1
_SEQUENTIAL, _EDGEBREAKER = 0, 1
_METADATA = 0x8000


def draco_claims(data: bytes) -> tuple[int, int]:
    """Returns the claimed (faces, vertices) of the Draco stream ``data``. Raises ValueError for unsupported streams."""
    if len(data) < 11 or data[:5] != b"DRACO":
        raise ValueError("they do not begin like Draco data")
    major, minor, kind, method, flags = struct.unpack_from("<4BH", data, 5)
    if (major, minor) != (2, 2):
        raise ValueError(f"they are of version {major}.{minor}; allowed: 2.2")
    if kind != _MESH:
        raise ValueError("they hold points, not a mesh")
    if flags & _METADATA:
        raise ValueError("they hold metadata, which cannot be read")
    if method == _SEQUENTIAL:
        faces, at = varint(data, 11)
        return faces, varint(data, at)[0]
    if method != _EDGEBREAKER:
        raise ValueError(f"their method {method} is unknown")
    # Skip the byte that gives the method of edge traversal.
    vertices, at = varint(data, 12)
    return varint(data, at)[0], vertices


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Decodes the number at byte ``at``: 7-bit groups, lowest first. Returns it and the offset behind it."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            raise ValueError("they are truncated")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("they are damaged")
