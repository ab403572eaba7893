"""Views of a fixed mesh: where cameras stand at a step, and which texel each of their pixels shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.core.device import to_device
from pipeline.core.rng import numpy_generator
from pipeline.core.scene import View
from pipeline.mesh.parts import outward_signs
from pipeline.raster.antialias import adjacent_vertices, blend_outlines, find_outlines
from pipeline.raster.antialias.layout import Outlines
from pipeline.raster.camera import Cameras, CameraSettings, sample_paint_cameras, sample_surface
from pipeline.raster.rasterise import interpolate, rasterise
from pipeline.raster.texture import sample_texture

_SURFACE_POINTS = 4096


@dataclass(frozen=True)
class GBuffer:
    """What V square views show. covered: (V, side, side) bool; of the M covered pixels, row-major, uv: (M, 2) float32,
    face: (M,) int32, depth: (M,) float32 along the view axis.

    ``outlines``: along which colours mix; None leaves pixels as they are.
    """

    covered: np.ndarray
    uv: np.ndarray
    face: np.ndarray
    depth: np.ndarray
    outlines: Outlines | None = None

    def composite(self, texture: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
        """Views (V, C, side, side) of ``texture`` (C, S, S) over ``background`` (V side side, C)."""
        count, side, _ = self.covered.shape
        pixels = to_device(torch.from_numpy(self.covered.reshape(-1).nonzero()[0]), texture.device)
        colours = sample_texture(texture, to_device(torch.from_numpy(self.uv), texture.device))
        image = background.index_copy(0, pixels, colours).view(count, side, side, texture.shape[0])
        image = image.permute(0, 3, 1, 2)
        return image if self.outlines is None else blend_outlines(image, self.outlines)


class MeshRenderer:
    """A mesh with texture coordinates, and the cameras that are drawn around it.

    Args:
        vertices: (V, 3) float64, working frame.
        faces: (F, 3) int64 into vertices.
        uv: (T, 2) float32 in [0, 1], top-left origin; uv_faces: (F, 3) int64 into uv.
        seed: of every draw.
        antialias: whether outlines are smoothed; see ``uv.antialias``.
    """

    def __init__(
        self,
        vertices: np.ndarray,
        faces: np.ndarray,
        uv: np.ndarray,
        uv_faces: np.ndarray,
        cameras: CameraSettings,
        seed: int,
        antialias: bool = False,
    ):
        self._vertices, self._faces, self._cameras, self._seed = vertices, faces, cameras, seed
        self._uv, self._uv_faces = np.ascontiguousarray(uv, dtype=np.float32), uv_faces
        self._adjacent_vertices = adjacent_vertices(faces) if antialias else None
        # Points that close-ups look at, and their normals, which point to where a viewer stands.
        inside_out = outward_signs(vertices, faces)[:, None] < 0
        turned = np.where(inside_out, faces[:, ::-1], faces)
        self.details = sample_surface(numpy_generator(seed, "details"), vertices, turned, _SURFACE_POINTS)

    def sample_cameras(
        self, step: int, count: int, purpose: str = "cameras", settings: CameraSettings | None = None
    ) -> tuple[Cameras, list[View]]:
        """``count`` cameras for ``step``, and how the guidance sees them; drawn by other ``settings`` if given."""
        rng = numpy_generator(self._seed, purpose, step)
        settings = settings or self._cameras
        cameras = sample_paint_cameras(rng, count, settings, *self.details, near=settings.near)
        return cameras, [View(w, bool(c)) for w, c in zip(cameras.words(), cameras.close, strict=True)]

    def render(self, cameras: Cameras, side: int) -> GBuffer:
        """Views of ``side`` x ``side`` pixels."""
        fragments = rasterise(self._vertices, self._faces, cameras, side, side)
        uv = interpolate(fragments.face, fragments.bary, self._uv, self._uv_faces)
        smooth = None
        if self._adjacent_vertices is not None:
            smooth = find_outlines(fragments, self._vertices, self._faces, cameras, self._adjacent_vertices)
        mask = fragments.mask
        return GBuffer(mask, uv, fragments.face[mask], fragments.depth[mask], smooth)

    def depth(self, camera: Cameras, side: int) -> np.ndarray:
        """(side, side) float32 distance along the view axis of what one camera sees; inf where nothing."""
        result: np.ndarray = rasterise(self._vertices, self._faces, camera, side, side).depth[0]
        return result
