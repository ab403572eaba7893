"""Paints a mesh with views that the model samples as images, and projects them onto an RGB texture.

The texture starts from a tileable sample of the prompt that covers the mesh at one scale, or it starts empty. For each
group of views:

1. The views are rendered, encoded and noised to a timestep at which the model still sees the layout and scale of the
   start (SDEdit, Meng et al., 2022).
2. They are denoised with DPM-Solver++ 2M (Lu et al., 2022), which takes half as many steps as DDIM for images of the
   same quality. Latents of painted surface are restored after each step (RePaint, Lugmayr et al., 2022). At high noise
   the views are synchronised on the surface (``multiview_sync``). At low noise they are not, because the mean of sharp
   views that disagree by a pixel is blurred.
3. They are decoded, matched to the sample's colours and contrast, and projected. At each texel the best view decides.

Shapes: V views of h x h latent pixels and H x H image pixels, M covered samples of all views, S the texture's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.arrays import Float32Array
from pipeline.core.device import to_device
from pipeline.core.scene import Rendering
from pipeline.painting.background_leaks import background_share
from pipeline.painting.correlated_noise import correlated_noise
from pipeline.painting.mesh_renderer import GBuffer, MeshRenderer
from pipeline.painting.multiview_sync import sync_correction
from pipeline.painting.tone_matching import match_tones, sharpen
from pipeline.painting.view_planning import ViewGroup
from pipeline.painting.view_selection import smooth_ramp
from pipeline.raster.camera import Cameras, ray_directions

# Views are synchronised above this timestep, a share of T.
_SYNC_ABOVE = 0.5
# Texture lookups along a side of an image pixel, and samples along a side of a latent pixel (noise, synchronisation).
_IMAGE_SAMPLES, _LATENT_SAMPLES = 2, 4
# Cells of correlated noise along a side of a latent pixel.
_NOISE_CELLS = 3
# Quality of painted texels at which other views begin to keep them, and from which they keep them unchanged.
_KEPT_QUALITY = (0.15, 0.5)
# Quality rises from 0 to 1 over these ranges: of the cosine between view and normal, and of the distance from the
# image's border in latent pixels.
_FACING, _BORDER = (0.25, 0.8), (0.5, 3.0)
# Weights of samples in the synchronisation: quality to this power, plus a minimum.
_WEIGHT_POWER, _MIN_SYNC_WEIGHT = 2, 1e-4
# Greys behind overviews. The one that differs more from the object's brightness is used.
_LIGHT, _DARK = 0.75, 0.25
# Number of pixels that are decoded or encoded at once. Bounds memory.
_MAX_PIXELS = 512**2


class TextureCanvas(Protocol):
    """The texture that finished views are projected onto (``bake.view_canvas``)."""

    def clear(self) -> None:
        """Remove all views."""
        ...

    def add(self, cameras: Cameras, images: Float32Array, shares: Float32Array) -> None:
        """Project images (N, 3, H, H) float32 in [0, 1] with weights ``shares`` (N, h, h) in [0, 1]."""
        ...

    def start_layer(self, sample: Float32Array | None = None) -> None:
        """Mark all texels as unpainted. Texels with colours of ``sample`` (H, W, 3) get the start's colours again."""
        ...

    def texture(self) -> Float32Array:
        """(4, S, S) float32 in [0, 1]: RGB, and the quality with which each texel is painted."""
        ...


