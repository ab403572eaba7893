"""Decodes a whole latent texture, a large one in pieces.

Latents are (1, C, h, w), scaled; r is the VAE's scale factor.
"""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Side of the largest piece decoded at once, in pixels. Bounds memory.
PIECE = 512
# Half the side of the latent square in which the receptive field is measured.
_PROBE = 26
# Overlap of pieces, in latents, if every output pixel depends on every latent (attention, group norms).
_GLOBAL_OVERLAP = 16


class Decoder(Protocol):
    """The part of a prior that baking uses."""

    vae_scale_factor: int

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, h r, w r) in [0, 1]."""
        ...


def receptive_radius(prior: Decoder, channels: int) -> int | None:
    """The largest distance, in latents, at which a latent changes a decoded pixel; None if too large to measure.

    It is measured instead of derived from the architecture, because any prior may bring its own decoder.
    """
    side = 2 * _PROBE + 1
    generator = torch.Generator().manual_seed(0)
    farthest = 0
    for strength in (-3.0, 3.0):
        base = torch.randn(1, channels, side, side, generator=generator)
        poked = base.clone()
        poked[..., _PROBE, _PROBE] += strength
        change = (prior.decode(poked) - prior.decode(base)).abs().amax(dim=(0, 1)) > 1e-6
        rows, columns = torch.nonzero(change, as_tuple=True)
        if len(rows) == 0:
            continue
        latents = torch.stack([rows, columns]) // prior.vae_scale_factor
        farthest = max(farthest, int((latents - _PROBE).abs().max()))
    # A pixel may depend on a latent too weakly to show here, so add a little.
    return None if farthest >= _PROBE - 1 else farthest + 1


@torch.no_grad()
def decode_texture(latent: Tensor, prior: Decoder, piece: int = PIECE) -> Tensor:
    """(3, h r, w r) image in [0, 1] of latents (C, h, w).

    An image larger than ``piece`` pixels a side is decoded in overlapping pieces. The overlap covers the decoder's
    receptive field, so the result equals that of one pass. If the receptive field is unbounded, the pieces fade into
    one another instead.
    """
    channels, height, width = latent.shape
    scale_factor = prior.vae_scale_factor
    most = max(8, piece // scale_factor)
    if max(height, width) <= most:
        return prior.decode(latent[None])[0].clamp(0, 1)
    radius = receptive_radius(prior, channels)
    overlap = _GLOBAL_OVERLAP if radius is None else radius
    core = max(8, most - 2 * overlap)
    total = torch.zeros(3, height * scale_factor, width * scale_factor)
    weights = torch.zeros(1, height * scale_factor, width * scale_factor)
    for top, bottom in _spans(height, core):
        for left, right in _spans(width, core):
            y0, y1 = max(0, top - overlap), min(height, bottom + overlap)
            x0, x1 = max(0, left - overlap), min(width, right + overlap)
            decoded = prior.decode(latent[None, :, y0:y1, x0:x1])[0].clamp(0, 1).cpu()
            inner = [(top, bottom, y0, y1), (left, right, x0, x1)]
            window = [_window(*span, scale_factor, fade=radius is None) for span in inner]
            weight = (window[0][:, None] * window[1][None, :])[None]
            crop = (
                slice(None),
                slice(y0 * scale_factor, y1 * scale_factor),
                slice(x0 * scale_factor, x1 * scale_factor),
            )
            total[crop] += decoded * weight
            weights[crop] += weight
    return total / weights


def _spans(length: int, core: int) -> list[tuple[int, int]]:
    """Cuts 0 .. length into pieces of nearly equal size, at most ``core``."""
    count = math.ceil(length / core)
    ends = [round(i * length / count) for i in range(count + 1)]
    return list(itertools.pairwise(ends))


def _window(start: int, end: int, low: int, high: int, vae_scale_factor: int, *, fade: bool) -> Tensor:
    """Weights of the pixels of latents low .. high: 1 in start .. end; outside 0, or fading to the ends."""
    x = (torch.arange((high - low) * vae_scale_factor) + 0.5) / vae_scale_factor + low
    if not fade:
        return ((x > start) & (x < end)).float()
    rise = (x - low) / (start - low) if start > low else torch.ones_like(x)
    fall = (high - x) / (high - end) if high > end else torch.ones_like(x)
    return torch.minimum(rise, fall).clamp(1e-4, 1)


@torch.no_grad()
def decode_views(latents: Tensor, prior: Decoder, batch: int = 16) -> NDArray[np.float32]:
    """(N, 3, h r, w r) float32 in [0, 1] of N views (N, C, h, w).

    Decodes at most ``batch`` views at a time, and at least one, with no more pixels than a square of side ``PIECE``.
    """
    pixels = latents.shape[-2] * latents.shape[-1] * prior.vae_scale_factor**2
    batch = max(1, min(batch, PIECE**2 // pixels))
    images = [prior.decode(batch_latents).float().clamp(0, 1).cpu().numpy() for batch_latents in latents.split(batch)]  # type: ignore[no-untyped-call]  # torch
    return np.concatenate(images)
