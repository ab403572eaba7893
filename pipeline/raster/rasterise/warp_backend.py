"""The rasteriser by ray casting: NVIDIA Warp's mesh queries (Apache-2.0), the same code on CUDA and on the CPU.

It is meant for CUDA machines without nvdiffrast, whose licence excludes commercial use; on the CPU ``numba_backend`` is
faster. One ray goes through each pixel centre, from the near plane, against a tree over the mesh that is kept between
calls. It differs from the other backends in three points: corners are not snapped to the pixel grid, tests are in
single precision, and at equal depth the face that the tree reaches first wins instead of the lowest id. So ids differ
only if a pixel's centre lies on an edge up to rounding.

Warp's conventions, from its sources (1.19): a hit is ``u * a + v * b + (1 - u - v) * c`` of the face's corners a, b, c;
``t`` is in lengths of the direction, which need not be 1; rays hit both sides of a face; the intersection test is
watertight (Woop).
"""

# mypy: disable-error-code="attr-defined, misc, no-untyped-def, type-arg, valid-type"
# A kernel's types are Warp's, and its body is compiled, not run.

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import warp as wp
from numpy.typing import NDArray

from pipeline.core.errors import SettingError
from pipeline.raster.backface_culling import front_faces

# Texels are rasterised in host memory, once per asset, so these functions stay with the compiled loops.
from pipeline.raster.rasterise.numba_backend import interpolate, rasterise_uv

__all__ = ["interpolate", "rasterise", "rasterise_uv"]

# Number of cached trees: one for each mesh that is painted in lockstep, and some spare ones.
_MAX_TREES = 16

# Without this, Warp prints at each start that the machine has no GPU.
wp.config.log_level = wp.LOG_ERROR
wp.init()  # type: ignore[no-untyped-call]  # Warp


