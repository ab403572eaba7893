"""Draws a fixed mesh: the cameras of a step, and the texture coordinates that each of their pixels shows."""

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
    """The surface in V square views. M is the number of pixels that the mesh covers, in row-major order.

    Attributes:
        covered: (V, side, side) bool.
        uv: (M, 2) float32 texture coordinates, top-left origin.
        face: (M,) int32.
        depth: (M,) float32 along the view axis, working frame.
        outlines: outlines to smooth in ``composite``; None leaves pixels unchanged.
    """

    covered: np.ndarray
    uv: np.ndarray
    face: np.ndarray
    depth: np.ndarray
    outlines: Outlines | None = None

    def composite(self, texture: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
        """Images (V, C, side, side) of ``texture`` (C, S, S) in front of ``background`` (V side side, C)."""
        count, side, _ = self.covered.shape
        pixels = to_device(torch.from_numpy(self.covered.reshape(-1).nonzero()[0]), texture.device)
        colours = sample_texture(texture, to_device(torch.from_numpy(self.uv), texture.device))
        image = background.index_copy(0, pixels, colours).view(count, side, side, texture.shape[0])
        image = image.permute(0, 3, 1, 2)
        return image if self.outlines is None else blend_outlines(image, self.outlines)


class MeshRenderer:
    """A mesh with texture coordinates, and random cameras around it.

    Args:
        vertices: (V, 3) float64, working frame.
        faces: (F, 3) int64 into vertices.
        uv: (T, 2) float32 in [0, 1], top-left origin; uv_faces: (F, 3) int64 into uv.
        cameras: default distribution of the cameras.
        seed: seed of all cameras and surface points.
        antialias: whether outlines are smoothed (``raster.antialias``).
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
        # Points that close-ups look at, and their outward normals. An inside-out mesh is flipped.
        inside_out = outward_signs(vertices, faces)[:, None] < 0
        outward_faces = np.where(inside_out, faces[:, ::-1], faces)
        self.details = sample_surface(numpy_generator(seed, "details"), vertices, outward_faces, _SURFACE_POINTS)

    def sample_cameras(
        self, step: int, count: int, purpose: str = "cameras", settings: CameraSettings | None = None
    ) -> tuple[Cameras, list[View]]:
        """``count`` random cameras of ``step`` and the views they describe to the guidance.

        ``purpose`` names the random stream; ``settings`` replace the default distribution.
        """
        rng = numpy_generator(self._seed, purpose, step)
        settings = settings or self._cameras
        cameras = sample_paint_cameras(rng, count, settings, *self.details, near=settings.near)
        return cameras, [View(w, bool(c)) for w, c in zip(cameras.words(), cameras.close, strict=True)]

    def render(self, cameras: Cameras, side: int) -> GBuffer:
        """Rasterise views of ``side`` x ``side`` pixels."""
        fragments = rasterise(self._vertices, self._faces, cameras, side, side)
        uv = interpolate(fragments.face, fragments.bary, self._uv, self._uv_faces)
        outlines = None
        if self._adjacent_vertices is not None:
            outlines = find_outlines(fragments, self._vertices, self._faces, cameras, self._adjacent_vertices)
        mask = fragments.mask
        return GBuffer(mask, uv, fragments.face[mask], fragments.depth[mask], outlines)

    def depth(self, camera: Cameras, side: int) -> np.ndarray:
        """(side, side) float32 depth along the view axis for one camera, working frame; inf off the mesh."""
        result: np.ndarray = rasterise(self._vertices, self._faces, camera, side, side).depth[0]
        return result
