"""The node tree of a glTF file: the nodes of its default scene, and their world transforms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.readers.gltf_file import Object
from pipeline.mesh.readers.gltf_json import GltfJson

# Ten times the size of large assemblies. These limits bound time and memory for an untrusted file.
MAX_NODES = 200_000
MAX_DEPTH = 2_000


class Nodes:
    """``shown``: (index, node, world matrix (4, 4)) of the default scene's nodes, depth first; of all nodes if the file
    has no scene. Raises MeshError if the nodes form no tree, or one that is too large or too deep."""

    def __init__(self, json: GltfJson):
        self.json = json
        self._nodes = json.array(json.document, "nodes", "its JSON")
        if len(self._nodes) > MAX_NODES:
            raise json.error(
                f"it has {len(self._nodes)} nodes, more than can be read ({MAX_NODES}): join parts before exporting it"
            )
        self._worlds: dict[int, NDArray[np.float64]] = {}
        self._parents: dict[int, int] | None = None
        self.shown: list[tuple[int, Object, NDArray[np.float64]]] = []
        self._walk()

    def world(self, index: int) -> NDArray[np.float64]:
        """(4, 4) world matrix of node ``index``, also outside the scene. Raises MeshError."""
        line = []
        while index not in self._worlds:
            line.append(index)
            if len(line) > MAX_DEPTH:
                raise self._too_deep(index)
            parent = self._parent_of_each().get(index)
            if parent is None:
                break
            index = parent
        world = self._worlds.get(index, np.eye(4))
        for node in reversed(line):
            world = self._worlds[node] = self._placed(node, world)
        return world

    def ancestors(self, index: int) -> list[int]:
        """Node ``index`` and the nodes above it. Raises MeshError if they are too many."""
        line = [index]
        while (parent := self._parent_of_each().get(line[-1])) is not None:
            line.append(parent)
            if len(line) > MAX_DEPTH:
                raise self._too_deep(index)
        return line

    def _walk(self) -> None:
        scenes = self.json.array(self.json.document, "scenes", "its JSON")
        if scenes:
            scene = self.json.item("scenes", self.json.document.get("scene", 0), "scene")
            roots = self.json.array(scene, "nodes", "its scene")
        else:
            parents = self._parent_of_each()
            roots = [i for i in range(len(self._nodes)) if i not in parents]
        stack = [(root, np.eye(4), 1) for root in reversed(roots)]
        while stack:
            index, parent, depth = stack.pop()
            node = self.json.item("nodes", index, "node")
            if index in self._worlds:
                raise self.json.error(f"node {index} has two parents or is its own ancestor")
            if depth > MAX_DEPTH:
                raise self._too_deep(index)
            world = self._worlds[index] = self._placed(index, parent)
            self.shown.append((index, node, world))
            children = self.json.array(node, "children", f"node {index}")
            if len(stack) + len(children) > MAX_NODES:
                raise self.json.error("its nodes name more children than there are nodes")
            stack += [(child, world, depth + 1) for child in reversed(children)]

    def _parent_of_each(self) -> dict[int, int]:
        """Maps each child to its parent. Ignores invalid children, which the visit of their parent reports."""
        if self._parents is None:
            self._parents = {}
            for index, node in enumerate(self._nodes):
                if isinstance(node, dict):
                    for child in self.json.array(node, "children", f"node {index}"):
                        if isinstance(child, int):
                            self._parents.setdefault(child, index)
        return self._parents

    def _placed(self, index: int, parent: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            world = parent @ self._local(self.json.item("nodes", index, "node"), f"node {index}")
        if not np.isfinite(world).all():
            raise self.json.error(f"the transform of node {index} is not finite")
        return world

    def _local(self, node: Object, where: str) -> NDArray[np.float64]:
        if "matrix" in node:
            return self.json.numbers(node, "matrix", np.eye(4).reshape(-1).tolist(), where).reshape(4, 4).T
        matrix = np.eye(4)
        if node.get("rotation") is not None:
            matrix[:3, :3] = rotation_matrix(self.json.numbers(node, "rotation", (0, 0, 0, 1), where))
        matrix[:3, :3] *= self.json.numbers(node, "scale", (1, 1, 1), where)
        matrix[:3, 3] = self.json.numbers(node, "translation", (0, 0, 0), where)
        return matrix

    def _too_deep(self, index: object) -> Exception:
        return self.json.error(f"node {index} lies more than {MAX_DEPTH} levels deep")


def rotation_matrix(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) of a quaternion (x, y, z, w) of any length."""
    x, y, z, w = (float(v) for v in quaternion)
    length = (x * x + y * y + z * z + w * w) ** 0.5
    if length > 0:
        x, y, z, w = x / length, y / length, z / length, w / length
    else:
        w = 1.0
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
