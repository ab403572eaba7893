"""Child process that reads an FBX by ufbx. Run by path; imports nothing of this project (see ``child_scene.py``).

ufbx 0.0.5 returns the item of a list without counting the new reference to it, so the item is freed while the scene
still uses it. ``items`` therefore counts it, and nothing is collected: the process ends when its work is done.
"""

from __future__ import annotations

import ctypes
import gc
import math
import runpy
from pathlib import Path
from typing import Any

gc.disable()
_shared = runpy.run_path(str(Path(__file__).with_name("child_scene.py")))

import numpy as np  # noqa: E402
import ufbx  # noqa: E402

Json = dict[str, Any]
# An object of ufbx, which has no types.
Native = Any
# Below these an animation is taken to stand still.
_STILL = 1e-6


_count_reference = ctypes.pythonapi.Py_IncRef
_count_reference.argtypes = [ctypes.py_object]
_count_reference.restype = None


def items(values: Native) -> list[Native]:
    """The items of a list of ufbx, by index."""
    found = []
    for i in range(len(values)):
        item = values[i]
        if not isinstance(item, (tuple, int, float, str)):
            _count_reference(item)
        found.append(item)
    return found


def table(values: Native, columns: int = 0) -> np.ndarray:
    """The numbers of a list of ufbx: (n, columns), or (n,) for 0 columns. Not all lists are buffers."""
    try:
        numbers = np.array(memoryview(values))
    except TypeError:
        numbers = np.array(items(values), np.float64 if columns else None)
    return numbers.reshape(-1, columns) if columns else numbers.reshape(-1)


def matrix(values: Native) -> list[float]:
    """The 16 numbers, row by row, of a 3x4 matrix of ufbx, which holds its columns."""
    columns = [list(values[i]) for i in range(4)]
    return [columns[c][r] for r in range(3) for c in range(4)] + [0.0, 0.0, 0.0, 1.0]


