"""Every place of a glTF document that names a buffer view, accessor, image, texture or sampler by its number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.mesh.readers.gltf_file import MESHOPT, Object

DRACO = "KHR_draco_mesh_compression"
KINDS = ("bufferViews", "accessors", "images", "textures", "samplers")
# Extensions that name none of these, or only where the functions below look.
_KNOWN = (
    "KHR_materials_", "KHR_texture_", "KHR_lights_punctual", "KHR_mesh_quantization", "EXT_mesh_gpu_instancing",
    "EXT_texture_", "MSFT_texture_dds", "KHR_xmp_json_ld", "KHR_node_visibility", "KHR_animation_pointer", "MSFT_lod",
    "EXT_materials_", "MSFT_packing_", "VRMC_node_constraint", "KHR_physics_rigid_bodies", "KHR_node_",
    DRACO, *MESHOPT,
)  # fmt: skip


class Reference(NamedTuple):
    """``holder[key]`` is the number of an entry of the list ``kind``."""

    kind: str
    holder: Object
    key: str

    @property
    def number(self) -> int:
        """The number; -1 if it is none."""
        value = self.holder.get(self.key)
        return value if isinstance(value, int) and not isinstance(value, bool) else -1


def unknown_extensions(document: Object) -> list[str]:
    """The extensions that the document uses and that may name entries in places that we do not know."""
    used = document.get("extensionsUsed") or []
    return sorted(str(name) for name in used if not str(name).startswith(_KNOWN))


def references(document: Object) -> Iterator[Reference]:
    """All references of a document whose extensions are known."""
    for view in _objects(document, "images"):
        yield Reference("bufferViews", view, "bufferView")
    for accessor in _objects(document, "accessors"):
        yield Reference("bufferViews", accessor, "bufferView")
        sparse = _object(accessor, "sparse")
        for half in ("indices", "values"):
            yield Reference("bufferViews", _object(sparse, half), "bufferView")
    for mesh in _objects(document, "meshes"):
        for primitive in _objects(mesh, "primitives"):
            yield from _of_primitive(primitive)
    for skin in _objects(document, "skins"):
        yield Reference("accessors", skin, "inverseBindMatrices")
    for animation in _objects(document, "animations"):
        for sampler in _objects(animation, "samplers"):
            yield Reference("accessors", sampler, "input")
            yield Reference("accessors", sampler, "output")
    for node in _objects(document, "nodes"):
        instancing = _object(_object(node, "extensions"), "EXT_mesh_gpu_instancing")
        yield from _all("accessors", _object(instancing, "attributes"))
    for texture in _objects(document, "textures"):
        yield Reference("images", texture, "source")
        yield Reference("samplers", texture, "sampler")
        for extension in _object(texture, "extensions").values():
            if isinstance(extension, dict):
                yield Reference("images", extension, "source")
    for material in _objects(document, "materials"):
        yield from texture_references(material)


def texture_references(holder: object) -> Iterator[Reference]:
    """The textures that a material names, also in its extensions: each value of a key that ends in "texture"."""
    if isinstance(holder, list):
        for value in holder:
            yield from texture_references(value)
    if not isinstance(holder, dict):
        return
    for key, value in holder.items():
        if key.lower().endswith("texture") and isinstance(value, dict) and "index" in value:
            yield Reference("textures", value, "index")
        elif key != "extras":
            yield from texture_references(value)


def _of_primitive(primitive: Object) -> Iterator[Reference]:
    yield from _all("accessors", _object(primitive, "attributes"))
    yield Reference("accessors", primitive, "indices")
    for target in _objects(primitive, "targets"):
        yield from _all("accessors", target)
    yield Reference("bufferViews", _object(_object(primitive, "extensions"), DRACO), "bufferView")


def _all(kind: str, holder: Object) -> Iterator[Reference]:
    return (Reference(kind, holder, key) for key in holder)


def _object(holder: Object, key: str) -> Object:
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def _objects(holder: Object, key: str) -> list[Object]:
    value = holder.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
