"""Edits of a document's materials: what a painted map replaces, and copies where others show the same material."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.document.kept import GltfDocument
from pipeline.document.parts import VARIANTS
from pipeline.document.surface import Key
from pipeline.mesh.readers.gltf_file import Object
from pipeline.mesh.texture_transform import TRANSFORM

BASE_COLOUR, NORMAL, METALLIC_ROUGHNESS, OCCLUSION, EMISSIVE = (
    "base_colour", "normal", "metallic_roughness", "occlusion", "emissive",
)  # fmt: skip

_GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"
_LINEAR, _MIPMAPS, _CLAMP = 9729, 9987, 33071


@dataclass(frozen=True)
class Factors:
    """What the row says of the whole material; None: the artist's stays."""

    metallic: float | None = None
    roughness: float | None = None
    occlusion_strength: float = 1.0


NO_FACTORS = Factors()


@dataclass(frozen=True)
class ImageFile:
    """An encoded image and its type."""

    data: bytes
    mime: str


class TextureTable:
    """Adds images and textures to a document, each image once."""

    def __init__(self, document: GltfDocument, title: str):
        self._document, self._title = document, title
        self._known: dict[tuple[bytes, int | None], int] = {}
        self._images: dict[bytes, int] = {}
        self._clamped: int | None = None

    def add(self, name: str, image: ImageFile, sampler: int | None) -> int:
        """The number of a texture that shows ``image`` with the sampler of that number (None: glTF's default)."""
        key = (image.data, sampler)
        if key not in self._known:
            label = f"{self._title} {name.replace('_', ' ')}"
            if image.data not in self._images:
                entry: Object = {"bufferView": self._document.add_view(image.data), "mimeType": image.mime}
                self._images[image.data] = self._document.add("images", {**entry, "name": label})
            texture: Object = {} if sampler is None else {"sampler": sampler}
            texture |= {"source": self._images[image.data], "name": label}
            self._known[key] = self._document.add("textures", texture)
        return self._known[key]

    def clamping_sampler(self) -> int:
        """The number of a sampler for charts inside the unit square, which filters must not wrap around."""
        if self._clamped is None:
            sampler = {"magFilter": _LINEAR, "minFilter": _MIPMAPS, "wrapS": _CLAMP, "wrapT": _CLAMP}
            self._clamped = self._document.add("samplers", sampler)
        return self._clamped


@dataclass(frozen=True)
class TextureUse:
    """How the painted maps of a material are looked up: set of coordinates; whether the artist's transform of the base
    colour stays; whether the artist's coordinates, and with them the sampler, stay."""

    uv_set: int
    keeps_transform: bool
    keeps_uv: bool


def paint_material(
    document: GltfDocument,
    material: Object,
    images: Mapping[str, ImageFile],
    use: TextureUse,
    factors: Factors,
    textures: TextureTable,
) -> None:
    """Replace the textures of ``material`` by ``images``, by name of the map, and the factors that tint them."""
    pbr: Object = material.setdefault("pbrMetallicRoughness", {})
    before = _info(pbr, "baseColorTexture")
    sampler = _sampler(document, before, use, textures)

    def info(name: str, old: Object, **properties: object) -> Object:
        kept = {key: value for key, value in old.items() if key not in ("index", "texCoord", "extensions")}
        extensions = {key: value for key, value in (old.get("extensions") or {}).items() if key != TRANSFORM}
        if use.keeps_transform and (moved := (before.get("extensions") or {}).get(TRANSFORM)):
            extensions[TRANSFORM] = {key: value for key, value in moved.items() if key != "texCoord"}
        result: Object = {"index": textures.add(name, images[name], sampler), **kept, **properties}
        if use.uv_set:
            result["texCoord"] = use.uv_set
        return {**result, "extensions": extensions} if extensions else result

    colour = info(BASE_COLOUR, before)
    pbr["baseColorTexture"] = colour
    _untint(pbr, "baseColorFactor")
    glossiness = (material.get("extensions") or {}).get(_GLOSSINESS)
    if isinstance(glossiness, dict):
        glossiness["diffuseTexture"] = copy.deepcopy(colour)
        _untint(glossiness, "diffuseFactor")
    if METALLIC_ROUGHNESS in images:
        pbr["metallicRoughnessTexture"] = info(METALLIC_ROUGHNESS, _info(pbr, "metallicRoughnessTexture"))
        pbr["metallicFactor"] = pbr["roughnessFactor"] = 1.0
    else:
        _set_factors(pbr, factors)
    if NORMAL in images:
        material["normalTexture"] = info(NORMAL, {**_info(material, "normalTexture"), "scale": 1.0})
    if OCCLUSION in images:
        source = METALLIC_ROUGHNESS if METALLIC_ROUGHNESS in images else OCCLUSION
        old = _info(material, "occlusionTexture")
        material["occlusionTexture"] = info(source, old, strength=factors.occlusion_strength)
    if EMISSIVE in images:
        material["emissiveTexture"] = info(EMISSIVE, _info(material, "emissiveTexture"))
        material["emissiveFactor"] = [1.0, 1.0, 1.0]


def _sampler(document: GltfDocument, before: Object, use: TextureUse, textures: TextureTable) -> int | None:
    """The sampler of the painted textures: the artist's where the coordinates stay, else one that clamps."""
    number, known = before.get("index"), document.json.get("textures") or []
    if use.keeps_uv and isinstance(number, int) and 0 <= number < len(known):
        sampler = known[number].get("sampler")
        return sampler if isinstance(sampler, int) else None
    return None if use.keeps_uv else textures.clamping_sampler()


def _info(holder: Object, key: str) -> Object:
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def _untint(holder: Object, key: str) -> None:
    """A factor that tints the texture becomes white; its alpha stays."""
    value = holder.get(key)
    if isinstance(value, list) and len(value) == 4:
        holder[key] = [1, 1, 1, value[3]]


def _set_factors(pbr: Object, factors: Factors) -> None:
    """What the row says of the material, which a texture of the artist's would otherwise scale."""
    if factors.metallic is not None and factors.roughness is not None:
        pbr.pop("metallicRoughnessTexture", None)
    if factors.metallic is not None:
        pbr["metallicFactor"] = factors.metallic
    if factors.roughness is not None:
        pbr["roughnessFactor"] = factors.roughness


def plain_material(title: str, factors: Factors) -> Object:
    """A material for primitives that have none: matt, unless the row says otherwise."""
    return {
        "name": f"{title} material",
        "pbrMetallicRoughness": {
            "metallicFactor": 0.0 if factors.metallic is None else factors.metallic,
            "roughnessFactor": 1.0 if factors.roughness is None else factors.roughness,
        },
    }


def add_variant(document: GltfDocument, name: str) -> int:
    """Append a variant of materials. Returns its number."""
    document.use_extension(VARIANTS)
    root: Object = document.json.setdefault("extensions", {}).setdefault(VARIANTS, {})
    variants: list[Object] = root.setdefault("variants", [])
    variants.append({"name": name})
    return len(variants) - 1


def show_in_variant(document: GltfDocument, keys: tuple[Key, ...], variant: int, material: int) -> None:
    """Make primitives show ``material`` when ``variant`` is chosen."""
    for mesh, number in keys:
        primitive = document.json["meshes"][mesh]["primitives"][number]
        extension = primitive.setdefault("extensions", {}).setdefault(VARIANTS, {})
        extension.setdefault("mappings", []).append({"material": material, "variants": [variant]})
