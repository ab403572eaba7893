"""Meshes in every format, broken in every way, through ``load_mesh``: a mesh or a MeshError of one line, never another
exception, a hang, or memory out of proportion."""

from __future__ import annotations

import base64
import json
import random
import resource
import signal
import struct
import sys
import time
from collections import Counter
from pathlib import Path

from harness import CUBE, ROOT, arguments, finish, workplace

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

LIMIT_SECONDS = 20
LIMIT_MB = 1500
NUMBERS = (b"0", b"-1", b"999999999", b"4294967295", b"1e39", b"nan", b"inf", b"-0.0", b"1/1/1", b"1//99", b"\x00", b"")
INTEGERS = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 65536)


class Hang(BaseException):
    """Raised by the alarm."""


def seeds(folder: Path) -> dict[str, bytes]:
    """One good file of each format, and two of glTF's."""
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
    draco = DracoPy.encode(points, faces)
    return {
        "a.obj": CUBE.encode(), "b.obj": obj, "a.ply": ply, "b.ply": binary, "a.stl": stl, "a.off": off, "a.glb": glb,
        "a.gltf": gltf(points, faces), "draco.gltf": draco_gltf(draco, len(points), len(faces)),
    }  # fmt: skip


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
    from pipeline.geometry.load import load_mesh

    def ring(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_SECONDS)
    try:
        mesh = load_mesh(path, max_faces=100_000, max_bytes=10_000_000)
    except MeshError as error:
        if "\n" in error.message or not error.message.startswith(path.name):
            return f"a message that is not one line: {error.message!r}"
        # Caught at the last door: nothing a user minds, but a reader did not foresee it.
        return "MeshError, unforeseen" if "damaged? (" in error.message else "MeshError"
    except Hang:
        return "hang"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "mesh" if len(mesh.faces) and mesh.faces.max() < len(mesh.vertices) else "mesh with wrong indices"


def main() -> None:
    chosen = arguments(__doc__, meshes=(300, 2000))
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
            path.write_bytes(mutate(rng, files[name], list(files.values())))
            begun = time.monotonic()
            fate = read(path)
            slowest = max(slowest, time.monotonic() - begun)
            counts[fate if fate.startswith("Mesh") or fate in ("mesh", "hang") else "fault"] += 1
            if fate not in ("mesh", "MeshError", "MeshError, unforeseen"):
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
