"""Child process that reads DAE, 3DS or FBX by assimp. Run by path; imports nothing of this project.

See ``child_scene.py``. The file is copied into the child's own folder, so nothing that it names is found.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

_shared = runpy.run_path(str(Path(__file__).with_name("child_scene.py")))

import assimp_py  # noqa: E402
import numpy as np  # noqa: E402

Json = dict[str, Any]
# Numbers of assimp's kinds of textures (material.h), by our slot.
_SLOTS = {
    "base_colour": (1, 12), "emissive": (4, 14), "normal": (6, 13), "opacity": (8,), "metallic": (15,),
    "roughness": (16,), "occlusion": (17, 10),
}  # fmt: skip
_KEPT = {kind for kinds in _SLOTS.values() for kind in kinds}


class Reader:
    """Copies a scene of assimp into plain numbers."""

    def __init__(self, scene: assimp_py.Scene):
        self.scene = scene
        self.out = _shared["SceneWriter"]()
        self.losses: list[str] = []
        self.images: list[Json] = []
        self.nodes: list[Json] = []
        self.meshes: list[Json] = []

    def read(self) -> Json:
        """The scene as JSON."""
        materials = [self.material(material) for material in self.scene.materials]
        parts = [self.part(mesh) for mesh in self.scene.meshes]
        # Without recursion: the depth of an untrusted tree has no limit.
        stack: list[tuple[assimp_py.Node, int | None]] = [(self.scene.root_node, None)]
        while stack:
            node, parent = stack.pop()
            number = len(self.nodes)
            self.nodes.append({
                "name": node.name, "parent": parent,
                "matrix": np.array(node.transformation, np.float64).reshape(-1).tolist(), "mesh": None,
            })  # fmt: skip
            meshes = [parts[index] for index in node.mesh_indices if parts[index] is not None]
            for position, mesh in enumerate(meshes):
                if position == 0:
                    self.nodes[number]["mesh"] = mesh
                else:
                    self.nodes.append({"name": self.meshes[mesh]["name"], "parent": number, "mesh": mesh})
            stack += [(child, number) for child in reversed(node.children)]
        return {
            "nodes": self.nodes, "meshes": self.meshes, "materials": materials, "images": self.images,
            "animations": [], "losses": self.losses, "source": "assimp",
        }  # fmt: skip

    def part(self, mesh: assimp_py.Mesh) -> int | None:
        """The number of a mesh; None for points and lines."""
        positions = np.array(mesh.vertices, np.float64).reshape(-1, 3)
        corners = np.array(mesh.indices, np.int64).reshape(-1)
        if mesh.num_faces * 3 != len(corners) or not len(corners):
            self.losses.append("points and lines")
            return None
        layers = [np.array(values, np.float64).reshape(len(positions), -1) for values in mesh.texcoords or ()]
        colours = [np.array(values, np.float64).reshape(len(positions), -1) for values in mesh.colors or ()]
        normals = None
        if mesh.normals is not None and len(mesh.normals):
            normals = self.layer("", np.array(mesh.normals, np.float64).reshape(-1, 3), corners)
        self.meshes.append({
            "name": mesh.name,
            "positions": self.out.array(positions, "f8", 3),
            "corners": self.out.array(corners, "i8"),
            "counts": self.out.array(np.full(mesh.num_faces, 3), "i8"),
            "face_material": self.out.array(np.zeros(mesh.num_faces), "i8"),
            "materials": [mesh.material_index],
            "normals": normals,
            "uvs": [self.layer(f"UV{n}", v[:, :2], corners) for n, v in enumerate(layers) if v.shape[1] >= 2],
            "colours": [self.layer(f"COLOR{n}", v, corners) for n, v in enumerate(colours) if v.shape[1] in (3, 4)],
        })  # fmt: skip
        return len(self.meshes) - 1

    def layer(self, name: str, values: np.ndarray, corners: np.ndarray) -> Json:
        return {
            "name": name,
            "values": self.out.array(values, "f8", values.shape[1]),
            "corners": self.out.array(corners, "i8"),
        }

    def material(self, material: Json) -> Json:
        textures: dict[int, list[str]] = material.get("TEXTURES") or {}
        maps: Json = {}
        for slot, kinds in _SLOTS.items():
            for kind in kinds:
                if textures.get(kind) and slot not in maps:
                    maps[slot] = {
                        "image": self.image(str(textures[kind][0])),
                        "uv_set": f"UV{int(material.get('UVWSRC_BASE', 0) or 0)}",
                        "clamp": [int(material.get(f"MAPPINGMODE_{axis}_BASE", 0) or 0) == 1 for axis in "UV"],
                    }
        for kind in textures:
            if kind not in _KEPT and textures[kind]:
                self.losses.append(f"the texture {textures[kind][0]!r} of the material {material.get('NAME')!r}")
        base = self.numbers(material.get("COLOR_BASE") or material.get("COLOR_DIFFUSE"), [0.8] * 3)
        opacity = material.get("OPACITY", 1.0)
        return {
            "name": str(material.get("NAME") or ""),
            "base_colour": [1.0] * 3 if "base_colour" in maps else base,
            "alpha": float(opacity) if isinstance(opacity, (int, float)) else 1.0,
            "metallic": self.number(material.get("METALLICFACTOR"), 0.0),
            "roughness": self.number(material.get("ROUGHNESSFACTOR"), 1.0),
            "emissive": [1.0] * 3 if "emissive" in maps else self.numbers(material.get("COLOR_EMISSIVE"), [0.0] * 3),
            "double_sided": material.get("TWOSIDED") == 1,
            "textures": maps,
        }

    def number(self, value: object, missing: float) -> float:
        return float(value) if isinstance(value, (int, float)) else missing

    def numbers(self, value: object, missing: list[float]) -> list[float]:
        return [float(x) for x in value[:3]] if isinstance(value, list) and len(value) >= 3 else missing

    def image(self, file: str) -> int:
        for number, known in enumerate(self.images):
            if known["files"] == [file]:
                return number
        self.images.append({"name": file.replace("\\", "/").rsplit("/", 1)[-1], "data": None, "files": [file]})
        return len(self.images) - 1


def main(folder: Path, source: bytes, options: Json) -> None:
    """Reads the file and writes its scene."""
    suffix = Path(options["name"]).suffix.lower()
    path = folder / f"file{suffix}"
    path.write_bytes(source)
    flags = assimp_py.Process_Triangulate | assimp_py.Process_JoinIdenticalVertices | assimp_py.Process_SortByPType
    if suffix == ".fbx":
        flags |= assimp_py.Process_GlobalScale
    reader = Reader(assimp_py.import_file(str(path), flags))
    result = reader.read()
    reader.out.save(folder, result)


if __name__ == "__main__":
    _shared["run"](main)
