"""Lists the features of a mesh file that the asset will lack: of a glTF hardly any, of other formats all but the shape.

Looks at the JSON of a glTF, at headers, and at the first megabytes of text, and decodes nothing; FBX, DAE, 3DS and USD
are converted to glTF for it. The readers themselves report what they skip or convert.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.core.errors import MeshError
from pipeline.mesh.convert.references import CONVERTED
from pipeline.mesh.readers.gltf_file import MESHOPT, Object, document_of

# Number of bytes of a text file that are searched.
_SEEN = 64 << 20
_PLY_HEADER = 1 << 16
_STL_FACETS = 10_000
_MOST_NAMES = 10_000
# Number of things that a conversion loses that are named in one line.
_MOST_LOSSES = 20
_COMPRESSIONS = ("KHR_draco_mesh_compression", *MESHOPT)


def unkept(path: Path) -> str:
    """Lists in words what the asset will lack of the mesh file at ``path``; "" if nothing.

    Returns "" for a damaged file, whose error the reader reports. Raises nothing.
    """
    try:
        suffix = path.suffix.lower()
        if suffix in (".gltf", ".glb"):
            return ", ".join(_of_gltf(document_of(path) or {}))
        if suffix in CONVERTED:
            from pipeline.mesh.convert.to_gltf import conversion_losses

            document, losses = conversion_losses(path)
            shown = losses[:_MOST_LOSSES]
            if len(losses) > len(shown):
                shown.append(f"{len(losses) - len(shown)} more")
            return ", ".join([*_of_gltf(document), *shown])
        return ", ".join(_READERS[suffix](path))
    except (MeshError, OSError, KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
        return ""


def not_in_asset(lost: str) -> str:
    """Returns the warning for the result of ``unkept``; "" for nothing."""
    return f"not kept in the asset: {lost}" if lost else ""


def _but_one(count: int, noun: str) -> Iterator[str]:
    if count > 1:
        yield f"{count - 1} of {count} {noun}s"


def _some(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:5])


def _of_gltf(document: Object) -> Iterator[str]:
    """A glTF goes out as it came, but for what is painted. The reader reports images that are not at hand."""
    primitives = [p for mesh in _objects(document, "meshes") for p in _objects(mesh, "primitives")]
    views = _objects(document, "bufferViews")
    if any(name in (item.get("extensions") or {}) for item in (*primitives, *views) for name in _COMPRESSIONS):
        yield "the compression of primitives that get new texture coordinates"


def _objects(holder: Object, key: str) -> list[Object]:
    """Returns the objects in an untrusted list."""
    value = holder.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _of_obj(path: Path) -> Iterator[str]:
    text = _head(path, _SEEN)
    materials = _names(re.finditer(rb"(?m)^[ \t]*usemtl[ \t]+([^\r\n]+)", text))
    objects = _names(re.finditer(rb"(?m)^[ \t]*o[ \t]+([^\r\n]+)", text))
    groups = _names(re.finditer(rb"(?m)^[ \t]*g[ \t]+([^\r\n]+)", text))
    if len(objects) > 1:
        yield f"its {len(objects)} objects (they become one)"
    if len(groups) > 1:
        yield f"its {len(groups)} groups (they become one)"
    yield from _but_one(len(materials), "material")
    # x y z r g b; four numbers are x y z w.
    if re.search(rb"(?m)^[ \t]*v(?:[ \t]+[-+.0-9eE]+){6,}[ \t]*\r?$", text):
        yield "vertex colours"


def _names(matches: Iterable[re.Match[bytes]]) -> set[bytes]:
    names: set[bytes] = set()
    for match in matches:
        names.add(match[1].strip())
        if len(names) >= _MOST_NAMES:
            break
    return names


def _of_ply(path: Path) -> Iterator[str]:
    header = _head(path, _PLY_HEADER).partition(b"end_header")[0].decode("ascii", "replace")
    element, colours, others = "", set[str](), []
    for line in header.splitlines():
        words = line.split()
        if words[:1] == ["element"] and len(words) == 3:
            element = words[1]
            if element not in ("vertex", "face", "tristrips") and words[2] != "0":
                others.append(element)
        elif words[:1] == ["property"] and words[-1] in ("red", "diffuse_red", "r"):
            colours.add(element)
        elif words[:2] == ["comment", "TextureFile"]:
            yield "the texture that it names"
    yield from (f"{name} colours" for name in ("vertex", "face") if name in colours)
    if others:
        yield f"the elements {_some(others)}"


def _of_stl(path: Path) -> Iterator[str]:
    data = _head(path, 84 + 50 * _STL_FACETS)
    count = int.from_bytes(data[80:84], "little")
    if path.stat().st_size == 84 + 50 * count:
        if b"COLOR=" in data[:80] or any(data[84 + 48 :: 50]) or any(data[84 + 49 :: 50]):
            yield "colours of its facets"
        return
    solids = len(re.findall(rb"(?mi)^[ \t]*endsolid\b", _head(path, _SEEN)))
    if solids > 1:
        yield f"its {solids} solids (they become one)"


def _of_off(path: Path) -> Iterator[str]:
    lines = [line.split(b"#", 1)[0].split() for line in _head(path, _SEEN).splitlines()]
    lines = [words for words in lines if words]
    keyword = re.match(rb"(?:ST)?(C)?N?(?:4)?n?OFF", lines[0][0])
    if keyword is None:
        return
    if keyword[1]:
        yield "vertex colours"
    inline_sizes = lines[0][1:]
    sizes = inline_sizes if len(inline_sizes) >= 2 else lines[1]
    first = int(sizes[0]) + (1 if len(inline_sizes) >= 2 else 2)
    if first < len(lines) and len(lines[first]) > int(lines[first][0]) + 1 and int(sizes[1]):
        yield "face colours"


def _head(path: Path, count: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(count)


_READERS = {".obj": _of_obj, ".ply": _of_ply, ".stl": _of_stl, ".off": _of_off}
