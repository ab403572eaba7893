"""Score distillation (docs/method.md, section 1): timesteps, guidance and the gradient, K scenes in one UNet batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.core.device import to_device
from pipeline.core.rng import torch_generator
from pipeline.prior.adapters import Adapters
from pipeline.prior.load import Prior, TextEmbedding

Timesteps = Literal["uniform", "annealed", "descending"]
# Width of the band of descending timesteps, as a share of the whole range.
_BAND = 0.2


@dataclass(frozen=True)
class SdsSettings:
    """Guidance scale and timesteps of a scene.

    ``t_min`` and ``t_max`` are fractions of T. ``timesteps`` selects how t is drawn between them as the run progresses:

    - ``uniform``: from the whole range, as published;
    - ``annealed``: from a range whose upper end falls from ``t_max`` to the middle as sqrt(progress);
    - ``descending``: from a band of a fifth of the range that moves from its upper to its lower end. As in sampling,
      high noise decides colours first and low noise decides details last. Small priors need this: at a t that is too
      low for the current picture they keep its colours, whatever these are.
    """

    guidance_scale: float
    t_min: float = 0.02
    t_max: float = 0.98
    timesteps: Timesteps = "annealed"

    def bounds(self, progress: float) -> tuple[float, float]:
        """Least and most t, as fractions of T, at ``progress`` in [0, 1]."""
        span = self.t_max - self.t_min
        if self.timesteps == "annealed":
            return self.t_min, self.t_max - span / 2 * progress**0.5
        if self.timesteps == "descending":
            upper = self.t_max - (1 - _BAND) * span * progress
            return upper - _BAND * span, upper
        return self.t_min, self.t_max


def sample_noise(
    settings: SdsSettings,
    prior: Prior,
    seed: int,
    step: int,
    steps: int,
    shape: tuple[int, ...],
    stream: str = "sds",
    time: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw timesteps t (V,) int64 and noise eps (V, C, h, w) float32 of one step, keyed by (seed, stream, step).

    ``time``, a share of T, replaces the drawn timesteps. The draws are made on the CPU, so that they do not depend on
    the device.
    """
    generator = torch_generator(seed, stream, step)
    low, high = (bound * prior.train_steps for bound in settings.bounds(step / max(steps - 1, 1)))
    uniform = torch.rand(shape[0], generator=generator)
    t = (low + uniform * (high - low)).long().clamp(0, prior.train_steps - 1)
    if time is not None:
        t = torch.full_like(t, timestep(time, prior.train_steps))
    eps = torch.randn(shape, generator=generator)
    return to_device(t, prior.device), to_device(eps, prior.device)


def timestep(share: float, train_steps: int) -> int:
    """The timestep at ``share`` of T, in [0, T - 1]."""
    return min(max(int(share * train_steps), 0), train_steps - 1)


@dataclass
class GuidanceRequest:
    """One scene's part of a UNet batch: V views with their texts, timesteps and noise."""

    latents: torch.Tensor  # (V, C, h, w) float32
    text: TextEmbedding  # V prompts
    negative: TextEmbedding  # V prompts
    t: torch.Tensor  # (V,) int64
    eps: torch.Tensor  # (V, C, h, w) float32
    guidance_scale: float


