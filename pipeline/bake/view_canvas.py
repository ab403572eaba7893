"""A texture that views of a mesh are laid on, group by group: what later views go on from, and the finished map.

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
from pipeline.core.job import Reporter, no_report
from pipeline.mesh.mesh import UVMesh
from pipeline.raster.camera import Cameras

Float32Array = NDArray[np.float32]

# How well a texel must be shown to have a view's colour instead of the start's: not at all, and fully.
_PAINTED = (0.02, 0.2)
# Views are drawn one by one and need not agree to the pixel, so one of them decides at each place: only what is coarser
# than the pattern, the tint, is blended broadly.
_PROJECTION = ProjectionSettings(sharp=24.0, decisive=4.0, band=1 / 8, feather=0.02)
# From RGB to brightness, at less weight, and two differences of colours; distances there from which on a colour is none
# of the sample's.
_OPPONENT = np.array([[0.3, 0.5, -0.25], [0.3, -0.5, -0.25], [0.3, 0.0, 0.5]], np.float32)
_OTHER = (0.07, 0.15)
# Such colours count as painted this well: later views make their outlines sharp, but nothing else of them.
_KEPT = 0.35
# A view counts this much even where it shows another view's work: it decides only where no other view does.
_LEAST_SHARE = 1e-4


class ViewCanvas:
    """The texture of one mesh while views are painted.

    Args:
        vertices: (V, 3) positions of ``uvmesh.mesh`` in the cameras' world.
        start: (S, S, 3) in [0, 1], the colours of texels that no view has painted; None: they are filled in from
            their neighbours.
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
        """Forget all views."""
        self._before, self._complete = self._start, self._has_start
        self._seen = np.zeros(len(self._start), bool)
        self._open()
        self._views = self._side = 0

    def add(self, cameras: Cameras, images: Float32Array, shares: Float32Array) -> None:
        """Lay views on the texture.

        Args:
            images: (N, 3, H, H) RGB; values are clamped to [0, 1].
            shares: (N, h, h) in [0, 1]: how much each image counts at each place.
        """
        for n in range(len(cameras)):
            counts = np.maximum(shares[n], _LEAST_SHARE)
            chosen, shown = add_view(
                self._blend, self._surface, cameras[n : n + 1], images[n], None, counts, self._settings
            )
            self._worth[chosen] = np.maximum(self._worth[chosen], shown)
            self._seen[chosen] = True
        self._views += len(cameras)
        self._side = images.shape[-1]

    def texture(self) -> Float32Array:
        """(4, S, S) float32: RGB in [0, 1] and how well each texel is painted, in [0, 1]; spread over the gutters."""
        image = np.zeros((self._size, self._size, 4), np.float32)
        worth = np.maximum(self._worth, self._kept)
        image[self._texels.mask] = np.concatenate([self._colours(), worth[:, None]], axis=1)
        return extend_nearest(np.ascontiguousarray(image.transpose(2, 0, 1)), self._texels.mask)

    def reopen(self, sample: Float32Array | None = None) -> None:
        """Count all texels as unpainted; their colours stay until a view paints them anew.

        With a ``sample`` (H, W, 3) of the material, texels that have one of its colours get the start's again, which is
        sharper and of one scale; what has others (a window, a door) stays.
        """
        colours, kept = self._colours(), np.zeros(len(self._start), np.float32)
        if not self._complete:
            mask = self._texels.mask
            image = np.zeros((*mask.shape, 3), np.float32)
            image[mask] = colours
            painted = np.zeros(mask.shape, bool)
            painted[mask] = self._blend.broad > 0
            borders, _ = shared_edges(self._uvmesh)
            planes = np.ascontiguousarray(image.transpose(2, 0, 1))
            if painted.any():
                colours = inpaint_smoothly(planes, self._texels, painted, borders).transpose(1, 2, 0)[mask]
            self._complete = True
        elif sample is not None:
            other = _other_than(colours, sample)
            colours = other[:, None] * colours + (1 - other[:, None]) * self._start
            kept = _KEPT * other
        self._before = colours
        self._open()
        self._kept = kept

    def _open(self) -> None:
        count = len(self._surface.position)
        self._blend = BlendedViews.empty(count)
        self._worth, self._kept = np.zeros(count, np.float32), np.zeros(count, np.float32)

    def _colours(self) -> Float32Array:
        """(M, 3) of the texels on the surface."""
        x = np.clip((self._worth - _PAINTED[0]) / (_PAINTED[1] - _PAINTED[0]), 0, 1)
        painted = (x * x * (3 - 2 * x))[:, None]
        if not self._complete:
            painted = (self._blend.broad > 0)[:, None].astype(np.float32)
        colours: Float32Array = painted * self._blend.colours() + (1 - painted) * self._before
        return colours

    def bake(self, report: Reporter = no_report) -> BakedMaps:
        """The base colour map: seams levelled, colours spread over the gutters."""
        started = time.perf_counter()
        borders, _ = shared_edges(self._uvmesh)
        mask = self._texels.mask
        colours = np.zeros((self._size, self._size, 3), np.float32)
        colours[mask] = self._colours()
        painted = np.zeros(mask.shape, bool)
        painted[mask] = self._worth > _PAINTED[0] if self._complete else self._blend.broad > 0
        planes = np.ascontiguousarray(colours.transpose(2, 0, 1))
        if not self._complete and painted.any():
            planes = inpaint_smoothly(planes, self._texels, painted, borders)
        pixels, before, after = level_and_dilate(planes, self._uvmesh, borders, report)
        unseen = np.zeros(mask.shape, bool)
        if not self._has_start:
            unseen[mask] = ~self._seen
        notes = {
            "texture_size": self._size,
            "views": self._views,
            "view_size": self._side,
            "texels_per_radius": round(self._density, 1),
            "texels_on_surface": int(mask.sum()),
            "texels_unreached": int(unseen.sum()),
            "unreached_share": round(surface_share(self._uvmesh, self._texels, unseen), 4),
            # What close-ups did not paint: it has the start's colours, or those of whole views.
            "unpainted_share": round(surface_share(self._uvmesh, self._texels, mask & ~painted), 4),
            "chart_borders": len(borders),
            "seam_ratio_decoded": round(seam_ratio(*before), 3),
            "seam_ratio": round(seam_ratio(*after), 3),
            "seconds": round(time.perf_counter() - started, 2),
        }
        return BakedMaps({BASE_COLOUR: pixels}, notes)


def _other_than(colours: Float32Array, sample: Float32Array) -> Float32Array:
    """(M,) in [0, 1]: how far ``colours`` (M, 3) are from all those of ``sample`` (H, W, 3).

    Brightness counts less than hue, since whole views are shaded.
    """
    coarse = sample[: len(sample) // 4 * 4, : sample.shape[1] // 4 * 4]
    coarse = coarse.reshape(len(coarse) // 4, 4, -1, 4, 3).mean(axis=(1, 3))
    palette = np.concatenate([sample[::4, ::4].reshape(-1, 3), coarse.reshape(-1, 3)])
    distance, _ = cKDTree(palette @ _OPPONENT).query(colours @ _OPPONENT)
    x = np.clip((distance - _OTHER[0]) / (_OTHER[1] - _OTHER[0]), 0, 1)
    other: Float32Array = (x * x * (3 - 2 * x)).astype(np.float32)
    return other
