"""A mesh painted by views that a model draws, each of which keeps what it draws.

The mesh has a start: a tileable sample of the prompt, laid over all of it at one scale, or nothing. Groups of views are
rendered, noised to a timestep at which the model still sees the start's layout and scale (SDEdit, Meng et al., 2022),
and denoised; what earlier views have painted stays as it is (RePaint, Lugmayr et al., 2022). At high noise the views of
a group are moved to their mean on the surface (``multiview_sync``); at low noise each keeps its own, since the mean of
crisp views that do not agree to the pixel is a blur. Finished views are decoded, get back the sample's colours and
contrast, and are laid on the texture, where the view that shows a place best decides.

Sampler: DPM-Solver++ 2M (Lu et al., 2022), which takes half as many steps as DDIM for the same pictures.
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

from pipeline.core.device import to_device
from pipeline.core.scene import Rendering
from pipeline.painting.correlated_noise import correlated_noise
from pipeline.painting.mesh_renderer import GBuffer, MeshRenderer
from pipeline.painting.multiview_sync import sync_correction
from pipeline.painting.tone_matching import match_tones, sharpen
from pipeline.painting.view_planning import ViewGroup
from pipeline.painting.view_selection import smooth_ramp
from pipeline.raster.camera import Cameras, ray_directions

Float32Array = NDArray[np.float32]

# Views are moved to their mean above this timestep, a share of T.
_SYNC_ABOVE = 0.5
# Texture lookups a side of an image pixel, and of a latent pixel for noise and agreement.
_IMAGE_SAMPLES, _LATENT_SAMPLES = 2, 4
# Cells of surface noise along a side of a latent pixel.
_CELLS = 3
# How well a place must be painted for another view to leave it: not at all, and fully.
_KNOWN = (0.15, 0.5)
# Cosines between the view and the normal, and latent pixels from the image's border: what a view shows there counts
# not at all, and fully.
_FACING, _BORDER = (0.25, 0.8), (0.5, 3.0)
# How much more a place counts in views that show it well: a power, and what it counts in the worst ones.
_BEST, _BADLY = 2, 1e-4
# Behind whole views stands a grey far from the object's own brightness.
_LIGHT, _DARK = 0.75, 0.25
# Pixels that are decoded or encoded at once.
_PIXELS_AT_ONCE = 512**2


class Canvas(Protocol):
    """The texture that finished views are laid on (``bake.view_canvas``)."""

    def clear(self) -> None:
        """Forget all views."""
        ...

    def add(self, cameras: Cameras, images: Float32Array, shares: Float32Array) -> None:
        """Lay images (N, 3, H, H) on the texture, by shares (N, h, h)."""
        ...

    def reopen(self, sample: Float32Array | None = None) -> None:
        """Count all texels as unpainted; those that have ``sample``'s colours get the start's back."""
        ...

    def texture(self) -> Float32Array:
        """(4, S, S): RGB in [0, 1], and how well each texel is painted."""
        ...


class Codec(Protocol):
    """What painting needs of a prior."""

    device: torch.device
    vae_scale_factor: int

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) scaled latents -> (N, 3, h r, w r) in [0, 1]."""
        ...

    def encode(self, rgb: Tensor) -> Tensor:
        """The way back."""
        ...


@dataclass(frozen=True)
class ViewPaintingSettings:
    """``size``: latent pixels a side of a view; ``channels`` of a latent. ``steps`` of one group. ``t_min``: last
    timestep, a share of T. ``texture_size``: of the texture on which views agree. ``matching``: how far colours are
    moved to the sample's; ``sharpening``: of finished views (``tone_matching``). ``two_sided``: whether faces are seen
    from behind."""

    size: int
    channels: int
    steps: int
    t_min: float
    texture_size: int
    two_sided: bool
    matching: float = 0.0
    sharpening: float = 0.0


@dataclass(frozen=True)
class ViewRendering(Rendering):
    """``group``: number of the group; ``last``: whether it is finished after this step."""

    group: int = 0
    last: bool = False


@dataclass(frozen=True)
class _LoadedGroup:
    """A group at its start. V views of h x h latent pixels."""

    number: int
    gbuffer: GBuffer  # at _LATENT_SAMPLES a side of a latent pixel
    weights: Float32Array  # (M,) how well each covered sample is shown
    start: Tensor  # (V, C, h, h) the latents of what is there
    free: Tensor  # (V, 1, h, h) how much of each latent pixel may change
    noise: Tensor  # (V, C, h, h)
    shares: Float32Array  # (V, h, h) how much the view's own work counts
    masks: NDArray[np.bool_]  # (V, H, H) pixels that show the mesh


