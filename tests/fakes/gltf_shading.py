"""Draws a GLB from its own accessors and images, as a renderer would: rays by trimesh, tangent space as in three.js,
light by Cook-Torrance with GGX. A stand-in for a viewer, which shares no code with the exporter."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

_TYPES = {5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


@dataclass
class Surface:
    """P points of a picture that show the asset: pixel (P,) into size x size; position, normal (P, 3); base (P, 3)
    linear; roughness, metallic, occlusion (P,); view (P, 3) to the eye."""

    size: int
    pixel: np.ndarray
    position: np.ndarray
    geometric: np.ndarray
    normal: np.ndarray
    base: np.ndarray
    roughness: np.ndarray
    metallic: np.ndarray
    occlusion: np.ndarray
    emissive: np.ndarray
    view: np.ndarray


class Glb:
    """The only mesh of a GLB file, and its material."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        (length,) = struct.unpack("<I", data[12:16])
        self.json, self.binary = json.loads(data[20 : 20 + length]), data[28 + length :]
        self.primitive = self.json["meshes"][0]["primitives"][0]
        self.material = self.json["materials"][0]
        self.attributes = {name: self.accessor(i) for name, i in self.primitive["attributes"].items()}
        self.faces = self.accessor(self.primitive["indices"]).reshape(-1, 3).astype(np.int64)

    def accessor(self, index: int) -> np.ndarray:
        entry = self.json["accessors"][index]
        view = self.json["bufferViews"][entry["bufferView"]]
        columns = _WIDTHS[entry["type"]]
        start = view.get("byteOffset", 0)
        data = np.frombuffer(self.binary, _TYPES[entry["componentType"]], entry["count"] * columns, start)
        return data.reshape(-1, columns)

    def image(self, info: dict | None) -> np.ndarray | None:
        """The image (H, W, 3) in [0, 1] of a texture info of the material."""
        if info is None:
            return None
        source = self.json["images"][self.json["textures"][info["index"]]["source"]]
        view = self.json["bufferViews"][source["bufferView"]]
        data = self.binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64) / 255

    def seen(self, eye: np.ndarray, up: np.ndarray, size: int, half: float) -> Surface:
        """What an orthographic camera at ``eye`` that looks at the origin sees of it; ``half``: half the picture's
        side."""
        back = eye / np.linalg.norm(eye)
        right = np.cross(up, back)
        right /= np.linalg.norm(right)
        above = np.cross(back, right)
        grid = (np.arange(size) + 0.5) / size * 2 - 1
        origins = eye + half * (grid[None, :, None] * right - grid[:, None, None] * above)
        points = self.attributes["POSITION"].astype(np.float64)
        mesh = trimesh.Trimesh(points, self.faces, process=False)
        rays = origins.reshape(-1, 3)
        hit, ray, face = mesh.ray.intersects_location(rays, np.tile(-back, (len(rays), 1)), multiple_hits=False)
        share = trimesh.triangles.points_to_barycentric(points[self.faces[face]], hit)

        def at(name: str) -> np.ndarray:
            return (self.attributes[name].astype(np.float64)[self.faces[face]] * share[..., None]).sum(axis=1)

        uv, normal = at("TEXCOORD_0"), _unit(at("NORMAL"))
        pbr = self.material["pbrMetallicRoughness"]
        base = _lookup(self.image(pbr["baseColorTexture"]), uv)
        orm = _lookup(self.image(pbr.get("metallicRoughnessTexture")), uv)
        sky = _lookup(self.image(self.material.get("occlusionTexture")), uv)
        strength = self.material.get("occlusionTexture", {}).get("strength", 1.0)
        glow = _lookup(self.image(self.material.get("emissiveTexture")), uv)
        shaded = normal
        if "normalTexture" in self.material:
            # three.js: the bitangent is cross(normal, tangent) w, and all three are normalised in the fragment.
            corners = self.attributes["TANGENT"].astype(np.float64)
            cross = np.cross(self.attributes["NORMAL"].astype(np.float64), corners[:, :3]) * corners[:, 3:]
            tangent = _unit((corners[:, :3][self.faces[face]] * share[..., None]).sum(axis=1))
            bitangent = _unit((cross[self.faces[face]] * share[..., None]).sum(axis=1))
            said = _lookup(self.image(self.material["normalTexture"]), uv) * 2 - 1
            shaded = _unit(said[:, :1] * tangent + said[:, 1:2] * bitangent + said[:, 2:] * normal)
        one = np.ones(len(uv))
        return Surface(
            size,
            ray,
            hit,
            normal,
            shaded,
            _linear(base),
            one * pbr.get("roughnessFactor", 1.0) * (orm[:, 1] if orm is not None else 1),
            one * pbr.get("metallicFactor", 1.0) * (orm[:, 2] if orm is not None else 1),
            1 + strength * (sky[:, 0] - 1) if sky is not None else one,
            _linear(glow) if glow is not None else 0 * hit,
            np.tile(back, (len(uv), 1)),
        )


