"""Reads OBJ with its MTL files: one node for each object and group, one material for each ``usemtl``."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pipeline.core.arrays import Float64Array
from pipeline.core.errors import MeshError
from pipeline.mesh.convert.mtl import MtlMaterial, MtlTexture, material_files, read_mtl
from pipeline.mesh.convert.scene import (
    Ints,
    Layer,
    Scene,
    SceneImage,
    SceneMaterial,
    SceneMesh,
    SceneNode,
    TextureRef,
)
from pipeline.mesh.readers.obj import (
    ObjText,
    coordinate_table,
    corner_indices,
    normal_table,
    position_table,
    split_statements,
)

_MOST_NODES = 100_000


def read_obj_scene(data: bytes, path: Path) -> Scene:
    """Reads the OBJ at ``path`` from its bytes, and its MTL files in the same folder. Raises MeshError."""
    name = path.name
    text = split_statements(data, name)
    if not text.faces:
        kinds = text.left_out_kinds
        raise MeshError(f"{name}: it has no faces{f', only {kinds}' if kinds else ''}: export it as polygons")
    scene = Scene(source="OBJ")
    if text.left_out:
        scene.losses.append(text.left_out_kinds)
    corners, counts = corner_indices(text, name)
    positions = position_table(text, name)
    if len(corners) and not (corners[:, 0].min() >= 0 and corners[:, 0].max() < len(positions)):
        wrong = int(corners[:, 0].max()) + 1
        raise MeshError(
            f"{name}: a face names vertex {wrong}, but there are {len(positions)}: the index is out of range"
        )
    part_of_face, names, material_of_face, material_names = _states(text, len(counts), name)
    _read_materials(scene, text, path.parent, material_names)
    layers = _Layers(text, corners, counts, positions, name, scene.losses)
    meshes: dict[tuple[str, str], int] = {}
    for part, key in enumerate(names):
        meshes[key] = len(scene.meshes)
        mesh = layers.mesh(np.flatnonzero(part_of_face == part), material_of_face, len(material_names))
        mesh.name = key[1] or key[0] or path.stem
        scene.meshes.append(mesh)
    _add_nodes(scene, meshes, path.stem)
    return scene


def _states(text: ObjText, faces: int, name: str) -> tuple[Ints, list[tuple[str, str]], Ints, list[str]]:
    """(part of each face, (object, group) of each part, material of each face, names of materials); -1: no material."""
    parts: dict[tuple[str, str], int] = {}
    materials: dict[str, int] = {}
    part_of_face, material_of_face = np.zeros(faces, np.int64), np.full(faces, -1, np.int64)
    entity, group, material, begin = "", "", -1, 0
    for at, statement, argument in [*text.states, (faces, b"", b"")]:
        if at > begin:
            part_of_face[begin:at] = parts.setdefault((entity, group), len(parts))
            material_of_face[begin:at] = material
            begin = at
        value = argument.decode("utf-8", "replace")
        if statement == b"o":
            # A new object begins without a group.
            entity, group = value, ""
        elif statement == b"g":
            group = "" if value == "default" else value
        elif statement == b"usemtl":
            material = materials.setdefault(value, len(materials))
    if len(parts) > _MOST_NODES:
        raise MeshError(f"{name}: it has {len(parts)} groups, more than {_MOST_NODES}; join them before exporting it")
    return part_of_face, list(parts), material_of_face, list(materials)


class _Layers:
    """The arrays of an OBJ, from which each part takes its own."""

    def __init__(
        self, text: ObjText, corners: Ints, counts: Ints, positions: Float64Array, name: str, losses: list[str]
    ):
        self.corners, self.counts, self.positions = corners, counts, positions
        self.starts = np.cumsum(counts) - counts
        self.uv = coordinate_table(text, corners, name, losses)
        self.normals = normal_table(text, corners, name, losses)
        self.colours: Float64Array | None = None
        if len(text.points[0].split()) >= 6:
            self.colours = position_table(text, name, 6)[:, 3:]

    def mesh(self, faces: Ints, material_of_face: Ints, materials: int) -> SceneMesh:
        """The mesh of these faces."""
        counts = self.counts[faces]
        rows = np.repeat(self.starts[faces] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        corners = self.corners[rows]
        used, vertex = np.unique(corners[:, 0], return_inverse=True)
        mesh = SceneMesh(
            "", self.positions[used], vertex.reshape(-1).astype(np.int64), counts, material_of_face[faces],
            list(range(materials)),
        )  # fmt: skip
        if (layer := _layer(self.uv, corners[:, 1])) is not None:
            mesh.uvs.append(layer)
        mesh.normals = _layer(self.normals, corners[:, 2])
        if self.colours is not None:
            mesh.colours.append(Layer("", self.colours[used], mesh.corners))
        return mesh


def _layer(values: Float64Array | None, index: Ints) -> Layer | None:
    """The values at corners; 0 where a corner has none. None if no corner has one."""
    if values is None or not (index >= 0).any():
        return None
    own, place = np.unique(index, return_inverse=True)
    inside = (own >= 0) & (own < len(values))
    table = np.where(inside[:, None], values[np.where(inside, own, 0)], 0.0)
    return Layer("", np.where(np.isfinite(table), table, 0.0), place.reshape(-1).astype(np.int64))


def _add_nodes(scene: Scene, meshes: dict[tuple[str, str], int], stem: str) -> None:
    """A node for each object, with its groups as children if it has more than one; groups without object at the top."""
    groups: dict[str, int] = {}
    for entity, _ in meshes:
        groups[entity] = groups.get(entity, 0) + 1
    entities: dict[str, int] = {}
    for (entity, group), mesh in meshes.items():
        if entity and groups[entity] > 1:
            if entity not in entities:
                entities[entity] = len(scene.nodes)
                scene.nodes.append(SceneNode(entity))
            if not group:
                scene.nodes[entities[entity]].mesh = mesh
            else:
                scene.nodes.append(SceneNode(group, parent=entities[entity], mesh=mesh))
        else:
            scene.nodes.append(SceneNode(entity or group or stem, mesh=mesh))


def _read_materials(scene: Scene, text: ObjText, folder: Path, names: list[str]) -> None:
    libraries = [argument.decode("utf-8", "replace") for _, kind, argument in text.states if kind == b"mtllib"]
    files = material_files(libraries, folder)
    if libraries and not files:
        scene.losses.append(f"the materials of {libraries[0][:60]!r}, which is not in the file's folder")
    known: dict[str, MtlMaterial] = {}
    for file in files:
        try:
            for material in read_mtl(file):
                known.setdefault(material.name, material)
        except OSError as error:
            scene.losses.append(f"the materials of {file.name!r}, which cannot be read ({error.strerror or error})")
    for name in names:
        scene.materials.append(_material(scene, known[name]) if name in known else SceneMaterial(name))


def _material(scene: Scene, source: MtlMaterial) -> SceneMaterial:
    """The material of an MTL. A shininess becomes the roughness of the Blinn-Phong lobe of like width."""
    numbers = source.numbers
    material = SceneMaterial(source.name)
    shininess = numbers.get("ns", [0.0])[0]
    material.roughness = numbers.get("pr", [math.sqrt(2.0 / (max(shininess, 0.0) + 2.0))])[0]
    material.metallic = numbers.get("pm", [0.0])[0]
    material.base_colour = _colour(numbers.get("kd"), 0.8)
    material.emissive = _colour(numbers.get("ke"), 0.0)
    material.alpha = numbers["d"][0] if "d" in numbers else 1.0 - numbers.get("tr", [0.0])[0]
    for slot, texture in source.textures.items():
        if slot == "bump":
            # Many programs write a normal map as a bump map.
            if "norm" not in texture.file.lower() and "nrm" not in texture.file.lower():
                scene.losses.append(f"the bump map of the material {source.name[:40]!r}")
                continue
            slot = "normal"
        material.textures.setdefault(slot, _texture(scene, texture))
    scene.losses += source.lost
    if "base_colour" in material.textures:
        material.base_colour = [1.0] * 3
    if "emissive" in material.textures:
        material.emissive = [1.0] * 3
    for slot, attribute in (("metallic", "metallic"), ("roughness", "roughness")):
        if slot in material.textures:
            setattr(material, attribute, 1.0)
    return material


def _colour(values: list[float] | None, missing: float) -> list[float]:
    """A colour; one number stands for all three, as the format has it."""
    if not values:
        return [missing] * 3
    return values[:3] if len(values) >= 3 else [values[0]] * 3


def _texture(scene: Scene, texture: MtlTexture) -> TextureRef:
    image = next((n for n, known in enumerate(scene.images) if known.files == [texture.file]), len(scene.images))
    if image == len(scene.images):
        name = texture.file.replace("\\", "/").rsplit("/", 1)[-1]
        scene.images.append(SceneImage(name, files=[texture.file]))
    transform = None
    if texture.scale != (1.0, 1.0) or texture.offset != (0.0, 0.0):
        transform = np.array([[texture.scale[0], 0.0, texture.offset[0]], [0.0, texture.scale[1], texture.offset[1]]])
    return TextureRef(image, clamp=(texture.clamp, texture.clamp), transform=transform)
