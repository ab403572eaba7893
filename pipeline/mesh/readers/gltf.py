"""Reads glTF 2.0: .gltf with external or inline buffers, and .glb, also compressed by Draco or meshopt.

Reads all mesh nodes of the default scene into one mesh, with their world transforms. Applies morph targets with their
default weights, and skins with the joints' transforms in the node tree; a skinned mesh's own node has no effect.
Ignores animations and materials. Uses the texture coordinates of the base colour with its KHR_texture_transform, which
quantised files need.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.core.terminal import excerpt
from pipeline.mesh.readers.draco import draco_claims
from pipeline.mesh.readers.gltf_buffers import Buffers, as_component, normalised
from pipeline.mesh.readers.gltf_file import Object, parse_document
from pipeline.mesh.readers.gltf_instancing import INSTANCING, instance_matrices
from pipeline.mesh.readers.gltf_json import GltfJson
from pipeline.mesh.readers.gltf_nodes import Nodes
from pipeline.mesh.readers.gltf_skin import skin
from pipeline.mesh.readers.raw import RawMesh, strip_faces
from pipeline.mesh.texture_transform import TRANSFORM, transformed

_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_DRACO = "KHR_draco_mesh_compression"
# Prefixes of extensions that do not change the shape, so a file may require them.
_KNOWN_EXTENSIONS = (
    _DRACO,
    "EXT_meshopt_compression",
    "KHR_meshopt_compression",
    "KHR_mesh_quantization",
    "KHR_materials_",
    "KHR_texture_",
    "KHR_lights_",
    "EXT_texture_",
    "MSFT_texture_",
)
# Limits on primitives in all instances and on joints of a skin, beyond real files.
_MAX_PARTS = 100_000
_MAX_JOINTS = 65_536
# Limit on vertex updates by morph targets and joints, per allowed face: some ten seconds.
_MOVES_PER_FACE = 100


def read_gltf(text: bytes, binary: bytes | None, folder: Path, name: str, max_faces: int, max_bytes: int) -> RawMesh:
    """Reads a glTF document. Its buffers must lie in ``folder``. Raises MeshError."""
    json = GltfJson(parse_document(text, name), name)
    reader = GltfReader(json, Buffers(json, binary, folder, max_faces, max_bytes), max_faces)
    return joined(reader.placed(), reader.warnings)


@dataclass
class _Attributes:
    """The vertex attributes of a primitive: accessors by name, Draco's values, and the vertices that faces use."""

    accessors: Object
    decoded: dict[str, NDArray[np.number]]
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Source:
    """Where a placed primitive comes from: numbers of its node, of the node's instance, of the mesh, of the primitive
    in the mesh and of its material (None: the default material)."""

    node: int
    instance: int
    mesh: int
    primitive: int
    material: int | None


@dataclass
class Primitive:
    """One primitive, in its mesh's coordinates or (placed) in world coordinates of one node.

    positions (V, 3), faces (F, 3) into them; uv (V, 2) and normals (V, 3), or None. ``source`` of a placed one.
    """

    positions: NDArray[np.float64]
    faces: NDArray[np.int64]
    uv: NDArray[np.number] | None
    normals: NDArray[np.number] | None
    double_sided: bool
    attributes: _Attributes
    targets: list[object]
    uv_set: str
    source: Source | None = None


