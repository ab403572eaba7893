"""Reads the materials of a USD: UsdPreviewSurface with its textures. Loaded by path in children."""

from __future__ import annotations

import math
from typing import Any

from pxr import UsdShade

Json = dict[str, Any]
# An object of OpenUSD, which has no types.
Native = Any
_SLOTS = {
    "diffuseColor": "base_colour", "emissiveColor": "emissive", "normal": "normal", "metallic": "metallic",
    "roughness": "roughness", "occlusion": "occlusion", "opacity": "opacity",
}  # fmt: skip


class Materials:
    """The materials as JSON, ``found``, and the images that they name."""

    def __init__(self, layers: Native, out: Native, losses: list[str]):
        self.layers, self.out, self.losses = layers, out, losses
        self.found: list[Json] = []
        self.images: list[Json] = []
        self._numbers: dict[str, int] = {}
        self._plain: dict[tuple[float, ...], int] = {}

    def number(self, material: Native) -> int:
        """The number of a material."""
        path = str(material.GetPath())
        if path not in self._numbers:
            self.found.append(self._read(material) | {"name": material.GetPrim().GetName(), "extras": {"usd": path}})
            self._numbers[path] = len(self.found) - 1
        return self._numbers[path]

    def plain(self, colour: list[float]) -> int:
        """The number of a material of one colour."""
        key = tuple(colour)
        if key not in self._plain:
            self.found.append({"name": "displayColor", "base_colour": colour, "roughness": 0.5})
            self._plain[key] = len(self.found) - 1
        return self._plain[key]

    def _read(self, material: Native) -> Json:
        name = material.GetPrim().GetName()
        shader = material.ComputeSurfaceSource()[0]
        if not shader or shader.GetIdAttr().Get() != "UsdPreviewSurface":
            kind = shader.GetIdAttr().Get() if shader else None
            self.losses.append(f"the shader {kind or 'without a name'} of the material {name!r}")
            return {}
        if material.GetDisplacementOutput().HasConnectedSource() or self._value(shader, "displacement", 0.0):
            self.losses.append(f"the displacement of the material {name!r}")
        if self._value(shader, "useSpecularWorkflow", 0):
            self.losses.append(f"the specular colour of the material {name!r}")
        if self._value(shader, "clearcoat", 0.0):
            self.losses.append(f"the clear coat of the material {name!r}")
        textures = {slot: t for key, slot in _SLOTS.items() if (t := self._texture(shader, key, name))}
        threshold = self._value(shader, "opacityThreshold", 0.0)
        return {
            "base_colour": [1.0] * 3 if "base_colour" in textures else self._colour(shader, "diffuseColor", 0.18),
            "emissive": [1.0] * 3 if "emissive" in textures else self._colour(shader, "emissiveColor", 0.0),
            "metallic": 1.0 if "metallic" in textures else self._value(shader, "metallic", 0.0),
            "roughness": 1.0 if "roughness" in textures else self._value(shader, "roughness", 0.5),
            "alpha": 1.0 if "opacity" in textures else self._value(shader, "opacity", 1.0),
            "alpha_cutoff": threshold if threshold > 0 else None,
            "textures": textures,
        }

    def _value(self, shader: Native, name: str, missing: float) -> float:
        value = self._get(shader, name)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else missing

    def _colour(self, shader: Native, name: str, missing: float) -> list[float]:
        value = self._get(shader, name)
        try:
            return [float(x) for x in value][:3] if value is not None and len(value) >= 3 else [missing] * 3
        except TypeError:
            return [missing] * 3

    def _get(self, shader: Native, name: str) -> Native:
        """The value of an input, also through the interface of its material; None if it has none or a texture."""
        source = shader.GetInput(name)
        if not source:
            return None
        attributes = source.GetValueProducingAttributes()
        if not attributes or UsdShade.Utils.GetType(attributes[0].GetName()) == UsdShade.AttributeType.Output:
            return None
        return attributes[0].Get()

    def _producer(self, shader: Native, name: str) -> tuple[Native, str] | None:
        """(the shader whose output feeds an input, the name of that output)."""
        source = shader.GetInput(name)
        for attribute in source.GetValueProducingAttributes() if source else ():
            base, kind = UsdShade.Utils.GetBaseNameAndType(attribute.GetName())
            if kind == UsdShade.AttributeType.Output:
                return UsdShade.Shader(attribute.GetPrim()), str(base)
        return None

    def _texture(self, shader: Native, name: str, material: str) -> Json | None:
        producer = self._producer(shader, name)
        if producer is None:
            return None
        texture, output = producer
        if texture.GetIdAttr().Get() != "UsdUVTexture":
            self.losses.append(f"the {name} of the material {material!r}, which is not a texture")
            return None
        image = self._image(texture)
        if image is None:
            return None
        self._check_scale(texture, name, material)
        uv_set, transform = self._coordinates(texture)
        return {
            "image": image,
            "uv_set": uv_set,
            "channel": output if output in ("r", "g", "b", "a") else "",
            "clamp": [self._get(texture, wrap) == "clamp" for wrap in ("wrapS", "wrapT")],
            "transform": transform,
        }

    def _check_scale(self, texture: Native, name: str, material: str) -> None:
        """Notes a scale or bias of a texture's values other than those that unpack normals."""
        usual: dict[str, list[list[float]]] = {"scale": [[1.0] * 3], "bias": [[0.0] * 3]}
        if name == "normal":
            usual["scale"].append([2.0] * 3)
            usual["bias"].append([-1.0] * 3)
        for key, values in usual.items():
            value = self._get(texture, key)
            if value is not None and [float(x) for x in value][:3] not in values:
                self.losses.append(f"the {key} of the {name} texture of the material {material!r}")

    def _coordinates(self, texture: Native) -> tuple[str, list[list[float]] | None]:
        """(the primvar that a texture reads, its transform (2, 3) or None)."""
        producer = self._producer(texture, "st")
        transform = None
        if producer is not None and producer[0].GetIdAttr().Get() == "UsdTransform2d":
            shader = producer[0]
            turn = math.radians(self._value(shader, "rotation", 0.0))
            scale = list(self._get(shader, "scale") or (1.0, 1.0))
            shift = list(self._get(shader, "translation") or (0.0, 0.0))
            c, s = math.cos(turn), math.sin(turn)
            transform = [[c * scale[0], -s * scale[1], shift[0]], [s * scale[0], c * scale[1], shift[1]]]
            producer = self._producer(shader, "in")
        name = self._get(producer[0], "varname") if producer is not None else None
        return str(name or ""), transform

    def _image(self, texture: Native) -> int | None:
        source = texture.GetInput("file")
        attributes = source.GetValueProducingAttributes() if source else []
        value = attributes[0].Get() if attributes else None
        if value is None or not value.path:
            return None
        stack = attributes[0].GetPropertyStack()
        layer = stack[0].layer if stack else self.layers.top
        names = list(dict.fromkeys([self.layers.relative(layer, value.path), value.path]))
        for number, known in enumerate(self.images):
            if known["files"] == names:
                return number
        shown = value.path.replace("\\", "/").rsplit("/", 1)[-1]
        self.images.append({"name": shown, "data": None, "files": names})
        return len(self.images) - 1
