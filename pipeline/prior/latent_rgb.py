"""The linear map from latents to RGB (docs/method.md, section 4), and its ridge pseudo-inverse."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core.errors import PriorError

LATENT_RGB_FILE = "latent_rgb.json"
_SD1_SCALING = 0.18215

# Rows: latent channels 1..4 of the SD 1.x autoencoder; columns R, G, B; result in [-1, 1] (Latent-NeRF, sec. 4).
_SD1 = np.array([[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]])


@dataclass(frozen=True)
class LatentRgb:
    """rgb in [0, 1] = latent @ matrix + bias, for scaled latents.

    ``matrix`` (C, 3), ``bias`` (3,) float64; ``r2`` (3,) of the fit per colour, None when it is not known.
    """

    matrix: np.ndarray
    bias: np.ndarray
    r2: tuple[float, float, float] | None = None

    def invert(self, rgb: np.ndarray, ridge: float = 1e-2) -> np.ndarray:
        """The smallest latent (C,) whose linear colour is near ``rgb`` (3,) in [0, 1].

        Works on the map into [-1, 1], as published: z = (A A^T + ridge I)^-1 A (2 rgb - 1 - b).
        """
        a = 2 * self.matrix
        target = 2 * np.asarray(rgb, float) - 1 - (2 * self.bias - 1)
        return np.linalg.solve(a @ a.T + ridge * np.eye(len(a)), a @ target)


def read_latent_rgb(map_path: Path, channels: int, vae_scale_factor: int, scaling: float = _SD1_SCALING) -> LatentRgb:
    """The map of a prior: its own, in the file ``map_path`` (or in the folder, as ``latent_rgb.json``), else the
    published one of SD 1.x, which SD 2.x shares.

    Raises PriorError for a damaged file, or where there is none and the latents are not SD's.
    """
    path = map_path if map_path.suffix == ".json" else map_path / LATENT_RGB_FILE
    if not path.is_file():
        if (channels, vae_scale_factor) != (4, 8) or abs(scaling - _SD1_SCALING) > 1e-4:
            raise PriorError(
                f"{path}: missing, and the autoencoder is not Stable Diffusion's (1.x or 2.x); make it once with: "
                "latentkiln prior fit-rgb PRIOR"
            )
        return LatentRgb(_SD1 / 2, np.full(3, 0.5))
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        matrix, bias = np.asarray(value["matrix"], float), np.asarray(value["bias"], float)
        r2 = tuple(float(v) for v in value["r2"]) if "r2" in value else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PriorError(f"{path}: cannot be used ({type(error).__name__}: {error})") from None
    if matrix.shape != (channels, 3) or bias.shape != (3,) or not np.isfinite(matrix).all():
        raise PriorError(f"{path}: expected a {channels}x3 matrix and 3 biases")
    return LatentRgb(matrix, bias, r2)  # type: ignore[arg-type]
