"""Meshes in every format, broken in every way, through ``load_mesh``: a mesh or a MeshError of one line, never another
exception, a hang, or memory out of proportion."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import random
import re
import resource
import signal
import struct
import sys
import time
from collections import Counter
from pathlib import Path

from harness import CUBE, ROOT, arguments, finish, workplace

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fakes")]

LIMIT_SECONDS = 20
LIMIT_MB = 1500
NUMBERS = (
    b"0", b"-1", b"-1.#IND00", b"1.#QNAN", b"#", b"999999999", b"4294967295", b"1e39", b"nan", b"inf", b"-0.0",
    b"1/1/1", b"1//99", b"\x00", b"", b"\r", b"\n", b" ", b"1e", b"0x10", b"1_0",
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 1, 2, 3, 1.5, 10**12, 10**30, 1e308, float("nan"), float("inf"), "", "a", "data:,", "x" * 300,
    [], {}, [[]], [{}], [None], [-1], ["a"], {"": None}, 5120, 5121, 5126, "VEC4", "SCALAR", "MAT4", "OCTAHEDRAL",
    "INDICES", [1.0, 2.0], [0, 0, 0, 0], "\x1b[31mred", "../a.bin",
)  # fmt: skip
INTEGERS = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 65536)


# What Python says of its own errors.
PYTHON = re.compile(
    r"\b[A-Z][a-zA-Z]*Error\b|reshape|object has no attribute|not iterable|unhashable|NoneType|Traceback"
)


class Hang(BaseException):
    """Raised by the alarm."""


def seeds(folder: Path) -> dict[str, bytes]:
    """Good files of each format, with what readers have most trouble with."""
    import DracoPy
    import meshes
    import numpy as np

    sphere = meshes.uv_sphere(6, 8)
    glb = meshes.write_glb(folder / "seed.glb", sphere).read_bytes()
    obj = meshes.write_obj(folder / "seed.obj", sphere).read_bytes()
    points, faces = np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.int32)
    ply = b"ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    ply += b"element face 4\nproperty list uchar int vertex_indices\nend_header\n"
    ply += b"0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"
    head = ply.replace(b"ascii", b"binary_little_endian").split(b"end_header\n")[0] + b"end_header\n"
    corners = ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))
    binary = head + struct.pack("<12f", 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1)
    binary += b"".join(struct.pack("<B3i", 3, *corner) for corner in corners)
    stl = bytes(80) + struct.pack("<I", len(faces))
    stl += b"".join(struct.pack("<12fH", 0, 0, 0, *points[face].ravel(), 0) for face in faces)
    off = b"OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"
    text = (
        b"solid a\n"
        + b"facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n" * 3
        + b"endsolid a\n"
    )
    draco = DracoPy.encode(points, faces)
    kept = {path.name: path.read_bytes() for path in (ROOT / "tests" / "data" / "meshes").iterdir()}
    refused = ("empty.ply", "lfs.glb", "lfs.obj", "lfs.stl")
    return {
        "a.obj": CUBE.encode(), "b.obj": obj, "a.ply": ply, "b.ply": binary, "a.stl": stl, "b.stl": text, "a.off": off,
        "b.off": off.replace(b"OFF\n4 4 0\n", b"OFF4 4 0 ").replace(b"\n", b" "),
        "a.glb": glb, "a.gltf": gltf(points, faces), "draco.gltf": draco_gltf(draco, len(points), len(faces)),
        "posed.gltf": posed_gltf(points, faces), "packed.gltf": packed_gltf(points, faces),
    } | {name: data for name, data in kept.items() if name not in refused}  # fmt: skip


def posed_gltf(points, faces) -> bytes:
    """A .gltf with a skin, morph targets, sparse values, and a material."""
    import numpy as np

    count = len(points)
    arrays = [
        points.astype("<f4"), faces.astype("<u4"), np.zeros((count, 4), "u1"), np.full((count, 4), 63, "u1"),
        np.tile(np.eye(4, dtype="<f4"), (2, 1, 1)), np.array([0, 3], "<u2"), np.ones((2, 3), "<f4"),
    ]  # fmt: skip
    starts = np.cumsum([0] + [len(a.tobytes()) + -len(a.tobytes()) % 4 for a in arrays]).tolist()
    data = b"".join(a.tobytes() + b"\0" * (-len(a.tobytes()) % 4) for a in arrays)
    sparse = {
        "count": 2, "indices": {"bufferView": 5, "componentType": 5123}, "values": {"bufferView": 6},
    }  # fmt: skip
    document = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0, 1]}],
        "nodes": [{"mesh": 0, "skin": 0, "weights": [0.5]}, {"children": [2]}, {"rotation": [0, 0.6, 0, 0.8]}],
        "skins": [{"joints": [1, 2], "inverseBindMatrices": 4}],
        "meshes": [{"weights": [1], "primitives": [{
            "attributes": {"POSITION": 0, "JOINTS_0": 2, "WEIGHTS_0": 3, "NORMAL": 0}, "indices": 1, "material": 0,
            "targets": [{"POSITION": 5}],
        }]}],
        "materials": [{"name": "a", "alphaMode": "MASK", "doubleSided": True, "pbrMetallicRoughness": {
            "baseColorTexture": {"index": 0, "extensions": {"KHR_texture_transform": {"offset": [0, 0]}}}}}],
        "textures": [{"source": 0}], "images": [{"uri": "a.png"}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": count, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": faces.size, "type": "SCALAR"},
            {"bufferView": 2, "componentType": 5121, "count": count, "type": "VEC4"},
            {"bufferView": 3, "componentType": 5121, "count": count, "type": "VEC4", "normalized": True},
            {"bufferView": 4, "componentType": 5126, "count": 2, "type": "MAT4"},
            {"componentType": 5126, "count": count, "type": "VEC3", "sparse": sparse},
        ],
        "bufferViews": [{"buffer": 0, "byteOffset": start, "byteLength": len(array.tobytes())}
                        for start, array in zip(starts, arrays, strict=False)],
        "buffers": [{"byteLength": len(data), "uri": inline(data)}],
    }  # fmt: skip
    return json.dumps(document).encode()


def packed_gltf(points, faces) -> bytes:
    """A .gltf that is packed by meshopt."""
    import meshopt

    name = "EXT_meshopt_compression"
    views, data = [], b""
    for rows, mode in ((points, "ATTRIBUTES"), (faces.ravel().astype("<u4"), "TRIANGLES")):
        packed, stride = meshopt.encode_gltf_buffer(rows, mode), rows.nbytes // len(rows)
        extension = {"buffer": 0, "byteOffset": len(data), "byteLength": len(packed), "byteStride": stride,
                     "count": len(rows), "mode": mode, "filter": "NONE"}  # fmt: skip
        views.append({"buffer": 1, "byteLength": rows.nbytes, "extensions": {name: extension}})
        data += packed + b"\0" * (-len(packed) % 4)
    document = {
        "asset": {"version": "2.0"}, "extensionsUsed": [name], "extensionsRequired": [name],
        "nodes": [{"mesh": 0}], "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": faces.size, "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": len(data), "uri": inline(data)},
                    {"byteLength": 9999, "extensions": {name: {"fallback": True}}}],
    }  # fmt: skip
    return json.dumps(document).encode()


def gltf(points, faces) -> bytes:
    """A .gltf with its buffer inline."""
    data = points.astype("<f4").tobytes() + faces.astype("<u4").tobytes()
    first = points.nbytes
    document = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": [1, 2, 3], "children": [1]}, {"scale": [1, 1, 1]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": faces.size, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": first}, {"buffer": 0, "byteOffset": first, "byteLength": len(data) - first},
        ],
        "buffers": [{"byteLength": len(data), "uri": inline(data)}],
    }  # fmt: skip
    return json.dumps(document).encode()


def draco_gltf(data: bytes, points: int, faces: int) -> bytes:
    """A .gltf whose one part is Draco-compressed."""
    extension = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    document = {
        "asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "extensionsUsed": list(extension), "extensionsRequired": list(extension),
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "extensions": extension}]}],
        "accessors": [
            {"componentType": 5126, "count": points, "type": "VEC3"},
            {"componentType": 5125, "count": 3 * faces, "type": "SCALAR"},
        ],
        "bufferViews": [{"buffer": 0, "byteLength": len(data)}],
        "buffers": [{"byteLength": len(data), "uri": inline(data)}],
    }  # fmt: skip
    return json.dumps(document).encode()


def inline(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """A glTF with values of its JSON replaced, dropped or moved: what byte flips seldom leave parsable."""
    is_glb = data[:4] == b"glTF"
    text = data[20 : 20 + struct.unpack_from("<I", data, 12)[0]] if is_glb else data
    document = json.loads(text.rstrip(b"\0"))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(spots(document))
        parent, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            other, name = rng.choice(places)
            value = other[name]
            parent[key] = copy.deepcopy(value)
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        if not list(spots(document)):
            break
    text = json.dumps(document).encode()
    if not is_glb:
        return text
    text += rng.choice((b" ", b"\0")) * (-len(text) % 4)
    rest = data[20 + struct.unpack_from("<I", data, 12)[0] :]
    body = struct.pack("<I", len(text)) + b"JSON" + text + rest
    return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body


def spots(value):
    """Every (container, key) of a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from spots(value[key])


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Bit flips, truncations, numbers and fields replaced or swapped, pieces of other files spliced in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        if not out:
            break
        at = rng.randrange(len(out))
        kind = rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + rng.randint(1, 64)]
        elif kind == 3 and at + 4 <= len(out):
            out[at : at + 4] = struct.pack("<I", rng.choice(INTEGERS))
        elif kind == 4:
            digits = [i for i in range(at, min(len(out), at + 400)) if 48 <= out[i] < 58]
            if digits:
                out[digits[0] : digits[0] + rng.randint(1, 4)] = rng.choice(NUMBERS)
        elif kind == 5:
            piece = rng.choice(others)
            start = rng.randrange(len(piece))
            out[at:at] = piece[start : start + rng.randint(1, 200)]
        else:
            other, size = rng.randrange(len(out)), rng.randint(1, 32)
            one, two = bytes(out[at : at + size]), bytes(out[other : other + size])
            out[other : other + len(two)] = one
            out[at : at + len(one)] = two
    return bytes(out)


