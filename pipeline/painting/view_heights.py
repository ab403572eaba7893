"""How much close-ups show and how far they lean, where usual ones would show too little of an object.

A place that an image shows only right beside an outline gets no colour from it (``bake.project``): a spoke of a wheel
is all outline in a view that is framed for the wheel. What suits a mesh is tried, not derived from its shape:
close-ups are drawn, as many of them are chosen as will be painted, and the points that they show well are counted.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.point_visibility import points_in_view
from pipeline.raster.camera import Cameras, CameraSettings

# Heights that are tried, each half of the one before, each with close-ups that lean as asked for and far enough that
# they also see the sides of what stands close together. Where the first shows as much as this, or the best of the
# others not as much more, it stays. Still lower heights are not tried once this share of the best is not reached.
_LEVELS = 6
_FAR_LEAN = 0.9
_ENOUGH, _BETTER, _HOPELESS = 0.8, 0.1, 0.7
_CANDIDATES = 64
# Points on the surface that are counted.
_POINTS = 2048
# Side of the drawn views in pixels, and how near to an outline, in those, a place is shown too badly.
_SIDE = 192
_MARGIN = 0.013 * _SIDE
_LEAST_COSINE = 0.35
# Beyond this multiple of the height asked for, what is seen is too far away to count.
_FARTHEST = 1.75


def suited(views: MeshRenderer, cameras: CameraSettings, count: int) -> CameraSettings:
    """``cameras``, with close-ups of a lower height or a wider lean where ``count`` of them then show clearly more."""
    if cameras.close_up == 0:
        return cameras
    first = most = shown_share(views, cameras, count)
    best = cameras
    if first >= _ENOUGH:
        return cameras
    leaning = dataclasses.replace(cameras, close_angle=max(_FAR_LEAN, cameras.close_angle))
    for level in range(_LEVELS):
        tries = [lowered(each, 0.5**level) for each in ((cameras, leaning) if level else (leaning,))]
        shares = [shown_share(views, tried, count) for tried in tries]
        if max(shares) > most:
            best, most = tries[int(np.argmax(shares))], max(shares)
        elif most > first + _BETTER and max(shares) < _HOPELESS * most:
            break
    return best if most > first + _BETTER else cameras


def lowered(cameras: CameraSettings, factor: float) -> CameraSettings:
    """``cameras`` whose close-ups show ``factor`` times the height, from as much nearer."""
    low, high = cameras.close_height
    return dataclasses.replace(cameras, close_height=(low * factor, high * factor), near=cameras.near * factor)


def shown_share(views: MeshRenderer, cameras: CameraSettings, count: int) -> float:
    """Share of the surface that the best ``count`` close-ups of some drawn by ``cameras`` show well."""
    drawn, _ = views.sample_cameras(0, max(_CANDIDATES, count), "heights", cameras)
    height = cameras.close_height[1] * cameras.object_radius
    points, normals = (each[:_POINTS] for each in views.details)
    shown = np.stack([_shown(views, drawn[n : n + 1], points, normals, height, cameras) for n in range(len(drawn))])
    known = np.zeros(len(points), bool)
    for _ in range(count):
        known |= shown[int((shown & ~known).sum(axis=1).argmax())]
    return float(known.mean())


def _shown(
    views: MeshRenderer,
    camera: Cameras,
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    height: float,
    cameras: CameraSettings,
) -> NDArray[np.bool_]:
    """(P,) which ``points`` (P, 3) one camera sees from in front, away from outlines, and not far behind its target."""
    seen = points_in_view(
        views,
        camera,
        points,
        normals,
        side=_SIDE,
        least_cosine=_LEAST_COSINE,
        farthest=_FARTHEST * height,
        radius=cameras.object_radius,
    )
    result = np.zeros(len(points), bool)
    result[seen.chosen] = (seen.away > _MARGIN) & seen.visible
    return result
