"""Assembles a glTF 2.0 document from a scene: node tree, meshes, skins, morph targets, animations, cameras, lights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Float64Array
from pipeline.core.errors import MeshError
from pipeline.mesh.convert.gltf_builder import GltfBuilder, Object
from pipeline.mesh.convert.materials import MaterialWriter
from pipeline.mesh.convert.primitives import Triangles, primitives_of, triangles_of
from pipeline.mesh.convert.scene import Animation, Channel, Scene, SceneNode, Skin

_LIGHTS = "KHR_lights_punctual"
_MOST_KEYS = 1 << 24
# Two matrices of a transform that differ by less than this part of their size are the same.
_SHEAR = 1e-5


class Assembler:
    """Writes a scene into a document. ``losses`` says what could not be kept."""

    def __init__(self, scene: Scene, folder: Path, name: str, max_faces: int):
        self._scene, self._name, self._left = scene, name, max_faces
        self._builder = GltfBuilder(f"latentkiln, from {scene.source}"[:200])
        self._materials = MaterialWriter(self._builder, scene, folder, Path(name).stem)
        self._written: dict[int, int] = {}
        self._meshes: dict[tuple[int, tuple[int, ...]], int | None] = {}
        self._cut: dict[int, Triangles] = {}
        # Nodes with a shear have a second node, which holds the mesh and the children.
        self._inner: dict[int, int] = {}
        # Where the mesh of a node went, if it is skinned.
        self._skinned: dict[int, int] = {}
        self.losses = list(scene.losses)

    def write(self) -> tuple[Object, bytes]:
        """The document and its buffer. Raises MeshError."""
        builder, nodes = self._builder, self._scene.nodes
        for number, node in enumerate(nodes):
            item: Object = {"name": node.name} if node.name else {}
            if node.extras:
                item["extras"] = node.extras
            builder.add("nodes", item)
            assert len(builder.json["nodes"]) == number + 1
        for number, node in enumerate(nodes):
            self._place(number, node)
        for number, node in enumerate(nodes):
            if node.parent is not None:
                self._holder(node.parent).setdefault("children", []).append(number)
        for number, node in enumerate(nodes):
            self._fill(number, node)
        roots = [number for number, node in enumerate(nodes) if node.parent is None] + list(self._skinned.values())
        builder.json |= {"scene": 0, "scenes": [{"nodes": roots} if roots else {}]}
        for animation in self._scene.animations:
            self._animate(animation)
        self.losses += self._materials.losses
        self.losses = list(dict.fromkeys(self.losses))
        return builder.finish()

    def _holder(self, number: int) -> Object:
        item: Object = self._builder.json["nodes"][self._inner.get(number, number)]
        return item

    # -- nodes ----------------------------------------------------------------------------------------------------

    def _place(self, number: int, node: SceneNode) -> None:
        item: Object = self._builder.json["nodes"][number]
        parts = [node.translation, node.rotation, node.scale]
        if node.matrix is not None:
            translation, rotation, scale, inner = decomposed(node.matrix)
            parts = [translation, rotation, scale]
            if inner is not None:
                self._inner[number] = self._builder.add("nodes", {"name": f"{node.name} (shear)", "rotation": inner})
                item.setdefault("children", []).append(self._inner[number])
        if not np.isfinite([*parts[0], *parts[1], *parts[2]]).all():
            raise MeshError(f"{self._name}: a node's transform is NaN or infinite; export the file again")
        rotation = unit_quaternion(parts[1])
        for key, value, rest in (
            ("translation", parts[0], [0.0] * 3), ("rotation", rotation, [0.0, 0.0, 0.0, 1.0]),
            ("scale", parts[2], [1.0] * 3),
        ):  # fmt: skip
            if list(value) != rest:
                item[key] = [float(x) for x in value]

    def _fill(self, number: int, node: SceneNode) -> None:
        item = self._holder(number)
        if node.mesh is not None and (mesh := self._mesh(node.mesh, tuple(node.materials))) is not None:
            item["mesh"] = mesh
            skin, weights = self._scene.meshes[node.mesh].skin, self._cut[node.mesh].weights
            if skin is not None and weights is not None:
                # Only its joints move a skinned mesh, so it stands at the top, as glTF recommends.
                own = self._inner.get(number, number) if weights.own_node else None
                entry = {"mesh": item.pop("mesh"), "skin": self._skin(skin, own)}
                self._skinned[number] = self._builder.add("nodes", {"name": f"{node.name} (skinned)"} | entry)
        if node.camera is not None:
            item["camera"] = self._camera(node.camera)
        if node.light is not None:
            self._light(node.light, item)

    def _camera(self, camera: Object) -> int:
        near, far = max(float(camera["near"]), 1e-4), float(camera["far"])
        far = far if far > near else near * 1e5
        entry: Object = {"name": camera["name"]} if camera.get("name") else {}
        if "half_size" in camera:
            half = [max(abs(float(value)), 1e-6) for value in camera["half_size"]]
            lens: Object = {"xmag": half[0], "ymag": half[1], "znear": near, "zfar": far}
            return self._builder.add("cameras", entry | {"type": "orthographic", "orthographic": lens})
        lens = {"yfov": min(max(float(camera["fov_y"]), 1e-3), 3.1), "znear": near, "zfar": far}
        if float(camera.get("aspect") or 0) > 0:
            lens["aspectRatio"] = float(camera["aspect"])
        return self._builder.add("cameras", entry | {"type": "perspective", "perspective": lens})

    def _light(self, light: Object, item: Object) -> None:
        entry: Object = {"type": light["type"], "color": [min(max(float(c), 0.0), 1.0) for c in light["color"]]}
        entry["intensity"] = max(float(light["intensity"]), 0.0)
        if light.get("name"):
            entry["name"] = light["name"]
        if light["type"] == "spot":
            outer = min(max(float(light["outer"]), 1e-3), float(np.pi / 2))
            entry["spot"] = {"outerConeAngle": outer}
            entry["spot"]["innerConeAngle"] = min(max(float(light["inner"]), 0.0), 0.999 * outer)
        self._builder.use_extension(_LIGHTS)
        lights = self._builder.json.setdefault("extensions", {}).setdefault(_LIGHTS, {"lights": []})["lights"]
        lights.append(entry)
        item.setdefault("extensions", {})[_LIGHTS] = {"light": len(lights) - 1}

    # -- meshes ---------------------------------------------------------------------------------------------------

    def _mesh(self, number: int, materials: tuple[int, ...]) -> int | None:
        """The document's mesh for a mesh of the scene with these materials in place of its own, if any."""
        source = self._scene.meshes[number]
        own = tuple(source.materials)
        # An instance with fewer materials than the mesh has slots keeps the mesh's own.
        materials = materials if len(materials) >= len(own) else own
        if (number, materials) in self._meshes:
            return self._meshes[number, materials]
        if number not in self._cut:
            cut = self._cut[number] = triangles_of(source, self._name, self._left)
            self._left -= len(cut.corners)
            self.losses += cut.losses
            if len(source.materials) < len(materials):
                source.materials = list(materials)
                of_corner = np.repeat(source.face_material, source.counts)
                cut.material = of_corner[cut.corners[:, 0]] if len(cut.corners) else cut.material
        cut = self._cut[number]
        if not len(cut.corners):
            self._meshes[number, materials] = None
            return None
        used = set(np.unique(cut.material).tolist())
        numbers = [self._material(m) if slot in used else None for slot, m in enumerate(materials)]
        primitives, slots = primitives_of(self._builder, cut, numbers)
        for primitive, slot in zip(primitives, slots, strict=True):
            if subsets := source.extras.get("subsets"):
                primitive["extras"] = {"usd": subsets[slot] if slot >= 0 else ""}
        mesh: Object = {"primitives": primitives} | ({"name": source.name} if source.name else {})
        extras = {key: value for key, value in source.extras.items() if key != "subsets"}
        if source.shapes:
            mesh["weights"] = [float(np.nan_to_num(shape.weight)) for shape in source.shapes]
            extras["targetNames"] = [shape.name for shape in source.shapes]
        if any(layer.name for layer in source.uvs):
            extras["uvSets"] = [layer.name for layer in source.uvs]
        if extras:
            mesh["extras"] = extras
        found = self._meshes[number, materials] = self._builder.add("meshes", mesh)
        return found

    def _material(self, number: int) -> int | None:
        if not 0 <= number < len(self._scene.materials):
            return None
        if number not in self._written:
            self._written[number] = self._materials.write(number)
        return self._written[number]

    def _skin(self, skin: Skin, own_node: int | None) -> int:
        """Adds a skin; vertices without a joint follow the mesh's own node ``own_node``, as a last joint."""
        joints = [self._inner.get(joint, joint) for joint in skin.joints]
        matrices = skin.inverse_bind
        if own_node is not None:
            joints = [*joints, own_node]
            matrices = np.concatenate([matrices, np.eye(4)[None]])
        matrices = matrices.copy()
        matrices[:, 3] = (0.0, 0.0, 0.0, 1.0)
        columns = matrices.transpose(0, 2, 1).reshape(-1, 16)
        if not np.isfinite(columns).all():
            raise MeshError(f"{self._name}: a bind matrix is NaN or infinite; export the file again")
        accessor = self._builder.accessor(columns, "f4", "MAT4")
        return self._builder.add("skins", {"joints": joints, "inverseBindMatrices": accessor})

    # -- animation ------------------------------------------------------------------------------------------------

    def _animate(self, animation: Animation) -> None:
        channels = [channel for channel in animation.channels if _usable(channel)]
        if sum(channel.values.size for channel in channels) > _MOST_KEYS:
            self.losses.append(f"the animation {animation.name[:40]!r}, which has too many keys")
            return
        # glTF's times begin at 0 or later.
        shift = min([0.0, *(float(channel.times[0]) for channel in channels)])
        samplers: list[Object] = []
        entries: list[Object] = []

        def add(node: int, path: str, times: Float64Array, values: NDArray[np.floating], kind: str) -> None:
            time = self._builder.keys(times - shift, "SCALAR", bounds=True)
            samplers.append({"input": time, "output": self._builder.keys(values, kind)})
            entries.append({"sampler": len(samplers) - 1, "target": {"node": node, "path": path}})

        for channel in channels:
            if channel.path in ("translation", "scale"):
                add(channel.node, channel.path, channel.times, channel.values, "VEC3")
            elif channel.path == "rotation":
                add(channel.node, "rotation", channel.times, continuous(channel.values), "VEC4")
        by_element = {channel.element: channel for channel in channels if channel.path == "weights"}
        for number, node in enumerate(self._scene.nodes):
            shapes = self._scene.meshes[node.mesh].shapes if node.mesh is not None else []
            moving = [by_element.get(shape.element) for shape in shapes]
            keyed = [channel.times for channel in moving if channel is not None]
            holder = self._skinned.get(number, self._inner.get(number, number))
            if not keyed or "mesh" not in self._builder.json["nodes"][holder]:
                continue
            times = np.unique(np.concatenate(keyed).astype(np.float32)).astype(np.float64)
            weights = [
                np.full(len(times), shape.weight)
                if channel is None
                else np.interp(times, channel.times, channel.values[:, 0])
                for shape, channel in zip(shapes, moving, strict=True)
            ]
            add(holder, "weights", times, np.stack(weights, axis=1).reshape(-1), "SCALAR")
        if entries:
            item: Object = {"channels": entries, "samplers": samplers}
            self._builder.add("animations", item | ({"name": animation.name} if animation.name else {}))


