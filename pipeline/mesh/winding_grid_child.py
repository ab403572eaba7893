"""Child process that runs libigl on a sketch, because libigl's queries cannot be interrupted.

Run by path as ``python -P winding_grid_child.py FOLDER PARENT SECONDS``; imports nothing of this project. Reads
``vertices.npy`` (V, 3) float64, ``faces.npy`` (F, 3) int64 and ``sites.npy`` (R,) float64 (the coordinates of the
grid along each axis) in FOLDER; writes ``winding.npy`` and, last, ``distance.npy``, both (R, R, R) float32 [x, y, z].
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import numpy as np

exit_with_parent = runpy.run_path(str(Path(__file__).parents[1] / "core" / "process" / "die_with.py"))[
    "exit_with_parent"
]

# Distance from a face at which its two sides are sampled, in units of the mesh's longest extent.
_STEP = 1e-4
# Within this many coarse cells of the surface every site is sampled; beyond, every second one.
_BAND = 3.0


def boundary(vertices: np.ndarray, faces: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns 1, or -1 if the mesh is inside out, and those of ``faces`` that bound the solid.

    A face inside the solid, where solids overlap, is not part of its boundary.
    """
    import igl

    corner = vertices[faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    step = _STEP * np.ptp(vertices, axis=0).max() * normal / np.where(length > 0, length, 1.0)
    centre = corner.mean(axis=1)
    sides = igl.fast_winding_number(vertices, faces, np.concatenate([centre + step, centre - step]))
    sign = -1.0 if -sides.min() > sides.max() else 1.0
    hidden = (sign * sides > 0.5).reshape(2, -1).all(axis=0)
    return sign, faces if hidden.all() else np.ascontiguousarray(faces[~hidden])


def winding_and_distance(vertices: np.ndarray, faces: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Winding number (above 0.5 inside) and distance to the solid's surface, (N,) each, at (N, 3) float64 points."""
    import igl

    sign, boundary_faces = boundary(vertices, faces)
    winding = sign * igl.fast_winding_number(vertices, faces, points)
    squared, _, _ = igl.point_mesh_squared_distance(points, vertices, boundary_faces)
    return winding, np.sqrt(np.maximum(squared, 0.0))


def winding_and_distance_grid(
    vertices: np.ndarray, faces: np.ndarray, sites: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As ``winding_and_distance`` at all (x, y, z) of evenly spaced ``sites`` (R,).

    Returns two (R, R, R) float32, indexed [x, y, z]. Both are smooth far from the surface (except where two sides are
    equally near), so every second site is sampled there and the others are interpolated: a quarter of the time.
    """
    coarse = np.linspace(sites[0], sites[-1], max(2, len(sites) // 2))
    spacing = coarse[1] - coarse[0]
    hat = np.maximum(0.0, 1.0 - np.abs(sites[:, None] - coarse) / spacing)
    rough = winding_and_distance(vertices, faces, _lattice(coarse))
    winding, distance = (
        np.einsum("ai,bj,ck,ijk->abc", hat, hat, hat, values.reshape([len(coarse)] * 3), optimize=True).reshape(-1)
        for values in rough
    )
    near = distance < _BAND * spacing
    winding[near], distance[near] = winding_and_distance(vertices, faces, _lattice(sites)[near])
    shape = [len(sites)] * 3
    return winding.reshape(shape).astype(np.float32), distance.reshape(shape).astype(np.float32)


def _lattice(sites: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(sites, sites, sites, indexing="ij"), axis=-1).reshape(-1, 3)


def main(folder: Path) -> None:
    """Samples the mesh in ``folder`` on a grid."""
    arrays = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("vertices", "faces", "sites"))
    winding, distance = winding_and_distance_grid(*arrays)
    np.save(folder / "winding.npy", winding, allow_pickle=False)
    np.save(folder / "distance.partial.npy", distance, allow_pickle=False)
    os.replace(folder / "distance.partial.npy", folder / "distance.npy")


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[2]), int(sys.argv[3]))
    main(Path(sys.argv[1]))
