"""Reads DAE and 3DS, and FBX where ufbx cannot, by assimp in a child process.

assimp-py gives geometry, nodes and materials only: no skins, morph targets, animations, cameras, lights or embedded
textures. The losses name those that the file has.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from pipeline.core.errors import MeshError
from pipeline.mesh.convert.child import read_in_child
from pipeline.mesh.convert.scene import Scene

_KEYFRAMER, _EDITOR, _OBJECT, _LIGHT, _CAMERA = 0xB000, 0x3D3D, 0x4000, 0x4600, 0x4700
_DAE_LOSSES = {
    b"skin": "skins", b"morph": "morph targets", b"animation": "animations", b"camera": "cameras", b"light": "lights",
    b"spline": "splines", b"physics_model": "physics", b"brep": "boundary representations",
}  # fmt: skip
_MOST_CHUNKS = 100_000
# What a file of each ending begins with, after comments. Assimp would read other content by another reader, which may
# open further files.
_BEGINS = {".dae": (b"<COLLADA",), ".3ds": (b"MM",), ".fbx": (b"Kaydara FBX Binary", b"FBXHeaderExtension")}
_MOST_COMMENTS = 100


def read_by_assimp(data: bytes, name: str) -> Scene:
    """Reads a DAE, 3DS or FBX from its bytes. Raises MeshError."""
    suffix = PurePath(name).suffix.lower()
    if not _without_comments(data[:40_000]).startswith(_BEGINS[suffix]):
        raise MeshError(
            f"{name}: it does not begin like a {suffix[1:].upper()} file; export the file again, or as glTF"
        )
    scene = read_in_child(Path(__file__).with_name("assimp_child.py"), "assimp_py", data, name, extra="formats")
    scene.source = f"{suffix[1:].upper()} by assimp"
    if suffix == ".dae":
        scene.losses += dae_losses(data)
        _restore_names(scene, data)
    elif suffix == ".3ds":
        scene.losses += tds_losses(data)
    else:
        scene.losses.append(
            "skins, morph targets, animations, cameras, lights and embedded textures (assimp read the file)"
        )
    return scene


def _without_comments(text: bytes) -> bytes:
    """``text`` from its first statement on: behind XML's declaration and comments, and the comments of FBX."""
    text = text.removeprefix(codecs.BOM_UTF8)
    for _ in range(_MOST_COMMENTS):
        text = text.lstrip()
        for begin, end in ((b"<?", b"?>"), (b"<!--", b"-->"), (b";", b"\n")):
            if text.startswith(begin):
                text = text.partition(end)[2]
                break
        else:
            break
    return text


def dae_losses(data: bytes) -> list[str]:
    """What of a DAE assimp-py cannot give."""
    return [words for tag, words in _DAE_LOSSES.items() if re.search(rb"<(?:\w{1,20}:)?" + tag + rb"[\s>]", data)]


def tds_losses(data: bytes) -> list[str]:
    """What of a 3DS assimp-py cannot give."""
    found = set(_chunks(data))
    words = {_KEYFRAMER: "the keyframe section (animations)", _LIGHT: "lights", _CAMERA: "cameras"}
    return [text for kind, text in words.items() if kind in found]


def _chunks(data: bytes) -> Iterator[int]:
    """The kinds of chunks of a 3DS, of those levels where lights, cameras and keyframes stand."""
    spans = [(0, len(data))]
    seen = 0
    while spans and seen < _MOST_CHUNKS:
        at, end = spans.pop()
        while at + 6 <= end and seen < _MOST_CHUNKS:
            kind = int.from_bytes(data[at : at + 2], "little")
            size = int.from_bytes(data[at + 2 : at + 6], "little")
            seen += 1
            if size < 6 or at + size > end:
                break
            yield kind
            inside = at + 6
            if kind == _OBJECT:
                zero = data.find(b"\0", inside, at + size)
                inside = zero + 1 if zero >= 0 else at + size
            if kind in (0x4D4D, _EDITOR, _OBJECT):
                spans.append((inside, at + size))
            at += size


def _restore_names(scene: Scene, data: bytes) -> None:
    """Names nodes and meshes as the DAE does; assimp names them by their id."""
    for tag, items in ((b"node", scene.nodes), (b"geometry", scene.meshes)):
        names: dict[str, str] = {}
        for match in re.finditer(rb"<" + tag + rb"\s([^<>]{1,2000})>", data):
            attributes = dict(re.findall(rb"(\w{1,40})\s*=\s*[\"']([^\"'<>]*)[\"']", match[1]))
            if attributes.get(b"id") and attributes.get(b"name"):
                names.setdefault(attributes[b"id"].decode("utf-8", "replace"), _text(attributes[b"name"]))
        for item in items:
            item.name = names.get(item.name, item.name)


def _text(value: bytes) -> str:
    import html

    return html.unescape(value.decode("utf-8", "replace"))