def _usable(channel: Channel) -> bool:
    """Tells whether a channel's keys are finite and in order, and drops keys at the same float32 time."""
    columns = {"translation": 3, "scale": 3, "rotation": 4, "weights": 1}.get(channel.path, 0)
    values = channel.values
    if values.ndim != 2 or values.shape[1] != columns or not len(values) or len(values) != len(channel.times):
        return False
    if not (np.isfinite(values).all() and np.isfinite(channel.times).all()):
        return False
    times, first = np.unique(channel.times.astype(np.float32), return_index=True)
    channel.times, channel.values = times.astype(np.float64), values[first]
    return True


def continuous(quaternions: Float64Array) -> Float64Array:
    """Unit quaternions (K, 4), each of the sign that is nearer to the one before it."""
    length = np.linalg.norm(quaternions, axis=1, keepdims=True)
    unit = np.where(length > 1e-12, quaternions / np.maximum(length, 1e-12), [0.0, 0.0, 0.0, 1.0])
    turned = np.concatenate([[False], (unit[1:] * unit[:-1]).sum(axis=1) < 0])
    return np.where((np.cumsum(turned) % 2 == 1)[:, None], -unit, unit)


def unit_quaternion(values: list[float]) -> list[float]:
    """``values`` (x, y, z, w) at length 1; no rotation if they have none."""
    length = float(np.linalg.norm(values))
    return [float(value) / length for value in values] if length > 1e-12 else [0.0, 0.0, 0.0, 1.0]


