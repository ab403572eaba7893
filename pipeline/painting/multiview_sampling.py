"""A painted mesh whose texture is sampled, close-ups a group at a time, instead of descending along a score.

Score distillation seeks the mode of the model: smooth surfaces whose colours get stronger the longer it runs, and what
many views of a place make of it is their average. Here views are sampled (DDIM, Song et al., 2021). Those of a group
are noised alike where they show the same place (``correlated_noise``) and held together while noise goes down
(``multiview_sync``), so that one pattern runs through all of them; views that see a part of it later go on from there:
as in inpainting by a diffusion model (RePaint, Lugmayr et al., 2022), what is known is put back after each step.
TEXTure (Richardson et al., 2023) and Text2Tex (Chen et al., 2023) paint meshes view by view with depth-guided models.

Two phases. First the colour: fresh noise and other views at every step, all texels move as one; what many pictures of
the prompt agree on is the object's colour. Then the patches: groups of views, those that show most of what is still
unknown, are taken from high noise to none, starting from the colour. Where the surface has colours already, only these
are looked at closely: the patches begin from them, at less noise, so that what lies where stays (as SDEdit does, Meng
et al., 2022).
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
from pipeline.painting.view_heights import suited
from pipeline.painting.view_selection import select_views, view_weights
from pipeline.raster.camera import Cameras, CameraSettings
from pipeline.raster.texture import scatter_texture

# The share of the steps that look for the colour, the guidance they take, and the timestep they end at.
_COLOUR = 0.12
_COLOUR_GUIDANCE = 0.6
_COLOUR_END = 0.6
# Steps that one group of patches takes, as nearly as the number of steps allows, and the timestep it begins at: from
# there on the found colour still tells, and the model lays out the rest.
_PATCH_STEPS = 16
_PATCH_START = 0.85
# ... where it begins from given colours that are to stay where they are.
_GIVEN_START = 0.6
# Close-ups that are looked at to choose the views of a group, shares of the height asked for that their heights have,
# how far they lean, and their field of view: so narrow that what is nearer is hardly larger.
CANDIDATES = 64
_HEIGHTS = (0.9, 1.1)
_LEAN = 0.3
_FOV = np.radians(30)
# What of the model's changes is kept behind close-ups after each step: all, since a model that sees the whole picture
# takes a plain edge for a background and makes a plainer pattern beside it; half where colours are given already (all
# was not tried there).
_FREE_BEHIND, _FREE_BEHIND_GIVEN = 1.0, 0.5
# Texels a side of the texture that holds what is known, per texel asked for: views that go on from it see it sharper.
_FINER = 2
# Behind whole views stands a grey far from the object's own brightness, so that the model sees where the object ends.
_LIGHT, _DARK = 0.75, 0.25
# A texel of which the views of a group showed less than this is left for others.
_LEAST_WEIGHT = 0.05
# Latent pixels that show the object as purely as this share of the purest tell its colour.
_PURE = 0.9
# How much more a place counts in views that show it well: a power of the quality, and what it counts in the worst ones.
_BEST, _BADLY = 2, 1e-4
# Cells of surface noise along a side of a latent pixel.
_CELLS = 3


@dataclass(frozen=True)
class SampledViews:
    """Finished views of the surface.

    ``cameras``: N of them; ``latents`` (N, C, h, w), of close-ups the surface goes on where the mesh ends; ``shares``
    (N, h, w) float32 in [0, 1], how much of each latent pixel is the view's own work and shows the mesh well.
    """

    cameras: Cameras
    latents: Tensor
    shares: np.ndarray


@dataclass(frozen=True)
class SampledRendering(Rendering):
    """``coverage``: (V, 1, h, w), how much of each latent pixel the mesh covers. ``group``: number of the patches, None
    while the colour is found; ``last``: whether they are finished after this step."""

    coverage: Tensor | None = None
    group: int | None = None
    last: bool = False


@dataclass(frozen=True)
class _ViewGroup:
    """The views that are being made."""

    number: int
    cameras: Cameras
    views: list[View]
    gbuffer: GBuffer
    weights: np.ndarray  # (M,) quality of the covered samples
    known_latents: Tensor  # (V, C, h, w) what the views show of the texture and what is behind it
    free_share: Tensor  # (V, 1, h, w) how much of each latent pixel is unknown surface
    noise: Tensor  # (V, C, h, w)


class SampledTextureMesh(PaintedMesh):
    """As ``PaintedMesh``, with one texture and no optimiser.

    Args (besides those of ``PaintedMesh``):
        steps: of the whole run.
        t_min, t_max: ends of the timesteps, shares of T.
        two_sided: whether faces are seen from behind as well; not so for a closed surface.
        known_latents: (C, s, s) float32 latents that the surface has already, of a texture of any side; None: it has
        none.
    """

    def __init__(
        self,
        *args: Any,
        steps: int,
        t_min: float,
        t_max: float,
        two_sided: bool,
        known_latents: Tensor | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        vertices, faces = args[0], args[1]
        normals = face_normals(vertices, faces)
        self._normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
        self._two_sided = two_sided
        self._t_min, self._t_max = t_min, t_max
        self._starts = schedule(steps, 0.0 if known_latents is not None else _COLOUR)
        self._patch_start = min(_PATCH_START if known_latents is None else _GIVEN_START, t_max)
        self._has_colours = known_latents is not None
        if known_latents is not None:
            self._resize_known(known_latents)
        self._steps = steps
        settings = self._settings
        groups = len(self._starts)
        self._count = settings.patches.count or settings.views
        self._candidates = suited(self.renderer, _close_up_settings(settings), self._count * groups)
        self._size = settings.patches.size or settings.view_size
        shape = (self._count, self.texture.shape[0], self._size, self._size)
        self._colour = self.texture.detach()[:, 0, 0].clone()
        self._known = torch.zeros(1, settings.texture_size, settings.texture_size, device=self._device)
        self._now = _as_rendered(torch.zeros(shape, device=self._device))
        self._chosen = torch.zeros(groups, self._count, dtype=torch.int64)
        self._made = torch.zeros(groups, *shape, device=self._device)
        self._shares = torch.zeros(groups, self._count, self._size, self._size)
        self._done = torch.zeros((), dtype=torch.int64)
        self._group: _ViewGroup | None = None
        self._heights = _heights(self._candidates)
        self._cell = sum(self._heights) / 2 / self._size / _CELLS

    @torch.no_grad()
    def _resize_known(self, known_latents: Tensor) -> None:
        """Brings given colours to the texture's size."""
        (texture,) = self._levels
        sized = torch.nn.functional.interpolate(
            known_latents[None].to(texture), size=texture.shape[1:], mode="bilinear", align_corners=False
        )
        texture.copy_(sized[0])

    def _adapted(self, settings: PaintedMeshSettings) -> PaintedMeshSettings:
        """Plain backgrounds, since nothing here would learn others; no noise at the start, which the flow would take
        for something to keep."""
        size = settings.texture_size * _FINER
        return dataclasses.replace(settings, background="random", initial_noise=0.0, texture_size=size)

    def _levels_from(self, base: Tensor) -> list[Tensor]:
        return [base.requires_grad_(True)]

    def parameters(self) -> list[dict[str, object]]:
        """The texture, which ``follow`` moves; Adam has no part in it."""
        return [{"params": list(self._levels), "lr": 0.0}]

    def render(self, step: int, steps: int) -> SampledRendering:
        """As ``Scene.render``. Raises ValueError for another number of steps than the scene was made for."""
        if steps != self._steps:
            raise ValueError(f"the patches are laid out for {self._steps} steps, not {steps}")
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
            self._now,
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
        """Chooses the views of a group. Doing so again changes nothing before the group's first step is followed."""
        cameras, _ = self._candidate_cameras(number)
        gbuffer = self._render_gbuffer(cameras, self._size)
        known = self._known[0].cpu().numpy()
        chosen = select_views(self._count, gbuffer, self._view_weights(gbuffer, cameras), known)
        self._chosen[number] = torch.from_numpy(np.resize(chosen, self._count))
        self._group = self._load_group(number)
        self._now = _as_rendered(self._group.known_latents.clone())

    def _candidate_cameras(self, number: int) -> tuple[Cameras, list[View]]:
        return self.renderer.sample_cameras(number, max(CANDIDATES, self._count), "patches", self._candidates)

    def _render_gbuffer(self, cameras: Cameras, size: int) -> GBuffer:
        return self.renderer.render(cameras, size * self._settings.supersample)

    def _view_weights(self, gbuffer: GBuffer, cameras: Cameras) -> np.ndarray:
        supersample = self._settings.supersample
        return view_weights(gbuffer, cameras, self._normals, self._heights, supersample, self._two_sided)

    @torch.no_grad()
    def _load_group(self, number: int) -> _ViewGroup:
        """The group's views of the texture as it was when they were chosen: it does not change before they are done."""
        cameras, views = self._candidate_cameras(number)
        chosen = self._chosen[number].numpy()
        cameras, views = cameras[chosen], [views[i] for i in chosen]
        gbuffer = self._render_gbuffer(cameras, self._size)
        self.texel_coverage.add(gbuffer.uv)
        unknown = torch.cat([self.texture, 1 - self._known])
        image = self._downsampled(gbuffer, unknown, self._group_background(cameras, gbuffer))
        channels = self._now.shape[1]
        noise_array = correlated_noise(gbuffer, cameras, self._settings.supersample, channels, self._cell, self._seed)
        noise = to_device(torch.from_numpy(noise_array), self._device)
        weights = self._view_weights(gbuffer, cameras)
        free = image[:, -1:].clamp(0, 1)
        return _ViewGroup(number, cameras, views, gbuffer, weights, image[:, :-1], free, noise)

    def _group_background(self, cameras: Cameras, gbuffer: GBuffer) -> Tensor:
        """(V size, C + 1) latents behind the mesh, and how unknown they are.

        Behind close-ups the object's own colour, on which the model may go on painting: given another background it
        would carry that over to thin parts.
        """
        size = gbuffer.covered[0].size
        colour = self._object_colours(gbuffer)
        rgb = colour.mean(dim=0).cpu().numpy() @ self._latent_rgb.matrix + self._latent_rgb.bias
        grey = self._latent_rgb.invert(np.full(3, _LIGHT if rgb.mean() < (_LIGHT + _DARK) / 2 else _DARK))
        plain = to_device(torch.from_numpy(np.append(grey, 0.0)).float(), self._device)
        free = _FREE_BEHIND_GIVEN if self._has_colours else _FREE_BEHIND
        own = torch.cat([colour, torch.full_like(colour[:, :1], free)], dim=1)
        close = to_device(torch.from_numpy(cameras.close), self._device)
        return torch.where(close[:, None], own, plain).repeat_interleave(size, dim=0)

    def _object_colours(self, gbuffer: GBuffer) -> Tensor:
        """(V, C) the object's colour in each view: the one that was found, or the mean of those it shows."""
        views = len(gbuffer.covered)
        if not self._has_colours:
            return self._colour.expand(views, -1)
        nothing = torch.zeros(gbuffer.covered.size, len(self._colour), device=self._device)
        total = gbuffer.composite(self.texture.detach(), nothing).sum(dim=(2, 3))
        counts = to_device(torch.from_numpy(gbuffer.covered.sum(axis=(1, 2)).astype(np.float32)), self._device)
        return total / counts.clamp(min=1)[:, None]

    @torch.no_grad()
    def follow(self, rendering: Rendering, residual: Tensor, share: Tensor) -> None:
        """Goes the ``share`` () of the way from the rendered latents to the clean ones that the model sees in them.

        residual: (V, C, h, w) the rendered latents less the clean ones.
        """
        if not isinstance(rendering, SampledRendering):
            raise TypeError("a patchwork continues only from a rendering of this scene")
        if rendering.group is None:
            self._follow_colour(rendering, residual, share)
            return
        group = self._group
        assert group is not None and group.number == rendering.group
        residual = residual - self._sync_correction(group, self._now - residual)
        now = _as_rendered(
            group.free_share * (self._now - share * residual) + (1 - group.free_share) * group.known_latents
        )
        if rendering.last:
            self._write_texels(group, now)
        # Last, so that a step that memory did not suffice for can be taken again.
        self._now = now

    def _sync_correction(self, group: _ViewGroup, clean: Tensor) -> Tensor:
        """(V, C, h, w) what is to be added to each view's clean latents, so that all show a place alike."""
        settings = self._settings
        weights = to_device(torch.from_numpy(group.weights**_BEST + _BADLY), self._device)
        return sync_correction(clean, group.gbuffer, weights, settings.supersample, settings.texture_size)

    def _follow_colour(self, rendering: SampledRendering, residual: Tensor, share: Tensor) -> None:
        """Moves all texels by what the latent pixels that show little but the object agree on: thin parts, which the
        model would take for background by themselves, then have the object's colour."""
        reach = rendering.coverage
        assert reach is not None
        weight = reach * (reach > _PURE * reach.max())
        total = weight.sum().clamp(min=1e-6)
        (texture,) = self._levels
        self._colour -= share * (residual * weight).sum(dim=(0, 2, 3)) / total
        texture.copy_(self._colour[:, None, None].expand_as(texture))

    def _write_texels(self, group: _ViewGroup, latents: Tensor) -> None:
        """Lays finished views, ``latents`` (V, C, h, w), on the texture where it is not known yet, and keeps them."""
        settings = self._settings
        worth = to_device(torch.from_numpy(group.weights), self._device)[:, None]
        weights = worth**_BEST
        view, row, column = (to_device(torch.from_numpy(i), self._device) for i in np.nonzero(group.gbuffer.covered))
        smooth = torch.nn.functional.interpolate(
            latents, scale_factor=settings.supersample, mode="bilinear", align_corners=False
        )
        values = smooth[view, :, row, column]
        uv = to_device(torch.from_numpy(group.gbuffer.uv), self._device)
        sums = scatter_texture(torch.cat([values * weights, weights, worth], dim=1), uv, settings.texture_size)
        colours, weight, total = sums[:-2], sums[-2], sums[-1]
        painted = (total > _LEAST_WEIGHT) & (weight > 0)
        mean = torch.where(painted, weight / total.clamp(min=_LEAST_WEIGHT), torch.zeros_like(weight))
        fresh = mean * (1 - self._known[0])
        (texture,) = self._levels
        mixed = fresh / (fresh + self._known[0]).clamp(min=1e-6)
        change = torch.where(painted, mixed, torch.zeros_like(mixed)) * (colours / weight.clamp(min=1e-6) - texture)
        covered = torch.from_numpy(group.gbuffer.covered)
        shares = torch.zeros(2, *covered.shape)
        shares[0, covered], shares[1, covered] = torch.from_numpy(group.weights), 1.0
        small = torch.nn.functional.avg_pool2d(shares, settings.supersample)
        covered_mean = small[0] / small[1].clamp(min=1 / settings.supersample**2)
        self._shares[group.number] = covered_mean * group.free_share[:, 0].cpu()
        texture += change
        self._known[0] += fresh
        self._made[group.number] = latents
        self._done.fill_(group.number + 1)

    def sampled_views(self) -> SampledViews | None:
        """The views that are finished; None where no view shows anything well."""
        finished_groups = int(self._done)
        if finished_groups == 0 or not bool((self._shares[:finished_groups] > 0).any()):
            return None
        cameras = [
            self._candidate_cameras(number)[0][self._chosen[number].numpy()] for number in range(finished_groups)
        ]
        fields = {f.name: np.concatenate([getattr(c, f.name) for c in cameras]) for f in dataclasses.fields(Cameras)}
        return SampledViews(
            Cameras(**fields),
            self._made[:finished_groups].flatten(0, 1),
            self._shares[:finished_groups].flatten(0, 1).numpy(),
        )

    def state(self) -> Mapping[str, Tensor]:
        return {
            **super().state(),
            "colour": self._colour,
            "known": self._known,
            "now": self._now,
            "chosen": self._chosen,
            "made": self._made,
            "shares": self._shares,
            "done": self._done,
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        chosen, done = state.get("chosen"), state.get("done")
        candidates = max(CANDIDATES, self._count)
        if chosen is not None and not bool(((chosen >= 0) & (chosen < candidates)).all()):
            raise ValueError(f"checkpoint: chosen views are numbered 0 to {candidates - 1}")
        if done is not None and not 0 <= int(done) <= len(self._made):
            raise ValueError(f"checkpoint: {int(done)} of {len(self._made)} groups are done")
        super().load_state(state)
        self._group = None
        with torch.no_grad():
            for name in ("colour", "known", "now", "chosen", "made", "shares", "done"):
                getattr(self, f"_{name}").copy_(state[name])


def _as_rendered(latents: Tensor) -> Tensor:
    """``latents`` (V, C, h, w) laid out in memory as views are rendered, channels last.

    Sums over views round differently in another layout, so it must be the same before and after a checkpoint, which
    restores values alone.
    """
    return latents.contiguous(memory_format=torch.channels_last)


def schedule(steps: int, colour_share: float = _COLOUR) -> list[int]:
    """The first step of each group of patches; before the first of them, for ``colour_share`` of all, the colour is
    found. ``steps`` >= 1."""
    colour = round(colour_share * steps)
    groups = max(1, round((steps - colour) / _PATCH_STEPS))
    return [colour + (steps - colour) * group // groups for group in range(groups)]


def _close_up_settings(settings: PaintedMeshSettings) -> CameraSettings:
    """The cameras that patches are chosen from: close-ups, unless those are not wanted at all."""
    cameras = settings.cameras
    if cameras.close_up == 0:
        return cameras
    least, most = (settings.patches.height * share for share in _HEIGHTS)
    return dataclasses.replace(cameras, close_up=1.0, close_height=(least, most), close_angle=_LEAN, fov=_FOV)


def _heights(cameras: CameraSettings) -> tuple[float, float]:
    """Least and greatest height of what patches show at what the cameras look at."""
    low, high = cameras.close_height
    if cameras.close_up == 0:
        low, high = (2 / fill for fill in reversed(cameras.fill))
    return low * cameras.object_radius, high * cameras.object_radius
