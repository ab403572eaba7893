"""glTF files whose bytes are packed by meshopt or Draco, or stand in data URIs of every spelling."""

from __future__ import annotations

import base64
import json
import urllib.parse
from pathlib import Path
from typing import Any

import meshopt
import numpy as np
import pytest
from meshes import glb_bytes
from test_foreign_meshes import BOX, TRIANGLES, Gltf, box

from pipeline.core.errors import MeshError
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import Mesh, face_areas
from pipeline.mesh.mesh_hash import mesh_sha256
from pipeline.mesh.readers.gltf_buffers import as_component
from pipeline.mesh.readers.gltf_file import inline_data, outside_uris


class Packed:
    """A document whose views are packed by meshopt; the buffer that they stand for has no bytes."""

    def __init__(self, extension: str = "EXT_meshopt_compression"):
        self.extension, self.binary = extension, b""
        self.primitive: dict[str, Any] = {"attributes": {}}
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [self.primitive]}], "accessors": [], "bufferViews": [],
            "extensionsUsed": [extension], "extensionsRequired": [extension],
        }  # fmt: skip

    def add(
        self, rows: np.ndarray, component: int, kind: str, *, mode: str = "ATTRIBUTES", filter: str = "NONE",
        plain: np.ndarray | None = None, **more: Any,
    ) -> int:  # fmt: skip
        """The number of a new accessor over ``rows``, of which each is ``stride`` bytes when it is unpacked."""
        data = meshopt.encode_gltf_buffer(rows, mode)  # type: ignore[arg-type]
        count, stride = len(rows), rows.nbytes // len(rows)
        packed = {
            "buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), "byteStride": stride,
            "count": count, "mode": mode, "filter": filter,
        }  # fmt: skip
        self.binary += data + b"\0" * (-len(data) % 4)
        view = {"buffer": 1, "byteOffset": 0, "byteLength": count * stride, "extensions": {self.extension: packed}}
        if mode == "ATTRIBUTES":
            view["byteStride"] = stride
        self.document["bufferViews"].append(view)
        number = len(self.document["bufferViews"]) - 1
        accessor = {"bufferView": number, "componentType": component, "count": count, "type": kind}
        self.document["accessors"].append(accessor | more)
        return len(self.document["accessors"]) - 1

    def write(self, path: Path) -> Path:
        self.document["buffers"] = [
            {"byteLength": len(self.binary)},
            {"byteLength": 10**6, "extensions": {self.extension: {"fallback": True}}},
        ]
        path.write_bytes(glb_bytes(json.dumps(self.document).encode(), self.binary))
        return path


def packed_box(extension: str = "EXT_meshopt_compression", index_type: str = "<u2") -> Packed:
    made = Packed(extension)
    made.primitive["attributes"]["POSITION"] = made.add(BOX.astype("<f4"), 5126, "VEC3")
    made.primitive["indices"] = made.add(
        TRIANGLES.ravel().astype("<u4"), 5125, "SCALAR", mode="TRIANGLES"
    )  # fmt: skip
    if index_type == "<u2":
        made.document["bufferViews"][1]["extensions"][extension]["byteStride"] = 2
        made.document["accessors"][1]["componentType"] = 5123
    return made


def is_the_box(mesh: Mesh, tolerance: float = 1e-6) -> None:
    assert len(mesh.vertices) == 8 and len(mesh.faces) == 12
    assert face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(8.2, abs=10 * tolerance)
    assert mesh.vertices.min(axis=0) == pytest.approx((0, 0, 0), abs=tolerance)
    assert mesh.vertices.max(axis=0) == pytest.approx((1, 0.7, 2), abs=tolerance)


