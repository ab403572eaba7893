"""A painted mesh that follows the flow of the diffusion model instead of descending along its score.

Score distillation seeks the mode of the model: smooth surfaces whose colours get stronger the longer it runs. With
noise that stays with the surface, and with noise levels that only fall, the same gradient is the one of sampling (Yan
et al., "Flow Score Distillation", 2024): for x = alpha z + sigma eps with eps fixed, the probability flow of DDIM is

    dz = (eps_hat(x) - eps) d(sigma / alpha),

so that each place of the surface goes the way on which the model makes pictures, the views of it averaged.

Three phases. First the colour: fresh noise at every step, all kinds of views; what many pictures of the prompt agree
on is a colour for the whole object. It is found for all texels as one before each goes its own way: thin parts, which
the model would take for background by themselves, then have the object's colour. Then the structure: noise of the
surface, and a fixed set of close-ups, so that every view meets again what it made. At last fresh noise on the same
close-ups, at low levels, which evens out what only one noise would have made of a place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.core.rng import torch_generator
from pipeline.core.transfer import send
from pipeline.geometry.camera import Cameras, CameraSettings
from pipeline.scene.painted_mesh import PaintedMesh, PaintedMeshSettings
from pipeline.scene.protocol import COLOUR_SHARE, Rendering, View
from pipeline.scene.surface_noise import SurfaceNoise

# The close-ups of the structure: how many there are, their height in object radii, and how far they lean.
_CAMERAS = 32
_HEIGHT = 1.1
_LEAN = 0.4
# Of the waves of a view's noise, the longest, which hold its colours, are fresh at every step: their mean is the colour
# that was found; those of the surface would tint each place in its own way.
_LONG_WAVES = 0.25
# Up to this share of the steps all texels move as one.
_WHOLE = 0.2
# Latent pixels that show the object as purely as this share of the purest tell its colour.
_PURE = 0.9
# From this share of the steps on, all noise is fresh again: what only one noise would have made of a place fades.
_FINISH = 0.75
# A texel of which the views of a step showed less than this is left for others.
_LEAST_REACH = 1e-4


@dataclass(frozen=True)
class FlowRendering(Rendering):
    """``reach``: (V, 1, h, w), how much of each latent pixel the texture fills, with a graph to the texels' weights.
    ``whole``: all texels move as one."""

    reach: Tensor | None = None
    whole: bool = False


class FlowMesh(PaintedMesh):
    """As ``PaintedMesh``, with one texture and no optimiser.

    Every texel has a noise level sigma / alpha of its own, the one of the step that last saw it. When a step at level
    r sees it again, it goes the share 1 - r / (its level) of the way to the clean latents that the model sees.

    ``level``: sigma / alpha at the start.
    """

    def __init__(self, *args: Any, level: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        size = self._settings.texture_size
        self._noise = SurfaceNoise(self._seed, self.texture.shape[0])
        self._weight = torch.ones(1, size, size, device=self._device, requires_grad=True)
        self._level = torch.full((size, size), level, device=self._device)
        side = self._settings.view_size
        ramp = torch.sin((torch.arange(side) + 0.5) / side * math.pi)
        # Where views overlap, the one that has a place nearest to its middle counts most.
        self._window = ((ramp[:, None] * ramp) ** 2).to(self._device)
        self._close = _fixed(self._settings)

    def _suited(self, settings: PaintedMeshSettings) -> PaintedMeshSettings:
        """Plain backgrounds, since nothing here would learn others, and no noise at the start: the flow brings its own,
        and takes any other for something to keep."""
        return dataclasses.replace(settings, background="random", initial_noise=0.0)

    def _levels_from(self, base: Tensor) -> list[Tensor]:
        return [base.requires_grad_(True)]

    def parameters(self) -> list[dict[str, object]]:
        """The texture, which ``follow`` moves; Adam has no part in it."""
        return [{"params": list(self._levels), "lr": 0.0}]

    def render(self, step: int, steps: int) -> FlowRendering:
        settings = self._settings
        finds_colour = step < COLOUR_SHARE * steps
        cameras, views = self._cameras(step, finds_colour)
        seen = self.views.look(cameras, settings.view_size * settings.supersample)
        self.visibility.add(seen.uv)
        behind = self._background(cameras, seen.covered, step)
        behind = torch.cat([behind, torch.zeros_like(behind[:, :1])], dim=1)
        image = seen.composite(torch.cat([self.texture, self._weight]), behind)
        image = torch.nn.functional.avg_pool2d(image, settings.supersample)
        noise = None
        if not finds_colour and step < _FINISH * steps:
            own = self._noise.views(seen, settings.supersample, step)
            fresh = torch.randn(own.shape, generator=torch_generator(self._seed, "fresh noise", step))
            noise = send(with_waves_of(own, fresh), self._device)
        return FlowRendering(image[:, :-1], views, noise=noise, reach=image[:, -1:], whole=step < _WHOLE * steps)

    def _cameras(self, step: int, finds_colour: bool) -> tuple[Cameras, list[View]]:
        count = self._settings.views
        if finds_colour:
            return self.views.draw(step, count)
        return self.views.draw(step % math.ceil(_CAMERAS / count), count, "structure", self._close)

    def follow(self, rendering: Rendering, residual: Tensor, level: Tensor) -> None:
        """Moves the texels that ``rendering`` shows.

        Args:
            rendering: what ``render`` gave.
            residual: (V, C, h, w) the rendered latents less the clean ones that the model sees in them.
            level: () sigma / alpha of the step's timestep.
        """
        if not isinstance(rendering, FlowRendering) or rendering.reach is None:
            raise TypeError("a flow goes on from what this scene rendered")
        (texture,) = self._levels
        if rendering.whole:
            self._follow_whole(texture, rendering.reach, residual, level)
            return
        shown = (rendering.latents * residual * self._window).sum() + (rendering.reach * self._window).sum()
        moved, weight = torch.autograd.grad(shown, [texture, self._weight])
        with torch.no_grad():
            seen = weight[0] > _LEAST_REACH
            share = torch.where(seen, (1 - level / self._level).clamp(min=0), torch.zeros_like(self._level))
            texture -= share * moved / weight.clamp(min=_LEAST_REACH)
            self._level.copy_(torch.where(seen, self._level.minimum(level), self._level))

    @torch.no_grad()
    def _follow_whole(self, texture: Tensor, reach: Tensor, residual: Tensor, level: Tensor) -> None:
        """Moves all texels by what the latent pixels that show little but the object agree on."""
        weight = self._window * reach * (reach > _PURE * reach.max())
        total = weight.sum()
        if total <= _LEAST_REACH:
            return
        share = (1 - level / self._level).clamp(min=0)
        texture -= share * ((residual * weight).sum(dim=(0, 2, 3)) / total)[:, None, None]
        self._level.copy_(self._level.minimum(level))

    def state(self) -> Mapping[str, Tensor]:
        return {**super().state(), "level": self._level}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        with torch.no_grad():
            self._level.copy_(state["level"])


def with_waves_of(noise: Tensor, other: Tensor, share: float = _LONG_WAVES) -> Tensor:
    """``noise`` (V, C, h, h) whose longest waves, a ``share`` of each axis, are those of ``other``.

    By the orthonormal cosine transform: of two independent normal noises it makes a third.
    """
    side = noise.shape[-1]
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    waves = torch.cos(math.pi * torch.arange(side, dtype=torch.float64)[:, None] * place) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    long = waves[: round(share * side)].to(noise)
    only = long.T @ long  # the projection of one axis on its long waves
    return noise + only @ (other - noise) @ only


def _fixed(settings: PaintedMeshSettings) -> CameraSettings:
    """The cameras of the structure: close-ups of one scale, unless close-ups are not wanted at all."""
    cameras = settings.cameras
    if cameras.close_up == 0:
        return cameras
    return dataclasses.replace(cameras, close_up=1.0, close_height=(_HEIGHT, _HEIGHT), close_angle=_LEAN)