class GltfReader:
    """Reads the primitives of a document, and places them in the world.

    ``primitives``: by (mesh, primitive), each in its mesh's coordinates; None where it has no faces. ``instances``:
    read those of EXT_mesh_gpu_instancing, too. All methods raise MeshError.
    """

    def __init__(self, json: GltfJson, buffers: Buffers, max_faces: int, *, instances: bool = False):
        self.json, self.buffers, self.max_faces, self.instances = json, buffers, max_faces, instances
        self.primitives: dict[tuple[int, int], Primitive | None] = {}
        self.skins: dict[int, NDArray[np.float64]] = {}
        self.warnings: list[str] = []
        self.transparent: dict[int, str] = {}
        self.faces = self.parts = self.draco_vertices = 0
        self.left_moves = _MOVES_PER_FACE * max_faces

    def placed(self) -> list[Primitive]:
        """The primitives of the default scene in world coordinates, as its nodes show them, depth first."""
        for extension in self.json.array(self.json.document, "extensionsRequired", "its JSON"):
            if not str(extension).startswith((*_KNOWN_EXTENSIONS, INSTANCING)):
                self._warn(f"the required extension {excerpt(extension)} was ignored")
        used = self.json.array(self.json.document, "extensionsUsed", "its JSON")
        if INSTANCING in used and not self.instances:
            self._warn("instances of EXT_mesh_gpu_instancing were ignored")
        self.nodes = Nodes(self.json)
        primitives = []
        for index, node, world in self.nodes.shown:
            if node.get("mesh") is None:
                continue
            local = instance_matrices(self.json, self.buffers, index, node, _MAX_PARTS) if self.instances else None
            for number, matrix in enumerate([world] if local is None else world @ local):
                primitives += self._mesh(index, number, node, matrix)
        if not primitives:
            why = f" ({'; '.join(self.warnings)})" if self.warnings else ", or its scene does not show them"
            raise self.json.error(f"it has no faces{why}")
        self._tell_transparency()
        return primitives

    def stored(self, primitive: Primitive, name: str, rows: NDArray[np.int64] | None = None) -> NDArray[np.number]:
        """(V, width) values of the attribute ``name`` of a primitive as they are stored, for all vertices of its vertex
        table or for ``rows`` of it: integers are not normalised."""
        if name in primitive.attributes.decoded:
            values = primitive.attributes.decoded[name]
            return values if rows is None else values[rows]
        return self.buffers.stored(primitive.attributes.accessors[name], rows)

    def _mesh(self, index: int, instance: int, node: Object, world: NDArray[np.float64]) -> list[Primitive]:
        mesh = self.json.item("meshes", node["mesh"], "mesh")
        weights = self._weights(node, f"node {index}") or self._weights(mesh, f"mesh {node['mesh']}")
        primitives = self.json.array(mesh, "primitives", f"mesh {node['mesh']}")
        self.parts += len(primitives)
        if self.parts > _MAX_PARTS:
            raise self.json.error(f"its nodes show more than {_MAX_PARTS} parts; join them before exporting it")
        mesh_primitives = []
        for number, primitive in enumerate(primitives):
            if not isinstance(primitive, dict):
                raise self.json.error(
                    f"its JSON is not valid glTF: a primitive of mesh {node['mesh']} is not an object"
                )
            key = (node["mesh"], number)
            self.faces += self._count_faces(primitive)
            if self.faces > self.max_faces:
                raise self.json.error(f"its faces are more than max_faces = {self.max_faces}")
            if key not in self.primitives:
                self.primitives[key] = self.read_primitive(primitive)
            primitive_mesh = self.primitives[key]
            if primitive_mesh is not None:
                shown = self._posed(primitive_mesh, node, world, weights)
                source = Source(index, instance, *key, primitive.get("material"))
                mesh_primitives.append(replace(shown, source=source))
        return mesh_primitives

    def _weights(self, parent: Object, where: str) -> list[float]:
        return [self.json.number(w, "weights", where) for w in self.json.array(parent, "weights", where)]

    # -- poses ------------------------------------------------------------------------------------------------

    def _posed(self, part: Primitive, node: Object, world: NDArray[np.float64], weights: list[float]) -> Primitive:
        """Applies the part's morph targets, then its skin or its node's transform. Returns it in world coordinates."""
        if any(weights):
            part = self._morphed(part, weights)
        if node.get("skin") is None:
            return _placed(part, world)
        matrices = self._joint_matrices(node["skin"])
        joints = self._joints(part, len(matrices))
        if joints is None:
            # Without joint indices, a skin is only usable if all its joints move alike.
            return _placed(part, matrices[0] if _agree(matrices) else world)
        self._moves(len(part.positions) * joints[0].shape[1])
        with np.errstate(all="ignore"):
            normals = None if part.normals is None else part.normals.astype(np.float64)
            moved = skin(part.positions, normals, *joints, matrices)
        inside_out = moved.mirrored[part.faces].sum(axis=1) >= 2
        faces = np.where(inside_out[:, None], part.faces[:, ::-1], part.faces)
        return replace(part, positions=moved.positions, normals=moved.normals, faces=faces)

    def _morphed(self, part: Primitive, weights: list[float]) -> Primitive:
        """Adds the part's morph targets. Leaves out unusable ones with a warning."""
        arrays: dict[str, NDArray[np.number] | None] = {"POSITION": part.positions, "NORMAL": part.normals}
        for weight, target in zip(weights, part.targets, strict=False):
            if not weight or not isinstance(target, dict):
                continue
            for attribute, array in arrays.items():
                if target.get(attribute) is None or array is None:
                    continue
                self._moves(len(array))
                try:
                    moves = self.buffers.accessor(target[attribute], self._rows_within(part, target[attribute]))
                    if moves.shape != array.shape:
                        raise self.json.error(f"it moves {moves.shape} values of {array.shape}")
                except MeshError as error:
                    self._warn(f"a morph target was left out: {self._bare(error)}")
                    continue
                with np.errstate(all="ignore"):
                    arrays[attribute] = array = array.astype(np.float64) + weight * moves
        positions = arrays["POSITION"]
        assert positions is not None
        return replace(part, positions=np.asarray(positions, np.float64), normals=arrays["NORMAL"])

    def _rows_within(self, part: Primitive, accessor: object) -> NDArray[np.int64] | None:
        """Returns the vertices that the part's faces use. Raises MeshError if ``accessor`` lacks one."""
        rows = part.attributes.rows
        if rows is not None and len(rows) and rows[-1] >= self.buffers.layout(accessor)[1]:
            raise self.json.error(f"accessor {accessor} has fewer entries than there are vertices")
        return rows

    def _moves(self, count: int) -> None:
        self.left_moves -= count
        if self.left_moves < 0:
            raise self.json.error("its morph targets and joints move too many vertices")

    def _joint_matrices(self, index: int) -> NDArray[np.float64]:
        """(J, 4, 4) joint matrices of skin ``index``: each world matrix times its inverse bind matrix."""
        description = self.json.item("skins", index, "skin")
        if index in self.skins:
            return self.skins[index]
        joints = self.json.array(description, "joints", f"skin {index}")
        if len(joints) > _MAX_JOINTS:
            raise self.json.error(f"skin {index} has {len(joints)} joints, more than joint indices can address")
        for joint in joints:
            self.json.item("nodes", joint, "node")
        placed = np.array([self.nodes.world(joint) for joint in joints]).reshape(-1, 4, 4)
        if description.get("inverseBindMatrices") is not None:
            inverse = self.buffers.accessor(description["inverseBindMatrices"]).astype(np.float64)
            if len(inverse) < len(placed) or inverse.shape[1] != 16:
                raise self.json.error(f"skin {index} has fewer bind matrices than joints")
            with np.errstate(all="ignore"):
                placed = placed @ inverse[: len(placed)].reshape(-1, 4, 4).transpose(0, 2, 1)
        if not np.isfinite(placed).all():
            raise self.json.error(f"a joint matrix of skin {index} is not finite")
        self.skins[index] = placed
        return placed

    def _joints(self, part: Primitive, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """((V, K) joints, (V, K) weights) of a part, all sets side by side; None if it has none."""
        names = part.attributes.accessors
        joints, weights = [], []
        number = 0
        while f"JOINTS_{number}" in names and f"WEIGHTS_{number}" in names:
            joints.append(self._attribute(part.attributes, f"JOINTS_{number}", 4, len(part.positions)))
            weights.append(self._attribute(part.attributes, f"WEIGHTS_{number}", 4, len(part.positions)))
            number += 1
        if not joints:
            return None
        which, how = np.concatenate(joints, axis=1), np.concatenate(weights, axis=1).astype(np.float64)
        if not (np.isfinite(how).all() and (how >= 0).all()):
            raise self.json.error("a vertex has a joint weight that is negative or not a number")
        which = np.where((how > 0) | (np.arange(which.shape[1]) == 0), which, 0).astype(np.int64)
        if len(which) and (which.min() < 0 or which.max() >= count):
            raise self.json.error(f"a vertex names joint {int(which.max())} (counting from 0), but there are {count}")
        return which, how

    # -- primitives -------------------------------------------------------------------------------------------

    def _count_faces(self, primitive: Object) -> int:
        """Returns the number of triangles that a primitive claims, before its data is read."""
        mode = primitive.get("mode", _TRIANGLES)
        index = primitive.get("indices")
        if index is None:
            index = self.json.object(primitive, "attributes", "a primitive").get("POSITION")
        if mode not in (_TRIANGLES, _STRIP, _FAN) or index is None:
            return 0
        count = self.json.integer(self.json.item("accessors", index, "accessor"), "count", 0)
        return count // 3 if mode == _TRIANGLES else max(0, count - 2)

    def read_primitive(self, primitive: Object) -> Primitive | None:
        """The faces and attributes of a primitive of the JSON in its mesh's coordinates; None if it has no faces."""
        mode = primitive.get("mode", _TRIANGLES)
        if mode not in (_TRIANGLES, _STRIP, _FAN):
            self._warn("points and lines were left out")
            return None
        attributes = _Attributes(self.json.object(primitive, "attributes", "a primitive"), {})
        if attributes.accessors.get("POSITION") is None:
            self._warn("a part without positions was left out")
            return None
        material = self._material(primitive)
        factors = self.json.object(material, "pbrMetallicRoughness", "a material")
        texture = self.json.object(factors, "baseColorTexture", "a material")
        extensions = self.json.object(texture, "extensions", "a texture")
        transform = self.json.object(extensions, TRANSFORM, "a texture")
        uv_set = f"TEXCOORD_{self.json.integer(transform if 'texCoord' in transform else texture, 'texCoord', 0)}"
        if uv_set not in attributes.accessors:
            uv_set = "TEXCOORD_0"
        faces = self._faces(primitive, attributes, mode)
        positions = self._attribute(attributes, "POSITION", 3, None).astype(np.float64)
        part = Primitive(
            positions, faces, None, None, material.get("doubleSided") is True, attributes,
            self.json.array(primitive, "targets", "a primitive"), uv_set,
        )  # fmt: skip
        part.normals = self._optional(part, "NORMAL", 3)
        part.uv = self._optional(part, uv_set, 2)
        if part.uv is not None and transform:
            part.uv = self._transformed(part.uv, transform)
        return part

    def _faces(self, primitive: Object, attributes: _Attributes, mode: int) -> NDArray[np.int64]:
        """(F, 3) faces into the used vertices. Sets ``attributes.rows`` if some vertices are unused."""
        packed = self.json.object(self.json.object(primitive, "extensions", "a primitive"), _DRACO, "a primitive")
        count = self.buffers.layout(attributes.accessors["POSITION"])[1]
        if packed:
            attributes.decoded, index = self._draco(packed, attributes.accessors, self._count_faces(primitive))
        elif primitive.get("indices") is not None:
            values = self.buffers.accessor(primitive["indices"])
            if values.shape[1] != 1 or values.dtype.kind not in "iu":
                raise self.json.error("the indices of a part are not integers")
            index = values[:, 0].astype(np.int64)
        else:
            self._bytes_for(attributes.accessors["POSITION"])
            index = np.arange(count, dtype=np.int64)
        if len(index) and (index.min() < 0 or index.max() >= count):
            raise self.json.error(
                f"a face names vertex {int(index.max())} (counting from 0), but there are only {count}: "
                "the index is out of range"
            )
        if count > 3 * len(index):
            # Several parts may share one vertex table; each takes only its own vertices.
            attributes.rows, index = np.unique(index, return_inverse=True)
            index = index.reshape(-1).astype(np.int64)
        return self._triangles(index, mode)

    def _bytes_for(self, accessor: object) -> None:
        """Raises MeshError if an accessor claims more entries than its bytes hold."""
        self.buffers.accessor(accessor, np.empty(0, np.int64))

    def _attribute(self, attributes: _Attributes, name: str, width: int, count: int | None) -> NDArray[np.number]:
        """(V, width) values of the attribute ``name``. Raises MeshError if their shape or type differs."""
        index = attributes.accessors[name]
        entries = self.buffers.layout(index)[1]
        expected = self.buffers.layout(attributes.accessors["POSITION"])[1]
        if entries != expected:
            raise self.json.error(f"{name} has {entries} entries for {expected} positions")
        if name in attributes.decoded:
            values = attributes.decoded[name]
            if self.json.item("accessors", index, "accessor").get("normalized") is True:
                values = normalised(values)
            values = values if attributes.rows is None else values[attributes.rows]
        else:
            values = self.buffers.accessor(index, attributes.rows)
        if values.ndim != 2 or values.shape[1] != width:
            what = {2: "pairs", 3: "triples", 4: "quadruples"}[width]
            raise self.json.error(
                f"the positions of a part are not {what}" if name == "POSITION" else f"{name} does not hold {what}"
            )
        if count is not None and len(values) != count:
            raise self.json.error(f"{name} has {len(values)} entries for {count} positions")
        return values

    def _optional(self, part: Primitive, name: str, width: int) -> NDArray[np.number] | None:
        """Returns the values of an optional attribute; None, with a warning, if they are unusable."""
        if part.attributes.accessors.get(name) is None:
            return None
        try:
            return self._attribute(part.attributes, name, width, len(part.positions))
        except MeshError as error:
            self._warn(f"{name} of a part is not used: {self._bare(error)}")
            return None

    def _triangles(self, index: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
        if mode == _TRIANGLES:
            if len(index) % 3:
                self._warn("indices behind the last whole triangle were dropped")
            return index[: len(index) // 3 * 3].reshape(-1, 3)
        if mode == _STRIP or len(index) < 3:
            return strip_faces(index)
        return np.stack([np.full_like(index[2:], index[0]), index[1:-1], index[2:]], axis=1)

    # -- materials --------------------------------------------------------------------------------------------

    def _material(self, primitive: Object) -> Object:
        """Returns the primitive's material, or an empty one. Remembers transparent materials for a warning."""
        if primitive.get("material") is None:
            return {}
        number = primitive["material"]
        material = self.json.item("materials", number, "material")
        mode = material.get("alphaMode")
        if mode in ("MASK", "BLEND") and number not in self.transparent and self._has_alpha(material, primitive):
            self.transparent[number] = f"{excerpt(material.get('name') or number)!r} (alphaMode {mode})"
        return material

    def _has_alpha(self, material: Object, primitive: Object) -> bool:
        """Whether the base colour may be transparent: by its factor, by vertex colours of four numbers, or by a
        texture that is not a JPEG."""
        try:
            colours = self.json.object(primitive, "attributes", "a primitive").get("COLOR_0")
            if colours is not None and self.json.item("accessors", colours, "accessor").get("type") == "VEC4":
                return True
        except MeshError:  # colours are not needed
            pass
        factors = self.json.object(material, "pbrMetallicRoughness", "a material")
        if self.json.numbers(factors, "baseColorFactor", (1, 1, 1, 1), "a material")[3] < 1:
            return True
        texture = self.json.object(factors, "baseColorTexture", "a material")
        try:
            source = self.json.item("textures", texture.get("index"), "texture").get("source")
            image = self.json.item("images", source, "image")
        except MeshError:
            return bool(texture)
        words = f"{image.get('mimeType')} {str(image.get('uri'))[:200]}".lower()
        return "jpeg" not in words and not words.endswith(".jpg")

    def _tell_transparency(self) -> None:
        if not self.transparent:
            return
        first, *others = self.transparent.values()
        more = f" and of {len(others)} more" if others else ""
        self._warn(f"transparent parts of the material {first}{more} are painted as surface")

    # -- draco ------------------------------------------------------------------------------------------------

    def _draco(
        self, draco: Object, accessors: Object, counted: int
    ) -> tuple[dict[str, NDArray[np.number]], NDArray[np.int64]]:
        """(attributes by name, indices) of a Draco-compressed primitive with ``counted`` faces in the JSON."""
        import DracoPy

        data = bytes(self.buffers.view(draco.get("bufferView")))
        try:
            faces, vertices = draco_claims(data)
        except ValueError as error:
            raise self.json.error(f"its Draco data cannot be decoded ({error})") from None
        # The JSON's count was checked against max_faces.
        if faces > counted:
            raise self.json.error(f"its Draco data claim {faces} faces where its JSON says {counted}")
        self.draco_vertices += vertices
        if vertices > 3 * self.max_faces or self.draco_vertices > 12 * self.max_faces:
            raise self.json.error(f"its Draco data claim {vertices} vertices; its faces are at most max_faces")
        try:
            decoded = DracoPy.decode(data)
            index = np.asarray(decoded.faces).astype(np.int64).reshape(-1)
            stored = {a["unique_id"]: np.asarray(a["data"]) for a in decoded.attributes}
        except Exception as error:
            reason = " ".join(str(error).split())[:80]
            raise self.json.error(f"its Draco data cannot be decoded ({reason})") from None
        values = {}
        for attribute, identity in self.json.object(draco, "attributes", "Draco data").items():
            if accessors.get(attribute) is None:
                continue
            if not isinstance(identity, int) or identity not in stored:
                raise self.json.error(f"its Draco data lack {excerpt(attribute)}")
            _, count, dtype, _ = self.buffers.layout(accessors[attribute])
            array = stored[identity].reshape(len(stored[identity]), -1)
            if len(array) != count:
                raise self.json.error("its Draco data and its JSON disagree on the number of vertices")
            # The accessor, not the decoder, defines the type of the values.
            values[attribute] = as_component(array, dtype)
        return values, index

    # -- small things -----------------------------------------------------------------------------------------

    def _transformed(self, uv: NDArray[np.number], transform: Object) -> NDArray[np.float64]:
        """Applies KHR_texture_transform to (n, 2) coordinates. Raises MeshError for damaged values."""
        where = "a texture transform"
        self.json.number(transform.get("rotation", 0.0), "rotation", where)
        self.json.numbers(transform, "scale", (1, 1), where)
        self.json.numbers(transform, "offset", (0, 0), where)
        return transformed(uv, transform)

    def _bare(self, error: MeshError) -> str:
        return error.message.removeprefix(f"{self.json.name}: ")

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def _agree(matrices: NDArray[np.float64]) -> bool:
    """Tells whether all of (J, 4, 4) ``matrices`` are equal."""
    if not len(matrices):
        return False
    spread = np.abs(matrices - matrices[0]).max()
    return bool(spread < 1e-3 * max(1.0, float(np.abs(matrices[0]).max())))


def joined(primitives: list[Primitive], warnings: list[str]) -> RawMesh:
    """The placed ``primitives`` as one mesh, one behind the other."""
    starts = np.cumsum([0] + [len(primitive.positions) for primitive in primitives])
    shifted = [primitive.faces + start for primitive, start in zip(primitives, starts[:-1], strict=True)]
    faces = np.concatenate(shifted)
    mesh = RawMesh(np.concatenate([primitive.positions for primitive in primitives]), faces, warnings=warnings)

    def table(
        width: int, arrays: list[NDArray[np.number] | None]
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None]:
        if all(array is None for array in arrays):
            return None, None
        rows = [
            np.zeros((len(primitive.positions), width), np.float32) if array is None else array.astype(np.float32)
            for primitive, array in zip(primitives, arrays, strict=True)
        ]
        index = [np.full_like(face, -1) if array is None else face for face, array in zip(shifted, arrays, strict=True)]
        return np.concatenate(rows), np.concatenate(index)

    mesh.double_sided = np.concatenate(
        [np.full(len(primitive.faces), primitive.double_sided) for primitive in primitives]
    )
    mesh.uv, mesh.uv_faces = table(2, [primitive.uv for primitive in primitives])
    mesh.normals, mesh.normal_faces = table(3, [primitive.normals for primitive in primitives])
    return mesh


def _placed(primitive: Primitive, world: NDArray[np.float64]) -> Primitive:
    """Transforms the part by a world matrix. A reflection reverses the winding, as the format requires."""
    linear = world[:3, :3]
    if np.array_equal(world, np.eye(4)):
        return primitive
    with np.errstate(all="ignore"):
        positions = primitive.positions @ linear.T + world[:3, 3]
        determinant = np.linalg.det(linear)
        normals = primitive.normals
        if normals is not None:
            # Cofactors: the inverse transpose times the determinant; they also exist for singular matrices.
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
    faces = primitive.faces[:, ::-1] if determinant < 0 else primitive.faces
    return replace(primitive, positions=positions, faces=faces, normals=normals)
