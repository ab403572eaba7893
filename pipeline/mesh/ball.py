"""The ball on which the preview shows a tileable texture."""

from __future__ import annotations

import numpy as np

from pipeline.mesh.mesh import Mesh, UVMesh

# Radius in glTF's units: the ball's diameter is one metre.
RADIUS = 0.5
RINGS, SEGMENTS = 48, 96


def preview_ball() -> UVMesh:
    """A sphere with +Y up, one chart over the whole unit square, exact normals, and the middle of the chart at +Z.

    u runs once around, to the right as seen from outside; v runs from the top pole down. A square texture keeps its
    shape at the equator if it repeats twice as often along u as along v.
    """
    theta = np.linspace(0, np.pi, RINGS + 1)[1:-1]
    phi = np.linspace(-np.pi, np.pi, SEGMENTS, endpoint=False)
    circle = np.stack(
        [
            np.outer(np.sin(theta), np.sin(phi)),
            np.repeat(np.cos(theta)[:, None], SEGMENTS, axis=1),
            np.outer(np.sin(theta), np.cos(phi)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    normals = np.concatenate([[(0.0, 1.0, 0.0)], circle, [(0.0, -1.0, 0.0)]])
    u, v = np.arange(SEGMENTS + 1) / SEGMENTS, np.arange(1, RINGS) / RINGS
    # Each triangle at a pole has its own corner there, above the middle of its edge.
    middle = (np.arange(SEGMENTS) + 0.5) / SEGMENTS
    uv = np.concatenate(
        [
            np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2),
            np.stack([middle, np.zeros(SEGMENTS)], axis=-1),
            np.stack([middle, np.ones(SEGMENTS)], axis=-1),
        ]
    )
    ring, segment = (grid.ravel() for grid in np.mgrid[: RINGS - 2, :SEGMENTS])
    beside = (segment + 1) % SEGMENTS
    first = np.arange(SEGMENTS)
    after = (first + 1) % SEGMENTS
    last_ring = (RINGS - 2) * SEGMENTS
    corners = [1 + r * SEGMENTS + s for r, s in ((ring, segment), (ring + 1, segment), (ring + 1, beside))]
    corners.append(1 + ring * SEGMENTS + beside)
    wide = SEGMENTS + 1
    uv_corners = [r * wide + s for r, s in ((ring, segment), (ring + 1, segment), (ring + 1, segment + 1))]
    uv_corners.append(ring * wide + segment + 1)
    pole = (RINGS - 1) * wide
    faces = np.concatenate(
        [
            np.stack([np.zeros_like(first), 1 + first, 1 + after], axis=1),
            np.stack([corners[0], corners[1], corners[2]], axis=1),
            np.stack([corners[0], corners[2], corners[3]], axis=1),
            np.stack([1 + last_ring + first, np.full_like(first, len(normals) - 1), 1 + last_ring + after], axis=1),
        ]
    ).astype(np.int64)
    bottom = (RINGS - 2) * wide
    uv_faces = np.concatenate(
        [
            np.stack([pole + first, first, first + 1], axis=1),
            np.stack([uv_corners[0], uv_corners[1], uv_corners[2]], axis=1),
            np.stack([uv_corners[0], uv_corners[2], uv_corners[3]], axis=1),
            np.stack([bottom + first, pole + SEGMENTS + first, bottom + first + 1], axis=1),
        ]
    ).astype(np.int64)
    mesh = Mesh(RADIUS * normals, faces, normals=normals.astype(np.float32), normal_faces=faces, source_format="sphere")
    return UVMesh(
        mesh,
        uv.astype(np.float32),
        uv_faces,
        "sphere",
        "the ball that shows a material",
        np.zeros(len(faces), np.int32),
        coverage=1.0,
    )
