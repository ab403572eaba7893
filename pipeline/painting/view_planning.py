"""Chooses the views that paint a mesh, before the first of them is drawn.

Which views are worth painting follows from the shape alone: points on the surface are weighed in many candidate views,
and views are taken one after the other, each time the one that adds most. Views of a group are denoised together, so
they are chosen to overlap little: where two views show a place, one of them draws it and the other goes on from there.

P is the number of surface points, N of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.scene import View
from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.point_visibility import points_in_view
from pipeline.painting.view_selection import smooth_ramp
from pipeline.raster.camera import Cameras

Float32Array = NDArray[np.float32]

# Points that are weighed, and side in pixels of the depth images that tell which of them a view sees.
_POINTS, _SIDE = 2048, 96
# Cosines between view and normal: a place counts from the first on, fully from the second.
_FACING = (0.3, 0.75)
# Distance from the image's border and from outlines, as a share of the side, over which a place comes to count.
_BORDER = (0.01, 0.06)
# A view whose weight lies by more than this share on places that its group shows already is left for another group.
_OVERLAP = 0.25
# Another group must show at least this share of new surface, of all that its views show.
LEAST_NEW = 0.1


@dataclass(frozen=True)
class ViewGroup:
    """Views that are denoised together.

    ``start``: timestep that they begin at, a share of T. ``height``: of what they show where they look, in the cameras'
    world. ``whole``: whether they show the whole object.
    """

    cameras: Cameras
    views: list[View]
    start: float
    height: float
    whole: bool


def point_weights(renderer: MeshRenderer, cameras: Cameras, radius: float) -> Float32Array:
    """How well each camera shows each surface point, (N, P) in [0, 1]. ``radius``: of the object."""
    points, normals = (each[:_POINTS] for each in renderer.details)
    weights = np.zeros((len(cameras), len(points)), np.float32)
    for n, row in enumerate(weights):
        _weigh(renderer, cameras[n : n + 1], points, normals, radius, row)
    return weights


def _weigh(
    renderer: MeshRenderer,
    camera: Cameras,
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    radius: float,
    out: Float32Array,
) -> None:
    """Fills ``out`` (P,) for one camera."""
    seen = points_in_view(
        renderer,
        camera,
        points,
        normals,
        side=_SIDE,
        least_cosine=_FACING[0],
        farthest=np.inf,
        radius=radius,
    )
    out[seen.chosen] = smooth_ramp(seen.cosine, _FACING) * smooth_ramp(seen.away / _SIDE, _BORDER) * seen.visible


def choose_groups(weights: Float32Array, count: int, most: int, known: Float32Array) -> list[NDArray[np.int64]]:
    """At most ``most`` groups of ``count`` candidates each, by number; one at least.

    Args:
        weights: (N, P) of the candidates, as ``point_weights``; N >= ``count``.
        known: (P,) how well each point is shown already; raised in place by the chosen views.
    """
    groups: list[NDArray[np.int64]] = []
    used = np.zeros(len(weights), bool)
    total = weights.sum(axis=1)
    for _ in range(most):
        shown = known.copy()
        here = np.zeros_like(known)
        group: list[int] = []
        gained = 0.0
        for _ in range(count):
            gain = np.maximum(weights - shown, 0).sum(axis=1)
            overlap = np.minimum(weights, here).sum(axis=1) / np.maximum(total, 1e-6)
            gain = np.where(used, -1.0, np.where(overlap > _OVERLAP, gain * 1e-3, gain))
            best = int(gain.argmax())
            gained += float(np.maximum(weights[best] - shown, 0).sum())
            used[best] = True
            group.append(best)
            np.maximum(shown, weights[best], out=shown)
            np.maximum(here, weights[best], out=here)
        if groups and gained < LEAST_NEW * max(float(total[group].sum()), 1e-6):
            break
        groups.append(np.array(group, np.int64))
        known[:] = shown
        if used.sum() + count > len(weights):
            break
    return groups
