"""Adapts the height and the tilt of close-ups to meshes of which the default close-ups show too little.

Projection ignores pixels beside outlines (``bake.projection``), so a view framed for a wheel paints none of its spokes.
Several settings are tested: for each, candidate close-ups are drawn, the best ones are selected greedily, as many as
will be painted, and the surface points that they show well are counted.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.point_visibility import points_in_view
from pipeline.raster.camera import Cameras, CameraSettings

# Number of tested heights, each half of the previous one, with the default tilt and with a wide one (radians), which
# sees the sides of parts that stand close together. The default settings stay if they show a sufficient share of the
# surface, or if no other settings gain enough. The search stops below this ratio of the best share.
_HALVINGS = 6
_WIDE_ANGLE = 0.9
_SUFFICIENT_SHARE, _MIN_GAIN, _STOP_RATIO = 0.8, 0.1, 0.7
_CANDIDATES = 64
# Number of surface points that are counted.
_POINTS = 2048
# Side of the depth images in pixels, and the margin along outlines, in pixels, that does not count as well visible.
_SIDE = 192
_OUTLINE_MARGIN = 0.013 * _SIDE
_MIN_COSINE = 0.35
# Points farther away than where an image shows this multiple of the height at its target do not count.
_MAX_HEIGHT_RATIO = 1.75


def adapt_close_ups(renderer: MeshRenderer, cameras: CameraSettings, count: int) -> CameraSettings:
    """``cameras``, with lower or more tilted close-ups if ``count`` of them then show clearly more of the mesh."""
    if cameras.close_up == 0:
        return cameras
    default_share = best_share = visible_share(renderer, cameras, count)
    best = cameras
    if default_share >= _SUFFICIENT_SHARE:
        return cameras
    wide = dataclasses.replace(cameras, close_angle=max(_WIDE_ANGLE, cameras.close_angle))
    for level in range(_HALVINGS):
        candidates = [scale_close_ups(settings, 0.5**level) for settings in ((cameras, wide) if level else (wide,))]
        shares = [visible_share(renderer, candidate, count) for candidate in candidates]
        if max(shares) > best_share:
            best, best_share = candidates[int(np.argmax(shares))], max(shares)
        elif best_share > default_share + _MIN_GAIN and max(shares) < _STOP_RATIO * best_share:
            break
    return best if best_share > default_share + _MIN_GAIN else cameras


def scale_close_ups(cameras: CameraSettings, factor: float) -> CameraSettings:
    """``cameras`` with height and near plane of close-ups scaled by ``factor``."""
    low, high = cameras.close_height
    return dataclasses.replace(cameras, close_height=(low * factor, high * factor), near=cameras.near * factor)


def visible_share(renderer: MeshRenderer, cameras: CameraSettings, count: int) -> float:
    """Share of the surface, in [0, 1], that the best ``count`` of the candidate close-ups show well."""
    candidates, _ = renderer.sample_cameras(0, max(_CANDIDATES, count), "heights", cameras)
    height = cameras.close_height[1] * cameras.object_radius
    points, normals = (array[:_POINTS] for array in renderer.details)
    visible = np.stack(
        [
            _well_visible(renderer, candidates[n : n + 1], points, normals, height, cameras)
            for n in range(len(candidates))
        ]
    )
    covered = np.zeros(len(points), bool)
    for _ in range(count):
        covered |= visible[int((visible & ~covered).sum(axis=1).argmax())]
    return float(covered.mean())


def _well_visible(
    renderer: MeshRenderer,
    camera: Cameras,
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    height: float,
    cameras: CameraSettings,
) -> NDArray[np.bool_]:
    """Whether one camera shows each of ``points`` (P, 3) well, (P,): facing it, off outlines, not too far away."""
    in_view = points_in_view(
        renderer,
        camera,
        points,
        normals,
        side=_SIDE,
        min_cosine=_MIN_COSINE,
        max_height=_MAX_HEIGHT_RATIO * height,
        radius=cameras.object_radius,
    )
    visible = np.zeros(len(points), bool)
    visible[in_view.indices] = (in_view.outline_distance > _OUTLINE_MARGIN) & in_view.visible
    return visible
