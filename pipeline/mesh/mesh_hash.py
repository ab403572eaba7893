"""Content hash of an input mesh, for fingerprints. Imports no numpy."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from pipeline.core.errors import MeshError
from pipeline.core.hashing import sha256_file
from pipeline.core.location import RemotePath
from pipeline.mesh.convert.references import CONVERTED, files_beside

# File name endings that load_mesh reads.
FORMATS = (".obj", ".ply", ".stl", ".off", ".gltf", ".glb", *CONVERTED)


def mesh_sha256(path: Path) -> str:
    """Returns the hex digest of the mesh at ``path``: of the file and of what is read beside it.

    That is a glTF's external buffers and images, and the textures and layers of an FBX, DAE, 3DS or USD. For a single
    file it is that file's sha256. Raises MeshError if a .gltf or USD is damaged, or if a buffer is missing or lies
    outside the glTF's folder; OSError if the file cannot be read.
    """
    if not may_have_buffers(path):
        return sha256_file(path)
    if path.suffix.lower() in CONVERTED:
        buffers = files_beside(path)
    else:
        from pipeline.mesh.readers.gltf_file import buffer_path, document_of, image_uris, outside_uris

        document = document_of(path)
        buffers = [buffer_path(uri, path.parent, path.name) for uri in outside_uris(document or {})]
        for uri in image_uris(document or {}):
            # One that is not at hand stays a reference, and is no part of the asset.
            with contextlib.suppress(MeshError):
                buffers.append(buffer_path(uri, path.parent, path.name, "image"))
    own = sha256_file(path)
    if not buffers:
        return own
    return hashlib.sha256("\n".join([own] + [sha256_file(buffer) for buffer in buffers]).encode()).hexdigest()


def may_have_buffers(path: Path | RemotePath) -> bool:
    """Tells whether the mesh at ``path`` may read files beside it: a .gltf often does, a .glb seldom."""
    return path.suffix.lower() in (".gltf", ".glb", *CONVERTED)
