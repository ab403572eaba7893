"""Looks at converted documents: world corners with their texture coordinates, poses of an animation, accessors."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.mesh.convert.to_gltf import Converted, to_gltf
from pipeline.mesh.load import load_mesh
from pipeline.mesh.readers.gltf_file import glb_chunks

FOREIGN = Path(__file__).parents[1] / "data" / "foreign"
_DTYPES = {5121: "<u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def corners(path: Path) -> np.ndarray:
    """(C, 5) position and texture coordinates (top left origin) of each corner, in the world."""
    mesh = load_mesh(path)
    positions = mesh.vertices[mesh.faces].reshape(-1, 3)
    uv = np.zeros((len(positions), 2)) if mesh.uv is None else mesh.uv[mesh.uv_faces].reshape(-1, 2)
    return np.concatenate([positions, uv], axis=1)


def farthest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance of a corner of one set to the nearest of the other."""
    distance = np.abs(a[:, None] - b[None]).max(axis=2)
    return float(max(distance.min(axis=0).max(), distance.min(axis=1).max()))


def document_of(path: Path) -> Converted:
    """The document of a GLB as it is, of another file as it is converted."""
    if path.suffix != ".glb":
        return to_gltf(path)
    text, buffer = glb_chunks(path.read_bytes(), path.name)
    return Converted(json.loads(text), buffer or b"", ())


def values(document: Converted, accessor: int) -> np.ndarray:
    """(n, k) values of an accessor."""
    item = document.json["accessors"][accessor]
    view = document.json["bufferViews"][item["bufferView"]]
    width = _WIDTH[item["type"]]
    start = view.get("byteOffset", 0) + item.get("byteOffset", 0)
    return np.frombuffer(document.buffer, _DTYPES[item["componentType"]], item["count"] * width, start).reshape(
        -1, width
    )


def image(document: Converted, texture: dict[str, Any]) -> bytes:
    """The bytes of a texture's image."""
    source = document.json["images"][document.json["textures"][texture["index"]]["source"]]
    view = document.json["bufferViews"][source["bufferView"]]
    start = view.get("byteOffset", 0)
    return document.buffer[start : start + view["byteLength"]]


def at_time(document: Converted, seconds: float, path: Path) -> Path:
    """Writes to ``path`` the GLB whose nodes and weights are those of all animations at a time."""
    posed = copy.deepcopy(document.json)
    for animation in posed.pop("animations", []):
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            times = values(document, sampler["input"])[:, 0]
            keys = values(document, sampler["output"]).reshape(len(times), -1)
            value = [float(np.interp(seconds, times, column)) for column in keys.T]
            node = posed["nodes"][channel["target"]["node"]]
            if channel["target"]["path"] == "rotation":
                value = (np.array(value) / np.linalg.norm(value)).tolist()
            node[channel["target"]["path"]] = value
    path.write_bytes(Converted(posed, document.buffer, ()).glb())
    return path


def node_named(document: Converted, name: str) -> dict[str, Any]:
    """The first node of that name."""
    found: dict[str, Any] = next(node for node in document.json["nodes"] if node.get("name") == name)
    return found


def material_named(document: Converted, name: str) -> dict[str, Any]:
    """The material of that name."""
    (found,) = [material for material in document.json["materials"] if material["name"] == name]
    return dict(found)


def glb_of(document: Converted, path: Path) -> Path:
    """Writes the document as GLB to ``path``."""
    data = document.glb()
    assert struct.unpack_from("<I", data, 8)[0] == len(data)
    path.write_bytes(data)
    return path