class ViewPaintedMesh:
    """The scene (``core.scene.FlowScene``) of a mesh that is painted by ``groups`` of views, all of one size.

    Args:
        normals: (F, 3) unit normals of the faces, in the cameras' world.
        sample: (H, W, 3) in [0, 1], tileable: the picture that the surface should look like; None: there is none.
        sample_height: of ``sample`` on the surface, in the cameras' world.
    """

    def __init__(
        self,
        renderer: MeshRenderer,
        normals: NDArray[np.float64],
        groups: list[ViewGroup],
        canvas: Canvas,
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
        self._now = torch.zeros(shape, device=device)
        self._clean_before = torch.zeros(shape, device=device)
        self._log_step_before = torch.zeros((), dtype=torch.float64)
        self._made = torch.zeros(len(groups), *shape, device=device)
        self._done = torch.zeros((), dtype=torch.int64)
        self._still = torch.zeros(1, device=device).requires_grad_(True)
        self._group: _LoadedGroup | None = None

    @property
    def steps(self) -> int:
        """Of all groups."""
        return len(self.groups) * self._settings.steps

    def parameters(self) -> list[dict[str, object]]:
        """One number that nothing moves: the optimiser has no part in this."""
        return [{"params": [self._still], "lr": 0.0}]

    def render(self, step: int, steps: int) -> ViewRendering:
        """As ``Scene.render``. Raises ValueError for another number of steps than the scene was made for."""
        if steps != self.steps:
            raise ValueError(f"the views are laid out for {self.steps} steps, not {steps}")
        count = self._settings.steps
        number, group_step = divmod(step, count)
        group = self._loaded(number)
        if group_step == 0:
            self._now = group.start.clone()
        start = self.groups[number].start
        times = np.linspace(start, min(self._settings.t_min, start), count + 1)
        last = group_step == count - 1
        return ViewRendering(
            self._now,
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
        """The group's views of the texture as earlier groups have left it."""
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
        start = _in_pieces(self._prior.encode, picture[:, :3].clamp(0, 1), side * side).contiguous()
        gbuffer = self.renderer.render(cameras, size * _LATENT_SAMPLES)
        weights = self._weights(gbuffer, cameras)
        painted = torch.nn.functional.avg_pool2d(picture[:, 3:], self._prior.vae_scale_factor)
        known = smooth_ramp(painted.cpu().numpy(), _KNOWN).astype(np.float32)
        cell = group.height / size / _CELLS
        noise = correlated_noise(gbuffer, cameras, _LATENT_SAMPLES, settings.channels, cell, self._seed)
        shown, covered = np.zeros((2, *gbuffer.covered.shape), np.float32)
        shown[gbuffer.covered], covered[gbuffer.covered] = weights, 1.0
        mean = [x.reshape(-1, size, _LATENT_SAMPLES, size, _LATENT_SAMPLES).mean(axis=(2, 4)) for x in (shown, covered)]
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
        """(V side side, 4) what is behind the mesh, and how much of it stays: the sample, at the scale at which it lies
        on the mesh, or a plain colour."""
        count, side, _ = fine.covered.shape
        device = texture.device
        if self._sample is not None and not group.whole:
            tile = torch.from_numpy(np.ascontiguousarray(self._sample)).to(device)
            across = (torch.arange(side, device=device) + 0.5) / side * (group.height / self._sample_height)
            rows, columns = ((across * n).long() % n for n in tile.shape[:2])
            picture = tile[rows][:, columns].float()
            behind = torch.cat([picture, torch.ones_like(picture[..., :1])], dim=-1)
            return behind.reshape(1, side * side, 4).expand(count, -1, -1).reshape(-1, 4)
        seen = fine.composite(texture, torch.zeros(count * side * side, 4, device=device))[:, :3]
        shown = to_device(torch.from_numpy(fine.covered.reshape(count, -1).sum(axis=1).astype(np.float32)), device)
        mean = seen.sum(dim=(2, 3)) / shown.clamp(min=1)[:, None]
        if group.whole:
            level = torch.where(mean.mean(dim=1) < (_LIGHT + _DARK) / 2, _LIGHT, _DARK)
            mean = level[:, None].expand(-1, 3)
        known = torch.full_like(mean[:, :1], 1.0 if group.whole else 0.0)
        return torch.cat([mean, known], dim=1)[:, None].expand(-1, side * side, -1).reshape(-1, 4)

    def _weights(self, gbuffer: GBuffer, cameras: Cameras) -> Float32Array:
        """(M,) how well each covered sample is shown, in [0, 1]."""
        _, row, column = np.nonzero(gbuffer.covered)
        side = gbuffer.covered.shape[1]
        rays = ray_directions(cameras, side, side)[gbuffer.covered]
        cosine = -np.einsum("mi,mi->m", rays, self._normals[gbuffer.face])
        facing = smooth_ramp(np.abs(cosine) if self._settings.two_sided else cosine, _FACING)
        away = smooth_ramp((np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / _LATENT_SAMPLES, _BORDER)
        return (facing * np.minimum(away[row], away[column])).astype(np.float32)

    @torch.no_grad()
    def follow(self, rendering: Rendering, residual: Tensor, share: Tensor) -> None:
        """One step of DPM-Solver++ 2M, written for clean latents under fixed noise.

        residual: (V, C, h, w) the rendered latents less the clean ones that the model sees in them. share: () of the
        way to these that DDIM would go; the noise level falls to ``1 - share`` of what it was.
        """
        if not isinstance(rendering, ViewRendering):
            raise TypeError("views continue only from a rendering of this scene")
        group = self._loaded(rendering.group)
        clean = self._now - residual
        if rendering.time is not None and rendering.time > _SYNC_ABOVE:
            weights = to_device(torch.from_numpy(group.weights**_BEST + _BADLY), clean.device)
            clean = clean + sync_correction(clean, group.gbuffer, weights, _LATENT_SAMPLES, self._settings.texture_size)
        log_step = math.inf if rendering.last else -math.log1p(-float(share))
        goal, before = clean, float(self._log_step_before)
        if before > 0 and not rendering.last:
            # The second order: h / (2 h_before) of the change of the clean latents since the step before.
            goal = clean + log_step / (2 * before) * (clean - self._clean_before)
        now = self._now + share * (goal - self._now)
        now = (group.free * now + (1 - group.free) * group.start).contiguous()
        if rendering.last:
            self._finish_group(rendering.group, now)
        # Last, so that a step that memory did not suffice for can be taken again.
        self._log_step_before.fill_(0.0 if rendering.last else log_step)
        self._clean_before = clean.contiguous()
        self._now = now

    def _finish_group(self, number: int, latents: Tensor) -> None:
        self._lay(number, latents)
        self._made[number] = latents
        self._done.fill_(number + 1)

    def _lay(self, number: int, latents: Tensor) -> None:
        """Decodes finished views and lays them on the texture."""
        group = self._loaded(number)
        images = _in_pieces(self._prior.decode, latents, group.masks[0].size).clamp(0, 1).cpu().numpy()
        images = sharpen(images, self._settings.sharpening)
        if self._sample is not None:
            images = match_tones(images, group.masks, self._sample, self._settings.matching)
        self.canvas.add(self.groups[number].cameras, images, group.shares)
        following = self.groups[number + 1 : number + 2]
        if self.groups[number].whole and following and not following[0].whole:
            self.canvas.reopen(self._sample)

    def state(self) -> Mapping[str, Tensor]:
        """All that changes from step to step; the texture is laid again from the finished views."""
        return {
            "now": self._now,
            "clean_before": self._clean_before,
            "log_step_before": self._log_step_before,
            "made": self._made,
            "done": self._done,
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """As ``Scene.load_state``."""
        own = self.state()
        for name, mine in own.items():
            if name not in state or state[name].shape != mine.shape:
                raise ValueError(f"checkpoint: {name} is missing or has another shape")
        if not 0 <= int(state["done"]) <= len(self.groups):
            raise ValueError(f"checkpoint: {int(state['done'])} of {len(self.groups)} groups are done")
        for name, mine in own.items():
            mine.copy_(state[name])
        self.canvas.clear()
        self._group = None
        for number in range(int(self._done)):
            self._lay(number, self._made[number])


def _in_pieces(run: Callable[[Tensor], Tensor], batch: Tensor, pixels: int) -> Tensor:
    """``run`` of a batch of pictures of ``pixels`` each, float32, as many at once as memory surely has room for."""
    pieces: tuple[Tensor, ...] = torch.split(batch, max(1, _PIXELS_AT_ONCE // pixels))
    return torch.cat([run(piece).float() for piece in pieces])
