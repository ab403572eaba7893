"""Which cells of the scene's cube may hold density, so that rays are sampled nowhere else (Instant-NGP, appendix C).

R cells a side, indexed [x, y, z]; cell i spans [-bound + i s, -bound + (i + 1) s) with s = 2 bound / R.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.rng import numpy_generator

# Looks at every cell before looks at some: the first shape has to be found wherever it forms.
_FULL_LOOKS = 16
# Afterwards, shares of all cells that are looked at: any ones, and as many at most of the occupied ones.
_ANY, _OCCUPIED = 1 / 8, 1 / 8


class OccupancyGrid:
    """Decaying maxima of the density per cell, and the cells above the threshold.

    Attributes:
        density: (R, R, R) float32, per unit length.
        binary: (R, R, R) uint8, 1 where rays are sampled; all ones before the first update.
    """

    def __init__(self, resolution: int = 128, bound: float = 1.0, decay: float = 0.95, cap: float = 10.0):
        self.resolution, self.bound, self.decay, self.cap = resolution, bound, decay, cap
        self.density: NDArray[np.float32] = np.zeros((resolution,) * 3, np.float32)
        self.binary: NDArray[np.uint8] = np.ones((resolution,) * 3, np.uint8)
        self.looks = 0

    @torch.no_grad()
    def update(self, density: Callable[[torch.Tensor], torch.Tensor], seed: int, step: int) -> None:
        """Looks at the density again: max(decayed, new) per cell looked at, decay in the others.

        ``density`` maps points (M, 3) float32 (CPU) to (M,). One point in each cell looked at, jittered by the
        stream (seed, step). The first looks see all cells; later ones an eighth of all cells at random and as many of
        the occupied ones, so that density which appears in an empty cell is found again within a few looks.
        The threshold is min(mean, cap) (METHOD section 3).
        """
        rng = numpy_generator(seed, "occupancy", step)
        cells = self._cells(rng)
        side = 2 * self.bound / self.resolution
        index = np.stack(np.unravel_index(cells, self.density.shape), axis=1)
        points = ((index + rng.uniform(size=index.shape)) * side - self.bound).astype(np.float32)
        new = density(torch.from_numpy(points)).detach().float().cpu().numpy()
        flat = self.density.reshape(-1)
        flat *= np.float32(self.decay)
        # A cell may come up twice: its maximum counts, whatever the order.
        np.maximum.at(flat, cells, new)
        threshold = min(float(flat.mean(dtype=np.float64)), self.cap)
        self.binary[:] = self.density > threshold
        self.looks += 1

    def _cells(self, rng: np.random.Generator) -> NDArray[np.int64]:
        total = self.density.size
        if self.looks < _FULL_LOOKS:
            return np.arange(total)
        anywhere = rng.integers(0, total, int(total * _ANY))
        occupied = np.flatnonzero(self.binary)
        most = int(total * _OCCUPIED)
        if len(occupied) > most:
            occupied = occupied[rng.integers(0, len(occupied), most)]
        return np.concatenate([anywhere, occupied])

    @property
    def share(self) -> float:
        """Share of the cells that are sampled."""
        return float(self.binary.mean())

    def state(self) -> Mapping[str, torch.Tensor]:
        """What a checkpoint must hold."""
        return {
            "density": torch.from_numpy(self.density.copy()),
            "binary": torch.from_numpy(self.binary.copy()),
            "looks": torch.tensor(self.looks),
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what ``state`` gave. Raises ValueError when shapes differ."""
        if state["density"].shape != self.density.shape or state["binary"].shape != self.binary.shape:
            raise ValueError("checkpoint: the occupancy grid has another resolution")
        self.density[:] = state["density"].numpy()
        self.binary[:] = state["binary"].numpy()
        self.looks = int(state["looks"])
