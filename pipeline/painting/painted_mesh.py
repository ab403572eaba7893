"""A mesh with a latent texture that score distillation optimises (Latent-Paint, docs/method.md, section 6)."""

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

# Weight of the base colour in the initial latents, as published.
_COLOUR_WEIGHT = 0.3


@dataclass(frozen=True)
class SampledViewSettings:
    """Settings of sampled views (patches).

    Attributes:
        count: views of a group; None: ``PaintedMeshSettings.views``.
        size: side of a view in latent pixels; None: ``PaintedMeshSettings.view_size``.
        height: height of a close-up in object radii.
    """

    count: int | None = None
    size: int | None = None
    height: float = 0.7


@dataclass(frozen=True)
class PaintedMeshSettings:
    """Settings of a ``PaintedMesh``.

    Attributes:
        views: views per step.
        view_size: side of a view in latent pixels.
        texture_size: side of the texture in latent texels.
        learning_rate: of Adam.
        cameras: distribution of the cameras.
        background: ``random`` plain colours or a ``learned`` environment map.
        base_colour: RGB in [0, 1] of the initial texture.
        initial_noise: standard deviation of the initial noise. A fine texture keeps it as speckle where many texels
            share a latent pixel.
        supersample: texture lookups along a side of a latent pixel, which is their mean. With a single lookup a 16x16
            view touches a few per cent of the texels, and the others keep their random start.
        antialias: whether outlines are smoothed as well.
        patches: settings of sampled views.
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
    """The scene of the recipe ``paint`` with score distillation.

    The latent texture is optimised as the sum of a pyramid of textures (see ``_pyramid``).

    Args:
        vertices: (V, 3) float64, working frame.
        faces: (F, 3) int64 into vertices.
        uv: (T, 2) float32 in [0, 1], top-left origin; uv_faces: (F, 3) int64 into uv.
        latent_rgb: the prior's linear map from latents to RGB; its inverse gives the initial latents.
        seed: seed of the initial noise, the cameras and the backgrounds.
        device: device of the latent texture.
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
        settings = self._adapt_settings(settings)
        self._settings, self._seed = settings, seed
        self.renderer = MeshRenderer(vertices, faces, uv, uv_faces, settings.cameras, seed, settings.antialias)
        self._device = device
        channels = latent_rgb.matrix.shape[0]
        size = settings.texture_size
        noise = settings.initial_noise
        base = _initial_latents(latent_rgb, settings.base_colour, (channels, size, size), seed, "texture", noise)
        self._levels = self._make_levels(base.to(device))
        sphere = _initial_latents(latent_rgb, (0.5, 0.5, 0.5), (channels, ROWS, COLUMNS), seed, "background", noise)
        self._environment = EnvironmentMap(sphere.to(device))
        self._latent_rgb = latent_rgb
        self.texel_coverage = TexelCoverage(size)

    def _adapt_settings(self, settings: PaintedMeshSettings) -> PaintedMeshSettings:
        """``settings`` as this class uses them; subclasses override it."""
        return settings

    def _make_levels(self, base: torch.Tensor) -> list[torch.Tensor]:
        return _pyramid(base, self._settings.view_size)

    @property
    def texture(self) -> torch.Tensor:
        """The latent texture (C, S, S): the sum of its levels, each upsampled to full size."""
        total = self._levels[0]
        for level in self._levels[1:]:
            total = total + upsample(level, total.shape[-1])
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
        """Render latent views (V, C, view_size, view_size), and add their texels to ``texel_coverage``."""
        settings = self._settings
        gbuffer = self.renderer.render(cameras, settings.view_size * settings.supersample)
        self.texel_coverage.add(gbuffer.uv)
        image = gbuffer.composite(self.texture, self._background(cameras, gbuffer.covered, step))
        return torch.nn.functional.avg_pool2d(image, settings.supersample)

    def _background(self, cameras: Cameras, covered: np.ndarray, step: int) -> torch.Tensor:
        """Background latents (V side side, C).

        ``random``: a plain colour per view and step, so that the texture does not adapt to its surroundings.
        ``learned``: the environment map of the paper.
        """
        count, height, width = covered.shape
        if self._settings.background == "learned":
            return self._environment.background(cameras, height, width)
        colours = plain_backgrounds(self._seed, step, count)
        latents = np.stack([self._latent_rgb.invert(colour) for colour in colours]).astype(np.float32)
        view_latents = to_device(torch.from_numpy(latents), self._device)
        return view_latents[:, None].expand(-1, height * width, -1).reshape(count * height * width, -1)

    def state(self) -> Mapping[str, torch.Tensor]:
        return {
            **{f"texture.{level.shape[-1]}": level for level in self._levels},
            "sphere": self._environment.values,
            "reached": torch.from_numpy(self.texel_coverage.coverage.astype(np.uint8)),
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in self.state().items():
            if name not in state or state[name].shape != tensor.shape:
                raise ValueError(f"checkpoint: {name} is missing or has another shape")
        with torch.no_grad():
            for level in self._levels:
                level.copy_(state[f"texture.{level.shape[-1]}"])
            self._environment.values.copy_(state["sphere"])
        self.texel_coverage.coverage[:] = state["reached"].numpy().astype(bool)


def _pyramid(base: torch.Tensor, smallest: int) -> list[torch.Tensor]:
    """Leaf tensors: ``base`` (C, S, S), then zeros of half the side each, down to about ``smallest``.

    Adam moves each texel by about the same step, whatever the size of its gradient. In a single texture, texels of the
    same latent pixel drift apart and remain as speckle. Coarser levels move such texels together.
    """
    levels = [base.requires_grad_(True)]
    side = base.shape[-1]
    while side % 2 == 0 and side > smallest:
        side //= 2
        levels.append(torch.zeros(base.shape[0], side, side, device=base.device).requires_grad_(True))
    return levels


def upsample(level: torch.Tensor, side: int) -> torch.Tensor:
    """Upsample (C, s, s) bilinearly to (C, side, side), as ``interpolate`` does; ``side`` is a multiple of s.

    On CUDA the gradient of torch's ``interpolate`` is not deterministic, so ``upsample_deterministic`` replaces it.
    """
    if level.device.type == "cpu":
        size = (side, side)
        return torch.nn.functional.interpolate(level[None], size, mode="bilinear", align_corners=False)[0]
    return upsample_deterministic(level, side)


def upsample_deterministic(level: torch.Tensor, side: int) -> torch.Tensor:
    """As ``upsample``, with a gradient that sums in a fixed order on every device."""
    factor = side // level.shape[-1]
    return _upsample_axis(_upsample_axis(level, factor, -1), factor, -2)


def _upsample_axis(values: torch.Tensor, factor: int, axis: int) -> torch.Tensor:
    """Upsample ``values`` linearly by ``factor`` along ``axis``. The ends are clamped."""
    x = values.movedim(axis, -1)
    previous, following = torch.cat([x[..., :1], x[..., :-1]], -1), torch.cat([x[..., 1:], x[..., -1:]], -1)
    # Offsets of the new texel centres from the old one, in old texels: -1/2 to 1/2.
    offset = (torch.arange(factor, device=x.device) + 0.5) / factor - 0.5
    previous_weight, next_weight = (-offset).clamp(min=0), offset.clamp(min=0)
    upsampled = (
        previous[..., None] * previous_weight
        + x[..., None] * (1 - previous_weight - next_weight)
        + following[..., None] * next_weight
    )
    return upsampled.flatten(-2).movedim(-1, axis)


def _initial_latents(
    latent_rgb: LatentRgb,
    colour: tuple[float, float, float],
    shape: tuple[int, ...],
    seed: int,
    purpose: str,
    strength: float,
) -> torch.Tensor:
    """Initial latents (C, H, W) float32 on the CPU: 0.3 latents of ``colour`` + ``strength`` noise."""
    noise = torch.randn(shape, generator=torch_generator(seed, purpose))
    base = torch.from_numpy(latent_rgb.invert(np.asarray(colour))).float()
    return _COLOUR_WEIGHT * base[:, None, None] + strength * noise
