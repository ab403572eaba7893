"""glTF 2.0, as .gltf with buffers in its folder or inline, and as .glb; Draco-compressed or not.

Every mesh node of the default scene is read with its world transform applied, into one mesh. A skinned mesh is
taken in its bind pose as stored: positions as they are, placed by what its joints agree on. Morph targets,
animations and materials are left aside; the texture coordinates are those that the base colour is looked up with:
its set, moved by its KHR_texture_transform (small files hold theirs as integers that only that brings to the texture).
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.geometry.readers.draco import draco_claims
from pipeline.geometry.readers.gltf_file import buffer_path, parse_document
from pipeline.geometry.readers.raw import RawMesh, strip_faces

_COMPONENT = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
# Extensions that change geometry and that this reader does not know.
_COMPRESSIONS = ("EXT_meshopt_compression", "KHR_meshopt_compression")
_DRACO = "KHR_draco_mesh_compression"
_TRANSFORM = "KHR_texture_transform"
# Extensions that a file may require without its shape being another one: by how their names begin.
_KNOWN = (
    _DRACO,
    "KHR_mesh_quantization",
    "KHR_materials_",
    "KHR_texture_",
    "KHR_lights_",
    "EXT_texture_",
    "MSFT_texture_",
)


def read_gltf(text: bytes, binary: bytes | None, folder: Path, name: str, max_faces: int, max_bytes: int) -> RawMesh:
    """Reads a glTF document. ``folder`` is where its buffers may lie. Raises MeshError."""
    document = parse_document(text, name)
    reader = _Reader(document, binary, folder, name, max_faces, max_bytes)
    try:
        return reader.read()
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise MeshError(f"{name}: its JSON is not valid glTF ({type(error).__name__}: {str(error)[:80]})") from None


def _list(document: dict[str, Any], key: str) -> list:
    value = document.get(key, [])
    if not isinstance(value, list):
        raise TypeError(f"{key} is not a list")
    return value


@dataclass
class _Part:
    """One primitive of one node, in world coordinates."""

    positions: NDArray[np.float64]
    faces: NDArray[np.int64]
    uv: NDArray | None
    normals: NDArray | None


class _Reader:
    def __init__(
        self,
        document: dict[str, Any],
        binary: bytes | None,
        folder: Path,
        name: str,
        max_faces: int,
        max_bytes: int,
    ):
        self.document, self.binary, self.folder, self.name = document, binary, folder, name
        self.max_faces, self.left_bytes = max_faces, max_bytes
        self.buffers: dict[int, bytes] = {}
        self.primitives: dict[tuple[int, int], _Part | None] = {}
        self.warnings: list[str] = []
        self.faces = 0

    def read(self) -> RawMesh:
        for extension in _list(self.document, "extensionsRequired"):
            if extension in _COMPRESSIONS:
                raise MeshError(f"{self.name}: it is compressed with {extension}, which cannot be read; decompress it")
            if not str(extension).startswith((*_KNOWN, "EXT_mesh_gpu_instancing")):
                self._warn(f"the extension {str(extension)[:60]}, which it requires, was ignored")
        used = _list(self.document, "extensionsUsed")
        if "EXT_mesh_gpu_instancing" in used:
            self._warn("instances of EXT_mesh_gpu_instancing were ignored")
        parts = []
        for node, world in self._nodes():
            if "mesh" in node:
                parts += self._mesh(node, world)
        if not parts:
            why = f" ({'; '.join(self.warnings)})" if self.warnings else ", or its scene does not show them"
            raise MeshError(f"{self.name}: there are no faces in it{why}")
        return self._join(parts)

    # -- scene ------------------------------------------------------------------------------------------------

    def _nodes(self) -> list[tuple[dict[str, Any], NDArray[np.float64]]]:
        """Nodes of the default scene with their world matrices, depth first; without a scene, all roots."""
        nodes = _list(self.document, "nodes")
        scenes = _list(self.document, "scenes")
        if scenes:
            roots = self._item(scenes, self.document.get("scene", 0), "scene").get("nodes", [])
        else:
            children = {c for n in nodes for c in n.get("children", [])}
            roots = [i for i in range(len(nodes)) if i not in children]
        self.world: dict[int, NDArray[np.float64]] = {}
        found = []
        stack = [(root, np.eye(4)) for root in reversed(roots)]
        while stack:
            index, parent = stack.pop()
            if index in self.world:
                raise MeshError(f"{self.name}: node {index} has two parents or is its own ancestor")
            node = self._item(nodes, index, "node")
            with np.errstate(all="ignore"):
                world = parent @ self._local(node)
            if not np.isfinite(world).all():
                raise MeshError(f"{self.name}: the transform of node {index} is not finite")
            self.world[index] = world
            found.append((node, world))
            stack += [(child, world) for child in reversed(node.get("children", []))]
        return found

    def _local(self, node: dict[str, Any]) -> NDArray[np.float64]:
        if "matrix" in node:
            return np.array(node["matrix"], np.float64).reshape(4, 4).T
        matrix = np.eye(4)
        x, y, z, w = (float(v) for v in node.get("rotation", (0, 0, 0, 1)))
        length = (x * x + y * y + z * z + w * w) ** 0.5
        if length > 0:
            x, y, z, w = x / length, y / length, z / length, w / length
            matrix[:3, :3] = [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64).reshape(3)
        matrix[:3, 3] = np.array(node.get("translation", (0, 0, 0)), np.float64).reshape(3)
        return matrix

    def _skin_placement(self, skin_index: int) -> NDArray[np.float64] | None:
        """Where a skin's joints put the bind pose, when they all agree: a skinned mesh's own node has no say."""
        skin = self._item(_list(self.document, "skins"), skin_index, "skin")
        joints = [self.world.get(joint) for joint in skin.get("joints", [])]
        if not joints or any(joint is None for joint in joints):
            return None
        placed = np.stack([joint for joint in joints if joint is not None])
        if "inverseBindMatrices" in skin:
            inverse = self._accessor(skin["inverseBindMatrices"]).astype(np.float64)
            if len(inverse) < len(placed):
                raise MeshError(f"{self.name}: a skin has fewer bind matrices than joints")
            placed = placed @ inverse[: len(placed)].reshape(-1, 4, 4).transpose(0, 2, 1)
        spread = np.abs(placed - placed[0]).max()
        return placed[0] if spread < 1e-3 * max(1.0, float(np.abs(placed[0]).max())) else None

    def _mesh(self, node: dict[str, Any], world: NDArray[np.float64]) -> list[_Part]:
        if "skin" in node:
            placement = self._skin_placement(node["skin"])
            world = world if placement is None else placement
        mesh = self._item(_list(self.document, "meshes"), node["mesh"], "mesh")
        if any(node.get("weights", mesh.get("weights")) or []):
            self._warn("morph targets were ignored")
        parts = []
        for number, primitive in enumerate(mesh.get("primitives", [])):
            key = (node["mesh"], number)
            self.faces += self._count_faces(primitive)
            if self.faces > self.max_faces:
                raise MeshError(f"{self.name}: its faces are more than max_faces = {self.max_faces}")
            if key not in self.primitives:
                self.primitives[key] = self._primitive(primitive)
            part = self.primitives[key]
            if part is not None:
                parts.append(_placed(part, world))
        return parts

    # -- primitives -------------------------------------------------------------------------------------------

    def _count_faces(self, primitive: dict[str, Any]) -> int:
        """How many triangles a primitive claims, before anything is read."""
        mode = primitive.get("mode", _TRIANGLES)
        accessors = _list(self.document, "accessors")
        index = primitive.get("indices", primitive.get("attributes", {}).get("POSITION"))
        if mode not in (_TRIANGLES, _STRIP, _FAN) or index is None:
            return 0
        count = self._whole(self._item(accessors, index, "accessor").get("count", 0), "count")
        return count // 3 if mode == _TRIANGLES else max(0, count - 2)

    def _primitive(self, primitive: dict[str, Any]) -> _Part | None:
        mode = primitive.get("mode", _TRIANGLES)
        if mode not in (_TRIANGLES, _STRIP, _FAN):
            self._warn("points and lines were left out")
            return None
        attributes = primitive.get("attributes", {})
        if "POSITION" not in attributes:
            self._warn("a part without positions was left out")
            return None
        texture = self._base_colour(primitive)
        transform = (texture.get("extensions") or {}).get(_TRANSFORM) or {}
        wanted = f"TEXCOORD_{self._whole(transform.get('texCoord', texture.get('texCoord', 0)), 'texCoord')}"
        if wanted not in attributes and "TEXCOORD_0" in attributes:
            wanted = "TEXCOORD_0"
        names = [n for n in ("POSITION", "NORMAL", wanted) if n in attributes]
        draco = (primitive.get("extensions") or {}).get(_DRACO)
        if draco is not None:
            values, index = self._draco(draco, attributes, names, self._count_faces(primitive))
        else:
            values = {n: self._accessor(attributes[n]) for n in names}
            index = None
            if "indices" in primitive:
                index = self._accessor(primitive["indices"])
                if index.shape[1] != 1 or index.dtype.kind not in "iu":
                    raise MeshError(f"{self.name}: the indices of a part are not integers")
                index = index[:, 0].astype(np.int64)
        positions = values["POSITION"].astype(np.float64)
        if positions.ndim != 2 or positions.shape[1] != 3:
            raise MeshError(f"{self.name}: the positions of a part are not triples")
        if index is None:
            index = np.arange(len(positions), dtype=np.int64)
        if len(index) and (index.min() < 0 or index.max() >= len(positions)):
            raise MeshError(
                f"{self.name}: a face names vertex {int(index.max())} (counting from 0), but there are only "
                f"{len(positions)}: the index is out of range"
            )
        for attribute, array in values.items():
            if len(array) != len(positions):
                raise MeshError(f"{self.name}: {attribute} has {len(array)} entries for {len(positions)} positions")
        uv, normals = values.get(wanted), values.get("NORMAL")
        if uv is not None and uv.shape[1] != 2:
            raise MeshError(f"{self.name}: {wanted} does not hold pairs")
        if normals is not None and normals.shape[1] != 3:
            raise MeshError(f"{self.name}: NORMAL does not hold triples")
        if uv is not None and transform:
            uv = _transformed(uv, transform)
        return _Part(positions, self._triangles(index, mode), uv, normals)

    def _triangles(self, index: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
        if mode == _TRIANGLES:
            if len(index) % 3:
                self._warn("indices behind the last whole triangle were dropped")
            return index[: len(index) // 3 * 3].reshape(-1, 3)
        if mode == _STRIP or len(index) < 3:
            return strip_faces(index)
        return np.stack([np.full_like(index[2:], index[0]), index[1:-1], index[2:]], axis=1)

    def _base_colour(self, primitive: dict[str, Any]) -> dict[str, Any]:
        """What the primitive's material says of its base colour texture."""
        if "material" not in primitive:
            return {}
        material = self._item(_list(self.document, "materials"), primitive["material"], "material")
        return (material.get("pbrMetallicRoughness") or {}).get("baseColorTexture") or {}

    def _draco(
        self, draco: dict[str, Any], attributes: dict[str, int], names: list[str], counted: int
    ) -> tuple[dict[str, NDArray], NDArray[np.int64]]:
        """(attributes by name, indices) of a Draco-compressed primitive that has ``counted`` faces by the JSON."""
        import DracoPy

        data = self._view(draco["bufferView"])
        try:
            faces, vertices = draco_claims(data)
        except ValueError as error:
            raise MeshError(f"{self.name}: its Draco data cannot be decoded ({error})") from None
        # What the JSON says was held against max_faces.
        if faces > counted:
            raise MeshError(f"{self.name}: its Draco data claim {faces} faces where its JSON says {counted}")
        if vertices > 3 * self.max_faces:
            raise MeshError(f"{self.name}: its Draco data claim {vertices} vertices; its faces are at most max_faces")
        try:
            decoded = DracoPy.decode(data)
            index = np.asarray(decoded.faces).astype(np.int64).reshape(-1)
            stored = {a["unique_id"]: np.asarray(a["data"]) for a in decoded.attributes}
        except Exception as error:
            reason = " ".join(str(error).split())[:80]
            raise MeshError(f"{self.name}: its Draco data cannot be decoded ({reason})") from None
        values = {}
        for attribute in names:
            identity = draco.get("attributes", {}).get(attribute)
            if identity is None:
                values[attribute] = self._accessor(attributes[attribute])
                continue
            if identity not in stored:
                raise MeshError(f"{self.name}: its Draco data lack {attribute}")
            accessor = self._item(_list(self.document, "accessors"), attributes[attribute], "accessor")
            array = stored[identity].reshape(len(stored[identity]), -1)
            if len(array) != accessor.get("count"):
                raise MeshError(f"{self.name}: its Draco data and its JSON disagree on the number of vertices")
            values[attribute] = _normalised(array) if accessor.get("normalized") else array
        return values, index

    # -- buffers ----------------------------------------------------------------------------------------------

    def _accessor(self, index: int) -> NDArray:
        """(count, width) values of an accessor; normalised integers as floats."""
        accessor = self._item(_list(self.document, "accessors"), index, "accessor")
        count = self._whole(accessor["count"], "count")
        kind = accessor["componentType"]
        if kind not in _COMPONENT or accessor["type"] not in _WIDTH:
            raise MeshError(f"{self.name}: accessor {index} has an unknown type")
        dtype, width = np.dtype(_COMPONENT[kind]), _WIDTH[accessor["type"]]
        if accessor["type"] in ("MAT2", "MAT3") and dtype.itemsize < 4:
            raise MeshError(f"{self.name}: accessor {index} has an unsupported matrix type")
        if "bufferView" in accessor:
            values = self._strided(
                accessor["bufferView"],
                self._whole(accessor.get("byteOffset", 0), "byteOffset"),
                count,
                dtype,
                width,
            )
        else:
            # Zeros, which sparse values then replace: bounded by what one buffer may hold.
            if count * width * dtype.itemsize > self.left_bytes or count > 4 * self.max_faces:
                raise MeshError(f"{self.name}: accessor {index} claims {count} entries, which is too many")
            values = np.zeros((count, width), dtype)
        sparse = accessor.get("sparse")
        if sparse:
            changed = self._whole(sparse["count"], "count")
            at, new = sparse["indices"], sparse["values"]
            where = self._strided(
                at["bufferView"], self._whole(at.get("byteOffset", 0), "byteOffset"), changed,
                np.dtype(_COMPONENT[at["componentType"]]), 1,
            )[:, 0]  # fmt: skip
            if where.dtype.kind not in "iu" or (len(where) and int(where.max()) >= count):
                raise MeshError(f"{self.name}: a sparse accessor names an entry out of range")
            values = values.copy()
            values[where.astype(np.int64)] = self._strided(
                new["bufferView"], self._whole(new.get("byteOffset", 0), "byteOffset"), changed, dtype, width
            )
        return _normalised(values) if accessor.get("normalized") else values

    def _strided(self, view_index: int, offset: int, count: int, dtype: np.dtype, width: int) -> NDArray:
        view = self._item(_list(self.document, "bufferViews"), view_index, "bufferView")
        data = self._view(view_index)
        size = dtype.itemsize * width
        stride = self._whole(view.get("byteStride", size), "byteStride") or size
        if count == 0:
            return np.empty((0, width), dtype)
        if stride < size or offset + (count - 1) * stride + size > len(data):
            raise MeshError(
                f"{self.name}: an accessor wants {count} entries of {size} bytes, but its buffer view has only "
                f"{len(data)} bytes: truncated or damaged"
            )
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))

    def _view(self, index: int) -> bytes:
        view = self._item(_list(self.document, "bufferViews"), index, "bufferView")
        for compression in _COMPRESSIONS:
            if compression in (view.get("extensions") or {}):
                raise MeshError(f"{self.name}: it is compressed with {compression}, which cannot be read")
        data = self._buffer(view["buffer"])
        offset = self._whole(view.get("byteOffset", 0), "byteOffset")
        length = self._whole(view["byteLength"], "byteLength")
        if offset + length > len(data):
            raise MeshError(
                f"{self.name}: a buffer view ends at byte {offset + length}, but its buffer has only {len(data)}: "
                "truncated or damaged"
            )
        return data[offset : offset + length]

    def _buffer(self, index: int) -> bytes:
        if index in self.buffers:
            return self.buffers[index]
        buffer = self._item(_list(self.document, "buffers"), index, "buffer")
        uri = buffer.get("uri")
        if uri is None:
            if index != 0 or self.binary is None:
                raise MeshError(f"{self.name}: buffer {index} has no data")
            data = self.binary
        elif uri.startswith("data:"):
            try:
                data = base64.b64decode(uri.split(",", 1)[1], validate=True)
            except (IndexError, binascii.Error):
                raise MeshError(f"{self.name}: the inline data of buffer {index} are not base64") from None
        else:
            path = buffer_path(uri, self.folder, self.name)
            if path.stat().st_size > self.left_bytes:
                raise MeshError(f"{self.name}: its buffers are larger than is allowed")
            data = path.read_bytes()
        self.left_bytes -= len(data)
        if len(data) < self._whole(buffer.get("byteLength", 0), "byteLength"):
            raise MeshError(
                f"{self.name}: buffer {index} should have {buffer['byteLength']} bytes, but has {len(data)}: truncated"
            )
        self.buffers[index] = data
        return data

    # -- small things -----------------------------------------------------------------------------------------

    def _item(self, items: list, index: Any, what: str) -> Any:
        if not isinstance(index, int) or not 0 <= index < len(items):
            raise MeshError(f"{self.name}: its JSON names {what} {index!r}, but there are {len(items)}")
        if not isinstance(items[index], dict):
            raise MeshError(f"{self.name}: {what} {index} of its JSON is not an object")
        return items[index]

    def _whole(self, value: Any, what: str) -> int:
        if not isinstance(value, int) or value < 0:
            raise MeshError(f"{self.name}: its JSON has {what} {value!r}, which is no count")
        return value

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _join(self, parts: list[_Part]) -> RawMesh:
        starts = np.cumsum([0] + [len(part.positions) for part in parts])
        shifted = [part.faces + start for part, start in zip(parts, starts[:-1], strict=True)]
        faces = np.concatenate(shifted)
        mesh = RawMesh(np.concatenate([part.positions for part in parts]), faces, warnings=self.warnings)

        def table(width: int, arrays: list[NDArray | None]) -> tuple[NDArray | None, NDArray | None]:
            if all(array is None for array in arrays):
                return None, None
            rows = [
                np.zeros((len(part.positions), width), np.float32) if array is None else array.astype(np.float32)
                for part, array in zip(parts, arrays, strict=True)
            ]
            index = [
                np.full_like(face, -1) if array is None else face for face, array in zip(shifted, arrays, strict=True)
            ]
            return np.concatenate(rows), np.concatenate(index)

        mesh.uv, mesh.uv_faces = table(2, [part.uv for part in parts])
        mesh.normals, mesh.normal_faces = table(3, [part.normals for part in parts])
        return mesh