def read(path: Path) -> str:
    """What became of it: ``mesh``, ``MeshError``, or what should not be."""
    from pipeline.core.errors import MeshError
    from pipeline.mesh.load import load_mesh
    from pipeline.mesh.mesh_hash import mesh_sha256

    def ring(*_: object) -> None:
        raise Hang

    mesh = None
    signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_SECONDS)
    try:
        # As a plan asks first.
        with contextlib.suppress(MeshError):
            mesh_sha256(path)
        mesh = load_mesh(path, max_faces=100_000, max_bytes=10_000_000)
        said = mesh.warnings
    except MeshError as error:
        if not error.message.startswith(path.name):
            return f"a message that does not name the file: {error.message!r}"
        if error.__cause__ is not None:
            # Caught at the last door: a reader did not foresee it.
            return f"unforeseen: {error.__cause__!r}"
        said = [error.message]
    except Hang:
        return "hang"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    for line in said:
        if not line.isprintable() or PYTHON.search(line):
            return f"a line that is not for a user: {line!r}"
    if mesh is None:
        return "MeshError"
    return "mesh" if len(mesh.faces) and mesh.faces.max() < len(mesh.vertices) else "mesh with wrong indices"


def main() -> None:
    chosen = arguments(__doc__, meshes=(400, 3000))
    counts: Counter[str] = Counter()
    bad: list[str] = []
    slowest = 0.0
    with workplace(chosen) as folder:
        files = seeds(folder)
        for name, data in files.items():
            (folder / name).write_bytes(data)
            if (fate := read(folder / name)) != "mesh":
                bad.append(f"{name}, unbroken: {fate}")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for number in range(chosen.meshes):
            rng = random.Random(f"{chosen.seed}-{number}")
            name = rng.choice(list(files))
            path = folder / f"broken{Path(name).suffix}"
            is_gltf = name.endswith((".gltf", ".glb"))
            data = mutate_json(rng, files[name]) if is_gltf and rng.random() < 0.7 else files[name]
            if data is files[name] or rng.random() < 0.2:
                data = mutate(rng, data, list(files.values()))
            path.write_bytes(data)
            begun = time.monotonic()
            fate = read(path)
            slowest = max(slowest, time.monotonic() - begun)
            counts[fate if fate.startswith("Mesh") or fate in ("mesh", "hang") else "fault"] += 1
            if fate not in ("mesh", "MeshError"):
                bad.append(f"{number} ({name}): {fate}")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    for line in bad[:20]:
        print(line)
    ok = not bad and grown < LIMIT_MB
    finish(
        ok, meshes=chosen.meshes, faults=len(bad), slowest=round(slowest, 2), grown_mb=round(grown), fates=dict(counts)
    )


if __name__ == "__main__":
    main()
