"""Finds the surface points that a camera sees, and their distance from outlines, with a small depth image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.raster.camera import Cameras

# A depth step above this share of the object's radius counts as an outline.
_DEPTH_STEP = 0.06


class PointsInView(NamedTuple):
    """K points inside a camera's image at a usable angle.

    Attributes:
        indices: (K,) indices of the points.
        cosine: (K,) absolute cosine of the angle between normal and view.
        visible: (K,) whether no other surface hides the point.
        outline_distance: (K,) distance from the nearest outline or border of the image, in pixels.
    """

    indices: NDArray[np.int64]
    cosine: NDArray[np.float64]
    visible: NDArray[np.bool_]
    outline_distance: NDArray[np.float64]


def points_in_view(
    renderer: MeshRenderer,
    camera: Cameras,
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    *,
    side: int,
    min_cosine: float,
    max_height: float,
    radius: float,
) -> PointsInView:
    """Test the visibility of ``points`` (P, 3) with unit ``normals`` (P, 3) in one camera, working frame.

    Args:
        side: side of the depth image in pixels.
        min_cosine: leaves out points with this absolute cosine to the view, or a smaller one.
        max_height: leaves out points at a depth where the image shows this height or more, in working units.
        radius: radius of the object in working units.
    """
    matrix = camera.clip_from_world[0]
    clip = points @ matrix[:, :3].T + matrix[:, 3]
    depth = clip[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = ((0.5 + 0.5 * sign * clip[:, axis] / depth) * side for axis, sign in ((0, 1), (1, -1)))
        inside = (depth > 0) & (x > 0) & (x < side) & (y > 0) & (y < side)
    towards = camera.eye[0] - points
    cosine = np.einsum("pi,pi->p", towards, normals) / np.maximum(np.linalg.norm(towards, axis=1), 1e-12)
    height_per_depth = 2 / camera.projection[0, 1, 1]
    indices = np.flatnonzero(inside & (np.abs(cosine) > min_cosine) & (depth * height_per_depth < max_height))
    cosine = np.abs(cosine[indices])
    if not len(indices):
        return PointsInView(indices, cosine, np.zeros(0, bool), np.zeros(0))
    depth_image = renderer.depth(camera, side)
    finite = np.where(np.isfinite(depth_image), depth_image, np.float32(1e6))
    outline = maximum_filter(finite, 3) - minimum_filter(finite, 3) > _DEPTH_STEP * radius
    outline[[0, -1]] = True
    outline[:, [0, -1]] = True
    outline_distance = distance_transform_edt(~outline)
    row, column = y[indices].astype(np.int64), x[indices].astype(np.int64)
    slack = height_per_depth * depth[indices] / side * (1 + 1 / cosine)
    visible = depth[indices] <= depth_image[row, column] + slack
    return PointsInView(indices, cosine, visible, outline_distance[row, column])
