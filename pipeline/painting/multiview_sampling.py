"""A painted mesh whose latent texture is sampled with DDIM in groups of views, instead of optimised along a score.

Score distillation seeks a mode of the model: it gives smooth surfaces, colours that saturate with time, and the average
of all views at each point. Sampling (DDIM, Song et al., 2021) avoids this. The views of a group share their noise on
the surface (``correlated_noise``) and are synchronised while they are denoised (``multiview_sync``), so one pattern
continues across them. Later groups keep the painted texels: as in inpainting with RePaint (Lugmayr et al., 2022), known
latents are restored after each step. TEXTure (Richardson et al., 2023) and Text2Tex (Chen et al., 2023) also paint a
mesh view by view, with depth-guided models.

There are two phases:

1. Colour. Each step draws new views and new noise, and moves all texels by the same amount, towards the colour on which
   pictures of the prompt agree.
2. Patches. Each group takes the candidate views that show most unpainted surface and denoises them from high noise to
   none, starting from the colour.

If the surface already has colours (``initial_latents``), the first phase is skipped. The patches then start from these
colours at a lower timestep, which keeps the layout (SDEdit, Meng et al., 2022).

Shapes: V views of h x w latent pixels, C channels, M covered samples of all views (supersample^2 per latent pixel).
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.device import to_device
from pipeline.core.scene import Rendering, View
from pipeline.mesh.mesh import face_normals
from pipeline.painting.correlated_noise import correlated_noise
from pipeline.painting.mesh_renderer import GBuffer
from pipeline.painting.multiview_sync import sync_correction
from pipeline.painting.painted_mesh import PaintedMesh, PaintedMeshSettings
from pipeline.painting.view_heights import adapt_close_ups
from pipeline.painting.view_selection import select_views, view_weights
from pipeline.raster.camera import Cameras, CameraSettings
from pipeline.raster.texture import scatter_texture

# Colour phase: share of the steps, factor of the guidance scale, and last timestep (share of T).
_COLOUR_SHARE = 0.12
_COLOUR_GUIDANCE = 0.6
_COLOUR_END = 0.6
# Patches: approximate number of steps of a group, and its first timestep (share of T). At this timestep the model still
# sees the colour and lays out the pattern itself.
_PATCH_STEPS = 16
_PATCH_START = 0.85
# First timestep of a group that starts from ``initial_latents``.
_RECOLOUR_START = 0.6
# Candidate close-ups of a group: their number, the range of their height relative to the requested one, the largest
# angle from the surface normal (radians), and the field of view (radians). It is narrow to keep perspective weak.
CANDIDATES = 64
_HEIGHTS = (0.9, 1.1)
_CLOSE_ANGLE = 0.3
_FOV = np.radians(30)
# Share of the model's changes that close-ups keep in the background after each step. All are kept: beside a plain
# background the model draws a plainer pattern. With ``initial_latents`` half are kept (1 is untested there).
_FREE_BACKGROUND, _FREE_BACKGROUND_RECOLOUR = 1.0, 0.5
# The texture's side relative to the requested one. A finer texture gives later groups sharper views of it.
_TEXTURE_SCALE = 2
# Greys behind overviews. The one that differs more from the object's brightness makes its outline clear.
_LIGHT, _DARK = 0.75, 0.25
# Texels with less total view weight than this stay unpainted and go to the next group.
_MIN_WEIGHT = 0.05
# The colour phase uses latent pixels whose coverage is above this share of the largest coverage.
_PURE_COVERAGE = 0.9
# Weights of samples in means over views: quality to this power, plus a minimum for the synchronisation.
_WEIGHT_POWER, _MIN_SYNC_WEIGHT = 2, 1e-4
# Cells of correlated noise along a side of a latent pixel.
_NOISE_CELLS = 3


@dataclass(frozen=True)
class SampledViews:
    """Finished views of the surface.

    Attributes:
        cameras: N cameras.
        latents: (N, C, h, w) float32. The background of close-ups is painted like the surface.
        shares: (N, h, w) float32 in [0, 1], weight of each latent pixel: its quality, times the share that this view
            painted itself.
    """

    cameras: Cameras
    latents: Tensor
    shares: np.ndarray


@dataclass(frozen=True)
class SampledRendering(Rendering):
    """A rendering of one step of this scene.

    Attributes:
        coverage: (V, 1, h, w) share of each latent pixel that the mesh covers; None in the patch phase.
        group: number of the group; None in the colour phase.
        last: whether this is the group's last step.
    """

    coverage: Tensor | None = None
    group: int | None = None
    last: bool = False


@dataclass(frozen=True)
class _ViewGroup:
    """The group of views that is being denoised."""

    number: int
    cameras: Cameras
    views: list[View]
    gbuffer: GBuffer
    weights: np.ndarray  # (M,) quality of the covered samples, in [0, 1]
    initial_latents: Tensor  # (V, C, h, w) rendered texture and background at the group's start
    free_share: Tensor  # (V, 1, h, w) share of each latent pixel that may change
    noise: Tensor  # (V, C, h, w)


class SampledTextureMesh(PaintedMesh):
    """A ``FlowScene`` that samples the latent texture of a mesh: one texture without a pyramid, and no optimiser.

    Args (besides those of ``PaintedMesh``):
        steps: number of steps of both phases together.
        t_min, t_max: smallest and largest timestep as shares of T.
        two_sided: whether views may paint the back of faces; False for a closed surface.
        initial_latents: (C, s, s) float32 latents of the surface, of any side s; None for an unpainted surface.
    """

    def __init__(
        self,
        *args: Any,
        steps: int,
        t_min: float,
        t_max: float,
        two_sided: bool,
        initial_latents: Tensor | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        vertices, faces = args[0], args[1]
        normals = face_normals(vertices, faces)
        self._normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
        self._two_sided = two_sided
        self._t_min, self._t_max = t_min, t_max
        self._starts = schedule(steps, 0.0 if initial_latents is not None else _COLOUR_SHARE)
        self._patch_start = min(_PATCH_START if initial_latents is None else _RECOLOUR_START, t_max)
        self._has_colours = initial_latents is not None
        if initial_latents is not None:
            self._set_initial_texture(initial_latents)
        self._steps = steps
        settings = self._settings
        groups = len(self._starts)
        self._count = settings.patches.count or settings.views
        self._candidate_settings = adapt_close_ups(self.renderer, _close_up_settings(settings), self._count * groups)
        self._size = settings.patches.size or settings.view_size
        shape = (self._count, self.texture.shape[0], self._size, self._size)
        self._colour = self.texture.detach()[:, 0, 0].clone()
        self._painted = torch.zeros(1, settings.texture_size, settings.texture_size, device=self._device)
        self._latents = _as_rendered(torch.zeros(shape, device=self._device))
        self._view_indices = torch.zeros(groups, self._count, dtype=torch.int64)
        self._finished_latents = torch.zeros(groups, *shape, device=self._device)
        self._shares = torch.zeros(groups, self._count, self._size, self._size)
        self._finished_groups = torch.zeros((), dtype=torch.int64)
        self._group: _ViewGroup | None = None
        self._heights = _heights(self._candidate_settings)
        self._cell = sum(self._heights) / 2 / self._size / _NOISE_CELLS

    @torch.no_grad()
    def _set_initial_texture(self, initial_latents: Tensor) -> None:
        """Set the texture to ``initial_latents`` (C, s, s), resized."""
        (texture,) = self._levels
        resized = torch.nn.functional.interpolate(
            initial_latents[None].to(texture), size=texture.shape[1:], mode="bilinear", align_corners=False
        )
        texture.copy_(resized[0])

    def _adapt_settings(self, settings: PaintedMeshSettings) -> PaintedMeshSettings:
        """Plain backgrounds, because nothing is learned here. No initial noise, because sampling would keep it."""
        size = settings.texture_size * _TEXTURE_SCALE
        return dataclasses.replace(settings, background="random", initial_noise=0.0, texture_size=size)

    def _make_levels(self, base: Tensor) -> list[Tensor]:
        return [base.requires_grad_(True)]

    def parameters(self) -> list[dict[str, object]]:
        """The texture, with a learning rate of 0: ``follow`` changes it, not Adam."""
        return [{"params": list(self._levels), "lr": 0.0}]

    def render(self, step: int, steps: int) -> SampledRendering:
        """As ``Scene.render``. Raises ValueError if ``steps`` is not the number that the scene was made for."""
        if steps != self._steps:
            raise ValueError(f"this scene was made for {self._steps} steps, not {steps}")
        if step < self._starts[0]:
            return self._render_colour_phase(step)
        number = bisect.bisect_right(self._starts, step) - 1
        start, end = [*self._starts, steps][number : number + 2]
        group_step, count = step - start, end - start
        if group_step == 0:
            self._begin_group(number)
        elif self._group is None or self._group.number != number:
            self._group = self._load_group(number)
        group = self._group
        assert group is not None
        times = np.linspace(self._patch_start, self._t_min, count + 1)
        last = group_step == count - 1
        return SampledRendering(
            self._latents,
            group.views,
            noise=group.noise,
            time=float(times[group_step]),
            next_time=None if last else float(times[group_step + 1]),
            group=number,
            last=last,
        )

    def _render_colour_phase(self, step: int) -> SampledRendering:
        settings = self._settings
        cameras, views = self.renderer.sample_cameras(step, settings.views)
        gbuffer = self._render_gbuffer(cameras, settings.view_size)
        image = self._downsampled(gbuffer, self.texture.detach(), self._background(cameras, gbuffer.covered, step))
        covered = to_device(torch.from_numpy(gbuffer.covered[:, None].astype(np.float32)), self._device)
        end = max(min(_COLOUR_END, self._t_max), self._t_min)
        times = np.linspace(self._t_max, end, self._starts[0] + 1)
        return SampledRendering(
            image,
            views,
            time=float(times[step]),
            next_time=float(times[step + 1]),
            guidance=_COLOUR_GUIDANCE,
            coverage=torch.nn.functional.avg_pool2d(covered, settings.supersample),
        )

    def _downsampled(self, gbuffer: GBuffer, texture: Tensor, background: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(gbuffer.composite(texture, background), self._settings.supersample)

    def _begin_group(self, number: int) -> None:
        """Select the views of group ``number``. Repeating this before ``follow`` gives the same views."""
        cameras, _ = self._candidate_cameras(number)
        gbuffer = self._render_gbuffer(cameras, self._size)
        known = self._painted[0].cpu().numpy()
        chosen = select_views(self._count, gbuffer, self._view_weights(gbuffer, cameras), known)
        self._view_indices[number] = torch.from_numpy(np.resize(chosen, self._count))
        self._group = self._load_group(number)
        self._latents = _as_rendered(self._group.initial_latents.clone())

    def _candidate_cameras(self, number: int) -> tuple[Cameras, list[View]]:
        return self.renderer.sample_cameras(number, max(CANDIDATES, self._count), "patches", self._candidate_settings)

    def _render_gbuffer(self, cameras: Cameras, size: int) -> GBuffer:
        return self.renderer.render(cameras, size * self._settings.supersample)

    def _view_weights(self, gbuffer: GBuffer, cameras: Cameras) -> np.ndarray:
        supersample = self._settings.supersample
        return view_weights(gbuffer, cameras, self._normals, self._heights, supersample, self._two_sided)

    @torch.no_grad()
    def _load_group(self, number: int) -> _ViewGroup:
        """Render the group's views. The texture does not change until the group is finished."""
        cameras, views = self._candidate_cameras(number)
        chosen = self._view_indices[number].numpy()
        cameras, views = cameras[chosen], [views[i] for i in chosen]
        gbuffer = self._render_gbuffer(cameras, self._size)
        self.texel_coverage.add(gbuffer.uv)
        unknown = torch.cat([self.texture, 1 - self._painted])
        image = self._downsampled(gbuffer, unknown, self._group_background(cameras, gbuffer))
        channels = self._latents.shape[1]
        noise_array = correlated_noise(gbuffer, cameras, self._settings.supersample, channels, self._cell, self._seed)
        noise = to_device(torch.from_numpy(noise_array), self._device)
        weights = self._view_weights(gbuffer, cameras)
        free_background = image[:, -1:].clamp(0, 1)
        return _ViewGroup(number, cameras, views, gbuffer, weights, image[:, :-1], free_background, noise)

    def _group_background(self, cameras: Cameras, gbuffer: GBuffer) -> Tensor:
        """Background latents and the share of them that may change, (V side side, C + 1).

        Close-ups get the object's colour, which the model may paint over: another background would bleed into thin
        parts. Overviews get a grey, which is fixed.
        """
        size = gbuffer.covered[0].size
        colour = self._object_colours(gbuffer)
        rgb = colour.mean(dim=0).cpu().numpy() @ self._latent_rgb.matrix + self._latent_rgb.bias
        grey = self._latent_rgb.invert(np.full(3, _LIGHT if rgb.mean() < (_LIGHT + _DARK) / 2 else _DARK))
        plain = to_device(torch.from_numpy(np.append(grey, 0.0)).float(), self._device)
        free_background = _FREE_BACKGROUND_RECOLOUR if self._has_colours else _FREE_BACKGROUND
        object_background = torch.cat([colour, torch.full_like(colour[:, :1], free_background)], dim=1)
        close = to_device(torch.from_numpy(cameras.close), self._device)
        return torch.where(close[:, None], object_background, plain).repeat_interleave(size, dim=0)

    def _object_colours(self, gbuffer: GBuffer) -> Tensor:
        """Latent colour (V, C) of the object in each view: of the colour phase, or the mean of ``initial_latents``."""
        views = len(gbuffer.covered)
        if not self._has_colours:
            return self._colour.expand(views, -1)
        zeros = torch.zeros(gbuffer.covered.size, len(self._colour), device=self._device)
        total = gbuffer.composite(self.texture.detach(), zeros).sum(dim=(2, 3))
        counts = to_device(torch.from_numpy(gbuffer.covered.sum(axis=(1, 2)).astype(np.float32)), self._device)
        return total / counts.clamp(min=1)[:, None]

    @torch.no_grad()
    def follow(self, rendering: Rendering, residual: Tensor, share: Tensor) -> None:
        """Take one DDIM step: move the latents by the ``share`` () of the way to the predicted clean latents.

        ``residual`` (V, C, h, w) is the rendered latents minus the clean ones. Raises TypeError for a rendering of
        another scene.
        """
        if not isinstance(rendering, SampledRendering):
            raise TypeError("follow takes only renderings of this scene")
        if rendering.group is None:
            self._follow_colour(rendering, residual, share)
            return
        group = self._group
        assert group is not None and group.number == rendering.group
        residual = residual - self._sync_correction(group, self._latents - residual)
        latents = _as_rendered(
            group.free_share * (self._latents - share * residual) + (1 - group.free_share) * group.initial_latents
        )
        if rendering.last:
            self._write_texels(group, latents)
        # Assign this last, so that a step that runs out of memory can be repeated.
        self._latents = latents

    def _sync_correction(self, group: _ViewGroup, clean: Tensor) -> Tensor:
        """The correction (V, C, h, w) of the views' clean latents (``multiview_sync.sync_correction``)."""
        settings = self._settings
        weights = to_device(torch.from_numpy(group.weights**_WEIGHT_POWER + _MIN_SYNC_WEIGHT), self._device)
        return sync_correction(clean, group.gbuffer, weights, settings.supersample, settings.texture_size)

    def _follow_colour(self, rendering: SampledRendering, residual: Tensor, share: Tensor) -> None:
        """Move all texels by the mean residual of the latent pixels that the object covers.

        So thin parts, which the model alone would take for background, get the object's colour.
        """
        coverage = rendering.coverage
        assert coverage is not None
        weight = coverage * (coverage > _PURE_COVERAGE * coverage.max())
        total = weight.sum().clamp(min=1e-6)
        (texture,) = self._levels
        self._colour -= share * (residual * weight).sum(dim=(0, 2, 3)) / total
        texture.copy_(self._colour[:, None, None].expand_as(texture))

    def _write_texels(self, group: _ViewGroup, latents: Tensor) -> None:
        """Write finished views, ``latents`` (V, C, h, w), to the unpainted texels, and store them."""
        settings = self._settings
        quality = to_device(torch.from_numpy(group.weights), self._device)[:, None]
        weights = quality**_WEIGHT_POWER
        view, row, column = (to_device(torch.from_numpy(i), self._device) for i in np.nonzero(group.gbuffer.covered))
        smooth = torch.nn.functional.interpolate(
            latents, scale_factor=settings.supersample, mode="bilinear", align_corners=False
        )
        values = smooth[view, :, row, column]
        uv = to_device(torch.from_numpy(group.gbuffer.uv), self._device)
        sums = scatter_texture(torch.cat([values * weights, weights, quality], dim=1), uv, settings.texture_size)
        colours, weight, total = sums[:-2], sums[-2], sums[-1]
        painted = (total > _MIN_WEIGHT) & (weight > 0)
        mean = torch.where(painted, weight / total.clamp(min=_MIN_WEIGHT), torch.zeros_like(weight))
        gain = mean * (1 - self._painted[0])
        (texture,) = self._levels
        change_share = gain / (gain + self._painted[0]).clamp(min=1e-6)
        change = torch.where(painted, change_share, torch.zeros_like(change_share)) * (
            colours / weight.clamp(min=1e-6) - texture
        )
        covered = torch.from_numpy(group.gbuffer.covered)
        shares = torch.zeros(2, *covered.shape)
        shares[0, covered], shares[1, covered] = torch.from_numpy(group.weights), 1.0
        latent_shares = torch.nn.functional.avg_pool2d(shares, settings.supersample)
        covered_mean = latent_shares[0] / latent_shares[1].clamp(min=1 / settings.supersample**2)
        self._shares[group.number] = covered_mean * group.free_share[:, 0].cpu()
        texture += change
        self._painted[0] += gain
        self._finished_latents[group.number] = latents
        self._finished_groups.fill_(group.number + 1)

    def sampled_views(self) -> SampledViews | None:
        """The finished views; None if no view shows the surface well."""
        finished_groups = int(self._finished_groups)
        if finished_groups == 0 or not bool((self._shares[:finished_groups] > 0).any()):
            return None
        cameras = [
            self._candidate_cameras(number)[0][self._view_indices[number].numpy()] for number in range(finished_groups)
        ]
        fields = {f.name: np.concatenate([getattr(c, f.name) for c in cameras]) for f in dataclasses.fields(Cameras)}
        return SampledViews(
            Cameras(**fields),
            self._finished_latents[:finished_groups].flatten(0, 1),
            self._shares[:finished_groups].flatten(0, 1).numpy(),
        )

    def state(self) -> Mapping[str, Tensor]:
        return {**super().state(), **self._sampling_state()}

    def _sampling_state(self) -> dict[str, Tensor]:
        return {
            "colour": self._colour,
            "known": self._painted,
            "now": self._latents,
            "chosen": self._view_indices,
            "made": self._finished_latents,
            "shares": self._shares,
            "done": self._finished_groups,
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        chosen, finished = state.get("chosen"), state.get("done")
        candidates = max(CANDIDATES, self._count)
        if chosen is not None and not bool(((chosen >= 0) & (chosen < candidates)).all()):
            raise ValueError(f"checkpoint: chosen views are numbered 0 to {candidates - 1}")
        if finished is not None and not 0 <= int(finished) <= len(self._finished_latents):
            raise ValueError(f"checkpoint: {int(finished)} of {len(self._finished_latents)} groups are done")
        super().load_state(state)
        self._group = None
        with torch.no_grad():
            for name, tensor in self._sampling_state().items():
                tensor.copy_(state[name])


def _as_rendered(latents: Tensor) -> Tensor:
    """``latents`` (V, C, h, w) in the memory layout of rendered views, channels last.

    The rounding of sums depends on the layout, and a checkpoint restores only values. So the layout must always be the
    same.
    """
    return latents.contiguous(memory_format=torch.channels_last)


def schedule(steps: int, colour_share: float = _COLOUR_SHARE) -> list[int]:
    """The first step of each group of patches, after the colour phase of ``colour_share`` of all ``steps`` (>= 1)."""
    colour = round(colour_share * steps)
    groups = max(1, round((steps - colour) / _PATCH_STEPS))
    return [colour + (steps - colour) * group // groups for group in range(groups)]


def _close_up_settings(settings: PaintedMeshSettings) -> CameraSettings:
    """The distribution of candidate views: close-ups, unless the settings exclude close-ups."""
    cameras = settings.cameras
    if cameras.close_up == 0:
        return cameras
    least, most = (settings.patches.height * share for share in _HEIGHTS)
    return dataclasses.replace(cameras, close_up=1.0, close_height=(least, most), close_angle=_CLOSE_ANGLE, fov=_FOV)


def _heights(cameras: CameraSettings) -> tuple[float, float]:
    """Smallest and largest height of the views at the cameras' target, in the working frame."""
    low, high = cameras.close_height
    if cameras.close_up == 0:
        low, high = (2 / fill for fill in reversed(cameras.fill))
    return low * cameras.object_radius, high * cameras.object_radius
