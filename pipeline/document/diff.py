"""What differs between two glTF documents: in their materials, or in anything else."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.core.terminal import excerpt
from pipeline.document.kept import PROVENANCE_KEY, GltfDocument, image_bytes, reader_buffers
from pipeline.document.parts import VARIANTS
from pipeline.document.references import DRACO, texture_references
from pipeline.mesh.readers.gltf import GltfReader, Primitive
from pipeline.mesh.readers.gltf_buffers import Buffers
from pipeline.mesh.readers.gltf_file import Object
from pipeline.mesh.readers.gltf_json import GltfJson

DifferenceKind = Literal["material", "content"]
# Lists whose entries are compared where others refer to them, and those that name what a material may need.
_STORED = ("accessors", "bufferViews", "buffers", "images", "textures", "samplers", "materials", "meshes")
_LOOK = ("extensionsUsed", "extensionsRequired")
# Of a primitive: what is compared corner by corner, or belongs to the look.
_COMPARED = ("attributes", "indices", "targets", "mode", "material", "extensions")
_SURFACES = (4, 5, 6)


@dataclass(frozen=True)
class Difference:
    """One difference. ``kind``: "material" for looks (materials, textures, variants, added texture coordinates and the
    splits that they need), "content" for all else."""

    kind: DifferenceKind
    where: str
    what: str


def differences(first: GltfDocument, second: GltfDocument) -> list[Difference]:
    """What differs from ``first`` to ``second``, content first. Raises MeshError for damaged documents."""
    a, b = _Side(first), _Side(second)
    found = [*_of_scene(a, b), *_of_meshes(a, b), *_of_materials(a, b), *_of_images(a, b)]
    return sorted(found, key=lambda each: each.kind != "content")


class _Side:
    """One of the documents, with digests of what it stores."""

    def __init__(self, document: GltfDocument):
        self.document, self.json = document, document.json
        self.checked = GltfJson(document.json, document.name)
        self.buffers: Buffers = reader_buffers(document, 100_000_000)
        self.reader = GltfReader(self.checked, self.buffers, 100_000_000)
        self._digests: dict[int, str] = {}

    def list(self, key: str) -> list[Object]:
        """The objects of a list of the document."""
        return [self.checked.item(key, n, key) for n in range(len(self.checked.array(self.json, key, "its JSON")))]

    def digest(self, number: object) -> str:
        """The values and the type of an accessor, wherever and however it is stored."""
        accessor, _, _, _ = self.buffers.layout(number)
        assert isinstance(number, int)
        if number not in self._digests:
            stored = ("bufferView", "byteOffset", "sparse")
            head = canonical_json({key: value for key, value in accessor.items() if key not in stored})
            values = self.buffers.stored(number)
            self._digests[number] = sha256_bytes(head + np.ascontiguousarray(values).tobytes())
        return self._digests[number]

    def image(self, number: object) -> object:
        """The digest of an image's file, or its reference."""
        if not isinstance(number, int):
            return None
        data = image_bytes(self.document, number)
        return self.checked.item("images", number, "image").get("uri") if data is None else sha256_bytes(data)

    def material(self, number: object) -> Object:
        """A material with its textures, images and samplers in place of their numbers."""
        if number is None:
            return {}
        material: Object = copy.deepcopy(self.checked.item("materials", number, "material"))
        for reference in texture_references(material):
            texture: Object = dict(self.checked.item("textures", reference.number, "texture"))
            sampler = texture.pop("sampler", None)
            texture["sampler"] = None if sampler is None else self.checked.item("samplers", sampler, "sampler")
            texture["source"] = self.image(texture.get("source"))
            reference.holder[reference.key] = {key: value for key, value in texture.items() if key != "name"}
        return material


def _named(item: object, number: int) -> str:
    name = item.get("name") if isinstance(item, dict) else None
    return f"{number} {excerpt(name)!r}" if isinstance(name, str) and name else str(number)


