"""Finds the files that an asset of another format reads beside itself, for hashes. Imports no numpy.

Searches the bytes of FBX, DAE and 3DS for the names of their textures, and has OpenUSD list a USD's layers.
"""

from __future__ import annotations

import html
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from pipeline.mesh.convert.places import file_beside

# Endings that ``to_gltf`` reads, and load_mesh by it. OBJ has a reader of its own there.
CONVERTED = (".fbx", ".dae", ".3ds", ".usd", ".usda", ".usdc", ".usdz")
_MOST_NAMES = 10_000
_FBX_NAME = re.compile(rb"(?:RelativeFilename|FileName|Filename)(?:S(.{4})|\s*:\s*\"([^\"\r\n]{1,4096})\")", re.DOTALL)


def files_beside(path: Path) -> list[Path]:
    """The existing files in the asset's folder or below that its conversion reads, in a fixed order.

    Raises OSError if the asset cannot be read; MeshError if OpenUSD cannot read a USD or is not installed.
    """
    suffix = path.suffix.lower()
    if suffix in (".usd", ".usda", ".usdc"):
        from pipeline.mesh.convert.usd import usd_files

        return usd_files(path)
    if suffix == ".obj":
        return _of_obj(path)
    finder = {".fbx": _of_fbx, ".dae": _of_dae, ".3ds": _of_3ds}.get(suffix)
    if finder is None:
        return []
    found: dict[Path, None] = {}
    for number, names in enumerate(finder(path.read_bytes())):
        if number >= _MOST_NAMES:
            break
        if (file := file_beside([names], path.parent, path.stem)) is not None:
            found[file] = None
    return list(found)


def _of_obj(path: Path) -> list[Path]:
    """The MTL files of an OBJ and their textures."""
    from pipeline.mesh.convert.mtl import material_files, read_mtl

    found = re.finditer(rb"(?m)^[ \t]*mtllib[ \t]+([^\r\n]+)", path.read_bytes())
    libraries = material_files([match[1].decode("utf-8", "replace").strip() for match in found], path.parent)
    files = dict.fromkeys(libraries)
    for library in libraries:
        for material in read_mtl(library):
            for texture in material.textures.values():
                if (file := file_beside([texture.file], path.parent, path.stem)) is not None:
                    files[file] = None
    return list(files)


def _of_fbx(data: bytes) -> Iterator[str]:
    # Binary: the record's name, "S", four bytes of length, the text. ASCII: name: "text".
    seen = set[bytes]()
    for match in _FBX_NAME.finditer(data):
        size = int.from_bytes(match[1] or b"", "little")
        name = match[2] if match[1] is None else data[match.end() : match.end() + size] if size <= 4096 else b""
        if name and name not in seen:
            seen.add(name)
            yield name.decode("utf-8", "replace")


def _of_dae(data: bytes) -> Iterator[str]:
    for match in re.finditer(rb"<(?:\w{1,20}:)?(?:init_from|ref)>([^<]{1,4096})<", data):
        name = urllib.parse.unquote(html.unescape(match[1].decode("utf-8", "replace").strip()))
        yield name.removeprefix("file://")


def _of_3ds(data: bytes) -> Iterator[str]:
    for match in re.finditer(rb"\x00\xa3(.{4})([^\0]{1,255})\0", data, re.S):
        if int.from_bytes(match[1], "little") == len(match[2]) + 7:
            yield match[2].decode("latin-1")
