"""Learnable latents on a sphere around the scene: what a view shows where the mesh is not."""

from __future__ import annotations

import numpy as np
import torch

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
        return sample_texture(padded, uv.to(self.values.device))