def quaternion_of(rotation: Float64Array) -> list[float]:
    """(x, y, z, w) of a (3, 3) rotation matrix."""
    from scipy.spatial.transform import Rotation

    return [float(value) for value in Rotation.from_matrix(rotation).as_quat()]


def decomposed(matrix: Float64Array) -> tuple[list[float], list[float], list[float], list[float] | None]:
    """Translation, rotation and scale of (4, 4) ``matrix``, and the rotation of an inner node if it has a shear.

    Every linear map is a rotation, a scale along the axes and another rotation (singular values), so two nodes hold it.
    """
    translation = [float(value) for value in matrix[:3, 3]]
    linear = matrix[:3, :3]
    if not np.isfinite(matrix).all():
        return [float("nan")] * 3, [0.0, 0.0, 0.0, 1.0], [1.0] * 3, None
    scale = np.linalg.norm(linear, axis=0)
    if scale.min() > 0:
        if np.linalg.det(linear) < 0:
            scale = scale * [-1.0, 1.0, 1.0]
        rotation = linear / scale
        if np.abs(rotation.T @ rotation - np.eye(3)).max() < _SHEAR:
            return translation, quaternion_of(rotation), scale.tolist(), None
    outer, scale, inner = np.linalg.svd(linear)
    for side in (outer, inner):
        if np.linalg.det(side) < 0:
            scale = scale * [1.0, 1.0, -1.0]
            if side is outer:
                side[:, 2] *= -1
            else:
                side[2] *= -1
    return translation, quaternion_of(outer), scale.tolist(), quaternion_of(inner)
