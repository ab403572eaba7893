"""The identity of an input mesh: what its fingerprint is made of. Light: needs no numpy."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.core.content import sha256_file
from pipeline.core.errors import MeshError

# What load_mesh can read, by file name ending.
FORMATS = (".obj", ".ply", ".stl", ".off", ".gltf", ".glb")


def mesh_sha256(path: Path) -> str:
    """Hex digest of all bytes that make up the mesh at ``path``: the file, and the buffers that a .gltf names.

    For a single file it is that file's sha256. Raises MeshError where a .gltf is damaged or names a buffer that
    is missing or lies outside its folder, OSError where the file cannot be read.
    """
    if path.suffix.lower() != ".gltf":
        return sha256_file(path)
    from pipeline.geometry.readers.gltf import external_buffers, parse_document

    data = path.read_bytes()
    try:
        buffers = external_buffers(parse_document(data, path.name), path.parent, path.name)
    except TypeError as error:
        raise MeshError(f"{path.name}: its JSON is not valid glTF ({error})") from None
    if not buffers:
        return hashlib.sha256(data).hexdigest()
    parts = [hashlib.sha256(data).hexdigest()] + [sha256_file(buffer) for buffer in buffers]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