class Codec(Protocol):
    """The part of a prior that painting uses."""

    device: torch.device
    vae_scale_factor: int

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (N, C, h, w) to RGB (N, 3, h r, w r) in [0, 1]; r is ``vae_scale_factor``."""
        ...

    def encode(self, rgb: Tensor) -> Tensor:
        """Encode RGB (N, 3, H, W) in [0, 1] to scaled latents (N, C, H / r, W / r)."""
        ...


@dataclass(frozen=True)
class ViewPaintingSettings:
    """Settings of a ``ViewPaintedMesh``.

    Attributes:
        size: side of a view in latent pixels.
        channels: channels of a latent.
        steps: steps of one group.
        t_min: last timestep, as a share of T.
        texture_size: side of the texture on which views are synchronised.
        two_sided: whether views paint the back of faces.
        tone_matching: strength of ``tone_matching.match_tones``, in [0, 1].
        sharpening: amount of ``tone_matching.sharpen``.
    """

    size: int
    channels: int
    steps: int
    t_min: float
    texture_size: int
    two_sided: bool
    tone_matching: float = 0.0
    sharpening: float = 0.0


@dataclass(frozen=True)
class ViewRendering(Rendering):
    """``group`` is the number of the group; ``last`` marks its last step."""

    group: int = 0
    last: bool = False


@dataclass(frozen=True)
class _LoadedGroup:
    """A group at its start."""

    number: int
    gbuffer: GBuffer  # with _LATENT_SAMPLES along a side of a latent pixel
    weights: Float32Array  # (M,) quality of each covered sample, in [0, 1]
    start: Tensor  # (V, C, h, h) encoded rendering of the texture
    free: Tensor  # (V, 1, h, h) share of each latent pixel that may change
    noise: Tensor  # (V, C, h, h)
    shares: Float32Array  # (V, h, h) weight in the projection, in [0, 1]
    masks: NDArray[np.bool_]  # (V, H, H) pixels that the mesh covers fully


class ViewPaintedMesh:
    """The scene (``core.scene.FlowScene``) of a mesh that is painted with ``groups`` of equally many views.

    Args:
        renderer: the mesh.
        normals: (F, 3) float64 unit normals of the faces, working frame.
        groups: groups of views in the order of painting; at least one.
        canvas: the texture; it may hold a start, but no views.
        prior: encoder and decoder; its device is the scene's.
        seed: seed of the noise.
        sample: (H, W, 3) float32 in [0, 1], tileable picture of the surface; None if there is none.
        sample_height: height of ``sample`` on the surface, working frame.
    """

    def __init__(
        self,
        renderer: MeshRenderer,
        normals: NDArray[np.float64],
        groups: list[ViewGroup],
        canvas: TextureCanvas,
        prior: Codec,
        settings: ViewPaintingSettings,
        seed: int,
        *,
        sample: Float32Array | None = None,
        sample_height: float = 1.0,
    ):
        self.renderer, self.groups, self.canvas = renderer, groups, canvas
        self._normals, self._prior, self._settings, self._seed = normals, prior, settings, seed
        self._sample, self._sample_height = sample, sample_height
        count = len(groups[0].views)
        shape = (count, settings.channels, settings.size, settings.size)
        device = prior.device
        self._latents = torch.zeros(shape, device=device)
        self._previous_clean = torch.zeros(shape, device=device)
        self._previous_log_step = torch.zeros((), dtype=torch.float64)
        self._finished_latents = torch.zeros(len(groups), *shape, device=device)
        self._finished_groups = torch.zeros((), dtype=torch.int64)
        self._dummy_parameter = torch.zeros(1, device=device).requires_grad_(True)
        self._group: _LoadedGroup | None = None

    @property
    def steps(self) -> int:
        """Number of steps of all groups together."""
        return len(self.groups) * self._settings.steps

    def parameters(self) -> list[dict[str, object]]:
        """A dummy parameter with a learning rate of 0: ``follow`` takes the steps, not Adam."""
        return [{"params": [self._dummy_parameter], "lr": 0.0}]

    def render(self, step: int, steps: int) -> ViewRendering:
        """As ``Scene.render``. Raises ValueError if ``steps`` is not the number that the scene was made for."""
        if steps != self.steps:
            raise ValueError(f"this scene was made for {self.steps} steps, not {steps}")
        count = self._settings.steps
        number, group_step = divmod(step, count)
        group = self._loaded(number)
        if group_step == 0:
            self._latents = group.start.clone()
        start = self.groups[number].start
        times = np.linspace(start, min(self._settings.t_min, start), count + 1)
        last = group_step == count - 1
        return ViewRendering(
            self._latents,
            self.groups[number].views,
            noise=group.noise,
            time=float(times[group_step]),
            next_time=None if last else float(times[group_step + 1]),
            group=number,
            last=last,
        )

    def _loaded(self, number: int) -> _LoadedGroup:
        if self._group is None or self._group.number != number:
            self._group = self._load_group(number)
        return self._group

    @torch.no_grad()
    def _load_group(self, number: int) -> _LoadedGroup:
        """Render and encode the group's views of the texture as painted by earlier groups."""
        settings, group = self._settings, self.groups[number]
        cameras, size = group.cameras, settings.size
        texture = to_device(torch.from_numpy(self.canvas.texture()), self._prior.device)
        side = size * self._prior.vae_scale_factor
        fine = self.renderer.render(cameras, side * _IMAGE_SAMPLES)
        picture = torch.nn.functional.avg_pool2d(
            fine.composite(texture, self._background(group, fine, texture)), _IMAGE_SAMPLES
        )
        samples = fine.covered.reshape(-1, side, _IMAGE_SAMPLES, side, _IMAGE_SAMPLES)
        masks = np.asarray(samples.all(axis=(2, 4)))
        start = _in_batches(self._prior.encode, picture[:, :3].clamp(0, 1), side * side).contiguous()
        gbuffer = self.renderer.render(cameras, size * _LATENT_SAMPLES)
        weights = self._weights(gbuffer, cameras)
        painted = torch.nn.functional.avg_pool2d(picture[:, 3:], self._prior.vae_scale_factor)
        known = smooth_ramp(painted.cpu().numpy(), _KEPT_QUALITY).astype(np.float32)
        cell = group.height / size / _NOISE_CELLS
        noise = correlated_noise(gbuffer, cameras, _LATENT_SAMPLES, settings.channels, cell, self._seed)
        quality, covered = np.zeros((2, *gbuffer.covered.shape), np.float32)
        quality[gbuffer.covered], covered[gbuffer.covered] = weights, 1.0
        mean = [
            x.reshape(-1, size, _LATENT_SAMPLES, size, _LATENT_SAMPLES).mean(axis=(2, 4)) for x in (quality, covered)
        ]
        shares = mean[0] / np.maximum(mean[1], 1 / _LATENT_SAMPLES**2) * (1 - known[:, 0])
        return _LoadedGroup(
            number,
            gbuffer,
            weights,
            start,
            to_device(torch.from_numpy(1 - known), self._prior.device),
            to_device(torch.from_numpy(noise), self._prior.device).contiguous(),
            shares.astype(np.float32),
            masks,
        )

    def _background(self, group: ViewGroup, fine: GBuffer, texture: Tensor) -> Tensor:
        """Background of the views and the quality that protects it from changes, (V side side, 4).

        Close-ups get the sample at its scale on the mesh, or without a sample the object's mean colour. Overviews get a
        grey.
        """
        count, side, _ = fine.covered.shape
        device = texture.device
        if self._sample is not None and not group.overview:
            tile = torch.from_numpy(np.ascontiguousarray(self._sample)).to(device)
            across = (torch.arange(side, device=device) + 0.5) / side * (group.height / self._sample_height)
            rows, columns = ((across * n).long() % n for n in tile.shape[:2])
            picture = tile[rows][:, columns].float()
            pixels = torch.cat([picture, torch.ones_like(picture[..., :1])], dim=-1)
            return pixels.reshape(1, side * side, 4).expand(count, -1, -1).reshape(-1, 4)
        object_only = fine.composite(texture, torch.zeros(count * side * side, 4, device=device))[:, :3]
        pixel_count = to_device(
            torch.from_numpy(fine.covered.reshape(count, -1).sum(axis=1).astype(np.float32)), device
        )
        mean = object_only.sum(dim=(2, 3)) / pixel_count.clamp(min=1)[:, None]
        if group.overview:
            level = torch.where(mean.mean(dim=1) < (_LIGHT + _DARK) / 2, _LIGHT, _DARK)
            mean = level[:, None].expand(-1, 3)
        known = torch.full_like(mean[:, :1], 1.0 if group.overview else 0.0)
        return torch.cat([mean, known], dim=1)[:, None].expand(-1, side * side, -1).reshape(-1, 4)

    def _weights(self, gbuffer: GBuffer, cameras: Cameras) -> Float32Array:
        """Quality (M,) of each covered sample, in [0, 1]: 0 at grazing angles and at the image's border."""
        _, row, column = np.nonzero(gbuffer.covered)
        side = gbuffer.covered.shape[1]
        rays = ray_directions(cameras, side, side)[gbuffer.covered]
        cosine = -np.einsum("mi,mi->m", rays, self._normals[gbuffer.face])
        facing = smooth_ramp(np.abs(cosine) if self._settings.two_sided else cosine, _FACING)
        away = smooth_ramp((np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / _LATENT_SAMPLES, _BORDER)
        return (facing * np.minimum(away[row], away[column])).astype(np.float32)

    @torch.no_grad()
    def follow(self, rendering: Rendering, residual: Tensor, share: Tensor) -> None:
        """Take one step of DPM-Solver++ 2M, in terms of clean latents and fixed noise.

        ``residual`` (V, C, h, w) is the rendered latents minus the predicted clean latents. ``share`` () is the share
        of the residual that DDIM would move by: the noise level falls to ``1 - share`` of its value. Raises TypeError
        for a rendering of another scene.
        """
        if not isinstance(rendering, ViewRendering):
            raise TypeError("follow takes only renderings of this scene")
        group = self._loaded(rendering.group)
        clean = self._latents - residual
        if rendering.time is not None and rendering.time > _SYNC_ABOVE:
            weights = to_device(torch.from_numpy(group.weights**_WEIGHT_POWER + _MIN_SYNC_WEIGHT), clean.device)
            clean = clean + sync_correction(clean, group.gbuffer, weights, _LATENT_SAMPLES, self._settings.texture_size)
        log_step = math.inf if rendering.last else -math.log1p(-float(share))
        target, previous = clean, float(self._previous_log_step)
        if previous > 0 and not rendering.last:
            # Second-order term: h / (2 h_previous) times the change of the clean latents since the previous step.
            target = clean + log_step / (2 * previous) * (clean - self._previous_clean)
        latents = self._latents + share * (target - self._latents)
        latents = (group.free * latents + (1 - group.free) * group.start).contiguous()
        if rendering.last:
            self._finish_group(rendering.group, latents)
        # Assign these last, so that a step that runs out of memory can be repeated.
        self._previous_log_step.fill_(0.0 if rendering.last else log_step)
        self._previous_clean = clean.contiguous()
        self._latents = latents

    def _finish_group(self, number: int, latents: Tensor) -> None:
        self._paint(number, latents)
        self._finished_latents[number] = latents
        self._finished_groups.fill_(number + 1)

    def _paint(self, number: int, latents: Tensor) -> None:
        """Decode the finished views of a group and project them onto the texture."""
        group = self._loaded(number)
        images = _in_batches(self._prior.decode, latents, group.masks[0].size).clamp(0, 1).cpu().numpy()
        images = sharpen(images, self._settings.sharpening)
        shares = group.shares
        if self.groups[number].overview:
            shares = shares * (1 - background_share(images, group.masks, shares.shape[-1]))
        if self._sample is not None:
            images = match_tones(images, group.masks, self._sample, self._settings.tone_matching)
        self.canvas.add(self.groups[number].cameras, images, shares)
        next_groups = self.groups[number + 1 : number + 2]
        if self.groups[number].overview and next_groups and not next_groups[0].overview:
            self.canvas.start_layer(self._sample)

    def state(self) -> Mapping[str, Tensor]:
        """All tensors that change between steps. ``load_state`` rebuilds the texture from the finished views."""
        return {
            "now": self._latents,
            "clean_before": self._previous_clean,
            "log_step_before": self._previous_log_step,
            "made": self._finished_latents,
            "done": self._finished_groups,
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """As ``Scene.load_state``."""
        expected = self.state()
        for name, tensor in expected.items():
            if name not in state or state[name].shape != tensor.shape:
                raise ValueError(f"checkpoint: {name} is missing or has another shape")
        if not 0 <= int(state["done"]) <= len(self.groups):
            raise ValueError(f"checkpoint: {int(state['done'])} of {len(self.groups)} groups are done")
        for name, tensor in expected.items():
            tensor.copy_(state[name])
        self.canvas.clear()
        self._group = None
        for number in range(int(self._finished_groups)):
            self._paint(number, self._finished_latents[number])


def _in_batches(run: Callable[[Tensor], Tensor], images: Tensor, pixels: int) -> Tensor:
    """``run`` applied to ``images`` (N, ...) in batches of at most ``_MAX_PIXELS``, as float32.

    ``pixels`` is the number of pixels of one image.
    """
    batches: tuple[Tensor, ...] = torch.split(images, max(1, _MAX_PIXELS // pixels))
    return torch.cat([run(batch).float() for batch in batches])
