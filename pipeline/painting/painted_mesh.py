"""A mesh with a latent texture (Latent-Paint, docs/method.md, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pipeline.core.device import to_device
from pipeline.core.rng import torch_generator
from pipeline.core.scene import Rendering
from pipeline.painting.background import COLUMNS, ROWS, EnvironmentMap
from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.painting.texel_coverage import TexelCoverage
from pipeline.prior.latent_rgb import LatentRgb
from pipeline.raster.backdrop import plain_backgrounds
from pipeline.raster.camera import Cameras, CameraSettings

# Initial latents: the base colour weakly, as published, under noise.
_COLOUR_WEIGHT = 0.3


@dataclass(frozen=True)
class SampledViewSettings:
    """``count``: patches that are made together; ``size``: latent pixels a side, ``height``: of what one shows, object
    radii. None: as for other views."""

    count: int | None = None
    size: int | None = None
    height: float = 0.7


@dataclass(frozen=True)
class PaintedMeshSettings:
    """``view_size``: latent pixels a side of a view. ``texture_size``: latent texels a side.

    Each latent pixel is the mean of ``supersample``^2 texture lookups. Without that a 16x16 view touches a
    few texels in a hundred, and the rest keeps its random start. ``initial_noise`` is what a fine texture keeps
    as speckle where many texels share a latent pixel. ``antialias``: outlines are smoothed besides.
    """

    views: int
    view_size: int
    texture_size: int
    learning_rate: float
    cameras: CameraSettings
    background: Literal["learned", "random"] = "random"
    base_colour: tuple[float, float, float] = (0.5, 0.5, 0.5)
    initial_noise: float = 0.4
    supersample: int = 4
    antialias: bool = False
    patches: SampledViewSettings = SampledViewSettings()


class PaintedMesh:
    """The scene of the ``paint`` recipe.

    The latent texture is optimised as the sum of a pyramid of textures (see ``_pyramid``).

    Args:
        vertices: (V, 3) float64, working frame.
        faces: (F, 3) int64 into vertices.
        uv: (T, 2) float32 in [0, 1], top-left origin; uv_faces: (F, 3) int64 into uv.
        latent_rgb: the prior's linear map, for the initial colour.
        seed: of every draw.
        device: where the latent texture lives.
    """

    def __init__(
        self,
        vertices: np.ndarray,
        faces: np.ndarray,
        uv: np.ndarray,
        uv_faces: np.ndarray,
        latent_rgb: LatentRgb,
        settings: PaintedMeshSettings,
        seed: int,
        device: torch.device,
    ):
        settings = self._adapted(settings)
        self._settings, self._seed = settings, seed
        self.renderer = MeshRenderer(vertices, faces, uv, uv_faces, settings.cameras, seed, settings.antialias)
        self._device = device
        channels = latent_rgb.matrix.shape[0]
        size = settings.texture_size
        noise = settings.initial_noise
        base = _initial(latent_rgb, settings.base_colour, (channels, size, size), seed, "texture", noise)
        self._levels = self._levels_from(base.to(device))
        sphere = _initial(latent_rgb, (0.5, 0.5, 0.5), (channels, ROWS, COLUMNS), seed, "background", noise)
        self._environment = EnvironmentMap(sphere.to(device))
        self._latent_rgb = latent_rgb
        self.texel_coverage = TexelCoverage(size)

    def _adapted(self, settings: PaintedMeshSettings) -> PaintedMeshSettings:
        """What this kind of scene makes of ``settings``."""
        return settings

    def _levels_from(self, base: torch.Tensor) -> list[torch.Tensor]:
        return _pyramid(base, self._settings.view_size)

    @property
    def texture(self) -> torch.Tensor:
        """The latent texture (C, S, S): the sum of its levels, each brought to full size."""
        total = self._levels[0]
        for level in self._levels[1:]:
            total = total + enlarged(level, total.shape[-1])
        return total

    def parameters(self) -> list[dict[str, object]]:
        rate = self._settings.learning_rate / len(self._levels)
        groups: list[dict[str, object]] = [{"params": [level], "lr": rate} for level in self._levels]
        if self._settings.background == "learned":
            groups.append({"params": [self._environment.values], "lr": self._settings.learning_rate})
        return groups

    def render(self, step: int, steps: int) -> Rendering:
        cameras, views = self.renderer.sample_cameras(step, self._settings.views)
        return Rendering(self.render_views(cameras, step), views)

    def render_views(self, cameras: Cameras, step: int) -> torch.Tensor:
        """Latent views (V, C, view_size, view_size) from ``cameras``; counts what they reach as visible."""
        settings = self._settings
        gbuffer = self.renderer.render(cameras, settings.view_size * settings.supersample)
        self.texel_coverage.add(gbuffer.uv)
        image = gbuffer.composite(self.texture, self._background(cameras, gbuffer.covered, step))
        return torch.nn.functional.avg_pool2d(image, settings.supersample)

    def _background(self, cameras: Cameras, covered: np.ndarray, step: int) -> torch.Tensor:
        """(V side side, C) latents behind the mesh.

        ``random``: one plain colour a view, another at each step, so that the texture cannot lean on what
        surrounds it. ``learned``: the latent sphere of the paper.
        """
        count, height, width = covered.shape
        if self._settings.background == "learned":
            return self._environment.background(cameras, height, width)
        colours = plain_backgrounds(self._seed, step, count)
        latents = np.stack([self._latent_rgb.invert(colour) for colour in colours]).astype(np.float32)
        rows = to_device(torch.from_numpy(latents), self._device)
        return rows[:, None].expand(-1, height * width, -1).reshape(count * height * width, -1)

    def state(self) -> Mapping[str, torch.Tensor]:
        return {
            **{f"texture.{level.shape[-1]}": level for level in self._levels},
            "sphere": self._environment.values,
            "reached": torch.from_numpy(self.texel_coverage.coverage.astype(np.uint8)),
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, mine in self.state().items():
            if name not in state or state[name].shape != mine.shape:
                raise ValueError(f"checkpoint: {name} is missing or has another shape")
        with torch.no_grad():
            for level in self._levels:
                level.copy_(state[f"texture.{level.shape[-1]}"])
            self._environment.values.copy_(state["sphere"])
        self.texel_coverage.coverage[:] = state["reached"].numpy().astype(bool)


def _pyramid(base: torch.Tensor, smallest: int) -> list[torch.Tensor]:
    """Leaf tensors: ``base`` (C, S, S), then zeros of half the side each, down to about ``smallest``.

    Adam moves every texel by about the same step whatever its gradient's size. Alone, the texels below one latent
    pixel each go their own way and stay as speckle; with coarser levels, what they agree on moves them together.
    """
    levels = [base.requires_grad_(True)]
    side = base.shape[-1]
    while side % 2 == 0 and side > smallest:
        side //= 2
        levels.append(torch.zeros(base.shape[0], side, side, device=base.device).requires_grad_(True))
    return levels


def enlarged(level: torch.Tensor, side: int) -> torch.Tensor:
    """(C, s, s) as (C, side, side), ``side`` a multiple of s, bilinear between texel centres, as ``interpolate`` does.

    On CUDA by plain sums: the gradient of torch's own adds there in no fixed order, and runs would differ.
    """
    if level.device.type == "cpu":
        size = (side, side)
        return torch.nn.functional.interpolate(level[None], size, mode="bilinear", align_corners=False)[0]
    return enlarged_by_sums(level, side)


def enlarged_by_sums(level: torch.Tensor, side: int) -> torch.Tensor:
    """As ``enlarged`` on CUDA, on any device: its gradient adds in a fixed order."""
    factor = side // level.shape[-1]
    return _stretched(_stretched(level, factor, -1), factor, -2)


def _stretched(values: torch.Tensor, factor: int, axis: int) -> torch.Tensor:
    """``values`` with ``factor`` times as many along ``axis``: each lies between two old ones, or is the outermost."""
    x = values.movedim(axis, -1)
    before, after = torch.cat([x[..., :1], x[..., :-1]], -1), torch.cat([x[..., 1:], x[..., -1:]], -1)
    # Where the new centres lie, from the old one's, in old texels: -1/2 to 1/2.
    offset = (torch.arange(factor, device=x.device) + 0.5) / factor - 0.5
    back, ahead = (-offset).clamp(min=0), offset.clamp(min=0)
    stretched = before[..., None] * back + x[..., None] * (1 - back - ahead) + after[..., None] * ahead
    return stretched.flatten(-2).movedim(-1, axis)


def _initial(
    latent_rgb: LatentRgb,
    colour: tuple[float, float, float],
    shape: tuple[int, ...],
    seed: int,
    purpose: str,
    strength: float,
) -> torch.Tensor:
    """0.3 x pseudo-inverse of the colour + ``strength`` x noise, (C, H, W) float32 on the CPU."""
    noise = torch.randn(shape, generator=torch_generator(seed, purpose))
    base = torch.from_numpy(latent_rgb.invert(np.asarray(colour))).float()
    return _COLOUR_WEIGHT * base[:, None, None] + strength * noise
