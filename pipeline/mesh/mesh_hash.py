"""The identity of an input mesh: what its fingerprint is made of. Light: needs no numpy."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.core.hashing import sha256_file
from pipeline.core.location import RemotePath

# What load_mesh can read, by file name ending.
FORMATS = (".obj", ".ply", ".stl", ".off", ".gltf", ".glb")


def mesh_sha256(path: Path) -> str:
    """Hex digest of all bytes that make up the mesh at ``path``: the file, and the buffers that a glTF names beside it.

    For a single file it is that file's sha256. Raises MeshError where a .gltf is damaged, or where a glTF names a
    buffer that is missing or lies outside its folder, OSError where the file cannot be read.
    """
    if not may_have_buffers(path):
        return sha256_file(path)
    from pipeline.mesh.readers.gltf_file import buffer_path, document_of, outside_uris

    document = document_of(path)
    buffers = [buffer_path(uri, path.parent, path.name) for uri in outside_uris(document or {})]
    own = sha256_file(path)
    if not buffers:
        return own
    return hashlib.sha256("\n".join([own] + [sha256_file(buffer) for buffer in buffers]).encode()).hexdigest()


def may_have_buffers(path: Path | RemotePath) -> bool:
    """Whether the mesh at ``path`` may be more than one file: a .gltf often is, a .glb seldom."""
    return path.suffix.lower() in (".gltf", ".glb")
