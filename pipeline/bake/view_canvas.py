"""The texture that painted views are projected onto, group by group.

Later groups start from renderings of it, and in the end it becomes the base colour map.

N views, S the texture's side, M texels on the surface, H the side of the square images.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.bake.atlas import shared_edges, surface_share, texel_map
from pipeline.bake.bake import BASE_COLOUR, BakedMaps, level_and_dilate
from pipeline.bake.inpainting import extend_nearest, inpaint_smoothly
from pipeline.bake.material import texels_per_unit
from pipeline.bake.projection import BlendedViews, ProjectionSettings, SurfaceTexels, add_view
from pipeline.bake.seams import LEVEL_MARGIN, seam_ratio
from pipeline.core.arrays import Float32Array
from pipeline.core.job import Reporter, no_report
from pipeline.mesh.mesh import UVMesh
from pipeline.raster.camera import Cameras

# Over this range of the quality a texel's colour changes from the base's to that of the views.
_PAINTED_QUALITY = (0.02, 0.2)
# Views are sampled independently and may disagree by a pixel, so a single view decides at each texel. Only the low band
# (tint, coarser than the pattern) is blended broadly.
_PROJECTION = ProjectionSettings(sharp=24.0, decisive=4.0, band=1 / 8, feather=0.02)
# From RGB to opponent colours: brightness, at less weight, and two colour differences. Over this range of distances to
# the nearest colour of the sample, a colour changes from one of the sample to a foreign one.
_OPPONENT = np.array([[0.3, 0.5, -0.25], [0.3, -0.5, -0.25], [0.3, 0.0, 0.5]], np.float32)
_FOREIGN_DISTANCE = (0.07, 0.15)
# Quality of texels with a foreign colour after ``start_layer``: later views only sharpen their outlines.
_PROTECTED_QUALITY = 0.35
# Smallest weight of a view's pixels. It gives texels a colour that no view has painted itself.
_MIN_SHARE = 1e-4


class ViewCanvas:
    """The texture of one mesh while views are painted (``painting.view_painting.Canvas``).

    Unpainted texels show the base: the start, later the result of earlier layers.

    Args:
        vertices: (V, 3) positions of ``uvmesh.mesh`` in the cameras' world.
        texture_size: S.
        start: (S, S, 3) float32 in [0, 1], the first base; None: unpainted texels are inpainted from painted ones.
    """

    def __init__(
        self, uvmesh: UVMesh, vertices: NDArray[np.floating], texture_size: int, start: Float32Array | None = None
    ):
        self._uvmesh, self._size = uvmesh, texture_size
        positions: NDArray[np.float64] = np.asarray(vertices, np.float64)
        self._texels = texel_map(uvmesh, texture_size, LEVEL_MARGIN)
        self._surface = SurfaceTexels.of(uvmesh, positions, self._texels)
        self._settings = _PROJECTION
        self._density = texels_per_unit(uvmesh, positions, self._texels) * self._surface.radius
        self._has_start = start is not None
        count = len(self._surface.position)
        self._start = np.full((count, 3), 0.5, np.float32) if start is None else start[self._texels.mask]
        self.clear()

    def clear(self) -> None:
        """Remove all views."""
        self._base, self._base_is_complete = self._start, self._has_start
        self._visible = np.zeros(len(self._start), bool)
        self._reset_blend()
        self._views = self._image_side = 0

    def add(self, cameras: Cameras, images: Float32Array, shares: Float32Array) -> None:
        """Project views onto the texture.

        Args:
            cameras: N cameras.
            images: (N, 3, H, H) float32 RGB; values are clamped to [0, 1].
            shares: (N, h, h) float32 in [0, 1], weight of each pixel, of any side h.
        """
        for n in range(len(cameras)):
            weights = np.maximum(shares[n], _MIN_SHARE)
            texels, quality = add_view(
                self._blend, self._surface, cameras[n : n + 1], images[n], None, weights, self._settings
            )
            self._quality[texels] = np.maximum(self._quality[texels], quality)
            self._visible[texels] = True
        self._views += len(cameras)
        self._image_side = images.shape[-1]

    def texture(self) -> Float32Array:
        """(4, S, S) float32 in [0, 1]: RGB and the quality of each texel, both extended into the gutters."""
        image = np.zeros((self._size, self._size, 4), np.float32)
        quality = np.maximum(self._quality, self._protected)
        image[self._texels.mask] = np.concatenate([self._colours(), quality[:, None]], axis=1)
        return extend_nearest(np.ascontiguousarray(image.transpose(2, 0, 1)), self._texels.mask)

    def start_layer(self, sample: Float32Array | None = None) -> None:
        """Mark all texels as unpainted. Their colours become the base of the next layer.

        With a ``sample`` (H, W, 3) of the material, texels with colours of the sample get the start's colours again,
        because the start is sharper and has one scale. Other texels (a window, a door) keep theirs.
        """
        colours, protected = self._colours(), np.zeros(len(self._start), np.float32)
        if not self._base_is_complete:
            mask = self._texels.mask
            image = np.zeros((*mask.shape, 3), np.float32)
            image[mask] = colours
            painted = np.zeros(mask.shape, bool)
            painted[mask] = self._blend.broad > 0
            borders, _ = shared_edges(self._uvmesh)
            planes = np.ascontiguousarray(image.transpose(2, 0, 1))
            if painted.any():
                colours = inpaint_smoothly(planes, self._texels, painted, borders).transpose(1, 2, 0)[mask]
            self._base_is_complete = True
        elif sample is not None:
            foreign = _foreign_share(colours, sample)
            colours = foreign[:, None] * colours + (1 - foreign[:, None]) * self._start
            protected = _PROTECTED_QUALITY * foreign
        self._base = colours
        self._reset_blend()
        self._protected = protected

    def _reset_blend(self) -> None:
        count = len(self._surface.position)
        self._blend = BlendedViews.empty(count)
        self._quality, self._protected = np.zeros(count, np.float32), np.zeros(count, np.float32)

    def _colours(self) -> Float32Array:
        """Current colours (M, 3) of the texels on the surface."""
        t = np.clip((self._quality - _PAINTED_QUALITY[0]) / (_PAINTED_QUALITY[1] - _PAINTED_QUALITY[0]), 0, 1)
        painted = (t * t * (3 - 2 * t))[:, None]
        if not self._base_is_complete:
            painted = (self._blend.broad > 0)[:, None].astype(np.float32)
        colours: Float32Array = painted * self._blend.colours() + (1 - painted) * self._base
        return colours

    def bake(self, report: Reporter = no_report) -> BakedMaps:
        """The base colour map, with seams levelled and colours extended into the gutters."""
        start_time = time.perf_counter()
        borders, _ = shared_edges(self._uvmesh)
        mask = self._texels.mask
        colours = np.zeros((self._size, self._size, 3), np.float32)
        colours[mask] = self._colours()
        painted = np.zeros(mask.shape, bool)
        painted[mask] = self._quality > _PAINTED_QUALITY[0] if self._base_is_complete else self._blend.broad > 0
        planes = np.ascontiguousarray(colours.transpose(2, 0, 1))
        if not self._base_is_complete and painted.any():
            planes = inpaint_smoothly(planes, self._texels, painted, borders)
        pixels, before, after = level_and_dilate(planes, self._uvmesh, borders, report)
        unreached = np.zeros(mask.shape, bool)
        if not self._has_start:
            unreached[mask] = ~self._visible
        notes = {
            "texture_size": self._size,
            "views": self._views,
            "view_size": self._image_side,
            "texels_per_radius": round(self._density, 1),
            "texels_on_surface": int(mask.sum()),
            "texels_unreached": int(unreached.sum()),
            "unreached_share": round(surface_share(self._uvmesh, self._texels, unreached), 4),
            # Texels that show the base: the start's colours, or those of overviews.
            "unpainted_share": round(surface_share(self._uvmesh, self._texels, mask & ~painted), 4),
            "chart_borders": len(borders),
            "seam_ratio_decoded": round(seam_ratio(*before), 3),
            "seam_ratio": round(seam_ratio(*after), 3),
            "seconds": round(time.perf_counter() - start_time, 2),
        }
        return BakedMaps({BASE_COLOUR: pixels}, notes)


def _foreign_share(colours: Float32Array, sample: Float32Array) -> Float32Array:
    """How foreign ``colours`` (M, 3) are to ``sample`` (H, W, 3): (M,) float32, 0 for its colours, 1 for others.

    Brightness counts less than hue, because overviews are shaded.
    """
    coarse = sample[: len(sample) // 4 * 4, : sample.shape[1] // 4 * 4]
    coarse = coarse.reshape(len(coarse) // 4, 4, -1, 4, 3).mean(axis=(1, 3))
    palette = np.concatenate([sample[::4, ::4].reshape(-1, 3), coarse.reshape(-1, 3)])
    distance, _ = cKDTree(palette @ _OPPONENT).query(colours @ _OPPONENT)
    t = np.clip((distance - _FOREIGN_DISTANCE[0]) / (_FOREIGN_DISTANCE[1] - _FOREIGN_DISTANCE[0]), 0, 1)
    foreign: Float32Array = (t * t * (3 - 2 * t)).astype(np.float32)
    return foreign
