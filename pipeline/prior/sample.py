"""Samples images from a prior by DDIM, to inspect the prior before painting with it."""

from __future__ import annotations

import torch

from pipeline.core.job import Reporter, no_report
from pipeline.core.rng import torch_generator
from pipeline.prior.load import Prior, TextEmbedding

_BATCH = 16  # images of the prior's native size at once; of larger ones as many as have the same pixels


@torch.no_grad()
def sample_images(
    prior: Prior,
    prompts: list[str],
    *,
    negative_prompt: str = "",
    guidance_scale: float | None = None,
    steps: int = 30,
    seed: int = 0,
    size: int | None = None,
) -> torch.Tensor:
    """Samples one image per prompt: (N, 3, S, S) float32 in [0, 1] on the CPU, S = ``size`` x ``vae_scale_factor``.

    ``guidance_scale`` defaults to the prior's own (``SampleDefaults``). ``size`` is the side in latent pixels (default:
    the prior's native size). Image i depends only on ``seed``, i and its own prompt.
    """
    scale = prior.sample_defaults.guidance_scale if guidance_scale is None else guidance_scale
    side = size or prior.sample_size
    at_once = min(_BATCH, max(1, _BATCH * prior.sample_size**2 // side**2))
    images = []
    for start in range(0, len(prompts), at_once):
        batch = prompts[start : start + at_once]
        images.append(_sample(prior, batch, start, negative_prompt, scale, steps, seed, side))
    return torch.cat(images)


def _sample(
    prior: Prior,
    prompts: list[str],
    first: int,
    negative_prompt: str,
    guidance_scale: float,
    steps: int,
    seed: int,
    side: int,
) -> torch.Tensor:
    shape = (prior.latent_channels, side, side)
    noise = [torch.randn(shape, generator=torch_generator(seed, "sample", first + i)) for i in range(len(prompts))]
    x = torch.stack(noise).to(prior.device)
    empty = prior.embed([negative_prompt] * len(prompts), negative=True)
    text = TextEmbedding.cat([empty, prior.embed(prompts)])
    return prior.decode(denoise(prior, x, text, guidance_scale, steps)).cpu()


def denoise(
    prior: Prior,
    noise: torch.Tensor,
    text: TextEmbedding,
    guidance_scale: float,
    steps: int,
    report: Reporter = no_report,
    *,
    known: torch.Tensor | None = None,
    start: float = 1.0,
) -> torch.Tensor:
    """Sample latents (N, C, h, w) from ``noise`` of the same shape, by DDIM with classifier-free guidance.

    ``text``: 2 N embeddings, the negative prompts first. With ``known`` latents of the same shape, sampling starts
    from them, noised as far as timestep ``start`` (a share of T): the lower it is, the more of them remains.
    """
    from diffusers import DDIMScheduler

    # The prior converts v-predictions to epsilon, so the sampler always gets epsilon.
    scheduler = DDIMScheduler.from_config(  # type: ignore[no-untyped-call]  # diffusers
        prior.scheduler.config, prediction_type="epsilon", clip_sample=False, thresholding=False
    )
    scheduler.set_timesteps(steps)
    timesteps, latents = scheduler.timesteps, noise
    if known is not None:
        later = timesteps[timesteps <= start * prior.train_steps]
        timesteps = later if len(later) else timesteps[-1:]
        abar = prior.alphas_cumprod[int(timesteps[0])]
        latents = abar.sqrt() * known + (1 - abar).sqrt() * noise
    for number, t in enumerate(timesteps):
        report("sample", number, len(timesteps))
        times = torch.full((2 * len(latents),), int(t), device=latents.device)
        unconditioned, conditioned = prior.predict_noise(torch.cat([latents, latents]), times, text).chunk(2)
        latents = scheduler.step(unconditioned + guidance_scale * (conditioned - unconditioned), t, latents).prev_sample
    return latents
