"""A scene that grows a radiance field of latents from nothing (Latent-NeRF, docs/method.md, sections 3 to 5).

With a linear layer from latents to RGB and the prior's encoder behind it, the same scene does the RGB refinement of
section 4. Compositing is linear, so applying the layer to composited rays is equivalent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as functional

from pipeline.core.device import to_device
from pipeline.core.rng import numpy_generator, torch_generator
from pipeline.core.scene import Rendering, View
from pipeline.fields import losses
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.fields.radiance_field import RadianceField
from pipeline.fields.sketch import Sketch
from pipeline.fields.volume import accumulate, composite, march
from pipeline.fields.volume.layout import Composite, PackedSamples
from pipeline.prior.latent_rgb import LatentRgb
from pipeline.prior.load import Prior
from pipeline.raster.backdrop import plain_backgrounds
from pipeline.raster.camera import Cameras, OrbitSettings, ray_directions, sample_orbit_cameras

REFRESH = 16
"""Steps between two updates of the occupancy grid."""

# Number of points in the sketch's box for its loss, besides the samples of the rays, so that empty space can fill.
BOX_POINTS = 4096
# Near distance. A camera may stand inside the cube, and density closer than this would fill its picture.
_NEAREST = 0.1
# Samples that are evaluated at once when no gradient is needed.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class LossWeights:
    """Weights of the further losses. Each loss is a mean. The guidance is a sum over a view's latent pixels and a mean
    over views."""

    sparsity: float = 0.0
    shape: float = 0.0
    orientation: float = 0.0
    tv: float = 0.0


@dataclass(frozen=True)
class RadianceFieldSettings:
    """``view_size`` is the side of a view in latent pixels, each the mean of ``supersample``^2 rays. ``samples_step``
    is the distance of samples along a ray, in units of the scene."""

    views: int
    view_size: int
    learning_rate: float
    cameras: OrbitSettings
    samples_step: float
    background: Literal["learned", "random"] = "random"
    supersample: int = 2
    lambdas: LossWeights = LossWeights()
    # Learning rate of the latent->RGB layer, as a share of the field's.
    layer_rate: float = 0.1


@dataclass(frozen=True)
class RenderedRays:
    """Composited rays of V views of the field: R = V side^2 rays, row-major.

    features (R, C) composited latents without background, weight (R,) accumulated, depth (R,), directions (R, 3).
    """

    features: torch.Tensor
    weight: torch.Tensor
    depth: torch.Tensor
    directions: torch.Tensor
    side: int

    def image(self, rays: torch.Tensor) -> torch.Tensor:
        """(R, D) as (V, D, side, side)."""
        return rays.view(-1, self.side, self.side, rays.shape[1]).permute(0, 3, 1, 2)


class LatentToRgb(torch.nn.Module):
    """The linear layer from latents (C) to RGB in [0, 1], initialised as the prior's own least-squares map."""

    def __init__(self, latent_rgb: LatentRgb):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.from_numpy(np.array(latent_rgb.matrix)).float())
        self.bias = torch.nn.Parameter(torch.from_numpy(np.array(latent_rgb.bias)).float())

    def forward(self, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(R, 3) colours of composited latents (R, C) whose accumulated weight is (R,)."""
        return features @ self.matrix + weight[:, None] * self.bias


class RadianceFieldScene:
    """The scene of the ``generate`` recipe.

    Args:
        field: density and latents of every point.
        occupancy: the cells that may have density.
        latent_rgb: the prior's linear map, for plain backgrounds.
        seed: seed of every draw.
        sketch: a coarse shape that the density should fill.
        refine: the prior for the refinement in RGB, where views go through its encoder; None without refinement.
    """

    def __init__(
        self,
        field: RadianceField,
        occupancy: OccupancyGrid,
        settings: RadianceFieldSettings,
        latent_rgb: LatentRgb,
        seed: int,
        sketch: Sketch | None = None,
        refine: Prior | None = None,
    ):
        self.field, self.occupancy, self.settings = field, occupancy, settings
        self._latent_rgb, self._seed, self._sketch, self._prior = latent_rgb, seed, sketch, refine
        self.device = next(field.parameters()).device
        self.layer = LatentToRgb(latent_rgb).to(self.device) if refine is not None else None
        self._stream = "cameras" if refine is None else "refine-cameras"
        self._refreshed: int | None = None

    def parameters(self) -> list[dict[str, object]]:
        rate = self.settings.learning_rate
        groups = list(self.field.parameter_groups(rate))
        if self.layer is not None:
            groups.append({"params": list(self.layer.parameters()), "lr": rate * self.settings.layer_rate})
        return groups

    def render(self, step: int, steps: int) -> Rendering:
        settings = self.settings
        # A step that ran out of memory is rendered again, and must then use the same grid.
        if step % REFRESH == 0 and step != self._refreshed:
            self.occupancy.update(self.field.density, self._seed, step)
            self._refreshed = step
        rng = numpy_generator(self._seed, self._stream, step)
        cameras = sample_orbit_cameras(rng, settings.views, settings.cameras)
        rendered, packed, sigma, weights = self._render_rays(cameras, settings.view_size * settings.supersample, step)
        views = [View(word, False) for word in cameras.words()]
        extra = self._losses(rendered, packed, sigma, weights, step)
        return Rendering(self._guided_latents(rendered, step), views, extra)

    def _guided_latents(self, rendered: RenderedRays, step: int) -> torch.Tensor:
        """(V, C, view_size, view_size) latents for the prior."""
        settings, count = self.settings, self.settings.views
        left = 1 - rendered.weight[:, None]
        if self.layer is None:
            image = rendered.image(rendered.features + left * self._background(rendered, step, count))
            return functional.avg_pool2d(image, settings.supersample)
        assert self._prior is not None
        if settings.background == "learned":
            behind = self.layer(self.field.background(rendered.directions), torch.ones_like(rendered.weight))
        else:
            behind = self._plain_background(plain_backgrounds(self._seed, step, count), rendered)
        rgb = rendered.image(self.layer(rendered.features, rendered.weight) + left * behind)
        side = settings.view_size * self._prior.vae_scale_factor
        rgb = functional.interpolate(rgb, size=(side, side), mode="bilinear", align_corners=False, antialias=False)
        return self._prior.encode(rgb.clamp(0, 1))

    def _background(self, rendered: RenderedRays, step: int, count: int) -> torch.Tensor:
        """(R, C) latents behind the field."""
        if self.settings.background == "learned":
            return self.field.background(rendered.directions)
        colours = plain_backgrounds(self._seed, step, count)
        return self._plain_background(np.stack([self._latent_rgb.invert(colour) for colour in colours]), rendered)

    def _plain_background(self, values: np.ndarray, rendered: RenderedRays) -> torch.Tensor:
        """One row of ``values`` (V, D) for all rays of each view: (R, D)."""
        rows = to_device(torch.from_numpy(values.astype(np.float32)), self.device)
        return rows[:, None].expand(-1, rendered.side**2, -1).reshape(-1, rows.shape[1])

    def _losses(
        self, rendered: RenderedRays, packed: PackedSamples, sigma: torch.Tensor, weights: torch.Tensor, step: int
    ) -> torch.Tensor:
        lambdas = self.settings.lambdas
        total = lambdas.sparsity * losses.sparsity(rendered.weight)
        if self._sketch is not None and lambdas.shape > 0:
            box = self._sketch.box_points(self._seed, step, BOX_POINTS)
            points, densities = torch.cat([packed.points, box]), torch.cat([sigma, self.field.density(box)])
            total = total + lambdas.shape * self._sketch.loss(points, densities)
        if lambdas.orientation > 0 and len(packed.points):
            normals = self.field.normals(packed.points)
            total = total + lambdas.orientation * losses.orientation(weights, normals, rendered.directions, packed)
        if lambdas.tv > 0:
            total = total + lambdas.tv * losses.total_variation(
                rendered.image(rendered.depth[:, None]), rendered.image(rendered.weight[:, None])
            )
        return total

    def _render_rays(
        self, cameras: Cameras, side: int, step: int | None
    ) -> tuple[RenderedRays, PackedSamples, torch.Tensor, torch.Tensor]:
        """Rays of ``side`` x ``side`` views. Samples are jittered by ``step``; None: not jittered."""
        directions = ray_directions(cameras, side, side).reshape(-1, 3).astype(np.float32)
        origins = np.repeat(cameras.eye.astype(np.float32), side * side, axis=0)
        jitter = None
        if step is not None:
            jitter = torch.rand(len(origins), generator=torch_generator(self._seed, "jitter", step))
        rays = to_device(torch.from_numpy(directions), self.device)
        packed = march(
            to_device(torch.from_numpy(origins), self.device),
            rays,
            self.occupancy,
            step=self.settings.samples_step,
            jitter=None if jitter is None else to_device(jitter, self.device),
            nearest=_NEAREST,
        )
        sigma, features = self._evaluate(packed.points)
        composited: Composite = composite(sigma, features, packed)
        rendered = RenderedRays(composited.values, composited.weight, composited.depth, rays, side)
        return rendered, packed, sigma, composited.weights

    def _evaluate(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled() or len(points) <= _CHUNK:
            sigma, features = self.field(points)
            return sigma, features
        pieces = [self.field(piece) for piece in points.split(_CHUNK)]  # type: ignore[no-untyped-call]  # torch
        return torch.cat([s for s, _ in pieces]), torch.cat([f for _, f in pieces])

    @torch.no_grad()
    def render_views(self, cameras: Cameras, view_size: int, supersample: int = 2) -> tuple[torch.Tensor, ...]:
        """Views without noise, one camera at a time: images, weight and depth.

        Returns ``image`` (V, C, view_size, view_size) scaled latents over a grey background, or (V, 3, ...) RGB in
        [0, 1] after refinement; ``weight`` (V, view_size, view_size); ``depth`` of the same shape, the mean depth along
        the view axis that a pixel's rays hit, meaningless if the weight is near 0.
        """
        images, covers, depths = [], [], []
        grey = self._latent_rgb.invert(np.full(3, 0.5)) if self.layer is None else np.full(3, 0.5)
        for index in range(len(cameras)):
            camera = cameras[index : index + 1]
            rendered = self._render_rays(camera, view_size * supersample, None)[0]
            axis = torch.from_numpy(-camera.view[0, 2, :3].astype(np.float32)).to(self.device)
            left = (1 - rendered.weight)[:, None]
            colours = rendered.features if self.layer is None else self.layer(rendered.features, rendered.weight)
            along = rendered.weight * rendered.depth * (rendered.directions @ axis)
            rays = torch.cat(
                [
                    colours + left * self._plain_background(grey[None], rendered),
                    rendered.weight[:, None],
                    along[:, None],
                ],
                1,
            )
            pooled = functional.avg_pool2d(rendered.image(rays), supersample)
            images.append(pooled[:, :-2] if self.layer is None else pooled[:, :-2].clamp(0, 1))
            covers.append(pooled[:, -2])
            depths.append(pooled[:, -1] / pooled[:, -2].clamp(min=1e-6))
        return torch.cat(images), torch.cat(covers), torch.cat(depths)

    @torch.no_grad()
    def normals(self, cameras: Cameras, view_size: int) -> torch.Tensor:
        """Normals in scene coordinates (V, 3, view_size, view_size), one ray per pixel: unit normals of the density,
        composited like colours; shorter where a ray passes through or meets several surfaces."""
        images = []
        for index in range(len(cameras)):
            rendered, packed, _, weights = self._render_rays(cameras[index : index + 1], view_size, None)
            normals = [self.field.normals(piece) for piece in packed.points.split(_CHUNK)]  # type: ignore[no-untyped-call]  # torch
            images.append(rendered.image(accumulate(weights, torch.cat(normals), packed)))
        return torch.cat(images)

    def state(self) -> Mapping[str, torch.Tensor]:
        state = {f"field.{name}": value for name, value in self.field.state_dict().items()}
        state |= {f"occupancy.{name}": value for name, value in self.occupancy.state().items()}
        if self.layer is not None:
            state |= {f"layer.{name}": value for name, value in self.layer.state_dict().items()}
        return state

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        current = self.state()
        for name, value in current.items():
            if name not in state or state[name].shape != value.shape:
                raise ValueError(f"checkpoint: {name} is missing or has another shape")
        # First, because it may refuse the state.
        self.occupancy.load_state(_below(state, "occupancy."))
        self.field.load_state_dict(_below(state, "field."))
        self._refreshed = None
        if self.layer is not None:
            self.layer.load_state_dict(_below(state, "layer."))


def _below(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
