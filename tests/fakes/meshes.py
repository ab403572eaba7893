"""Meshes made by code, for tests of any room: no file needed, nothing random that a seed does not fix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.mesh import Mesh, assemble

# The file of a cube from -1 to 1 without texture coordinates (OBJ).
CUBE = """v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 -1\nv -1 -1 1\nv 1 -1 1\nv 1 1 1\nv -1 1 1
f 1 4 3 2\nf 5 6 7 8\nf 1 2 6 5\nf 3 4 8 7\nf 2 3 7 6\nf 1 5 8 4\n"""


def make(vertices: NDArray, faces: NDArray, uv: NDArray | None = None, uv_faces: NDArray | None = None) -> Mesh:
    """A ``Mesh`` as the loader would give it; uv with a top-left origin, one per vertex unless uv_faces is given."""
    if uv is not None and uv_faces is None:
        uv_faces = faces
    return assemble(vertices, faces, uv=uv, uv_faces=uv_faces, source_format="gltf")


def cube(size: float = 2.0) -> Mesh:
    """A cube of 12 faces around the origin whose six sides have their own squares in a 3 x 2 layout."""
    vertices, faces, uv = [], [], []
    for side in range(6):
        axis, sign = side // 2, 1.0 if side % 2 == 0 else -1.0
        normal, along = np.zeros(3), np.zeros(3)
        normal[axis], along[(axis + 1) % 3] = sign, 1.0
        across = np.cross(normal, along)
        corners = [normal - along - across, normal + along - across, normal + along + across]
        corners.append(normal - along + across)
        start = len(vertices)
        vertices += [c * size / 2 for c in corners]
        faces += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
        left, top = side % 3 / 3 + 0.02, side // 3 / 2 + 0.02
        right, bottom = left + 1 / 3 - 0.04, top + 1 / 2 - 0.04
        uv += [(left, bottom), (right, bottom), (right, top), (left, top)]
    return make(np.array(vertices), np.array(faces), np.array(uv))


def plane(cells: int = 4, size: float = 2.0) -> Mesh:
    """An open square in the xy plane facing +z; u runs with x, v (top-left origin) against y."""
    steps = np.linspace(0.0, 1.0, cells + 1)
    u, v = np.meshgrid(steps, steps)
    uv = np.stack([u, v], axis=-1).reshape(-1, 2)
    vertices = np.stack([(uv[:, 0] - 0.5) * size, (0.5 - uv[:, 1]) * size, np.zeros(len(uv))], axis=1)
    return make(vertices, _grid_faces(cells, cells), uv)


def uv_sphere(rings: int = 16, segments: int = 32, radius: float = 1.0) -> Mesh:
    """A sphere with the usual layout: a seam along one meridian, v = 0 at the top pole."""
    uv, vertices, faces = _sphere(rings, segments)
    return make(vertices * radius, faces, uv)


def torus(segments: int = 48, sides: int = 24, radius: float = 0.7, thickness: float = 0.3) -> Mesh:
    """A torus around the y axis without texture coordinates."""
    around, along = np.meshgrid(
        np.arange(segments) * 2 * np.pi / segments, np.arange(sides) * 2 * np.pi / sides, indexing="ij"
    )
    reach = radius + thickness * np.cos(along)
    points = np.stack([reach * np.sin(around), thickness * np.sin(along), reach * np.cos(around)], axis=-1)
    i, j = np.meshgrid(np.arange(segments), np.arange(sides), indexing="ij")
    here, right = i * sides + j, (i + 1) % segments * sides + j
    above, beyond = i * sides + (j + 1) % sides, (i + 1) % segments * sides + (j + 1) % sides
    quads = np.stack([here, right, beyond, above], axis=-1).reshape(-1, 4)
    return make(points.reshape(-1, 3), quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3))


def blob(faces: int = 5000, noise: float = 0.15, seed: int = 7) -> Mesh:
    """A closed bumpy blob of about ``faces`` faces without texture coordinates, like a scan."""
    rings = max(4, round((faces / 4) ** 0.5))
    _, points, index = _sphere(rings, 2 * rings)
    generator = np.random.Generator(np.random.Philox(key=seed))
    height = np.zeros(len(points))
    for octave in range(7):
        waves = generator.normal(size=(4, 3)) * 2.0 * 1.7**octave
        phases = generator.uniform(0, 2 * np.pi, 4)
        height += np.sin(points @ waves.T + phases).sum(axis=1) * noise * 0.6**octave / 2
    return make(points * (1.0 + height)[:, None], index)


def large(faces: int = 330_000) -> Mesh:
    """The blob that the memory and time limits of large meshes are tested with."""
    return blob(faces, noise=0.12, seed=11)


def spiral(turns: float = 3.0, steps: int = 120) -> Mesh:
    """A spiral ramp: all of it looks up, and it covers itself when seen from above."""
    angle = np.linspace(0.0, turns * 2 * np.pi, steps + 1)
    height = angle * 0.1
    inner = np.stack([0.4 * np.cos(angle), height, -0.4 * np.sin(angle)], axis=1)
    outer = np.stack([np.cos(angle), height, -np.sin(angle)], axis=1)
    points = np.stack([inner, outer], axis=1).reshape(-1, 3)
    start = 2 * np.arange(steps)[:, None]
    return make(points, np.concatenate([start + np.array([0, 1, 3]), start + np.array([0, 3, 2])]))


def soup(faces: int = 2000, seed: int = 3) -> Mesh:
    """Loose triangles that touch nowhere: each can only be a chart of its own."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    centre = generator.uniform(-1, 1, (faces, 1, 3))
    return make((centre + generator.normal(0, 0.03, (faces, 3, 3))).reshape(-1, 3), np.arange(3 * faces).reshape(-1, 3))


