"""Holds two GLB files against each other, corner by corner and byte by byte. Shares no code with the writer."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import DracoPy
import meshopt
import numpy as np

_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_DRACO, _MESHOPT = "KHR_draco_mesh_compression", "EXT_meshopt_compression"
# Lists that other entries refer to, and what an added material or texture may add to.
_STORED = ("accessors", "bufferViews", "buffers", "images", "textures", "samplers", "materials", "meshes")


class Glb:
    def __init__(self, data: bytes) -> None:
        (length,) = struct.unpack("<I", data[12:16])
        self.json: dict[str, Any] = json.loads(data[20 : 20 + length])
        self.binary = data[28 + length :]

    def view(self, number: int) -> bytes:
        view = self.json["bufferViews"][number]
        packed = view.get("extensions", {}).get(_MESHOPT)
        source = packed or view
        data = self.binary[source.get("byteOffset", 0) :][: source["byteLength"]]
        if packed:
            array = np.frombuffer(data, np.uint8)
            done = meshopt.decode_gltf_buffer(array, packed["count"], packed["byteStride"], packed["mode"], "NONE")
            return np.ascontiguousarray(done).tobytes()
        return data

    def values(self, number: int) -> np.ndarray:
        """(count, width) as stored."""
        accessor = self.json["accessors"][number]
        dtype, width = np.dtype(_TYPES[accessor["componentType"]]), _WIDTHS[accessor["type"]]
        result = np.zeros((accessor["count"], width), dtype)
        if "bufferView" in accessor:
            stride = self.json["bufferViews"][accessor["bufferView"]].get("byteStride") or dtype.itemsize * width
            result[:] = np.ndarray(
                result.shape, dtype, self.view(accessor["bufferView"]), accessor.get("byteOffset", 0),
                (stride, dtype.itemsize),
            )  # fmt: skip
        if sparse := accessor.get("sparse"):
            kind = np.dtype(_TYPES[sparse["indices"]["componentType"]])
            rows = np.frombuffer(self.view(sparse["indices"]["bufferView"]), kind, sparse["count"])
            stored = np.frombuffer(self.view(sparse["values"]["bufferView"]), dtype, sparse["count"] * width)
            result[rows] = stored.reshape(-1, width)
        return result

    def accessor_digest(self, number: int) -> str:
        """The values and the meaning of an accessor, wherever they lie."""
        accessor = {k: v for k, v in self.json["accessors"][number].items() if k not in ("bufferView", "byteOffset")}
        accessor.pop("sparse", None)
        return hashlib.sha256(json.dumps(accessor, sort_keys=True).encode() + self.values(number).tobytes()).hexdigest()

    def corners(self, primitive: dict[str, Any]) -> dict[str, np.ndarray]:
        """(C, width) values of every attribute and morph target at the corners of the primitive's triangles."""
        values = {name: self.values(number) for name, number in primitive["attributes"].items()}
        packed = primitive.get("extensions", {}).get(_DRACO)
        if packed:
            decoded = DracoPy.decode(self.view(packed["bufferView"]))
            stored = {a["unique_id"]: np.asarray(a["data"]) for a in decoded.attributes}
            values |= {name: stored[each].astype("f4") for name, each in packed["attributes"].items()}
            index = decoded.faces.reshape(-1).astype(np.int64)
        elif "indices" in primitive:
            index = self.values(primitive["indices"])[:, 0].astype(np.int64)
        else:
            index = np.arange(len(values["POSITION"]))
        for number, target in enumerate(primitive.get("targets", ())):
            values |= {f"target {number} {name}": self.values(each) for name, each in target.items()}
        if primitive.get("mode", 4) == 5:
            faces = [index[i : i + 3] if i % 2 == 0 else index[[i, i + 2, i + 1]] for i in range(len(index) - 2)]
            index = np.concatenate(faces)
        return {name: array[index] for name, array in values.items()}

    def texture(self, info: dict[str, Any]) -> tuple[bytes, str]:
        """The image's file, and everything else of the texture and its sampler."""
        texture = self.json["textures"][info["index"]]
        image = self.json["images"][texture["source"]]
        sampler = self.json["samplers"][texture["sampler"]] if "sampler" in texture else None
        rest = {k: v for k, v in info.items() if k != "index"}
        return self.view(image["bufferView"]), json.dumps([sampler, rest, image.get("name")], sort_keys=True)

    def material(self, number: int | None) -> Any:
        """A material with its textures in place of their numbers."""
        return self._resolved(self.json["materials"][number]) if number is not None else None

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: self.texture(v) if k.lower().endswith("texture") and "index" in v else self._resolved(v)
                for k, v in value.items()
            }
        return value

    def scene(self) -> dict[str, Any]:
        """All but what materials and vertices are stored in, with digests in place of accessors."""
        rest: dict[str, Any] = json.loads(json.dumps({k: v for k, v in self.json.items() if k not in _STORED}))
        for skin in rest.get("skins", ()):
            skin["inverseBindMatrices"] = self.accessor_digest(skin["inverseBindMatrices"])
        for animation in rest.get("animations", ()):
            for sampler in animation["samplers"]:
                sampler |= {name: self.accessor_digest(sampler[name]) for name in ("input", "output")}
        for node in rest["nodes"]:
            attributes = node.get("extensions", {}).get("EXT_mesh_gpu_instancing", {}).get("attributes", {})
            attributes |= {name: self.accessor_digest(number) for name, number in attributes.items()}
        return rest


