"""Samples tileable images from a prior, for materials on surfaces and as textures."""

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
# First timestep, as a share of T, at which a doubled tile is denoised again, and the number of draws. Of 1, 0.9, 0.8,
# 0.7 and 0.6 on bricks and oak: 1 (nothing known) slants, below 0.7 the repetition of the smaller tile can be seen.
REDRAWN, MOST_REDRAWS = 0.85, 2


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
    doublings: int = 0,
    adapters: Adapters = NO_ADAPTERS,
    report: Reporter = no_report,
) -> Tile:
    """Samples a tileable image of ``prompt`` by DDIM; ``size`` is the side in latent pixels (default: native size).

    Draws at most ``MOST_DRAWS`` times until no seam is visible. The result depends only on the arguments.

    Each of the ``doublings`` then makes the image twice as wide and high, with four times as much of the pattern at the
    same scale: the latents are repeated two by two, noised as far as ``REDRAWN`` and denoised again. The noise hides
    the repetition, and what remains keeps rows straight: priors that are asked for more than their native size at once
    draw rows that slant and end.
    """
    scale = prior.sample_defaults.guidance_scale if guidance_scale is None else guidance_scale
    side = size or prior.sample_size
    text = TextEmbedding.cat([prior.embed([negative_prompt], adapters, negative=True), prior.embed([prompt], adapters)])
    sampler = _Sampler(prior, text, scale, steps, seed, report)
    with prior.tileable():
        latents, tile = sampler.draw(side, None)
        for _ in range(doublings):
            side *= 2
            latents, tile = sampler.draw(side, latents.repeat(1, 1, 2, 2))
    return Tile(tile.image, tile.wrap, sampler.evaluations)


@dataclass
class _Sampler:
    """Draws tiles; ``evaluations`` counts the calls of the UNet."""

    prior: Prior
    text: TextEmbedding
    guidance_scale: float
    steps: int
    seed: int
    report: Reporter
    evaluations: int = 0

    def draw(self, side: int, known: torch.Tensor | None) -> tuple[torch.Tensor, Tile]:
        """Latents (1, C, side, side) and their image, of all draws the one with the least visible seam; from ``known``
        latents if given."""
        prior = self.prior
        best: tuple[torch.Tensor, Tile] | None = None
        for number in range(MOST_DRAWS if known is None else MOST_REDRAWS):
            stream = "tile" if known is None else f"tile-{side}"
            shape = (1, prior.latent_channels, side, side)
            noise = torch.randn(shape, generator=torch_generator(self.seed, stream, number)).to(prior.device)
            latents = denoise(
                prior, noise, self.text, self.guidance_scale, self.steps, self._count, known=known, start=REDRAWN
            )
            image = np.ascontiguousarray(prior.decode(latents)[0].permute(1, 2, 0).cpu().numpy())
            tile = Tile(image, wrap_step(image), self.evaluations)
            if best is None or tile.wrap < best[1].wrap:
                best = latents, tile
            if tile.wrap <= GOOD_WRAP:
                break
        assert best is not None
        return best

    def _count(self, stage: str, done: int, total: int) -> None:
        self.evaluations += 1
        self.report(stage, done, total)


def wrap_step(image: NDArray[np.float32]) -> float:
    """``Tile.wrap`` of an image (H, W, 3): 0 for a plain colour."""
    shares = []
    for axis in (0, 1):
        steps = np.abs(image - np.roll(image, 1, axis=axis)).mean(axis=(1 - axis, 2))
        usual = float(np.quantile(steps[1:], 0.95))
        shares.append(float(steps[0]) / usual if usual > 1e-3 else 0.0)
    return max(shares)