class Reader:
    """Copies a scene of ufbx into plain numbers."""

    def __init__(self, scene: Native, source_rate: float):
        self.scene, self.rate = scene, source_rate
        self.out = _shared["SceneWriter"]()
        self.losses: list[str] = []
        self.images: list[Json] = []
        self.image_numbers: dict[int, int] = {}

    def read(self) -> Json:
        """The scene as JSON."""
        scene = self.scene
        self.nodes = items(scene.nodes)
        meshes = [self.mesh(mesh) for mesh in items(scene.meshes)]
        materials = [self.material(material) for material in items(scene.materials)]
        nodes = [self.node(node) for node in self.nodes]
        animations = [a for stack in items(scene.anim_stacks) if (a := self.animation(stack))]
        self.left_out()
        return {
            "nodes": nodes, "meshes": meshes, "materials": materials, "images": self.images,
            "animations": animations, "losses": self.losses,
            "source": f"FBX {scene.metadata.version}",
        }  # fmt: skip

    def node(self, node: Native) -> Json:
        local = node.local_transform
        own = [material.typed_id for material in items(node.materials)] if node.mesh is not None else []
        return {
            "name": node.name or ("root" if node.is_root else ""),
            "parent": node.parent.typed_id if node.parent is not None else None,
            "translation": list(local.translation), "rotation": list(local.rotation), "scale": list(local.scale),
            "mesh": node.mesh.typed_id if node.mesh is not None else None,
            "materials": own,
            "camera": self.camera(node.camera) if node.camera is not None else None,
            "light": self.light(node.light) if node.light is not None else None,
        }  # fmt: skip

    def camera(self, camera: Native) -> Json:
        # A camera's node has the scale of the root, but its lens is measured in metres.
        unit = float(self.scene.metadata.root_scale) or 1.0
        near, far = camera.near_plane * unit, camera.far_plane * unit
        if int(camera.projection_mode) == 1:
            size = camera.orthographic_size
            half = [size.x / 2 * unit, size.y / 2 * unit]
            return {"name": camera.name, "half_size": half, "near": near, "far": far}
        return {"name": camera.name, "fov_y": math.radians(camera.field_of_view_deg.y), "aspect": camera.aspect_ratio,
                "near": near, "far": far}  # fmt: skip

    def light(self, light: Native) -> Json | None:
        kind = {0: "point", 1: "directional", 2: "spot"}.get(int(light.type))
        if kind is None:
            self.losses.append(f"the light {light.name!r}, which has an area or a volume")
            return None
        return {"name": light.name, "type": kind, "color": list(light.color), "intensity": light.intensity,
                "inner": math.radians(light.inner_angle) / 2, "outer": math.radians(light.outer_angle) / 2}  # fmt: skip

    # -- meshes ---------------------------------------------------------------------------------------------------

    def mesh(self, mesh: Native) -> Json:
        faces = np.array(items(mesh.faces), np.int64).reshape(-1, 2)
        counts = faces[:, 1]
        # Corners in the order of the faces.
        begin = np.repeat(faces[:, 0] - (np.cumsum(counts) - counts), counts)
        order = begin + np.arange(len(begin))
        material = table(mesh.face_material).astype(np.int64) if len(mesh.face_material) else np.zeros(len(faces))
        position = mesh.vertex_position
        # ufbx may hold no position for a corner; then there is nothing to read.
        corners = table(mesh.vertex_indices).astype(np.int64)[order] if position.exists else order[:0]
        if not position.exists:
            counts, material = counts[:0], material[:0]
        uv_sets, colour_sets = items(mesh.uv_sets), items(mesh.color_sets)
        return {
            "name": mesh.name,
            "positions": self.out.array(table(mesh.vertices, 3), "f8", 3),
            "corners": self.out.array(corners, "i8"),
            "counts": self.out.array(counts, "i8"),
            "face_material": self.out.array(material, "i8"),
            "materials": [m.typed_id for m in items(mesh.materials)],
            "normals": self.layer("", mesh.vertex_normal, 3, order),
            "uvs": [u for s in uv_sets if (u := self.layer(s.name, s.vertex_uv, 2, order))],
            "colours": [c for s in colour_sets if (c := self.layer(s.name, s.vertex_color, 4, order))],
            "skin": self.skin(mesh),
            "shapes": self.shapes(mesh),
        }

    def layer(self, name: str, attribute: Native, columns: int, order: np.ndarray) -> Json | None:
        if not attribute.exists or not len(attribute.values):
            return None
        corners = table(attribute.indices).astype(np.int64)[order]
        values = self.out.array(table(attribute.values, columns), "f8", columns)
        return {"name": name, "values": values, "corners": self.out.array(corners, "i8")}

    def skin(self, mesh: Native) -> Json | None:
        deformers = items(mesh.skin_deformers)
        if not deformers:
            return None
        if len(deformers) > 1:
            self.losses.append(f"{len(deformers) - 1} of {len(deformers)} skins of the mesh {mesh.name!r}")
        skin = deformers[0]
        if int(skin.skinning_method) > 1:
            self.losses.append("dual quaternion skinning (glTF blends matrices)")
        clusters = [cluster for cluster in items(skin.clusters) if cluster.bone_node is not None]
        if not clusters:
            return None
        vertices = [table(c.vertices).astype(np.int64) for c in clusters]
        joint = np.repeat(np.arange(len(clusters)), [len(v) for v in vertices])
        return {
            "joints": [cluster.bone_node.typed_id for cluster in clusters],
            "inverse_bind": self.out.array([matrix(c.geometry_to_bone) for c in clusters], "f8", 16),
            "vertex": self.out.array(np.concatenate(vertices), "i8"),
            "joint": self.out.array(joint, "i8"),
            "weight": self.out.array(np.concatenate([table(c.weights) for c in clusters]), "f8"),
        }

    def shapes(self, mesh: Native) -> list[Json]:
        shapes = []
        for deformer in items(mesh.blend_deformers):
            for channel in items(deformer.channels):
                shape = channel.target_shape
                if shape is None:
                    continue
                if len(channel.keyframes) > 1:
                    self.losses.append(f"in-between shapes of {channel.name!r}")
                normals = table(shape.normal_offsets, 3)
                shapes.append({
                    "name": channel.name or shape.name,
                    "weight": channel.weight,
                    "element": channel.element_id,
                    "vertex": self.out.array(table(shape.offset_vertices).astype(np.int64), "i8"),
                    "offsets": self.out.array(table(shape.position_offsets, 3), "f8", 3),
                    "normal_offsets": self.out.array(normals, "f8", 3) if len(normals) else None,
                })  # fmt: skip
        return shapes

    # -- materials ------------------------------------------------------------------------------------------------

    def material(self, material: Native) -> Json:
        pbr = material.pbr
        factor = self.number(pbr.base_factor, 1.0)
        emission = self.number(pbr.emission_factor, 1.0)
        base = list(pbr.base_color.value_vec4)[:3] if pbr.base_color.has_value else [0.8, 0.8, 0.8]
        glow = list(pbr.emission_color.value_vec4)[:3] if pbr.emission_color.has_value else [0.0, 0.0, 0.0]
        textures = {
            "base_colour": pbr.base_color, "emissive": pbr.emission_color, "normal": pbr.normal_map,
            "metallic": pbr.metalness, "roughness": pbr.roughness, "occlusion": pbr.ambient_occlusion,
            "opacity": pbr.opacity,
        }  # fmt: skip
        maps: Json = {slot: t for slot, m in textures.items() if (t := self.texture(m))}
        if "normal" not in maps and (bump := material.fbx.bump.texture) is not None:
            # Many programs hang a normal map on the slot of the bump map.
            if "normal" in (bump.name + bump.relative_filename).lower():
                maps["normal"] = self.texture(material.fbx.bump)
            else:
                self.losses.append(f"the bump map of the material {material.name!r}")
        if "opacity" not in maps and (clear := self.texture(material.fbx.transparency_color)):
            # The alpha of the base colour's own image; another image may hold opacity or transparency.
            if "base_colour" in maps and clear["image"] == maps["base_colour"]["image"]:
                maps["opacity"] = clear | {"channel": "a"}
            else:
                self.losses.append(f"the transparency texture of the material {material.name!r}")
        for label, value in (
            ("displacement", pbr.displacement_map), ("coat", pbr.coat_color), ("sheen", pbr.sheen_color),
            ("specular", pbr.specular_color), ("transmission", pbr.transmission_color),
        ):  # fmt: skip
            if value.texture is not None:
                self.losses.append(f"the {label} texture of the material {material.name!r}")
        return {
            "name": material.name,
            # A texture takes the place of the colour, as in the programs that write FBX.
            "base_colour": [1.0] * 3 if "base_colour" in maps else [min(1.0, max(0.0, c * factor)) for c in base],
            "alpha": self.alpha(material) if "opacity" not in maps else 1.0,
            "metallic": 1.0 if "metallic" in maps else self.number(pbr.metalness, 0.0),
            "roughness": 1.0 if "roughness" in maps else self.roughness(material),
            "emissive": [1.0] * 3 if "emissive" in maps else [max(0.0, c * emission) for c in glow],
            "double_sided": bool(material.features.double_sided.enabled),
            "textures": maps,
        }

    def alpha(self, material: Native) -> float:
        """The opacity: stated, or what a Phong material's transparency (a colour and a factor) leaves."""
        if material.pbr.opacity.has_value:
            return self.number(material.pbr.opacity, 1.0)
        stated = float(ufbx.find_real(material.props, "Opacity", -1.0))
        if stated >= 0:
            return stated
        colour = material.fbx.transparency_color
        mean = sum(list(colour.value_vec4)[:3]) / 3 if colour.has_value else 1.0
        return 1.0 - self.number(material.fbx.transparency_factor, 0.0) * mean

    def roughness(self, material: Native) -> float:
        """The roughness: stated, or of the Blinn-Phong lobe of a shininess."""
        if material.pbr.roughness.has_value:
            return self.number(material.pbr.roughness, 1.0)
        return math.sqrt(2.0 / (max(self.number(material.fbx.specular_exponent, 0.0), 0.0) + 2.0))

    def number(self, value: Native, missing: float) -> float:
        return float(value.value_vec4.x) if value.has_value else missing

    def texture(self, value: Native) -> Json | None:
        texture = value.texture
        if texture is None or not value.texture_enabled:
            return None
        files = items(texture.file_textures)
        if not texture.has_file and files:
            if len(files) > 1:
                self.losses.append(f"{len(files) - 1} of {len(files)} layers of the texture {texture.name!r}")
            texture = files[0]
        transform = texture.uv_to_texture if texture.has_uv_transform else None
        return {
            "image": self.image(texture),
            "uv_set": texture.uv_set,
            "clamp": [int(texture.wrap_u) == 1, int(texture.wrap_v) == 1],
            "transform": [[transform.m00, transform.m01, transform.m03], [transform.m10, transform.m11, transform.m13]]
            if transform is not None
            else None,
        }

    def image(self, texture: Native) -> int:
        if texture.element_id not in self.image_numbers:
            content = bytes(texture.content or b"")
            if not content and texture.video is not None:
                content = bytes(texture.video.content or b"")
            names = [texture.relative_filename, texture.absolute_filename, texture.filename]
            for number, known in enumerate(self.images):
                if known["files"] == names:
                    self.image_numbers[texture.element_id] = number
                    return number
            self.images.append({
                "name": texture.name, "data": self.out.blob(content) if content else None, "files": names,
            })  # fmt: skip
            self.image_numbers[texture.element_id] = len(self.images) - 1
        return self.image_numbers[texture.element_id]

    # -- animation ------------------------------------------------------------------------------------------------

    def animation(self, stack: Native) -> Json | None:
        baked = ufbx.bake_anim(self.scene, stack.anim, resample_rate=self.rate, max_keyframe_segments=4096)
        channels = []
        for node in items(baked.nodes):
            local = self.nodes[node.typed_id].local_transform
            for path, keys, constant, rest in (
                ("translation", node.translation_keys, node.constant_translation, local.translation),
                ("rotation", node.rotation_keys, node.constant_rotation, local.rotation),
                ("scale", node.scale_keys, node.constant_scale, local.scale),
            ):
                rows = [(key.time, *key.value) for key in items(keys)]
                if not rows or (constant and max(abs(a - b) for a, b in zip(rows[0][1:], rest, strict=True)) < _STILL):
                    continue
                keyed = np.array(rows, np.float64)
                channels.append({
                    "node": node.typed_id, "path": path, "times": self.out.array(keyed[:, 0], "f8"),
                    "values": self.out.array(keyed[:, 1:], "f8", keyed.shape[1] - 1),
                })  # fmt: skip
        for element in items(baked.elements):
            for prop in items(element.props):
                if prop.name == "DeformPercent" and len(prop.keys):
                    keyed = np.array([(key.time, key.value.x / 100) for key in items(prop.keys)], np.float64)
                    channels.append({
                        "element": element.element_id, "path": "weights", "times": self.out.array(keyed[:, 0], "f8"),
                        "values": self.out.array(keyed[:, 1:], "f8", 1),
                    })  # fmt: skip
        return {"name": stack.name, "channels": channels} if channels else None

    def left_out(self) -> None:
        scene = self.scene
        for noun, found in (
            ("NURBS surfaces", scene.nurbs_surfaces), ("NURBS curves", scene.nurbs_curves),
            ("line curves", scene.line_curves), ("constraints", scene.constraints),
            ("geometry caches", scene.cache_deformers), ("LOD groups' switching distances", scene.lod_groups),
            ("display layers", scene.display_layers), ("audio clips", scene.audio_clips),
        ):  # fmt: skip
            if len(found):
                self.losses.append(f"{len(found)} {noun}" if "'" not in noun else noun)


def main(folder: Path, source: bytes, options: Json) -> None:
    """Reads the FBX and writes its scene."""
    scene = ufbx.load_memory(
        source,
        file_format=ufbx.FileFormat.FBX,  # it would read an OBJ too
        load_external_files=False,
        generate_missing_normals=False,
        clean_skin_weights=True,
        use_blender_pbr_material=True,
        node_depth_limit=1000,
        index_error_handling=ufbx.IndexErrorHandling.CLAMP,
        geometry_transform_handling=ufbx.GeometryTransformHandling.MODIFY_GEOMETRY,
        inherit_mode_handling=ufbx.InheritModeHandling.COMPENSATE,
        space_conversion=ufbx.SpaceConversion.TRANSFORM_ROOT,
        target_axes=ufbx.axes_right_handed_y_up,
        target_camera_axes=ufbx.axes_right_handed_y_up,
        target_light_axes=ufbx.axes_right_handed_y_up,
        target_unit_meters=1.0,
    )
    rate = scene.settings.frames_per_second
    reader = Reader(scene, min(max(float(rate), 1.0), 240.0) if math.isfinite(rate) else 24.0)
    result = reader.read()
    reader.out.save(folder, result)


if __name__ == "__main__":
    _shared["run"](main)
