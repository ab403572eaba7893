"""Learnable latents on a sphere around the scene: the background of latent views (docs/method.md, section 3)."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.core.device import to_device
from pipeline.raster.camera import Cameras, ray_directions
from pipeline.raster.texture import sample_texture

ROWS, COLUMNS = 16, 32


class EnvironmentMap:
    """A grid of ROWS x COLUMNS latents over the polar angle and the azimuth, interpolated bilinearly.

    ``values``: (C, ROWS, COLUMNS) float32, a leaf tensor. Columns wrap around: column 0 is beside the last one.
    """

    def __init__(self, values: torch.Tensor):
        self.values = values.clone().requires_grad_(True)

    def sample(self, directions: np.ndarray) -> torch.Tensor:
        """Latents (M, C) seen along ``directions`` (M, 3), unit vectors in the working frame."""
        theta = np.arccos(np.clip(directions[:, 1], -1, 1)) / np.pi
        phi = (np.arctan2(directions[:, 0], directions[:, 2]) / (2 * np.pi)) % 1.0
        u = (phi * COLUMNS + 1.0) / (COLUMNS + 2)
        return self._sample_uv(torch.from_numpy(np.stack([u, theta], axis=-1).astype(np.float32)))

    def background(self, cameras: Cameras, height: int, width: int) -> torch.Tensor:
        """Latents (N height width, C) behind every pixel of the cameras' views, row-major."""
        if self.values.device.type == "cpu":
            return self.sample(ray_directions(cameras, height, width).reshape(-1, 3))
        return self.background_on_device(cameras, height, width)

    def background_on_device(self, cameras: Cameras, height: int, width: int) -> torch.Tensor:
        """As ``background`` up to rounding; computes the rays on the device of ``values``."""
        return self._sample_uv(_uv_on_device(self.values.device, cameras, height, width))

    def _sample_uv(self, uv: torch.Tensor) -> torch.Tensor:
        # Pad with one column on either side, so that interpolation crosses the wrap-around.
        padded = torch.cat([self.values[..., -1:], self.values, self.values[..., :1]], dim=-1)
        return sample_texture(padded, uv)


def _uv_on_device(device: torch.device, cameras: Cameras, height: int, width: int) -> torch.Tensor:
    """Lookup coordinates of every pixel's ray, computed on ``device``: (N height width, 2) float32.

    They equal those that ``EnvironmentMap.sample`` computes from ``ray_directions`` up to rounding. On CUDA this saves
    the time of computing them on the host, which is as long for one view as the rest of the rendering.
    """
    scale = to_device(torch.from_numpy(1 / cameras.projection[:, [0, 1], [0, 1]]), device).double()
    axes = to_device(torch.from_numpy(np.ascontiguousarray(cameras.view[:, :3, :3])), device).double()
    x = (torch.arange(width, dtype=torch.float64, device=device) + 0.5) / width * 2 - 1
    y = 1 - (torch.arange(height, dtype=torch.float64, device=device) + 0.5) / height * 2
    across = (scale[:, 0, None, None] * x).expand(-1, height, -1)
    up = (scale[:, 1, None, None] * y[:, None]).expand(-1, -1, width)
    ray = torch.einsum("nji,nhwj->nhwi", axes, torch.stack([across, up, -torch.ones_like(up)], dim=-1))
    ray = ray / ray.norm(dim=-1, keepdim=True)
    theta = ray[..., 1].clamp(-1, 1).arccos() / np.pi
    phi = (torch.atan2(ray[..., 0], ray[..., 2]) / (2 * np.pi)) % 1.0
    return torch.stack([(phi * COLUMNS + 1.0) / (COLUMNS + 2), theta], dim=-1).reshape(-1, 2).float()
