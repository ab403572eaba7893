"""How much close-ups show and how far they lean, where usual ones would show too little of an object.

A place that an image shows only right beside an outline gets no colour from it (``bake.project``): a spoke of a wheel
is all outline in a view that is framed for the wheel. What suits a mesh is tried, not derived from its shape:
close-ups are drawn, as many of them are chosen as will be painted, and the points that they show well are counted.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from pipeline.painting.mesh_renderer import MeshRenderer
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
_RIM = 0.013 * _SIDE
# A step in depth over this share of the object's radius is an outline.
_STEP = 0.06
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
    matrix = camera.clip_from_world[0]
    clip = points @ matrix[:, :3].T + matrix[:, 3]
    depth = clip[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = ((0.5 + 0.5 * sign * clip[:, axis] / depth) * _SIDE for axis, sign in ((0, 1), (1, -1)))
    inside = (depth > 0) & (x > 0) & (x < _SIDE) & (y > 0) & (y < _SIDE)
    towards = camera.eye[0] - points
    cosine = np.einsum("pi,pi->p", towards, normals) / np.maximum(np.linalg.norm(towards, axis=1), 1e-12)
    per_depth = 2 / camera.projection[0, 1, 1]
    chosen = np.flatnonzero(inside & (np.abs(cosine) > _LEAST_COSINE) & (depth * per_depth < _FARTHEST * height))
    result = np.zeros(len(points), bool)
    if not len(chosen):
        return result
    drawn = views.depth(camera, _SIDE)
    finite = np.where(np.isfinite(drawn), drawn, np.float32(1e6))
    outline = maximum_filter(finite, 3) - minimum_filter(finite, 3) > _STEP * cameras.object_radius
    outline[[0, -1]] = True
    outline[:, [0, -1]] = True
    away = distance_transform_edt(~outline)
    row, column = y[chosen].astype(np.int64), x[chosen].astype(np.int64)
    slack = per_depth * depth[chosen] / _SIDE * (1 + 1 / np.abs(cosine[chosen]))
    result[chosen] = (away[row, column] > _RIM) & (depth[chosen] <= drawn[row, column] + slack)
    return result