def _of_scene(a: _Side, b: _Side) -> Iterator[Difference]:
    """Everything but meshes and materials."""
    first, second = _scene(a), _scene(b)
    for key in dict.fromkeys([*first, *second]):
        kind: DifferenceKind = "material" if key in _LOOK else "content"
        yield from _changes(kind, key, first.get(key), second.get(key))
    variants = [(each.json.get("extensions") or {}).get(VARIANTS) for each in (a, b)]
    if variants[0] != variants[1]:
        yield Difference("material", "variants", "the variants of materials differ")


def _scene(side: _Side) -> Object:
    result: Object = copy.deepcopy({key: value for key, value in side.json.items() if key not in _STORED})
    extras = result.get("asset", {}).get("extras")
    if isinstance(extras, dict):
        extras.pop(PROVENANCE_KEY, None)
        if not extras:
            del result["asset"]["extras"]
    extensions = result.get("extensions")
    if isinstance(extensions, dict):
        extensions.pop(VARIANTS, None)
        if not extensions:
            del result["extensions"]
    for skin in result.get("skins") or ():
        if skin.get("inverseBindMatrices") is not None:
            skin["inverseBindMatrices"] = side.digest(skin["inverseBindMatrices"])
    for animation in result.get("animations") or ():
        for sampler in animation.get("samplers") or ():
            sampler |= {key: side.digest(sampler[key]) for key in ("input", "output") if key in sampler}
    for node in result.get("nodes") or ():
        attributes = ((node.get("extensions") or {}).get("EXT_mesh_gpu_instancing") or {}).get("attributes")
        if isinstance(attributes, dict):
            attributes |= {key: side.digest(number) for key, number in attributes.items()}
    return result


def _changes(kind: DifferenceKind, key: str, first: object, second: object) -> Iterator[Difference]:
    """The differences of two values of the document's key: entry by entry where both are lists of objects."""
    if first == second:
        return
    if not (isinstance(first, list) and isinstance(second, list)) or key in _LOOK:
        yield Difference(kind, key, _what(first, second))
        return
    if len(first) != len(second):
        yield Difference(kind, key, f"{len(first)} became {len(second)}")
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            yield Difference(kind, f"{key} {_named(one, number)}", _what(one, other))


def _what(first: object, second: object) -> str:
    """The keys that differ, or which of the two is missing."""
    if first is None or second is None:
        return "added" if first is None else "missing"
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
        return f"{', '.join(excerpt(key) for key in keys[:8])} differ{'s' if len(keys) == 1 else ''}"
    return f"{excerpt(str(first))} became {excerpt(str(second))}"


def _of_meshes(a: _Side, b: _Side) -> Iterator[Difference]:
    first, second = a.list("meshes"), b.list("meshes")
    if len(first) != len(second):
        yield Difference("content", "meshes", f"{len(first)} became {len(second)}")
    for number, (mesh, other) in enumerate(zip(first, second, strict=False)):
        where = f"mesh {_named(mesh, number)}"
        rest = [{key: value for key, value in each.items() if key != "primitives"} for each in (mesh, other)]
        if rest[0] != rest[1]:
            yield Difference("content", where, _what(*rest))
        lists = [side.checked.array(each, "primitives", where) for side, each in ((a, mesh), (b, other))]
        if len(lists[0]) != len(lists[1]):
            yield Difference("content", where, f"{len(lists[0])} primitives became {len(lists[1])}")
        for place, (primitive, twin) in enumerate(zip(*lists, strict=False)):
            yield from _of_primitive(a, b, primitive, twin, f"{where}, primitive {place}")