def same_but_for_materials(before: Glb, after: Glb, painted: set[tuple[int, int]]) -> dict[str, int]:
    """Asserts that nothing differs but the materials of ``painted`` primitives and coordinates that were added to them.

    Returns how many primitives got new coordinates, and how many were rewritten because vertices were split.
    """
    old, new = before.scene(), after.scene()
    new["asset"]["extras"].pop("latentkiln", None)
    for each in (old, new):
        each.pop("extensionsUsed", None)
        each.pop("extensionsRequired", None)
        each.get("extensions", {}).pop("KHR_materials_variants", None)
        if each.get("extensions") == {}:
            del each["extensions"]
    assert new == old and list(new) == list(old)
    assert len(after.json["meshes"]) == len(before.json["meshes"])
    counts = {"coordinates": 0, "rewritten": 0}
    for number, (mesh, twin) in enumerate(zip(before.json["meshes"], after.json["meshes"], strict=True)):
        assert {k: v for k, v in mesh.items() if k != "primitives"} == {
            k: v for k, v in twin.items() if k != "primitives"
        }
        for place, (primitive, other) in enumerate(zip(mesh["primitives"], twin["primitives"], strict=True)):
            if (number, place) not in painted:
                assert _digests(before, primitive) == _digests(after, other)
                assert before.material(primitive.get("material")) == after.material(other.get("material"))
                continue
            added = set(other["attributes"]) - set(primitive["attributes"])
            assert all(name.startswith("TEXCOORD_") for name in added)
            counts["coordinates"] += bool(added)
            _same_vertices(before, primitive, after, other, counts)
    return counts


def _same_vertices(
    before: Glb, primitive: dict[str, Any], after: Glb, other: dict[str, Any], counts: dict[str, int]
) -> None:
    kept = {"attributes", "indices", "targets", "material", "mode", "extensions"}
    assert {k: v for k, v in primitive.items() if k not in kept} == {k: v for k, v in other.items() if k not in kept}
    old, new = before.corners(primitive), after.corners(other)
    assert set(old) <= set(new)
    for name, values in old.items():
        assert new[name].dtype == values.dtype and np.array_equal(new[name], values), name
    first, second = _digests(before, primitive), _digests(after, other)
    untouched = {k: v for k, v in second.items() if k in first}
    counts["rewritten"] += untouched != first
    if len(set(other["attributes"]) - set(primitive["attributes"])) == 0:
        assert second == first
    for name in primitive["attributes"]:
        old_accessor = before.json["accessors"][primitive["attributes"][name]]
        new_accessor = after.json["accessors"][other["attributes"][name]]
        assert old_accessor.get("normalized") == new_accessor.get("normalized")
        assert old_accessor.get("name") == new_accessor.get("name")


def _digests(glb: Glb, primitive: dict[str, Any]) -> dict[str, str]:
    if _DRACO in primitive.get("extensions", {}):
        data = glb.view(primitive["extensions"][_DRACO]["bufferView"])
        return {"draco": hashlib.sha256(data).hexdigest()}
    named = {**primitive["attributes"]}
    if "indices" in primitive:
        named["indices"] = primitive["indices"]
    for number, target in enumerate(primitive.get("targets", ())):
        named |= {f"target {number} {name}": each for name, each in target.items()}
    return {name: glb.accessor_digest(number) for name, number in named.items()}


def read(path: Path) -> Glb:
    return Glb(path.read_bytes())
