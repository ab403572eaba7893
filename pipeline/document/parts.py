"""The parts of a document: a material with the primitives that show it, and which of them a row targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.core.errors import SettingError
from pipeline.core.terminal import excerpt
from pipeline.document.surface import DocumentSurface, Key
from pipeline.mesh.readers.gltf_file import Object

VARIANTS = "KHR_materials_variants"
_MOST_NAMES = 12


@dataclass(frozen=True)
class Part:
    """A material and its primitives that are painted with one texture.

    material    its number; None: the primitives have none, which means glTF's default material.
    name        for people.
    primitives  (mesh, primitive) in the order in which the scene shows them.
    uv_set      number of the set of texture coordinates.
    others      whether primitives that are not painted show the material, too, or variants name it: it is split.
    """

    material: int | None
    name: str
    primitives: tuple[Key, ...]
    uv_set: int
    others: bool


def find_parts(surface: DocumentSurface, target: Sequence[str] = (), uv_set: int | None = None) -> list[Part]:
    """The parts to paint: of all primitives that the scene shows, or of those that a pattern of ``target`` names.

    A pattern (as of file names) names materials, meshes, and nodes with all below them. ``uv_set``: number of the set
    of texture coordinates; None: the one of the base colour. Raises SettingError for a pattern that names nothing.
    """
    targeted, users = _targeted(surface, target), _users(surface.reader.json.document)
    groups: dict[int | None, list[Key]] = {}
    for key in surface.first:
        if key in targeted:
            groups.setdefault(_material_of(surface, key), []).append(key)
    return [
        Part(
            material,
            material_name(surface.reader.json.document, material),
            tuple(keys),
            int(surface.primitive(keys[0]).uv_set.removeprefix("TEXCOORD_")) if uv_set is None else uv_set,
            material is not None and not users[material] <= set(keys),
        )
        for material, keys in groups.items()
    ]


def material_name(document: Object, material: int | None) -> str:
    """What to call a material."""
    if material is None:
        return "the default material"
    name = document["materials"][material].get("name")
    return name if isinstance(name, str) and name else f"material {material}"


def _material_of(surface: DocumentSurface, key: Key) -> int | None:
    return surface.source(surface.first[key]).material


def _targeted(surface: DocumentSurface, target: Sequence[str]) -> set[Key]:
    """The primitives that ``target`` names."""
    if not target:
        return set(surface.first)
    names: dict[Key, set[str]] = {}
    document = surface.reader.json.document
    for number, key in enumerate(surface.keys()):
        if key not in surface.first:
            continue
        of_key = names.setdefault(key, set())
        source = surface.source(number)
        of_key.add(material_name(document, source.material))
        of_key.add(_name(document["meshes"][key[0]], f"mesh {key[0]}"))
        for node in surface.reader.nodes.ancestors(source.node):
            of_key.add(_name(document["nodes"][node], f"node {node}"))
    result: set[Key] = set()
    for pattern in target:
        named = {key for key, of_key in names.items() if any(fnmatchcase(name, pattern) for name in of_key)}
        if not named:
            known = sorted({name for of_key in names.values() for name in of_key})
            more = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
            shown = ", ".join(repr(excerpt(name)) for name in known[:_MOST_NAMES])
            raise SettingError(
                f"target {excerpt(pattern)!r} names no material, mesh or node of {surface.reader.json.name}; there "
                f"are: {shown}{more}",
                stage="load",
            )
        result |= named
    return result


def _name(item: Object, otherwise: str) -> str:
    name = item.get("name")
    return name if isinstance(name, str) and name else otherwise


def _users(document: Object) -> dict[object, set[Key]]:
    """The primitives that show each material, by default or in a variant."""
    users: dict[object, set[Key]] = {}
    for mesh_number, mesh in enumerate(document["meshes"]):
        for number, primitive in enumerate(mesh.get("primitives") or ()):
            mappings = ((primitive.get("extensions") or {}).get(VARIANTS) or {}).get("mappings") or ()
            for material in (primitive.get("material"), *(each.get("material") for each in mappings)):
                users.setdefault(material, set()).add((mesh_number, number))
    return users
