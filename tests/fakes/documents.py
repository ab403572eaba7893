"""glTF documents made by code: a box with any of the features that artists' files have. All pass the validator."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import DracoPy
import meshopt
import numpy as np
from meshes import cube, glb_bytes
from PIL import Image

_COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
_FORMS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
BOX = np.array([(x, y, z) for z in (-1, 1) for x, y in ((-1, -0.7), (1, -0.7), (1, 0.7), (-1, 0.7))], "f4")
QUADS = [(0, 3, 2, 1), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
TRIANGLES = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])


def png(seed: int, size: int = 8, channels: int = 3) -> bytes:
    """A picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, channels), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Document:
    """A document that is filled by hand. ``json`` and ``binary`` may be changed in any way before ``glb``."""

    def __init__(self) -> None:
        self.binary = b""
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "an artist's tool", "extras": {"author": "somebody"}},
            "scene": 0,
            "scenes": [{"name": "stage", "nodes": [0]}],
            "nodes": [{"name": "box node", "mesh": 0}],
            "meshes": [{"name": "box mesh", "primitives": []}],
            "materials": [],
            "accessors": [],
            "bufferViews": [],
        }

    def add(self, key: str, item: dict[str, Any]) -> int:
        items = self.json.setdefault(key, [])
        items.append(item)
        return len(items) - 1

    def view(self, data: bytes, **more: Any) -> int:
        self.binary += b"\0" * (-len(self.binary) % 4)
        number = self.add("bufferViews", {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), **more})
        self.binary += data
        return number

    def accessor(self, values: np.ndarray, *, target: int | None = 34962, **more: Any) -> int:
        """A new accessor over ``values`` (n, width), each row padded to a multiple of four bytes."""
        values = np.ascontiguousarray(values.reshape(len(values), -1))
        size = values.itemsize * values.shape[1]
        rows, properties = values.view("u1").reshape(len(values), size), {} if target is None else {"target": target}
        if size % 4 and target == 34962:
            rows = np.pad(rows, ((0, 0), (0, -size % 4)))
            properties["byteStride"] = rows.shape[1]
        view = self.view(rows.tobytes(), **properties)
        return self.add("accessors", {"bufferView": view, **describe(values), **more})

    def texture(self, seed: int, channels: int = 3) -> int:
        view = self.view(png(seed, channels=channels))
        image = self.add("images", {"name": f"picture {seed}", "bufferView": view, "mimeType": "image/png"})
        return self.add("textures", {"source": image, "sampler": self.add("samplers", {"wrapS": 10497})})

    def use(self, extension: str, *, required: bool = False) -> None:
        for key in ("extensionsUsed", "extensionsRequired") if required else ("extensionsUsed",):
            names = self.json.setdefault(key, [])
            if extension not in names:
                names.append(extension)

    @property
    def primitive(self) -> dict[str, Any]:
        return self.json["meshes"][0]["primitives"][0]

    @property
    def points(self) -> int:
        return self.json["accessors"][self.primitive["attributes"]["POSITION"]]["count"]

    def glb(self) -> bytes:
        buffers = [{"byteLength": len(self.binary)}, *self.json.get("buffers", [])[1:]]
        document = {**self.json, "buffers": buffers}
        return glb_bytes(json.dumps({k: v for k, v in document.items() if v != []}).encode(), self.binary)


def describe(values: np.ndarray) -> dict[str, Any]:
    return {
        "componentType": _COMPONENTS[values.dtype.str[1:]], "count": len(values), "type": _FORMS[values.shape[1]],
        "min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist(),
    }  # fmt: skip


def box(base: str) -> Document:
    """A box. ``kept``: 24 vertices whose coordinates can be painted on; ``welded``: 8 vertices whose coordinates
    overlap; ``bare``: 8 vertices without any."""
    made = Document()
    if base == "kept":
        mesh = cube()
        assert mesh.uv is not None and mesh.uv_faces is not None
        corner = np.concatenate([mesh.vertices[mesh.faces], mesh.uv[mesh.uv_faces]], axis=2).reshape(-1, 5)
        rows, index = np.unique(corner.astype("f4"), axis=0, return_inverse=True)
        points, uv, index = rows[:, :3] * (1, 0.7, 1), rows[:, 3:], index.reshape(-1)
    else:
        points, uv, index = BOX, (BOX[:, :2] * (0.5, -0.5) + 0.5), TRIANGLES.reshape(-1)
    points = points.astype("f4")
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    attributes = {"POSITION": made.accessor(points), "NORMAL": made.accessor(normals.astype("f4"))}
    colour = {"baseColorFactor": [0.5, 0.6, 0.7, 1.0], "roughnessFactor": 0.4}
    if base != "bare":
        attributes["TEXCOORD_0"] = made.accessor(uv.astype("f4"))
        colour["baseColorTexture"] = {"index": made.texture(1)}
    made.add("materials", {"name": "hull", "pbrMetallicRoughness": colour, "extras": {"price": 3}})
    index = made.accessor(index.astype("u2"), target=34963)
    made.json["meshes"][0]["primitives"].append({"attributes": attributes, "indices": index, "material": 0})
    return made