@pytest.mark.parametrize("extension", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
@pytest.mark.parametrize("index_type", ["<u2", "<u4"])
def test_what_meshopt_packed_is_unpacked(extension: str, index_type: str, tmp_path: Path) -> None:
    mesh = load_mesh(packed_box(extension, index_type).write(tmp_path / "a.glb"))
    is_the_box(mesh)
    assert mesh.warnings == []


def test_filters_and_quantised_values(tmp_path: Path) -> None:
    made = packed_box()
    made.binary, made.document["accessors"], made.document["bufferViews"] = b"", [], []
    outward = (BOX - BOX.mean(axis=0)) / np.linalg.norm(BOX - BOX.mean(axis=0), axis=1, keepdims=True)
    octahedral = meshopt.encode_filter_oct(np.pad(outward, ((0, 0), (0, 1))).astype("f4"), 4, 8)
    exponents = meshopt.encode_filter_exp(BOX.astype("f4"), 20)
    quantised = np.zeros((8, 4), "<u2")
    quantised[:, :3] = np.rint(BOX / 2 * 65535)
    corners = np.zeros((8, 2), "<u2")
    corners[:, 0] = np.rint(BOX[:, 2] / 2 * 65535)
    made.primitive["attributes"] = {
        "POSITION": made.add(exponents, 5126, "VEC3", filter="EXPONENTIAL"),
        "NORMAL": made.add(octahedral, 5120, "VEC3", filter="OCTAHEDRAL", normalized=True),
        "TEXCOORD_0": made.add(corners, 5123, "VEC2", normalized=True),
    }
    made.primitive["indices"] = made.add(TRIANGLES.ravel().astype("<u4"), 5125, "SCALAR", mode="INDICES")
    mesh = load_mesh(made.write(tmp_path / "a.glb"))
    is_the_box(mesh, 1e-5)
    assert mesh.normals is not None and mesh.normal_faces is not None and mesh.uv is not None
    found = mesh.normals[mesh.normal_faces]
    toward = mesh.vertices[mesh.faces] - BOX.mean(axis=0)
    assert found == pytest.approx(toward / np.linalg.norm(toward, axis=2, keepdims=True), abs=0.02)
    assert sorted(set(mesh.uv[:, 0].tolist())) == [0, 1]
    made.primitive["attributes"]["POSITION"] = made.add(quantised, 5123, "VEC3", normalized=True)
    made.document["nodes"] = [{"mesh": 0, "scale": [2, 2, 2]}]
    is_the_box(load_mesh(made.write(tmp_path / "b.glb")), 1e-4)


def test_the_buffer_for_other_readers_may_be_missing(tmp_path: Path) -> None:
    made = packed_box()
    path = made.write(tmp_path / "a.glb")
    document = made.document | {
        "buffers": [made.document["buffers"][0], made.document["buffers"][1] | {"uri": "a.bin"}]
    }
    path.write_bytes(glb_bytes(json.dumps(document).encode(), made.binary))
    is_the_box(load_mesh(path))
    assert outside_uris(document) == [] and mesh_sha256(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 10**9}, "meshopt data claim 1000000000 entries of 12 bytes, which is too many"),
        ({"count": 7}, "truncated or damaged|cannot be decoded"),
        ({"byteStride": 13}, r"cannot be decoded \(a row must be"),
        ({"byteStride": 300}, "rows of 300 bytes are not allowed"),
        ({"mode": "NONE"}, "cannot be decoded"),
        ({"mode": 5}, "not a string"),
        ({"filter": "QUATERNION"}, "cannot be decoded"),
        ({"byteLength": 10**6}, "its meshopt data ends at byte 1000000"),
        ({"byteLength": 3}, "cannot be decoded"),
        ({"buffer": 7}, "names buffer 7, but there are 2"),
        ({"count": None}, "count None, which is not a count"),
    ],
)
def test_broken_meshopt_data_are_told(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    made = packed_box()
    made.document["bufferViews"][0]["extensions"]["EXT_meshopt_compression"] |= change
    with pytest.raises(MeshError, match=says) as caught:
        load_mesh(made.write(tmp_path / "a.glb"), max_faces=1000)
    assert "\n" not in caught.value.message


def test_hostile_meshopt_streams_end_in_rows_or_an_error() -> None:
    """The decoder runs in this process: it must take any bytes."""
    generator = np.random.Generator(np.random.Philox(key=2))
    points = generator.integers(0, 2**16, (700, 8)).astype("<u2")
    streams = {
        "ATTRIBUTES": (meshopt.encode_gltf_buffer(points, "ATTRIBUTES"), 700, 16),
        "TRIANGLES": (meshopt.encode_gltf_buffer(TRIANGLES.ravel().astype("u4"), "TRIANGLES"), 36, 4),
        "INDICES": (meshopt.encode_gltf_buffer(np.arange(900, dtype="u4"), "INDICES"), 900, 4),
    }
    refused = 0
    for mode, (data, count, stride) in streams.items():
        for _ in range(1500):
            bent = np.frombuffer(data, np.uint8).copy()
            for _ in range(int(generator.integers(1, 6))):
                bent[int(generator.integers(len(bent)))] = int(generator.integers(256))
            bent = bent[: int(generator.integers(1, len(bent) + 1))] if generator.random() < 0.5 else bent
            try:
                rows = meshopt.decode_gltf_buffer(bent, count, stride, mode)  # type: ignore[arg-type]
                assert len(rows) == count
            except (ValueError, RuntimeError):
                refused += 1
    assert refused > 1000


# -- data URIs --------------------------------------------------------------------------------------------------------


def inlined(made: Gltf, uri: str, path: Path) -> Path:
    made.document["buffers"] = [{"byteLength": len(made.binary), "uri": uri}]
    path.write_text(json.dumps(made.document))
    return path


def spelled(data: bytes) -> dict[str, str]:
    text = base64.b64encode(data).decode()
    lines = "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    kind = "application/octet-stream"
    return {
        "plain": f"data:{kind};base64,{text}",
        "capitals": f"DATA:{kind};BASE64,{text}",
        "without a type": f"data:;base64,{text}",
        "with a character set": f"data:{kind};charset=utf-8;base64,{text}",
        "percent-encoded": f"data:{kind};base64,{urllib.parse.quote(text, safe='')}",
        "in lines": f"data:{kind};base64,{lines}",
        "with blanks": f"data:{kind};base64, {text[:40]} \t{text[40:]} ",
        "encoded line ends": f"data:{kind};base64,{urllib.parse.quote(lines)}",
        "without padding": f"data:{kind};base64,{text.rstrip('=')}",
        "for web addresses": f"data:{kind};base64,{text.replace('+', '-').replace('/', '_')}",
        "not base64": f"data:{kind},{urllib.parse.quote_from_bytes(data)}",
    }


@pytest.mark.parametrize("spelling", spelled(b""))
def test_inline_data_are_read_however_they_are_spelled(spelling: str, tmp_path: Path) -> None:
    made = box()
    made.binary += b"\xfb\xff\xfe"[: 1 + -len(made.binary) % 3]
    path = inlined(made, spelled(made.binary)[spelling], tmp_path / "a.gltf")
    is_the_box(load_mesh(path))
    assert inline_data(spelled(made.binary)[spelling]) == made.binary and mesh_sha256(path)


@pytest.mark.parametrize("uri", ["data:;base64,@@@@", "data:;base64,A", "data:nothing", "data:;base64,%zz"])
def test_inline_data_that_are_none_are_told(uri: str, tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"inline data of buffer 0 cannot be read: they"):
        load_mesh(inlined(box(), uri, tmp_path / "a.gltf"))


@pytest.mark.parametrize("uri", ["x" * 300, "a/" * 3000, "a\ud800.bin", "loop/a.bin", 5, ["a.bin"]])
def test_buffers_of_impossible_names_are_told(uri: Any, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = inlined(box(), uri, tmp_path / "a.gltf")
    with pytest.raises(MeshError) as caught:
        load_mesh(path)
    assert caught.value.message.startswith("a.gltf: ") and caught.value.__cause__ is None
    if isinstance(uri, str):
        with pytest.raises(MeshError, match=r"its buffer .* (cannot be opened|does not exist|is not a relative path)"):
            mesh_sha256(path)


# -- optional data, Draco, materials -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["NORMAL", "TEXCOORD_0"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 3}, "3 entries for 8 positions"),
        ({"byteOffset": 10**6}, "truncated"),
        ({"bufferView": 99}, "names bufferView 99"),
        ({"type": "SCALAR"}, "does not hold"),
        ({"componentType": 99}, "unknown type"),
    ],
)
def test_optional_attributes_never_refuse_a_mesh(
    attribute: str, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    made = box()
    width = 3 if attribute == "NORMAL" else 2
    number = made.add(np.ones((8, width), "<f4"), 5126, f"VEC{width}")
    made.primitive["attributes"][attribute] = number
    made.document["accessors"][number] |= change
    mesh = load_mesh(made.write(tmp_path / "a.glb"))
    is_the_box(mesh)
    assert len(mesh.warnings) == 1 and says in mesh.warnings[0]
    assert mesh.warnings[0].startswith(f"{attribute} of a part is not used: ")
    assert mesh.normals is None and mesh.uv is None


@pytest.mark.parametrize(
    ("stored", "dtype", "wanted"),
    [
        (np.array([[65535, 1]], "<u2"), "<i2", [[-1, 1]]),
        (np.array([[255, 127]], "<i4"), "u1", [[255, 127]]),
        (np.array([[254.6, -3.0]], "<f4"), "u1", [[255, 0]]),
        (np.array([[3, 4]], "<i4"), "<f4", [[3.0, 4.0]]),
        (np.array([[0.25, 4]], "<f4"), "<f4", [[0.25, 4.0]]),
    ],
)
def test_what_a_decoder_gives_takes_the_type_of_its_accessor(
    stored: np.ndarray, dtype: str, wanted: list[list[float]]
) -> None:
    found = as_component(stored, np.dtype(dtype))
    assert found.dtype == np.dtype(dtype) and found.tolist() == wanted


@pytest.mark.parametrize(
    ("material", "told"),
    [
        ({"name": "leaf", "alphaMode": "MASK", "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}, True),
        ({"name": "leaf", "alphaMode": "BLEND", "pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 0.5]}}, True),
        ({"name": "leaf", "alphaMode": "MASK", "pbrMetallicRoughness": {"baseColorTexture": {"index": 1}}}, False),
        ({"name": "leaf", "alphaMode": "MASK"}, False),
        ({"name": "leaf", "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}, False),
    ],
)
def test_materials_that_may_be_seen_through_are_told(material: dict[str, Any], told: bool, tmp_path: Path) -> None:
    made = box()
    made.document["materials"] = [material]
    made.document["textures"] = [{"source": 0}, {"source": 1}]
    made.document["images"] = [{"mimeType": "image/png"}, {"mimeType": "image/jpeg"}]
    made.primitive["material"] = 0
    mode = material.get("alphaMode")
    wanted = [f"transparent parts of the material 'leaf' (alphaMode {mode}) are painted as surface"] if told else []
    assert load_mesh(made.write(tmp_path / "a.glb")).warnings == wanted


@pytest.mark.parametrize(("colours", "told"), [("VEC4", True), ("VEC3", False), (None, False)])
def test_transparent_vertex_colours_are_told_and_bad_ones_refuse_nothing(
    colours: str | None, told: bool, tmp_path: Path
) -> None:
    made = box()
    made.document["materials"] = [{"name": "leaf", "alphaMode": "BLEND"}]
    made.primitive["material"] = 0
    made.primitive["attributes"]["COLOR_0"] = len(made.document["accessors"]) if colours else 99
    if colours:
        made.document["accessors"].append({"componentType": 5126, "count": 8, "type": colours})
    wanted = ["transparent parts of the material 'leaf' (alphaMode BLEND) are painted as surface"] if told else []
    assert load_mesh(made.write(tmp_path / "a.glb")).warnings == wanted
