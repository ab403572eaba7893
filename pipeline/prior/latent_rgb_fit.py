"""Fits the linear map from a prior's latents to colours (docs/method.md, section 4), on rendered images.

The map is only for initialisation and previews, so a few dozen images of mottled solids suffice: they cover all
colours, light and shadow, smooth and detailed regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.atomic import write_json
from pipeline.core.errors import PriorError
from pipeline.core.rng import numpy_generator
from pipeline.mesh.primitives import combine
from pipeline.prior.identity import EMBEDDED, LATENT_RGB_FILE, cached_map, prior_identity
from pipeline.prior.latent_rgb import LatentRgb
from pipeline.prior.load import Prior, load_prior
from pipeline.raster.camera import orbit
from pipeline.raster.rasterise import rasterise

_SHAPES = ("sphere", "box", "cylinder", "cone", "torus")
# Every fourth image is held out to evaluate the map.
_HELD_OUT = 4
_BATCH = 4


@dataclass(frozen=True)
class LatentRgbFit:
    """A fitted map, its file, and R^2 per colour on held-out images."""

    map: LatentRgb
    path: Path
    r2: tuple[float, float, float]


def fit_prior(spec: str | Path, *, images: int = 48, seed: int = 0, device: str = "auto") -> LatentRgbFit:
    """Fits the map of the prior ``spec`` and writes it into its folder, or this user's cache if that is read-only.

    This changes the prior's identity, so earlier assets are built again. Raises PriorError.
    """
    if str(spec) == EMBEDDED:
        raise PriorError("the embedded prior brings its map; fit-rgb is for other priors")
    prior = load_prior(spec, device, fitted=False)
    linear, r2 = fit_latent_rgb(prior, images=images, seed=seed)
    value = {"matrix": linear.matrix.tolist(), "bias": linear.bias.tolist(), "r2": list(r2), "images": images}
    return LatentRgbFit(linear, _write(spec, value), r2)


def fit_latent_rgb(prior: Prior, *, images: int = 48, seed: int = 0) -> tuple[LatentRgb, tuple[float, float, float]]:
    """Fits each block's mean colour to its latent by least squares with a bias. Returns R^2 on held-out images."""
    side = prior.sample_size * prior.vae_scale_factor
    latents: list[np.ndarray] = []
    colours: list[np.ndarray] = []
    for start in range(0, images, _BATCH):
        batch = torch.stack([picture(seed, i, side) for i in range(start, min(images, start + _BATCH))])
        with torch.no_grad():
            z = prior.encode(batch).float().cpu()
        means = torch.nn.functional.avg_pool2d(batch, prior.vae_scale_factor)
        latents += [x.flatten(1).T.double().numpy() for x in z]
        colours += [x.flatten(1).T.double().numpy() for x in means]
    held = [i for i in range(images) if i % _HELD_OUT == _HELD_OUT - 1]
    used = [i for i in range(images) if i not in held]
    x, y = np.concatenate([latents[i] for i in used]), np.concatenate([colours[i] for i in used])
    if not (np.isfinite(x).all() and np.isfinite(np.concatenate([latents[i] for i in held])).all()):
        raise PriorError(f"{prior.name}: its encoder returns numbers that are not finite; try --precision float32")
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    linear = LatentRgb(solution[:-1], solution[-1])
    x, y = np.concatenate([latents[i] for i in held]), np.concatenate([colours[i] for i in held])
    left = ((y - x @ linear.matrix - linear.bias) ** 2).sum(axis=0)
    r2 = 1 - left / ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    return linear, (float(r2[0]), float(r2[1]), float(r2[2]))


def picture(seed: int, index: int, side: int) -> torch.Tensor:
    """Image ``index`` of the series ``seed``: (3, side, side) float32 in [0, 1]. Solids on a colour gradient."""
    rng = numpy_generator(seed, "fit rgb", index)
    vertices, faces = combine([_solid(rng) for _ in range(rng.integers(2, 6))])
    camera = orbit(np.radians([rng.uniform(40, 110)]), np.radians([rng.uniform(0, 360)]), 2.2, np.radians(45))
    face = rasterise(vertices, faces, camera, side, side).face[0]
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    light = rng.normal(size=3)
    shade = 0.35 + 0.65 * np.abs(normal @ (light / np.linalg.norm(light)))
    # The faces of a solid are consecutive, so blocks of them share a colour.
    colour = rng.uniform(0, 1, (len(faces) // 64 + 1, 3))[np.arange(len(faces)) // 64] * shade[:, None]
    rows = np.linspace(0, 1, side)[:, None, None]
    image = (1 - rows) * rng.uniform(0, 1, 3) + rows * rng.uniform(0, 1, 3) + np.zeros((side, side, 3))
    image = np.where((face >= 0)[..., None], colour[np.maximum(face, 0)], image)
    image = image * (1 + rng.uniform(0, 0.5) * (_smooth_noise(rng, side)[..., None] - 0.5))
    return torch.from_numpy(np.clip(image, 0, 1).astype(np.float32)).permute(2, 0, 1)


def _solid(rng: np.random.Generator) -> dict[str, Any]:
    shape = _SHAPES[rng.integers(len(_SHAPES))]
    size = rng.uniform(0.3, 0.9, 3)
    if shape == "torus":
        size[1] = 0.14  # a thicker one has no hole
    return {
        "shape": shape,
        "size": size,
        "position": rng.uniform(-0.45, 0.45, 3),
        "rotation": rng.uniform(0, 360, 3),
    }


def _smooth_noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side) in [0, 1]: smooth noise of a random size."""
    cells = int(rng.integers(4, 33))
    noise = torch.from_numpy(rng.uniform(0, 1, (1, 1, cells, cells)))
    return torch.nn.functional.interpolate(noise, (side, side), mode="bicubic").clamp(0, 1)[0, 0].numpy()


def _write(spec: str | Path, value: dict[str, Any]) -> Path:
    identity = prior_identity(spec)
    path = identity.folder / LATENT_RGB_FILE
    try:
        # Never write through a link into a download cache, which belongs to its client.
        if path.is_symlink() or (identity.folder.exists() and identity.folder.parent.name == "snapshots"):
            raise PermissionError
        write_json(path, value)
        return path
    except OSError:
        pass
    path = cached_map(identity.files_identity)
    try:
        write_json(path, value)
    except OSError as error:
        raise PriorError(f"{path}: cannot be written ({error.strerror}), nor can the prior's folder") from None
    return path