def skinned(made: Document) -> None:
    count = made.points
    joints = np.zeros((count, 4), "u1")
    joints[:, 1] = 1
    weights = np.zeros((count, 4), "f4")
    weights[:, 0], weights[:, 1] = 0.75, 0.25
    made.primitive["attributes"] |= {"JOINTS_0": made.accessor(joints), "WEIGHTS_0": made.accessor(weights)}
    inverse = np.tile(np.eye(4, dtype="f4").reshape(1, 16), (2, 1))
    first = made.add("nodes", {"name": "hip", "children": [len(made.json["nodes"]) + 1], "translation": [0, 0.1, 0]})
    second = made.add("nodes", {"name": "knee", "rotation": [0, 0, 0.6, 0.8]})
    matrices = made.accessor(inverse, target=None)
    made.json["nodes"][0]["skin"] = made.add("skins", {"joints": [first, second], "inverseBindMatrices": matrices})
    made.json["scenes"][0]["nodes"].append(first)


def animated(made: Document) -> None:
    times = made.accessor(np.array([[0], [1], [2]], "f4"), target=None)
    turns = made.accessor(np.array([[0, 0, 0, 1], [0, 0.6, 0, 0.8], [0, 0, 0, 1]], "f4"), target=None)
    made.add(
        "animations",
        {
            "name": "turn",
            "samplers": [{"input": times, "output": turns}],
            "channels": [{"sampler": 0, "target": {"node": 0, "path": "rotation"}}],
        },
    )


def morphed(made: Document) -> None:
    moves = np.random.default_rng(5).normal(0, 0.1, (made.points, 3)).astype("f4")
    target = {"POSITION": made.accessor(moves), "NORMAL": made.accessor(moves * 0)}
    made.primitive["targets"] = [target]
    made.json["meshes"][0] |= {"weights": [0.5], "extras": {"targetNames": ["grin"]}}


def sparse_morphed(made: Document) -> None:
    index, values = np.array([[1], [4]], "u2"), np.array([[0, 0.2, 0], [0.1, 0, 0]], "f4")
    accessor = {**describe(np.vstack([values, 0 * values[:1]])), "count": made.points}
    accessor["sparse"] = {
        "count": 2,
        "indices": {"bufferView": made.view(index.tobytes()), "componentType": 5123},
        "values": {"bufferView": made.view(values.tobytes())},
    }
    made.primitive["targets"] = [{"POSITION": made.add("accessors", accessor)}]
    made.json["meshes"][0]["weights"] = [0.0]


def camera(made: Document) -> None:
    number = made.add("cameras", {"type": "perspective", "perspective": {"yfov": 0.8, "znear": 0.1}})
    made.json["scenes"][0]["nodes"].append(made.add("nodes", {"name": "eye", "camera": number}))


def light(made: Document) -> None:
    made.use("KHR_lights_punctual")
    made.json["extensions"] = {"KHR_lights_punctual": {"lights": [{"type": "point", "name": "lamp"}]}}
    node = {"name": "lamp", "extensions": {"KHR_lights_punctual": {"light": 0}}}
    made.json["scenes"][0]["nodes"].append(made.add("nodes", node))


def with_extras(made: Document) -> None:
    made.json["extras"] = {"empty": {}, "list": [], "nothing": None, "text": "", "ü": 1e-5}
    made.json["nodes"][0]["extras"] = {"": 0}


def unknown_extension(made: Document) -> None:
    made.use("ACME_wear")
    made.json["extensions"] = {**made.json.get("extensions", {}), "ACME_wear": {"image": 0, "bufferView": 0}}


