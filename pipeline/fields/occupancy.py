"""Tracks which cells of the scene's cube may have density; rays are sampled only there (Instant-NGP, appendix C).

R cells a side, indexed [x, y, z]; cell i spans [-bound + i s, -bound + (i + 1) s) with s = 2 bound / R.

Culled cells must be sampled again, or density that grows in one would never be rendered. So an update samples the
occupied cells and a quarter of all cells, every fourth along each axis. Any four updates sample every cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.errors import LatentkilnError, SettingError
from pipeline.core.rng import numpy_generator

# The first updates sample every cell, because the first shape may form anywhere.
_FULL_UPDATES = 16
_UPDATE_PARTS = 4
# The mean of equal densities may differ from each of them by rounding.
_SLACK = 1e-6


class OccupancyGrid:
    """Decaying maxima of the density per cell, and the cells above the threshold.

    Attributes:
        density: (R, R, R) float32, per unit length.
        binary: (R, R, R) uint8, 1 where rays are sampled; all ones before the first update. May be written in place.
        looks: the number of updates.
    """

    def __init__(
        self,
        resolution: int = 128,
        bound: float = 1.0,
        decay: float = 0.95,
        cap: float = 10.0,
        device: torch.device | str = "cpu",
    ):
        """``device`` is where ``update`` puts the points; the grid itself is in host memory. Raises SettingError."""
        if not 2 <= resolution <= 1024:
            raise SettingError(f"occupancy: the resolution must be 2 to 1024, not {resolution}")
        self.resolution, self.bound, self.decay, self.cap = resolution, float(bound), decay, cap
        self.device = torch.device(device)
        self.density: NDArray[np.float32] = np.zeros((resolution,) * 3, np.float32)
        self.binary: NDArray[np.uint8] = np.ones((resolution,) * 3, np.uint8)
        self.looks = 0

    @torch.no_grad()
    def update(self, density: Callable[[torch.Tensor], torch.Tensor], seed: int, step: int) -> None:
        """Samples the density again. A sampled cell gets max(decayed, new); the others stay unchanged.

        ``density`` maps points (M, 3) float32 on ``device`` to (M,) >= 0. Takes one point in each sampled cell,
        jittered by the stream (seed, step). The first updates sample all cells. A cell is occupied from min(mean,
        cap) on (docs/method.md, section 3). Raises LatentkilnError for a density that is not a number.
        """
        cells = self._cells()
        jitter = numpy_generator(seed, "occupancy", step).random((len(cells), 3), np.float32)
        index = np.stack(np.unravel_index(cells, self.density.shape), axis=1).astype(np.float32)
        points = (index + jitter) * np.float32(2 * self.bound / self.resolution) - np.float32(self.bound)
        new = density(torch.from_numpy(points).to(self.device)).detach().float().cpu().numpy()
        if np.isnan(new).any():
            raise LatentkilnError(
                f"the density is not a number at step {step}: the field diverged; lower learning_rate", stage="distill"
            )
        flat = self.density.reshape(-1)
        flat[cells] = np.maximum(flat[cells] * np.float32(self.decay), new)
        # Use numpy, which adds in one order on any number of threads, because rounding could flip a cell.
        threshold = min(float(flat.mean(dtype=np.float64)), self.cap) * (1 - _SLACK)
        self.binary[:] = (self.density >= threshold) & (self.density > 0)
        self.looks += 1

    def _cells(self) -> NDArray[np.int64]:
        """Flat indices of the cells that the next update samples, ascending, each once."""
        if self.looks < _FULL_UPDATES:
            return np.arange(self.density.size)
        axis = np.arange(self.resolution)
        part = (axis[:, None, None] + axis[:, None] + axis) % _UPDATE_PARTS
        return np.flatnonzero((part == self.looks % _UPDATE_PARTS) | (self.binary != 0))

    @property
    def share(self) -> float:
        """Share of the cells that are sampled."""
        return float(self.binary.mean())

    def state(self) -> Mapping[str, torch.Tensor]:
        """The tensors for a checkpoint."""
        return {
            "density": torch.from_numpy(self.density.copy()),
            "binary": torch.from_numpy(self.binary.copy()),
            "looks": torch.tensor(self.looks),
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restores what ``state`` returned. Raises ValueError, before it changes anything, for other shapes or invalid
        values."""
        if state["density"].shape != self.density.shape or state["binary"].shape != self.binary.shape:
            raise ValueError("checkpoint: the occupancy grid has another resolution")
        if int(state["looks"]) < 0 or int(state["binary"].max()) > 1:
            raise ValueError("checkpoint: the occupancy grid contains invalid numbers")
        self.density[:] = state["density"].cpu().numpy()
        self.binary[:] = state["binary"].cpu().numpy()
        self.looks = int(state["looks"])