def lit(surface: Surface, light: np.ndarray, *, power: float = 3.0, sky: float = 0.4) -> np.ndarray:
    """Linear radiance (P, 3) under a lamp in direction ``light`` and a plain bright sky above a darker ground."""
    n, v = surface.normal, surface.view
    light = light / np.linalg.norm(light)
    alpha = np.maximum(surface.roughness, 0.05)[:, None] ** 2
    metal = surface.metallic[:, None]
    f0 = 0.04 * (1 - metal) + surface.base * metal
    matt = surface.base * (1 - metal)
    nl, nv = np.clip(n @ light, 0, 1)[:, None], np.clip((n * v).sum(axis=1), 0.02, 1)[:, None]
    half = _unit(light + v)
    nh, vh = ((x * half).sum(axis=1).clip(0, 1)[:, None] for x in (n, v))
    distribution = alpha**2 / (nh**2 * (alpha**2 - 1) + 1) ** 2
    smith = 0.5 / (nl * np.sqrt(nv**2 * (1 - alpha**2) + alpha**2) + nv * np.sqrt(nl**2 * (1 - alpha**2) + alpha**2))
    fresnel = f0 + (1 - f0) * (1 - vh) ** 5
    direct = (matt + np.minimum(distribution * smith, 50) * fresnel) * nl * power / 2
    mirrored = 2 * (n * v).sum(axis=1, keepdims=True) * n - v
    around = surface.occlusion[:, None] * sky
    indirect = around * (
        matt * (0.65 + 0.35 * n[:, 1:2]) + f0 * (0.75 + np.tanh(mirrored[:, 1:2] * 2 / (alpha + 0.1)) / 2)
    )
    return direct + indirect + surface.emissive


def picture(surface: Surface, radiance: np.ndarray) -> np.ndarray:
    """(size, size, 3) uint8 sRGB of ``radiance`` (P, 3), on grey."""
    image = np.full((surface.size**2, 3), 0.18)
    image[surface.pixel] = 1 - np.exp(-radiance * 1.2)
    image = np.where(image <= 0.0031308, 12.92 * image, 1.055 * image ** (1 / 2.4) - 0.055)
    return (image.clip(0, 1) * 255).round().astype(np.uint8).reshape(surface.size, surface.size, 3)


def _lookup(image: np.ndarray | None, uv: np.ndarray) -> np.ndarray | None:
    """Bilinear values (P, C) of an image (H, W, C) at uv (P, 2), clamped at the borders."""
    if image is None:
        return None
    height, width = image.shape[:2]
    x, y = (uv[:, 0] * width - 0.5).clip(0, width - 1), (uv[:, 1] * height - 0.5).clip(0, height - 1)
    left, top = x.astype(int).clip(0, width - 2), y.astype(int).clip(0, height - 2)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    upper = image[top, left] * (1 - fx) + image[top, left + 1] * fx
    lower = image[top + 1, left] * (1 - fx) + image[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def _linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