def two_scenes(made: Document) -> None:
    primitive = {**made.primitive, "attributes": dict(made.primitive["attributes"])}
    other = made.add("meshes", {"name": "other mesh", "primitives": [primitive]})
    made.add("scenes", {"name": "elsewhere", "nodes": [made.add("nodes", {"name": "other", "mesh": other})]})


def instanced(made: Document) -> None:
    for x in (3, 6):
        made.json["scenes"][0]["nodes"].append(made.add("nodes", {"mesh": 0, "translation": [x, 0, 0]}))


def gpu_instanced(made: Document) -> None:
    made.use("EXT_mesh_gpu_instancing", required=True)
    places = made.accessor(np.array([[0, 0, 0], [0, 3, 0], [0, 6, 0]], "f4"), target=None)
    made.json["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places}}}


def mirrored(made: Document) -> None:
    made.json["nodes"][0]["scale"] = [-1.5, 1, 1]


def parented(made: Document) -> None:
    root = made.add(
        "nodes", {"name": "root", "children": [0], "matrix": [0, 0, -2, 0, 0, 2, 0, 0, 2, 0, 0, 0, 1, 2, 3, 1]}
    )
    made.json["scenes"][0]["nodes"] = [root]


def texture_transform(made: Document) -> None:
    texture = made.json["materials"][0]["pbrMetallicRoughness"].get("baseColorTexture")
    if texture is not None:
        made.use("KHR_texture_transform")
        texture["extensions"] = {"KHR_texture_transform": {"scale": [4, 4], "offset": [0.1, 0]}}


def normal_map(made: Document) -> None:
    if "TEXCOORD_0" in made.primitive["attributes"]:
        made.json["materials"][0]["normalTexture"] = {"index": made.texture(7), "scale": 0.5}
        made.json["materials"][0]["occlusionTexture"] = {"index": 0}
        tangents = np.tile(np.array([1, 0, 0, 1], "f4"), (made.points, 1))
        made.primitive["attributes"]["TANGENT"] = made.accessor(tangents)


def second_uv(made: Document) -> None:
    if "TEXCOORD_0" in made.primitive["attributes"]:
        uv = np.random.default_rng(9).uniform(size=(made.points, 2)).astype("f4")
        made.primitive["attributes"]["TEXCOORD_1"] = made.accessor(uv)
        made.json["materials"][0]["emissiveTexture"] = {"index": made.texture(8), "texCoord": 1}


def quantised(made: Document) -> None:
    made.use("KHR_mesh_quantization", required=True)
    attributes, old = made.primitive["attributes"], made.json["accessors"][made.primitive["attributes"]["POSITION"]]
    points = np.frombuffer(
        made.binary, "<f4", 3 * old["count"], made.json["bufferViews"][old["bufferView"]]["byteOffset"]
    )
    values = np.rint(points.reshape(-1, 3) * 32767 / 2).astype("i2")
    attributes["POSITION"] = made.accessor(values, normalized=True)
    accessor = made.json["accessors"][attributes["POSITION"]]
    accessor["min"], accessor["max"] = values.min(axis=0).tolist(), values.max(axis=0).tolist()
    made.json["nodes"][0]["scale"] = [2, 2, 2]
    _drop_orphans(made)


def draco(made: Document) -> None:
    made.use("KHR_draco_mesh_compression", required=True)
    attributes, faces = made.primitive["attributes"], _values(made, made.primitive["indices"]).reshape(-1, 3)
    uv = _values(made, attributes["TEXCOORD_0"]).astype(float) if "TEXCOORD_0" in attributes else None
    data = DracoPy.encode(
        _values(made, attributes["POSITION"]), faces.astype("u4"), tex_coord=uv, quantization_bits=16,
        preserve_order=True,
    )  # fmt: skip
    decoded = DracoPy.decode(data)
    ids = {a["attribute_type"]: a["unique_id"] for a in decoded.attributes}
    names = {"POSITION": ids[0], **({"TEXCOORD_0": ids[3]} if uv is not None else {})}
    for name in list(attributes):
        if name not in names:
            del attributes[name]
    for name, array in (("POSITION", decoded.points), ("TEXCOORD_0", decoded.tex_coord)):
        if name in names:
            attributes[name] = made.add("accessors", describe(np.asarray(array, "f4")))
    made.primitive["indices"] = made.add("accessors", describe(decoded.faces.reshape(-1, 1).astype("u4")))
    packed = {"bufferView": made.view(data), "attributes": names}
    made.primitive["extensions"] = {"KHR_draco_mesh_compression": packed}
    _drop_orphans(made)


def meshopt_packed(made: Document) -> None:
    name = "EXT_meshopt_compression"
    made.use(name, required=True)
    made.json["buffers"] = [{}, {"byteLength": 0, "extensions": {name: {"fallback": True}}}]
    for attribute in ("POSITION", "NORMAL"):
        values = _values(made, made.primitive["attributes"][attribute])
        data = meshopt.encode_gltf_buffer(values, "ATTRIBUTES")
        view = made.view(data)
        packed = {**made.json["bufferViews"][view], "byteStride": 12, "count": len(values), "mode": "ATTRIBUTES"}
        fallback = made.json["buffers"][1]
        made.json["bufferViews"][view] = {
            "buffer": 1, "byteOffset": fallback["byteLength"], "byteLength": values.nbytes, "byteStride": 12,
            "target": 34962, "extensions": {name: packed},
        }  # fmt: skip
        fallback["byteLength"] += values.nbytes
        accessor = {"bufferView": view, **describe(values)}
        made.primitive["attributes"][attribute] = made.add("accessors", accessor)
    _drop_orphans(made)


def variants(made: Document) -> None:
    made.use("KHR_materials_variants")
    root = {"variants": [{"name": "day"}, {"name": "night"}]}
    made.json["extensions"] = {**made.json.get("extensions", {}), "KHR_materials_variants": root}
    night = made.add("materials", {"name": "night", "emissiveFactor": [0.1, 0.1, 0.2]})
    mappings = [{"material": 0, "variants": [0]}, {"material": night, "variants": [1]}]
    made.primitive["extensions"] = {"KHR_materials_variants": {"mappings": mappings}}


def alpha_mask(made: Document) -> None:
    material = made.json["materials"][0]
    material |= {"alphaMode": "MASK", "alphaCutoff": 0.3, "doubleSided": True}
    if "baseColorTexture" in material["pbrMetallicRoughness"]:
        image = made.json["images"][0]
        image["bufferView"] = made.view(png(1, channels=4))
        _drop_orphans(made)


def two_materials(made: Document) -> None:
    primitive = {**made.primitive, "attributes": dict(made.primitive["attributes"])}
    primitive["material"] = made.add("materials", {"name": "lid", "pbrMetallicRoughness": {"metallicFactor": 0.2}})
    mesh = made.add("meshes", {"name": "lid mesh", "primitives": [primitive]})
    node = made.add("nodes", {"name": "lid node", "mesh": mesh, "translation": [0, 1.5, 0], "scale": [1, 0.2, 1]})
    made.json["scenes"][0]["nodes"].append(node)


def shared_material(made: Document) -> None:
    two_materials(made)
    made.json["meshes"][-1]["primitives"][0]["material"] = 0
    made.json["materials"].pop()


def no_material(made: Document) -> None:
    del made.primitive["material"]
    for key in ("materials", "images", "textures", "samplers"):
        made.json.pop(key, None)
    _drop_orphans(made)


def strip(made: Document) -> None:
    index = _values(made, made.primitive["indices"]).reshape(-1, 3)
    corners = [index[0, 0], index[0, 1], index[0, 2]]
    for a, b, c in index[1:]:
        # Degenerate faces join the triangles; an even number keeps the winding.
        corners += [corners[-1], a] if len(corners) % 2 else [corners[-1], a, a]
        corners += [a, b, c] if len(corners) % 2 == 0 else [b, c]
    made.primitive["indices"] = made.accessor(np.array(corners, "u2"), target=34963)
    made.primitive["mode"] = 5
    _drop_orphans(made)


def unindexed(made: Document) -> None:
    index = _values(made, made.primitive.pop("indices")).reshape(-1)
    for name, number in list(made.primitive["attributes"].items()):
        made.primitive["attributes"][name] = made.accessor(_values(made, number)[index])
    _drop_orphans(made)


def shared_table(made: Document) -> None:
    index = _values(made, made.primitive["indices"]).reshape(-1)
    second = {**made.primitive, "attributes": dict(made.primitive["attributes"])}
    half = len(index) // 2
    made.primitive["indices"] = made.accessor(index[:half].astype("u2"), target=34963)
    second["indices"] = made.accessor(index[half:].astype("u2"), target=34963)
    made.json["meshes"][0]["primitives"].append(second)
    _drop_orphans(made)


def coloured(made: Document) -> None:
    colours = np.random.default_rng(3).integers(0, 256, (made.points, 4), np.uint8)
    marks = np.arange(made.points, dtype="f4")[:, None]
    attributes = {"COLOR_0": made.accessor(colours, normalized=True), "_AGE": made.accessor(marks)}
    made.primitive["attributes"] |= attributes


def glossy(made: Document) -> None:
    name = "KHR_materials_clearcoat"
    made.use(name)
    made.json["materials"][0]["extensions"] = {name: {"clearcoatFactor": 0.7}}
    if "TEXCOORD_0" in made.primitive["attributes"]:
        made.json["materials"][0]["extensions"][name]["clearcoatTexture"] = {"index": 0}


FEATURES: dict[str, Callable[[Document], None]] = {
    each.__name__: each
    for each in (
        skinned, animated, morphed, sparse_morphed, camera, light, with_extras, unknown_extension, two_scenes,
        instanced, gpu_instanced, mirrored, parented, texture_transform, normal_map, second_uv, quantised, draco,
        meshopt_packed,
        variants, alpha_mask, two_materials, shared_material, no_material, strip, unindexed, shared_table, coloured,
        glossy,
    )
}  # fmt: skip


def _values(made: Document, number: int) -> np.ndarray:
    """The values of a plain accessor."""
    accessor = made.json["accessors"][number]
    kind = next(name for name, code in _COMPONENTS.items() if code == accessor["componentType"])
    width = next(width for width, form in _FORMS.items() if form == accessor["type"])
    view = made.json["bufferViews"][accessor["bufferView"]]
    dtype, stride = np.dtype(f"<{kind}"), view.get("byteStride")
    return np.ndarray(
        (accessor["count"], width), dtype, made.binary, view["byteOffset"],
        (stride or dtype.itemsize * width, dtype.itemsize),
    ).copy()  # fmt: skip


def _drop_orphans(made: Document) -> None:
    """Removes accessors and views that nothing refers to, for the validator."""
    while True:
        text = json.dumps({k: v for k, v in made.json.items() if k not in ("accessors", "bufferViews")})
        used = {"accessors": _numbers(json.loads(text), made), "bufferViews": _views(made)}
        orphans = [(k, n) for k in used for n in range(len(made.json.get(k, []))) if n not in used[k]]
        if not orphans:
            return
        key, number = orphans[-1]
        del made.json[key][number]
        for holder, name in [*_accessor_slots(made), *_view_slots(made)]:
            if (name == "bufferView") == (key == "bufferViews") and holder[name] > number:
                holder[name] -= 1


def _accessor_slots(made: Document) -> list[tuple[dict[str, Any], str]]:
    slots: list[tuple[dict[str, Any], str]] = []
    for mesh in made.json["meshes"]:
        for primitive in mesh["primitives"]:
            for holder in (primitive["attributes"], *primitive.get("targets", ())):
                slots += [(holder, name) for name in holder]
            slots += [(primitive, "indices")] if "indices" in primitive else []
    slots += [(skin, "inverseBindMatrices") for skin in made.json.get("skins", ())]
    for animation in made.json.get("animations", ()):
        slots += [(sampler, name) for sampler in animation["samplers"] for name in ("input", "output")]
    for node in made.json["nodes"]:
        holder = node.get("extensions", {}).get("EXT_mesh_gpu_instancing", {}).get("attributes", {})
        slots += [(holder, name) for name in holder]
    return slots


def _view_slots(made: Document) -> list[tuple[dict[str, Any], str]]:
    holders = [*made.json.get("accessors", ()), *made.json.get("images", ())]
    for accessor in made.json.get("accessors", ()):
        holders += [accessor["sparse"]["indices"], accessor["sparse"]["values"]] if "sparse" in accessor else []
    for mesh in made.json["meshes"]:
        for primitive in mesh["primitives"]:
            holders += [primitive.get("extensions", {}).get("KHR_draco_mesh_compression", {})]
    return [(holder, "bufferView") for holder in holders if "bufferView" in holder]


def _numbers(_: Any, made: Document) -> set[int]:
    return {holder[name] for holder, name in _accessor_slots(made)}


def _views(made: Document) -> set[int]:
    return {holder[name] for holder, name in _view_slots(made)}
