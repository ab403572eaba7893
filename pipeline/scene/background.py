"""Learnable latents on a sphere around the scene: what a view shows where the mesh is not."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.core.rng import numpy_generator
from pipeline.core.transfer import send
from pipeline.geometry.camera import Cameras
from pipeline.geometry.texture import sample_texture

ROWS, COLUMNS = 16, 32


class LatentSphere:
    """A grid of ROWS x COLUMNS latents over the polar angle and the azimuth, interpolated bilinearly.

    ``values``: (C, ROWS, COLUMNS) float32, a leaf tensor. Column 0 follows the last one, so there is no seam.
    """

    def __init__(self, values: torch.Tensor):
        self.values = values.clone().requires_grad_(True)

    def sample(self, directions: np.ndarray) -> torch.Tensor:
        """Latents (M, C) seen along ``directions`` (M, 3), unit vectors in the working frame."""
        theta = np.arccos(np.clip(directions[:, 1], -1, 1)) / np.pi
        phi = (np.arctan2(directions[:, 0], directions[:, 2]) / (2 * np.pi)) % 1.0
        # One column more on either side, so that interpolation runs across the wrap-around.
        padded = torch.cat([self.values[..., -1:], self.values, self.values[..., :1]], dim=-1)
        u = (phi * COLUMNS + 1.0) / (COLUMNS + 2)
        uv = torch.from_numpy(np.stack([u, theta], axis=-1).astype(np.float32))
        return sample_texture(padded, send(uv, self.values.device))


def ray_directions(cameras: Cameras, height: int, width: int) -> np.ndarray:
    """(N, height, width, 3) unit vectors through the pixel centres, working frame; row 0 is the top."""
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = 1 - (np.arange(height) + 0.5) / height * 2
    focal = cameras.projection[:, [0, 1], [0, 1]]  # (N, 2)
    ray = np.empty((len(cameras), height, width, 3))
    ray[..., 0] = x[None, None, :] / focal[:, 0, None, None]
    ray[..., 1] = y[None, :, None] / focal[:, 1, None, None]
    ray[..., 2] = -1
    # Rows of the view's rotation are the camera's axes in the world: its transpose takes rays there.
    ray = np.einsum("nji,nhwj->nhwi", cameras.view[:, :3, :3], ray)
    return ray / np.linalg.norm(ray, axis=-1, keepdims=True)


def plain_colours(seed: int, step: int, count: int) -> np.ndarray:
    """(count, 3) RGB in [0, 1]: one plain backdrop a view, another at each step, so that a scene cannot lean on
    what surrounds it."""
    return numpy_generator(seed, "plain", step).uniform(0.0, 1.0, (count, 3))