def sds_gradients(prior: Prior, requests: list[GuidanceRequest], lockstep: int) -> list[torch.Tensor]:
    """grad_z = w(t) (eps_hat - eps) of each scene, (V, C, h, w) float32; w(t) = sqrt(abar_t) (1 - abar_t).

    One UNet call has batch 2 S V (unconditional half first) for S slots. An asset's bytes must not depend on the other
    scenes of the batch: S is ``lockstep`` whatever the number of requests, and empty slots are zeros. S shrinks to the
    next power of two above that number only where this prior gives the same bits in the smaller batch. Scenes with
    different adapters (LoRAs), or with views of another number or size, go into separate calls.

    Raises ValueError for no requests or more than ``lockstep``.
    """
    if not 0 < len(requests) <= lockstep:
        raise ValueError(f"{len(requests)} queries do not fit a lockstep of {lockstep}")
    calls: dict[tuple[Adapters, torch.Size], list[int]] = {}
    for index, query in enumerate(requests):
        calls.setdefault((query.text.adapters.in_unet, query.latents.shape), []).append(index)
    gradients: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for members in calls.values():
            rows = [requests[index] for index in members]
            rows += [_zero_request(rows[0])] * (_slots(prior, rows[0], len(rows), lockstep) - len(rows))
            gradients |= zip(members, _gradients(prior, rows), strict=False)
    return [gradients[index] for index in range(len(requests))]


def _gradients(prior: Prior, rows: list[GuidanceRequest]) -> list[torch.Tensor]:
    t = torch.cat([q.t for q in rows])
    eps = torch.cat([q.eps for q in rows])
    z = torch.cat([q.latents for q in rows])
    abar = prior.alphas_cumprod[t].view(-1, 1, 1, 1)
    noisy = abar.sqrt() * z + (1 - abar).sqrt() * eps
    text = TextEmbedding.cat([q.negative for q in rows] + [q.text for q in rows])
    out = prior.predict_noise(torch.cat([noisy, noisy]), torch.cat([t, t]), text)
    unconditional, conditional = out.chunk(2)
    views = rows[0].latents.shape[0]
    scale = torch.cat([torch.full((views,), q.guidance_scale, device=z.device) for q in rows]).view(-1, 1, 1, 1)
    guided = unconditional + scale * (conditional - unconditional)
    return list(torch.split(abar.sqrt() * (1 - abar) * (guided - eps), views))


def _zero_request(like: GuidanceRequest) -> GuidanceRequest:
    zero = torch.zeros_like
    return GuidanceRequest(
        zero(like.latents),
        like.text.map(zero),
        like.negative.map(zero),
        zero(like.t),
        zero(like.eps),
        0.0,
    )


def _slots(prior: Prior, request: GuidanceRequest, count: int, lockstep: int) -> int:
    """Slots of the batch: the next power of two above ``count`` if that changes no bit, else ``lockstep``."""
    smaller = 1 << (count - 1).bit_length()
    if smaller >= lockstep:
        return lockstep
    key = (tuple(request.latents.shape), request.text.states.shape[1], request.text.adapters.in_unet, smaller, lockstep)
    known = prior.batch_invariance
    if key not in known:
        known[key] = _same_bits(prior, request, smaller, lockstep)
    return smaller if known[key] else lockstep


@torch.no_grad()
def _same_bits(prior: Prior, request: GuidanceRequest, smaller: int, lockstep: int) -> bool:
    """Whether scenes get the same bits in a batch of ``smaller`` slots as in one of ``lockstep``.

    Random scenes suffice, because kernels are chosen by shape and not by value. The last scenes of the large batch are
    the first of the small one, which also tests the position in the batch.
    """
    scenes = []
    for index in range(lockstep):
        generator = torch_generator(index, "batch invariance")
        draw_like = [torch.randn(x.shape, generator=generator).to(x) for x in (request.latents, request.eps)]
        text = request.text.map(lambda x, g=generator: torch.randn(x.shape, generator=g).to(x))
        scenes.append(GuidanceRequest(draw_like[0], text, text.map(torch.neg), request.t, draw_like[1], 7.5))
    large = _gradients(prior, scenes)[-smaller:]
    small = _gradients(prior, scenes[-smaller:])
    return all(torch.equal(a, b) for a, b in zip(large, small, strict=True))


def sds_loss(latents: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A scalar whose gradient with respect to ``latents`` is exactly ``gradient`` / V, the mean over V views.

    Its value has no meaning (docs/method.md, section 1).
    """
    return (latents * gradient.detach()).sum() / latents.shape[0]
