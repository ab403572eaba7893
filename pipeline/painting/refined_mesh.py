"""The scene that refines a painted mesh in RGB: its decoded texture, seen by the prior through the encoder
(docs/method.md, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional

from pipeline.core.device import to_device
from pipeline.core.scene import Rendering
from pipeline.painting.mesh_renderer import MeshRenderer
from pipeline.prior.load import Prior
from pipeline.raster.backdrop import plain_backgrounds


@dataclass(frozen=True)
class RefinedMeshSettings:
    """Settings of a ``RefinedMesh``.

    Attributes:
        views: views per step.
        view_size: side of a view in latent pixels, each of ``prior.vae_scale_factor`` image pixels.
        learning_rate: of Adam.
        supersample: texture lookups along a side of an image pixel.
        keep_colour: weight of the mean squared difference between the texture and the decoded one, both averaged over
            blocks. It prevents strong guidance from saturating the colours. It is relative to the guidance of one view.
        block: side of these blocks in texels.
    """

    views: int
    view_size: int
    learning_rate: float
    supersample: int = 2
    keep_colour: float = 1200.0
    block: int = 8


class RefinedMesh:
    """The refinement scene of the recipe ``paint``.

    Args:
        renderer: the painted mesh and its cameras.
        texture: (3, S, S) float32 RGB in [0, 1], the decoded texture to start from.
        prior: its encoder maps views to latents; its device is the scene's.
        seed: seed of the backgrounds.
    """

    def __init__(
        self, renderer: MeshRenderer, texture: torch.Tensor, prior: Prior, settings: RefinedMeshSettings, seed: int
    ):
        self._renderer, self._prior, self._settings, self._seed = renderer, prior, settings, seed
        # Contiguous: Adam's state takes a parameter's strides, and checkpoints store contiguous tensors.
        start = texture.detach().clone(memory_format=torch.contiguous_format)
        self.texture = start.to(prior.device).requires_grad_(True)
        self._anchor = self._blocks(self.texture.detach())

    def _blocks(self, texture: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(texture[None], self._settings.block)

    def parameters(self) -> list[dict[str, object]]:
        return [{"params": [self.texture], "lr": self._settings.learning_rate}]

    def render(self, step: int, steps: int) -> Rendering:
        settings = self._settings
        cameras, views = self._renderer.sample_cameras(step, settings.views, "refine-cameras")
        gbuffer = self._renderer.render(
            cameras, settings.view_size * self._prior.vae_scale_factor * settings.supersample
        )
        texture = self.texture.clamp(0, 1)
        colours = plain_backgrounds(self._seed, step, len(cameras)).astype(np.float32)
        _, side, _ = gbuffer.covered.shape
        background = (
            to_device(torch.from_numpy(colours), texture.device)[:, None].expand(-1, side * side, -1).reshape(-1, 3)
        )
        image = functional.avg_pool2d(gbuffer.composite(texture, background), settings.supersample)
        drift = (self._blocks(texture) - self._anchor).square().mean()
        return Rendering(self._prior.encode(image), views, settings.keep_colour * drift)

    def state(self) -> Mapping[str, torch.Tensor]:
        return {"rgb": self.texture}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        if "rgb" not in state or state["rgb"].shape != self.texture.shape:
            raise ValueError("checkpoint: the refined texture is missing or has another shape")
        with torch.no_grad():
            self.texture.copy_(state["rgb"])