def write_obj(path: Path, mesh: Mesh) -> Path:
    """Writes ``mesh`` as an OBJ with its texture coordinates (bottom-left origin there), if it has any."""
    lines = [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.vertices]
    if mesh.uv is not None and mesh.uv_faces is not None:
        lines += [f"vt {u:.9g} {1 - v:.9g}" for u, v in mesh.uv.astype(np.float64)]
        corners = zip(mesh.faces + 1, mesh.uv_faces + 1, strict=True)
        lines += ["f " + " ".join(f"{a}/{b}" for a, b in zip(f, t, strict=True)) for f, t in corners]
    else:
        lines += [f"f {a} {b} {c}" for a, b, c in mesh.faces + 1]
    path.write_text("\n".join(lines) + "\n")
    return path


def _grid_faces(columns: int, rows: int) -> NDArray[np.int64]:
    """Faces of a grid of (rows + 1) x (columns + 1) points, row 0 at the top, seen from the front."""
    j, i = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    here = j * (columns + 1) + i
    quads = np.stack([here, here + columns + 1, here + columns + 2, here + 1], axis=-1).reshape(-1, 4)
    return quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def _sphere(rings: int, segments: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """(uv, points, faces) of a unit sphere; its pole rows hold degenerate faces, which are left out."""
    u, v = np.meshgrid(np.linspace(0, 1, segments + 1), np.linspace(0, 1, rings + 1))
    phi, theta = u * 2 * np.pi, v * np.pi
    # The seam and the poles exactly closed.
    phi[:, -1] = 0.0
    sine = np.sin(theta)
    sine[[0, -1]] = 0.0
    points = np.stack([sine * np.sin(phi), np.cos(theta), sine * np.cos(phi)], axis=-1).reshape(-1, 3)
    faces = _grid_faces(segments, rings)
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    whole = (a != b).any(axis=1) & (b != c).any(axis=1) & (c != a).any(axis=1)
    return np.stack([u, v], axis=-1).reshape(-1, 2), points, faces[whole]


def write_glb(path: Path, mesh: Mesh, *, matrix: NDArray | None = None) -> Path:
    """Writes ``mesh`` as a small GLB: one vertex per corner, under a node with ``matrix`` if given."""
    positions = mesh.vertices[mesh.faces.reshape(-1)].astype("<f4")
    chunks = [positions.tobytes()]
    attributes = {"POSITION": 0}
    accessors = [
        {
            "bufferView": 0,
            "componentType": 5126,
            "count": len(positions),
            "type": "VEC3",
            "min": positions.min(axis=0).tolist(),
            "max": positions.max(axis=0).tolist(),
        }
    ]
    if mesh.uv is not None and mesh.uv_faces is not None:
        chunks.append(mesh.uv[mesh.uv_faces.reshape(-1)].astype("<f4").tobytes())
        attributes["TEXCOORD_0"] = 1
        accessors.append({"bufferView": 1, "componentType": 5126, "count": len(positions), "type": "VEC2"})
    starts = np.cumsum([0] + [len(c) for c in chunks]).tolist()
    node: dict = {"mesh": 0} if matrix is None else {"mesh": 0, "matrix": np.asarray(matrix).T.reshape(-1).tolist()}
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [{"attributes": attributes}]}],
        "accessors": accessors,
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": len(c)} for start, c in zip(starts, chunks, strict=False)
        ],
        "buffers": [{"byteLength": starts[-1]}],
    }
    path.write_bytes(glb_bytes(json.dumps(document).encode(), b"".join(chunks)))
    return path


def glb_bytes(text: bytes, binary: bytes) -> bytes:
    """A GLB container around a JSON text and a binary chunk."""
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    body = len(text).to_bytes(4, "little") + b"JSON" + text
    body += len(binary).to_bytes(4, "little") + b"BIN\0" + binary
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(body)).to_bytes(4, "little") + body
