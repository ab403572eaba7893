"""Loads untrusted mesh files. Every failure is a MeshError with a message of one line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from pipeline.core.errors import MeshError
from pipeline.core.files import path_on_disk
from pipeline.mesh.checked_mesh import checked_mesh
from pipeline.mesh.convert.references import CONVERTED
from pipeline.mesh.mesh import Mesh
from pipeline.mesh.mesh_hash import FORMATS, mesh_sha256
from pipeline.mesh.readers.mesh_bytes import read_mesh_bytes
from pipeline.mesh.readers.raw import RawMesh

__all__ = ["READER_VERSION", "load_mesh"]

# Words of reader messages about damaged files, for which copying or exporting again is the only advice.
_BROKEN = (
    "truncated", "damaged", "is not valid glTF", "its JSON", "out of range", "end early", "holds something that is",
    "cannot be decoded", "cannot be understood", "does not begin with", "unknown type", "entries for", "accessor",
    "NaN or infinite", "not a count", "are needed", "does not hold", "empty",
)  # fmt: skip
# Bump it when the same bytes load as a different mesh, to invalidate results of older versions.
READER_VERSION = "2"


def load_mesh(path: Path, *, max_faces: int = 2_000_000, max_bytes: int = 1 << 30) -> Mesh:
    """Reads the mesh at ``path``: OBJ, PLY, STL, OFF, glTF or GLB (also Draco-compressed), FBX, DAE, 3DS or USD.

    Positions stay in the file's coordinates and units; glTF node transforms are applied. FBX, DAE, 3DS and USD are
    converted to glTF first: metres, +Y up. Texture coordinates get a top-left origin. Opens only the file, and in its
    folder the buffers of a .gltf and what a converted file names. Raises MeshError for every failure, with a message of
    one line that begins with the file's name.
    """
    path = path_on_disk(Path(path))
    name = path.name
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise MeshError(f"{name}: the ending {suffix or '(none)'} is unknown; allowed: {' '.join(FORMATS)}")
    try:
        if not path.is_file():
            reason = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise MeshError(f"{name}: it {reason}")
        if path.stat().st_size == 0:
            raise MeshError(f"{name}: it is empty")
        data = read_mesh_bytes(path, max_bytes)
    except OSError as error:
        raise MeshError(f"{name}: it cannot be read ({error.strerror or error})") from None
    try:
        # ``assemble`` reports values that are not finite, so numpy need not warn about them.
        with np.errstate(all="ignore"):
            raw = _read(data, path, suffix, max_faces, max_bytes)
            del data
            return checked_mesh(raw, name, suffix[1:], mesh_sha256(path), max_faces)
    except MeshError as error:
        raise MeshError(_with_advice(error.message, name), stage=error.stage) from None
    except MemoryError:
        raise MeshError(f"{name}: there is not enough memory to read it") from None
    except Exception as error:
        # An unforeseen error in a reader. The user needs the file's name, not our traceback.
        raise MeshError(
            f"{name}: it cannot be read: damaged, or unlike other {suffix} files; open it in the program that made "
            "it and export it again"
        ) from error


def _with_advice(message: str, name: str) -> str:
    """Appends advice to a reader's message if the file ``name`` is damaged."""
    text = message.removeprefix(f"{name}: ")
    broken = any(word in text for word in _BROKEN) and ";" not in text
    return f"{message}; copy or export the file again" if broken else message


def _read(data: bytes, path: Path, suffix: str, max_faces: int, max_bytes: int) -> RawMesh:
    name = path.name
    if suffix == ".obj":
        from pipeline.mesh.readers.obj import read_obj

        return read_obj(data, name, max_faces)
    if suffix == ".ply":
        from pipeline.mesh.readers.ply import read_ply

        return read_ply(data, name, max_faces)
    if suffix == ".stl":
        from pipeline.mesh.readers.stl import read_stl

        return read_stl(data, name, max_faces)
    if suffix == ".off":
        from pipeline.mesh.readers.off import read_off

        return read_off(data, name, max_faces)
    from pipeline.mesh.readers.gltf import read_gltf
    from pipeline.mesh.readers.gltf_file import split_file

    if suffix in CONVERTED:
        from pipeline.mesh.convert.to_gltf import to_gltf

        data = to_gltf(path, max_faces=max_faces, max_bytes=max_bytes).glb()
    text, binary = split_file(data, name)
    with contextlib.suppress(RecursionError):
        return read_gltf(text, binary, path.parent, name, max_faces, max_bytes)
    raise MeshError(f"{name}: its JSON is nested too deeply")
