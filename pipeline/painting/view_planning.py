"""Chooses the views that paint a mesh, in groups, before any of them is sampled.

The choice depends on the shape alone. Surface points are weighted in many candidate views, and the view that adds most
weight is taken repeatedly (greedy coverage). The views of a group are denoised together, so they are chosen to overlap
little: a point that two views show is then painted in one group and continued from in a later one.

P surface points, N candidate views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Float32Array
from pipeline.core.scene import View
from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.point_visibility import points_in_view
from pipeline.painting.view_selection import smooth_ramp
from pipeline.raster.camera import Cameras

# Number of surface points, and side in pixels of the depth images that test their visibility.
_POINT_COUNT, _SIDE = 2048, 96
# A point's weight rises from 0 to 1 over this range of the cosine between view and normal ...
_FACING = (0.3, 0.75)
# ... and over this range of the distance from outlines and from the image's border, as a share of the image's side.
_BORDER = (0.01, 0.06)
# A view that shares more than this part of its weight with its group is left for another group.
_MAX_OVERLAP = 0.25
# No further group is added if less than this share of its weight is on surface that no group shows yet.
MIN_NEW_SHARE = 0.1


@dataclass(frozen=True)
class ViewGroup:
    """Views that are denoised together.

    Attributes:
        cameras, views: the group's cameras, and their descriptions for the guidance.
        start: first timestep, as a share of T.
        height: height of the image at the cameras' target, working frame.
        overview: whether each view shows the full object.
    """

    cameras: Cameras
    views: list[View]
    start: float
    height: float
    overview: bool


def point_weights(renderer: MeshRenderer, cameras: Cameras, radius: float) -> Float32Array:
    """Weights (N, P) in [0, 1] of the surface points in each camera. ``radius`` is the object's, in working units."""
    points, normals = (array[:_POINT_COUNT] for array in renderer.details)
    weights = np.zeros((len(cameras), len(points)), np.float32)
    for n, row in enumerate(weights):
        _weigh_points(renderer, cameras[n : n + 1], points, normals, radius, row)
    return weights


def _weigh_points(
    renderer: MeshRenderer,
    camera: Cameras,
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    radius: float,
    weights: Float32Array,
) -> None:
    """Set ``weights`` (P,) for one camera."""
    in_view = points_in_view(
        renderer,
        camera,
        points,
        normals,
        side=_SIDE,
        min_cosine=_FACING[0],
        max_height=np.inf,
        radius=radius,
    )
    weights[in_view.indices] = (
        smooth_ramp(in_view.cosine, _FACING) * smooth_ramp(in_view.outline_distance / _SIDE, _BORDER) * in_view.visible
    )


def choose_groups(
    weights: Float32Array, count: int, max_groups: int, coverage: Float32Array
) -> list[NDArray[np.int64]]:
    """Choose up to ``max_groups`` groups, and at least one, of ``count`` candidates each. Returns candidate indices.

    Args:
        weights: (N, P) as returned by ``point_weights``; N >= ``count``.
        coverage: (P,) weight with which earlier views show each point. The chosen views are added in place.
    """
    groups: list[NDArray[np.int64]] = []
    used = np.zeros(len(weights), bool)
    total = weights.sum(axis=1)
    for _ in range(max_groups):
        covered = coverage.copy()
        group_coverage = np.zeros_like(coverage)
        group: list[int] = []
        total_gain = 0.0
        for _ in range(count):
            gain = np.maximum(weights - covered, 0).sum(axis=1)
            overlap = np.minimum(weights, group_coverage).sum(axis=1) / np.maximum(total, 1e-6)
            gain = np.where(used, -1.0, np.where(overlap > _MAX_OVERLAP, gain * 1e-3, gain))
            best = int(gain.argmax())
            total_gain += float(np.maximum(weights[best] - covered, 0).sum())
            used[best] = True
            group.append(best)
            np.maximum(covered, weights[best], out=covered)
            np.maximum(group_coverage, weights[best], out=group_coverage)
        if groups and total_gain < MIN_NEW_SHARE * max(float(total[group].sum()), 1e-6):
            break
        groups.append(np.array(group, np.int64))
        coverage[:] = covered
        if used.sum() + count > len(weights):
            break
    return groups