def _of_primitive(a: _Side, b: _Side, first: Object, second: Object, where: str) -> Iterator[Difference]:
    rest = [{key: value for key, value in each.items() if key not in _COMPARED} for each in (first, second)]
    extensions = [
        {key: value for key, value in (each.get("extensions") or {}).items() if key not in (DRACO, VARIANTS)}
        for each in (first, second)
    ]
    if rest[0] != rest[1] or extensions[0] != extensions[1]:
        yield Difference("content", where, _what({**rest[0], **extensions[0]}, {**rest[1], **extensions[1]}))
    mapped = [(each.get("extensions") or {}).get(VARIANTS) for each in (first, second)]
    if mapped[0] != mapped[1]:
        yield Difference("material", where, "its variants differ")
    if first.get("material") != second.get("material"):
        yield Difference("material", where, "it shows another material")
    if _table(a, first) == _table(b, second):
        return
    if first.get("mode", 4) not in _SURFACES or second.get("mode", 4) not in _SURFACES:
        yield Difference("content", where, "its points or lines differ")
        return
    old, new = _corners(a, first), _corners(b, second)
    for name in dict.fromkeys([*old, *new]):
        if name not in old or name not in new:
            look = (name.startswith("TEXCOORD_") and name not in old) or name == "TANGENT"
            yield Difference(
                "material" if look else "content", where, f"{name} {'added' if name in new else 'missing'}"
            )
        elif old[name].dtype != new[name].dtype or not np.array_equal(old[name], new[name]):
            yield Difference("content", where, f"{name} differs")
    counts = [side.buffers.layout(each["attributes"]["POSITION"])[1] for side, each in ((a, first), (b, second))]
    if counts[0] != counts[1]:
        yield Difference("material", where, f"{counts[0]} vertices became {counts[1]}, with the same faces")


def _table(side: _Side, primitive: Object) -> object:
    """Digests of all that a primitive stores."""
    packed = (primitive.get("extensions") or {}).get(DRACO)
    if packed:
        data = sha256_bytes(bytes(side.buffers.view(packed.get("bufferView"))))
        return [data, sorted(packed.get("attributes") or {}), sorted(primitive.get("attributes") or {})]
    named = {**(primitive.get("attributes") or {}), "indices": primitive.get("indices")}
    for number, target in enumerate(primitive.get("targets") or ()):
        named |= {f"target {number} {name}": value for name, value in target.items()}
    digests = {name: side.digest(value) for name, value in named.items() if value is not None}
    return [digests, primitive.get("mode", 4)]


def _corners(side: _Side, primitive: Object) -> dict[str, NDArray[np.number]]:
    """(C, width) values of each attribute and morph target at the corners of the primitive's triangles."""
    read: Primitive | None = side.reader.read_primitive(primitive)
    if read is None:
        raise MeshError(f"{side.document.name}: a primitive has no positions")
    rows = (read.faces if read.attributes.rows is None else read.attributes.rows[read.faces]).reshape(-1)
    values = {name: side.reader.stored(read, name) for name in read.attributes.accessors}
    for number, target in enumerate(primitive.get("targets") or ()):
        values |= {f"target {number} {name}": side.buffers.stored(index) for name, index in target.items()}
    lacking = [name for name, array in values.items() if len(rows) and int(rows.max()) >= len(array)]
    if lacking:
        raise MeshError(f"{side.document.name}: {excerpt(lacking[0])} has fewer entries than there are vertices")
    return {name: array[rows] for name, array in values.items()}


def _of_materials(a: _Side, b: _Side) -> Iterator[Difference]:
    first, second = a.list("materials"), b.list("materials")
    for number in range(max(len(first), len(second))):
        if number >= len(first) or number >= len(second):
            more = number >= len(first)
            item = (second if more else first)[number]
            yield Difference("material", f"material {_named(item, number)}", "added" if more else "missing")
            continue
        one, other = a.material(number), b.material(number)
        pbr = "pbrMetallicRoughness"
        one, other = ({**each, **each.get(pbr, {})} for each in (one, other))
        if one != other:
            one.pop(pbr, None), other.pop(pbr, None)
            yield Difference("material", f"material {_named(first[number], number)}", _what(one, other))


def _of_images(a: _Side, b: _Side) -> Iterator[Difference]:
    files = [[side.image(number) for number in range(len(side.list("images")))] for side in (a, b)]
    for what, one, other in (("missing", files[0], files[1]), ("added", files[1], files[0])):
        count = _missing(one, other)
        if count:
            yield Difference("material", "images", f"{count} {what}")


def _missing(one: Sequence[object], other: Sequence[object]) -> int:
    return sum(each not in other for each in one)
