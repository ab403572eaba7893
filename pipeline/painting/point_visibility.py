"""Which surface points a camera sees, and how far they lie from outlines, by a small depth image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.raster.camera import Cameras

# A step in depth over this share of the object's radius is an outline.
_STEP = 0.06


class PointsInView(NamedTuple):
    """Points that lie in a camera's image at a usable angle.

    chosen: (K,) their numbers. cosine: (K,) of the angle between normal and view, unsigned. visible: (K,) whether
    nothing lies before them. away: (K,) distance in pixels from the nearest outline or border of the image.
    """

    chosen: NDArray[np.int64]
    cosine: NDArray[np.float64]
    visible: NDArray[np.bool_]
    away: NDArray[np.float64]


def points_in_view(
    renderer: MeshRenderer,
    camera: Cameras,
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    *,
    side: int,
    least_cosine: float,
    farthest: float,
    radius: float,
) -> PointsInView:
    """Look at ``points`` (P, 3) with ``normals`` (P, 3) through one camera, by a depth image of ``side`` pixels.

    Points at an angle of ``least_cosine`` or less are left out, and those so far away that an image there would show
    ``farthest`` or more of the world's length. ``radius``: of the object, in the same units.
    """
    matrix = camera.clip_from_world[0]
    clip = points @ matrix[:, :3].T + matrix[:, 3]
    depth = clip[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = ((0.5 + 0.5 * sign * clip[:, axis] / depth) * side for axis, sign in ((0, 1), (1, -1)))
        inside = (depth > 0) & (x > 0) & (x < side) & (y > 0) & (y < side)
    towards = camera.eye[0] - points
    cosine = np.einsum("pi,pi->p", towards, normals) / np.maximum(np.linalg.norm(towards, axis=1), 1e-12)
    per_depth = 2 / camera.projection[0, 1, 1]
    chosen = np.flatnonzero(inside & (np.abs(cosine) > least_cosine) & (depth * per_depth < farthest))
    cosine = np.abs(cosine[chosen])
    if not len(chosen):
        return PointsInView(chosen, cosine, np.zeros(0, bool), np.zeros(0))
    drawn = renderer.depth(camera, side)
    finite = np.where(np.isfinite(drawn), drawn, np.float32(1e6))
    outline = maximum_filter(finite, 3) - minimum_filter(finite, 3) > _STEP * radius
    outline[[0, -1]] = True
    outline[:, [0, -1]] = True
    away = distance_transform_edt(~outline)
    row, column = y[chosen].astype(np.int64), x[chosen].astype(np.int64)
    slack = per_depth * depth[chosen] / side * (1 + 1 / cosine)
    visible = depth[chosen] <= drawn[row, column] + slack
    return PointsInView(chosen, cosine, visible, away[row, column])
