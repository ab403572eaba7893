"""Score distillation (METHOD section 1): timesteps, guidance and the gradient, for K scenes in one UNet batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.core.rng import torch_generator
from pipeline.prior.load import Prior, TextEmbedding


@dataclass(frozen=True)
class SdsSettings:
    """How a scene is guided.

    ``t_min`` and ``t_max`` are fractions of T. With ``anneal``, the upper end falls from ``t_max`` to the middle
    of the range as sqrt(progress): shape and colour first, detail later.
    """

    guidance_scale: float
    t_min: float = 0.02
    t_max: float = 0.98
    anneal: bool = True


def draw(
    settings: SdsSettings, prior: Prior, seed: int, step: int, steps: int, shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps t (V,) int64 and noise eps (V, C, h, w) float32 of one step, from the stream (seed, step).

    Drawn on the CPU, so that they are the same whatever device computes with them.
    """
    generator = torch_generator(seed, "sds", step)
    upper = settings.t_max
    if settings.anneal and steps > 1:
        upper -= (settings.t_max - (settings.t_min + settings.t_max) / 2) * (step / (steps - 1)) ** 0.5
    low = settings.t_min * prior.train_steps
    high = upper * prior.train_steps
    uniform = torch.rand(shape[0], generator=generator)
    t = (low + uniform * (high - low)).long().clamp(0, prior.train_steps - 1)
    eps = torch.randn(shape, generator=generator)
    return t.to(prior.device), eps.to(prior.device)


@dataclass
class Query:
    """One scene's part of a UNet batch: V views with their texts, timesteps and noise."""

    latents: torch.Tensor  # (V, C, h, w) float32
    text: TextEmbedding  # V prompts
    negative: TextEmbedding  # V prompts
    t: torch.Tensor  # (V,) int64
    eps: torch.Tensor  # (V, C, h, w) float32
    guidance_scale: float


@torch.no_grad()
def sds_gradients(prior: Prior, slots: list[Query | None]) -> list[torch.Tensor | None]:
    """grad_z = w(t) (eps_hat - eps) of each scene, (V, C, h, w) float32; w(t) = sqrt(abar_t) (1 - abar_t).

    One UNet call of batch 2 K V (unconditional half first). Empty slots are filled with zeros: a batch of one
    shape whatever the neighbours, so that an asset's bytes do not depend on them.
    """
    present = next(query for query in slots if query is not None)
    blank = Query(
        torch.zeros_like(present.latents),
        TextEmbedding(torch.zeros_like(present.text.states)),
        TextEmbedding(torch.zeros_like(present.text.states)),
        torch.zeros_like(present.t),
        torch.zeros_like(present.eps),
        0.0,
    )
    rows = [query or blank for query in slots]
    t = torch.cat([q.t for q in rows])
    eps = torch.cat([q.eps for q in rows])
    z = torch.cat([q.latents for q in rows])
    abar = prior.alphas_cumprod[t].view(-1, 1, 1, 1)
    noisy = abar.sqrt() * z + (1 - abar).sqrt() * eps
    states = torch.cat([q.negative.states for q in rows] + [q.text.states for q in rows])
    out = prior.predict_noise(torch.cat([noisy, noisy]), torch.cat([t, t]), TextEmbedding(states))
    unconditional, conditional = out.chunk(2)
    views = present.latents.shape[0]
    scale = torch.cat([torch.full((views,), q.guidance_scale, device=z.device) for q in rows]).view(-1, 1, 1, 1)
    guided = unconditional + scale * (conditional - unconditional)
    gradients = (abar.sqrt() * (1 - abar) * (guided - eps)).split(views)
    return [g if query is not None else None for g, query in zip(gradients, slots, strict=True)]


def sds_loss(latents: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A scalar whose gradient by ``latents`` is exactly ``gradient`` / V: the mean over V views.

    The value itself means nothing (METHOD 1).
    """
    return (latents * gradient.detach()).sum() / latents.shape[0]