def _normalised(values: NDArray) -> NDArray:
    """Integers as the fractions they stand for."""
    if values.dtype.kind == "f":
        return values
    top = np.iinfo(values.dtype).max
    return np.maximum(values.astype(np.float32) / np.float32(top), np.float32(-1.0))


def _transformed(uv: NDArray, transform: dict[str, Any]) -> NDArray[np.float64]:
    """(n, 2) coordinates scaled, turned counter-clockwise (v points down) and moved as KHR_texture_transform says."""
    turn = float(transform.get("rotation", 0.0))
    scale = np.array(transform.get("scale", (1, 1)), np.float64).reshape(2)
    offset = np.array(transform.get("offset", (0, 0)), np.float64).reshape(2)
    cosine, sine = math.cos(turn), math.sin(turn)
    with np.errstate(all="ignore"):
        u, v = (uv.astype(np.float64) * scale).T
        return np.stack([cosine * u + sine * v, cosine * v - sine * u], axis=1) + offset


def _placed(part: _Part, world: NDArray[np.float64]) -> _Part:
    """The part moved by a world matrix; a mirroring one turns the winding round, as the format says."""
    linear = world[:3, :3]
    if np.array_equal(world, np.eye(4)):
        return part
    with np.errstate(all="ignore"):
        positions = part.positions @ linear.T + world[:3, 3]
        determinant = np.linalg.det(linear)
        normals = part.normals
        if normals is not None:
            # Cofactors: the inverse transpose times the determinant, also where there is no inverse.
            cofactor = np.stack(
                [
                    np.cross(linear[1], linear[2]),
                    np.cross(linear[2], linear[0]),
                    np.cross(linear[0], linear[1]),
                ]
            )
            normals = (normals.astype(np.float64) @ cofactor.T) * (-1.0 if determinant < 0 else 1.0)
            length = np.linalg.norm(normals, axis=1, keepdims=True)
            normals = np.where(length > 0, normals / length, 0.0)
    faces = part.faces[:, ::-1] if determinant < 0 else part.faces
    return _Part(positions, faces, part.uv, normals)
