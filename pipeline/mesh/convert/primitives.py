"""Turns a mesh of polygons with layers per corner into glTF primitives: one per material, with shared vertices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Float64Array
from pipeline.core.errors import MeshError
from pipeline.mesh.convert.gltf_builder import GltfBuilder, Object
from pipeline.mesh.convert.scene import Ints, Layer, SceneMesh
from pipeline.mesh.readers.polygons import triangulate

# Joints that move one vertex: two sets of four.
_MOST_JOINTS = 8
_MOST_LAYERS = 8
# Vertices that the morph targets of a mesh move, all together: 800 MB.
_MOST_MORPHED = 1 << 26


@dataclass
class Weights:
    """(P, 4 or 8) joints and weights of a mesh's vertices, and whether some follow the mesh's own node."""

    joints: Ints
    weights: Float64Array
    own_node: bool


@dataclass
class Triangles:
    """A mesh cut into triangles: (F, 3) corners and the material of each, -1 for none."""

    mesh: SceneMesh
    corners: Ints
    material: Ints
    weights: Weights | None
    losses: list[str]


def triangles_of(mesh: SceneMesh, name: str, max_faces: int) -> Triangles:
    """Checks and triangulates ``mesh``. Raises MeshError."""
    losses: list[str] = []
    if not (np.isfinite(mesh.positions).all() and (np.abs(mesh.positions) < 1e30).all()):
        raise MeshError(f"{name}: a vertex of the mesh {mesh.name[:40]!r} is NaN or infinite; export the file again")
    if len(mesh.corners) != mesh.counts.sum() or len(mesh.face_material) != len(mesh.counts):
        raise MeshError(f"{name}: its contents contradict each other: damaged; export the file again")
    layers = [*([mesh.normals] if mesh.normals else []), *mesh.uvs, *mesh.colours]
    broken = [layer for layer in layers if not _sound(layer, len(mesh.corners))]
    if broken:
        losses.append(f"damaged layers of the mesh {mesh.name[:40]!r}")
        mesh.normals = None if mesh.normals in broken else mesh.normals
        mesh.uvs = [layer for layer in mesh.uvs if layer not in broken]
        mesh.colours = [layer for layer in mesh.colours if layer not in broken]
    for label, kept in (("UV sets", mesh.uvs), ("colour sets", mesh.colours)):
        if len(kept) > _MOST_LAYERS:
            losses.append(f"{len(kept) - _MOST_LAYERS} {label} of the mesh {mesh.name[:40]!r}")
            del kept[_MOST_LAYERS:]
    cut, warnings = triangulate(mesh.positions, mesh.corners, mesh.counts, name=name, max_faces=max_faces)
    polygon = np.repeat(np.arange(len(mesh.counts)), mesh.counts)
    material = mesh.face_material[polygon[cut[:, 0]]] if len(cut) else np.empty(0, np.int64)
    material = np.where(material < len(mesh.materials), material, -1)
    weights = _weights(mesh, losses)
    return Triangles(mesh, cut, material, weights, losses + warnings)


def _sound(layer: Layer, corners: int) -> bool:
    inside = len(layer.corners) == corners and (
        not corners or bool(layer.corners.min() >= 0 and layer.corners.max() < len(layer.values))
    )
    return inside and len(layer.values) > 0 and bool(np.isfinite(layer.values).all())


def _weights(mesh: SceneMesh, losses: list[str]) -> Weights | None:
    skin = mesh.skin
    count = len(mesh.positions)
    if skin is None or not count:
        return None
    good = (skin.vertex >= 0) & (skin.vertex < count) & (skin.joint >= 0) & (skin.joint < len(skin.joints))
    good &= np.isfinite(skin.weight) & (skin.weight > 0)
    vertex, joint, weight = skin.vertex[good], skin.joint[good], skin.weight[good]
    order = np.lexsort((joint, -weight, vertex))
    vertex, joint, weight = vertex[order], joint[order], weight[order]
    per_vertex = np.bincount(vertex, minlength=count)
    rank = np.arange(len(vertex)) - (np.cumsum(per_vertex) - per_vertex)[vertex]
    most = int(per_vertex.max(initial=0))
    if most > _MOST_JOINTS:
        losses.append(f"joints of a vertex beyond the {_MOST_JOINTS} heaviest ({most} in the mesh {mesh.name[:40]!r})")
    columns = 4 if most <= 4 else _MOST_JOINTS
    keep = rank < columns
    joints, weights = np.zeros((count, columns), np.int64), np.zeros((count, columns))
    joints[vertex[keep], rank[keep]] = joint[keep]
    weights[vertex[keep], rank[keep]] = weight[keep]
    free = weights.sum(axis=1) <= 0
    joints[free, 0], weights[free, 0] = len(skin.joints), 1.0
    weights /= weights.sum(axis=1, keepdims=True)
    return Weights(joints, weights, bool(free.any()))


def primitives_of(
    builder: GltfBuilder, triangles: Triangles, material_numbers: list[int | None]
) -> tuple[list[Object], list[int]]:
    """Adds the vertex data. Returns the primitives and, for each, its place in the mesh's materials (-1: none).

    material_numbers  the glTF material for each of the mesh's materials.
    """
    primitives, slots = [], []
    for slot in np.unique(triangles.material):
        corners = triangles.corners[triangles.material == slot].reshape(-1)
        primitive = _primitive(builder, triangles, corners)
        number = material_numbers[slot] if slot >= 0 else None
        if number is not None:
            primitive["material"] = number
        primitives.append(primitive)
        slots.append(int(slot))
    return primitives, slots


def _primitive(builder: GltfBuilder, triangles: Triangles, corners: Ints) -> Object:
    mesh = triangles.mesh
    layers = [*([mesh.normals] if mesh.normals else []), *mesh.uvs, *mesh.colours]
    values = [_same_values(layer)[layer.corners[corners]] for layer in layers]
    first, index = _shared_vertices([mesh.corners[corners], *values])
    rows = corners[first]
    vertex = mesh.corners[rows]
    faces = index.reshape(-1, 3)
    positions = mesh.positions[vertex].astype(np.float32)
    attributes: Object = {"POSITION": builder.accessor(positions, "f4", "VEC3", bounds=True)}
    if mesh.normals:
        normals = _unit_normals(mesh.normals.values[mesh.normals.corners[rows]], positions, faces)
        attributes["NORMAL"] = builder.accessor(normals, "f4", "VEC3")
    for number, layer in enumerate(mesh.uvs):
        uv = layer.values[layer.corners[rows], :2].astype(np.float64)
        uv[:, 1] = 1.0 - uv[:, 1]
        attributes[f"TEXCOORD_{number}"] = builder.accessor(uv, "f4", "VEC2")
    for number, layer in enumerate(mesh.colours):
        colours = np.clip(layer.values[layer.corners[rows]], 0.0, 1.0)
        attributes[f"COLOR_{number}"] = builder.accessor(colours, "f4", f"VEC{colours.shape[1]}")
    if triangles.weights is not None:
        wide = triangles.weights.joints.max(initial=0) > 255
        for number in range(triangles.weights.joints.shape[1] // 4):
            block = slice(4 * number, 4 * number + 4)
            joints = triangles.weights.joints[vertex, block]
            attributes[f"JOINTS_{number}"] = builder.accessor(joints, "u2" if wide else "u1", "VEC4")
            attributes[f"WEIGHTS_{number}"] = builder.accessor(triangles.weights.weights[vertex, block], "f4", "VEC4")
    primitive: Object = {"attributes": attributes, "indices": builder.indices(faces, len(rows))}
    if targets := [_target(builder, mesh, shape, vertex) for shape in range(len(mesh.shapes))]:
        primitive["targets"] = targets
    return primitive


def _target(builder: GltfBuilder, mesh: SceneMesh, number: int, vertex: Ints) -> Object:
    shape = mesh.shapes[number]
    if (number + 1) * len(vertex) > _MOST_MORPHED:
        raise MeshError("its shapes move too many vertices")
    good = (shape.vertex >= 0) & (shape.vertex < len(mesh.positions))
    target: Object = {}
    for attribute, offsets in (("POSITION", shape.offsets), ("NORMAL", shape.normal_offsets)):
        if offsets is None or len(offsets) != len(shape.vertex) or (attribute == "NORMAL" and not mesh.normals):
            continue
        moved = np.zeros((len(mesh.positions), 3))
        moved[shape.vertex[good]] = np.nan_to_num(offsets[good], posinf=0.0, neginf=0.0)
        target[attribute] = builder.accessor(moved[vertex], "f4", "VEC3", bounds=attribute == "POSITION")
    return target


def _same_values(layer: Layer) -> Ints:
    """(n,) the first row with the same float32 values as each row, so that equal corners become one vertex."""
    rows = np.ascontiguousarray(layer.values, np.float32) + np.float32(0)  # no negative zeros
    _, first, inverse = np.unique(
        rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1),
        return_index=True,
        return_inverse=True,
    )
    return np.asarray(first[inverse], np.int64)


def _shared_vertices(columns: list[Ints]) -> tuple[Ints, Ints]:
    """(first place of each distinct row of the columns, in order of appearance; number of each row)."""
    key = columns[0]
    for column in columns[1:]:
        _, key = np.unique(key, return_inverse=True)
        key = key.reshape(-1) * (int(column.max(initial=0)) + 1) + column
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return np.asarray(first[order], np.int64), rank[inverse.reshape(-1)]


def _unit_normals(normals: Float64Array, positions: NDArray[np.float32], faces: Ints) -> Float64Array:
    """``normals`` (V, 3) of length 1; where one has no length, the mean direction of the vertex's triangles."""
    length = np.linalg.norm(normals, axis=1)
    lost = length < 1e-8
    if lost.any():
        corner = positions.astype(np.float64)[faces]
        face = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        mean = np.zeros_like(normals)
        for column in range(3):
            np.add.at(mean, faces[:, column], face)
        normals = np.where(lost[:, None], mean, normals)
        length = np.linalg.norm(normals, axis=1)
        normals[length < 1e-30] = (0.0, 1.0, 0.0)
        length = np.linalg.norm(normals, axis=1)
    unit: Float64Array = normals / length[:, None]
    return unit
