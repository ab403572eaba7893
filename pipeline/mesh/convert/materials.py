"""Writes the materials of a scene as glTF's metallic-roughness materials, with their textures in the buffer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.core.arrays import Float64Array
from pipeline.mesh.convert import textures
from pipeline.mesh.convert.gltf_builder import GltfBuilder, Object
from pipeline.mesh.convert.scene import Scene, SceneMaterial, TextureRef

_CLAMP, _REPEAT = 33071, 10497
_TRANSFORM = "KHR_texture_transform"
_STRENGTH = "KHR_materials_emissive_strength"


class MaterialWriter:
    """Writes materials and images on first use. ``losses`` says what could not be kept."""

    def __init__(self, builder: GltfBuilder, scene: Scene, folder: Path, stem: str):
        self._builder, self._scene, self._folder, self._stem = builder, scene, folder, stem
        self._read: dict[int, tuple[bytes, str] | None] = {}
        self._images: dict[bytes, int] = {}
        self._samplers: dict[tuple[bool, bool], int] = {}
        self._uv_sets = _uv_set_numbers(scene)
        self.losses: list[str] = []

    def write(self, number: int) -> int:
        """Writes material ``number`` of the scene; returns its number in the document."""
        source = self._scene.materials[number]
        factors: Object = {
            "baseColorFactor": [*_unit(source.base_colour), _clamped(source.alpha)],
            "metallicFactor": _clamped(source.metallic),
            "roughnessFactor": _clamped(source.roughness),
        }
        material: Object = {"name": source.name, "pbrMetallicRoughness": factors}
        maps = {slot: ref for slot, ref in source.textures.items() if self._image(ref) is not None}
        opaque = self._base_colour(source, maps, factors, number)
        if source.alpha_cutoff is not None:
            material |= {"alphaMode": "MASK", "alphaCutoff": _clamped(source.alpha_cutoff)}
        elif not opaque:
            material["alphaMode"] = "BLEND"
        self._metallic_roughness(maps, factors, number)
        for slot, key in (("normal", "normalTexture"), ("occlusion", "occlusionTexture"),
                          ("emissive", "emissiveTexture")):  # fmt: skip
            if slot in maps:
                data, media = self._found(maps[slot])
                material[key] = self._texture(data, media, maps[slot], number)
        self._emission(source, material)
        if source.double_sided:
            material["doubleSided"] = True
        if source.extras:
            material["extras"] = source.extras
        return self._builder.add("materials", material)

    def _emission(self, source: SceneMaterial, material: Object) -> None:
        emissive = [value if math.isfinite(value) and value > 0 else 0.0 for value in source.emissive]
        strength = max(emissive, default=0.0)
        if strength > 1.0:
            self._builder.use_extension(_STRENGTH)
            material["extensions"] = {_STRENGTH: {"emissiveStrength": strength}}
            emissive = [value / strength for value in emissive]
        if any(emissive):
            material["emissiveFactor"] = emissive

    def _base_colour(self, source: SceneMaterial, maps: dict[str, TextureRef], factors: Object, number: int) -> bool:
        """Writes the texture of colour and opacity; tells whether the material is opaque."""
        colour, opacity = maps.get("base_colour"), maps.get("opacity")
        opaque = source.alpha >= 1.0
        if opacity is not None:
            whole = self._found(colour)[0] if colour else None
            own = self._found(opacity)[0]
            if not (whole == own and opacity.channel in ("", "a")):
                png = textures.with_opacity(whole, own, opacity.channel)
                factors["baseColorTexture"] = self._texture(png, "image/png", colour or opacity, number)
                return False
            opaque = opaque and not textures.has_alpha(own)
        if colour is not None:
            data, media = self._found(colour)
            factors["baseColorTexture"] = self._texture(data, media, colour, number)
        return opaque

    def _metallic_roughness(self, maps: dict[str, TextureRef], factors: Object, number: int) -> None:
        metallic, roughness = maps.get("metallic"), maps.get("roughness")
        either = roughness or metallic
        if either is None:
            return
        if (
            metallic
            and roughness
            and (metallic.image, metallic.channel) == (roughness.image, "b")
            and (roughness.channel == "g")
        ):
            data, media = self._found(metallic)
        else:
            parts = [(self._found(ref)[0], ref.channel) if ref else None for ref in (metallic, roughness)]
            data, media = textures.metallic_roughness(parts[0], parts[1]), "image/png"
        factors["metallicRoughnessTexture"] = self._texture(data, media, either, number)

    # -- images ---------------------------------------------------------------------------------------------------

    def _found(self, ref: TextureRef) -> tuple[bytes, str]:
        image = self._image(ref)
        assert image is not None  # callers look at maps whose images were found
        return image

    def _image(self, ref: TextureRef) -> tuple[bytes, str] | None:
        """(bytes, media type) of a texture's image; None, with a loss, if it cannot be had."""
        if ref.image not in self._read:
            found = textures.image_bytes(self._scene.images[ref.image], self._folder, self._stem)
            if isinstance(found, str):
                self.losses.append(found)
                self._read[ref.image] = None
            else:
                self._read[ref.image] = found
        return self._read[ref.image]

    def _texture(self, data: bytes, media: str, ref: TextureRef, material: int) -> Object:
        if data not in self._images:
            name = self._scene.images[ref.image].name
            image: Object = {"bufferView": self._builder.view(data), "mimeType": media}
            self._images[data] = self._builder.add("images", image | ({"name": name} if name else {}))
        if ref.clamp not in self._samplers:
            wrap = [_CLAMP if clamped else _REPEAT for clamped in ref.clamp]
            self._samplers[ref.clamp] = self._builder.add("samplers", {"wrapS": wrap[0], "wrapT": wrap[1]})
        entry = {"source": self._images[data], "sampler": self._samplers[ref.clamp]}
        known: list[Object] = self._builder.json.setdefault("textures", [])
        if entry not in known:
            known.append(entry)
        info: Object = {"index": known.index(entry)}
        if uv_set := self._uv_sets.get((material, ref.uv_set), 0):
            info["texCoord"] = uv_set
        if ref.transform is not None:
            self._transform(ref.transform, info)
        return info

    def _transform(self, transform: Float64Array, info: Object) -> None:
        """Adds KHR_texture_transform for ``transform`` (2, 3), which has its origin at the bottom left."""
        flip = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 1.0]])
        whole = flip @ np.vstack([transform, [0.0, 0.0, 1.0]]) @ flip
        if not np.isfinite(whole).all() or np.allclose(whole, np.eye(3), atol=1e-7):
            return
        scale = np.linalg.norm(whole[:2, :2], axis=0)
        if scale.min() < 1e-9:
            self.losses.append("a texture's transform without area")
            return
        angle = math.atan2(-whole[1, 0], whole[0, 0])
        if np.linalg.det(whole[:2, :2]) < 0:
            scale[1] = -scale[1]
        rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        if not np.allclose(rotation * scale, whole[:2, :2], atol=1e-5):
            self.losses.append("the shear of a texture's transform")
        self._builder.use_extension(_TRANSFORM)
        info["extensions"] = {_TRANSFORM: {"offset": whole[:2, 2].tolist(), "rotation": angle, "scale": scale.tolist()}}


def _uv_set_numbers(scene: Scene) -> dict[tuple[int, str], int]:
    """The number of a UV set by (material, name), from the first mesh that has both."""
    numbers: dict[tuple[int, str], int] = {}
    for mesh in scene.meshes:
        for number, layer in enumerate(mesh.uvs):
            for material in mesh.materials:
                numbers.setdefault((material, layer.name), number)
    for node in scene.nodes:
        for material in node.materials:
            for number, layer in enumerate(scene.meshes[node.mesh].uvs if node.mesh is not None else ()):
                numbers.setdefault((material, layer.name), number)
    return numbers


def _clamped(value: float) -> float:
    return min(1.0, max(0.0, float(value))) if math.isfinite(value) else 1.0


def _unit(values: Sequence[float]) -> list[float]:
    return [_clamped(value) for value in values[:3]]