def rasterise(
    vertices: NDArray[np.float64],
    faces: NDArray[np.integer],
    matrices: NDArray[np.float64],
    height: int,
    width: int,
    cull: bool,
    device: str | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """``rasterise.rasterise`` with the cameras as clip-from-world matrices (N, 4, 4).

    ``device`` is a Warp device, by default CUDA if there is one, else the CPU. Raises SettingError for cameras without
    perspective.
    """
    wp_device = wp.get_device(device or ("cuda" if wp.is_cuda_available() else "cpu"))
    shape = (len(matrices), height, width)
    face = wp.full(shape, -1, dtype=wp.int32, device=wp_device)
    bary = wp.zeros(shape, dtype=wp.vec3, device=wp_device)
    depth = wp.full(shape, float("inf"), dtype=wp.float32, device=wp_device)
    face_maps: dict[int, NDArray[np.int64]] = {}
    for i, matrix in enumerate(matrices):
        eye, near, through = _rays(matrix, height, width)
        if cull:
            face_maps[i] = front_faces(vertices, faces, matrix)
            mesh = _build(vertices, faces[face_maps[i]], wp_device)
        else:
            mesh = _tree(vertices, faces, wp_device)
        if mesh is not None:
            arguments = [mesh.id, wp.vec3(*eye), near, wp.mat33(*through.ravel()), face[i], bary[i], depth[i]]
            wp.launch(_trace_pixel, dim=(height, width), inputs=arguments, device=wp_device)
    if not len(matrices):
        return np.zeros(shape, np.int32), np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    hit = face.numpy()  # type: ignore[no-untyped-call]  # Warp
    for i, ids in face_maps.items():
        hit[i] = np.where(hit[i] >= 0, np.append(ids, -1)[hit[i]], -1)
    return hit, bary.numpy(), depth.numpy()  # type: ignore[no-untyped-call]  # Warp


@wp.kernel(enable_backward=False)  # type: ignore[untyped-decorator]  # Warp
def _trace_pixel(
    mesh: wp.uint64,
    eye: wp.vec3,
    near: wp.float32,
    through: wp.mat33,
    face: wp.array2d(dtype=wp.int32),
    bary: wp.array2d(dtype=wp.vec3),
    depth: wp.array2d(dtype=wp.float32),
):
    """One pixel: the nearest face on its ray. ``through`` @ (x + 0.5, y + 0.5, 1) is the ray per unit of depth."""
    y, x = wp.tid()
    direction = through * wp.vec3(float(x) + 0.5, float(y) + 0.5, 1.0)
    hit = wp.mesh_query_ray(mesh, eye + near * direction, direction, 1.0e30)
    if hit.result:
        face[y, x] = hit.face
        bary[y, x] = wp.vec3(hit.u, hit.v, 1.0 - hit.u - hit.v)
        depth[y, x] = near + hit.t


def _rays(
    matrix: NDArray[np.float64], height: int, width: int
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """The eye (3,), the depth of the near plane, and the matrix (3, 3) that turns pixels into rays.

    With x, y and w the rows of ``matrix`` (4, 4), a point at (X, Y) of the clip square and at depth w satisfies
    x = X w, y = Y w. It is the eye (where x = y = w = 0) plus w times a direction that is linear in X and Y. So rays
    advance by 1 in depth, need no normalising, and measure the depth itself.
    """
    rows = matrix[[0, 1, 3]]
    try:
        inverse = np.linalg.inv(rows[:, :3])
    except np.linalg.LinAlgError:
        raise SettingError("rasterise: warp draws perspective cameras only; use LATENTKILN_RASTERISE=numba") from None
    eye = -inverse @ rows[:, 3]
    # The near plane is z + w = 0. Along a ray z grows linearly, at the same rate on every ray of a projection.
    at_eye = matrix[2, :3] @ eye + matrix[2, 3]
    near = -at_eye / (1.0 + matrix[2, :3] @ inverse[:, 2])
    square_from_pixel = np.array([[2.0 / width, 0.0, -1.0], [0.0, -2.0 / height, 1.0], [0.0, 0.0, 1.0]])
    return eye, float(near), inverse @ square_from_pixel


class _CachedTree:
    """A tree with the arrays that it was built from (so that their memory is not reused) and a copy of them."""

    def __init__(self, vertices: NDArray[np.float64], faces: NDArray[np.integer], mesh: Any):
        self.arrays, self.copies, self.mesh = (vertices, faces), (vertices.copy(), faces.copy()), mesh

    def matches(self, vertices: NDArray[np.float64], faces: NDArray[np.integer]) -> bool:
        """Comparing 300,000 vertices takes a millisecond, building their tree a hundred times that."""
        return np.array_equal(self.copies[0], vertices) and np.array_equal(self.copies[1], faces)


_trees: OrderedDict[tuple[int, int, str], _CachedTree] = OrderedDict()


def _tree(vertices: NDArray[np.float64], faces: NDArray[np.integer], wp_device: Any) -> Any:
    """The tree over a mesh, built once for the same memory with the same content."""
    key = (vertices.ctypes.data, faces.ctypes.data, str(wp_device))
    entry = _trees.get(key)
    if entry is None or not entry.matches(vertices, faces):
        entry = _CachedTree(vertices, faces, _build(vertices, faces, wp_device))
        _trees[key] = entry
        while len(_trees) > _MAX_TREES:
            _trees.popitem(last=False)
    _trees.move_to_end(key)
    return entry.mesh


def _build(vertices: NDArray[np.float64], faces: NDArray[np.integer], wp_device: Any) -> Any:
    """A Warp mesh, or None without faces (Warp cannot build an empty one)."""
    if not len(faces):
        return None
    points: Any = wp.array(vertices.astype(np.float32), dtype=wp.vec3, device=wp_device)
    indices: Any = wp.array(np.ascontiguousarray(faces, np.int32).ravel(), dtype=wp.int32, device=wp_device)
    return wp.Mesh(points=points, indices=indices)
