"""Converts a mesh file of another format into a glTF 2.0 document in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core.errors import MeshError
from pipeline.core.terminal import printable
from pipeline.mesh.convert.assemble import Assembler
from pipeline.mesh.convert.gltf_builder import Object, glb_bytes
from pipeline.mesh.convert.scene import Scene
from pipeline.mesh.readers.mesh_bytes import read_mesh_bytes


@dataclass(frozen=True)
class Converted:
    """A glTF document: ``json`` with one buffer at most, that ``buffer``, and what it could not keep, in words."""

    json: Object
    buffer: bytes
    losses: tuple[str, ...]

    def glb(self) -> bytes:
        """The document as GLB."""
        return glb_bytes(self.json, self.buffer)


def to_gltf(path: Path, *, max_faces: int = 2_000_000, max_bytes: int = 1 << 30) -> Converted:
    """Converts the FBX, DAE, 3DS, OBJ or USD file at ``path``.

    The document is in metres and +Y up by a node at its root, if the format states its units and axes. Textures are in
    its buffer as PNG or JPEG. Opens only the file and, in its folder or below, what the file names. Raises MeshError
    with one line that begins with the file's name.
    """
    name = path.name
    data = read_mesh_bytes(path, max_bytes)
    try:
        with np.errstate(all="ignore"):
            assembler = Assembler(_read(data, path), path.parent, name, max_faces)
            document, buffer = assembler.write()
    except MeshError as error:
        own = error.message.startswith(f"{name}: ")
        raise error if own else MeshError(f"{name}: {error.message}", stage=error.stage) from None
    except MemoryError:
        raise MeshError(f"{name}: there is not enough memory to read it") from None
    converted = Converted(document, buffer, tuple(printable(loss) for loss in assembler.losses))
    _remember(path, converted)
    return converted


def conversion_losses(path: Path) -> tuple[Object, list[str]]:
    """The JSON of the document that the file at ``path`` becomes, and a line for each thing that it cannot keep.

    Converts the file, unless that was just done. Raises MeshError.
    """
    stamp = _stamp(path)
    if stamp is None or stamp not in _recent:
        converted = to_gltf(path)
        return converted.json, list(converted.losses)
    document, losses = _recent[stamp]
    return document, list(losses)


# What ``check`` asks for of the same file, one after the other: its mesh, then its losses.
_recent: dict[tuple[str, int, int, int], tuple[Object, tuple[str, ...]]] = {}
_MOST_RECENT = 8


def _remember(path: Path, converted: Converted) -> None:
    if (stamp := _stamp(path)) is not None:
        while len(_recent) >= _MOST_RECENT:
            _recent.pop(next(iter(_recent)))
        _recent[stamp] = (converted.json, converted.losses)


def _stamp(path: Path) -> tuple[str, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino)


def _read(data: bytes, path: Path) -> Scene:
    suffix = path.suffix.lower()
    if suffix == ".fbx":
        from pipeline.mesh.convert.fbx import read_fbx

        return read_fbx(data, path.name)
    if suffix in (".dae", ".3ds"):
        from pipeline.mesh.convert.assimp import read_by_assimp

        return read_by_assimp(data, path.name)
    if suffix == ".obj":
        from pipeline.mesh.convert.obj import read_obj_scene

        return read_obj_scene(data, path)
    from pipeline.mesh.convert.usd import read_usd

    return read_usd(data, path)
