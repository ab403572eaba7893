"""Samples tileable images from a prior, for materials on surfaces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.job import Reporter, no_report
from pipeline.core.rng import torch_generator
from pipeline.prior.adapters import NO_ADAPTERS, Adapters
from pipeline.prior.load import Prior, TextEmbedding
from pipeline.prior.sample import denoise

STEPS = 25
# A sample is drawn again if its ``Tile.wrap`` exceeds this limit, up to this number of draws; then the best is used.
GOOD_WRAP, MOST_DRAWS = 1.1, 4


@dataclass(frozen=True)
class Tile:
    """A tileable image.

    image: (H, W, 3) float32 RGB in [0, 1]. wrap: the greater of the steps across the two borders, each as a share of
    the 95th percentile of the steps between neighbouring rows (columns) inside; at most 1 where nothing shows.
    evaluations: how many calls of the UNet all samples took.
    """

    image: NDArray[np.float32]
    wrap: float
    evaluations: int


@torch.no_grad()
def sample_tile(
    prior: Prior,
    prompt: str,
    *,
    negative_prompt: str = "",
    guidance_scale: float | None = None,
    steps: int = STEPS,
    seed: int = 0,
    size: int | None = None,
    adapters: Adapters = NO_ADAPTERS,
    report: Reporter = no_report,
) -> Tile:
    """Samples a tileable image of ``prompt`` by DDIM; ``size`` is the side in latent pixels (default: native size).

    Draws at most ``MOST_DRAWS`` times until no seam is visible. The result depends only on the arguments.
    """
    scale = prior.sample_defaults.guidance_scale if guidance_scale is None else guidance_scale
    side = size or prior.sample_size
    text = TextEmbedding.cat([prior.embed([negative_prompt], adapters, negative=True), prior.embed([prompt], adapters)])
    best: Tile | None = None
    with prior.tileable():
        for draw in range(MOST_DRAWS):
            noise = torch.randn((1, prior.latent_channels, side, side), generator=torch_generator(seed, "tile", draw))
            latents = denoise(prior, noise.to(prior.device), text, scale, steps, report)
            image = prior.decode(latents)[0].permute(1, 2, 0).cpu().numpy()
            wrap = wrap_step(image)
            if best is None or wrap < best.wrap:
                best = Tile(np.ascontiguousarray(image), wrap, (draw + 1) * steps)
            if wrap <= GOOD_WRAP:
                break
    assert best is not None
    return Tile(best.image, best.wrap, (draw + 1) * steps)


def wrap_step(image: NDArray[np.float32]) -> float:
    """``Tile.wrap`` of an image (H, W, 3): 0 for a plain colour."""
    shares = []
    for axis in (0, 1):
        steps = np.abs(image - np.roll(image, 1, axis=axis)).mean(axis=(1 - axis, 2))
        usual = float(np.quantile(steps[1:], 0.95))
        shares.append(float(steps[0]) / usual if usual > 1e-3 else 0.0)
    return max(shares)
