"""Measures a prior's denoising error by noise level, compared with a posterior mean of the training latents.

    python -m training.errors --config training/configs/embedded.toml --prior pipeline/prior/embedded

The posterior mean weights each cached training latent by its likelihood given the noisy latent. It is the best estimate
from these latents without a caption. At high noise it is hard to beat; at low noise there are too few latents.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from pipeline.prior.load import load_prior
from training import text
from training.data import OBJECT_NAMES, read_pool
from training.latent_pools import Latents
from training.settings import load, parser

SIGMAS = (11.0, 6.5, 4.1, 2.75, 1.9, 1.4, 0.7)


def mean_of_latents(noisy: Tensor, latents: Tensor, sigma: float) -> Tensor:
    """Posterior mean (N, D) of ``latents`` (M, D) with a uniform prior, given ``noisy`` (N, D)."""
    distance = latents.square().sum(1) - 2 * noisy @ latents.T
    return (-distance / (2 * sigma**2)).softmax(1) @ latents


def main(argv: list[str] | None = None) -> None:
    """Print mean squared errors of the latent on held-out images of named objects."""
    p = parser(__doc__)
    p.add_argument("--prior", required=True, help="an exported folder")
    p.add_argument("--count", type=int, default=200)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args(argv)
    torch.set_num_threads(a.threads)
    cfg = load(a.config, a.work)
    prior = load_prior(a.prior)
    vae, vocabulary = AutoencoderTiny.from_pretrained(cfg.work / "vae").eval(), text.Vocabulary()
    train, held = (Latents(cfg, which, vae, vocabulary) for which in ("train", "held"))
    train.refresh(0)
    held.refresh()
    _, captions, labels = read_pool(held.source, 1)
    object_indices = [i for i, label in enumerate(labels[:, 2]) if label >= OBJECT_NAMES.index("object") + 1][: a.count]
    z = held.z[object_indices].float()
    train_latents = train.z.float().flatten(1)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    captioned = prior.embed([captions[i] for i in object_indices])
    empty = prior.embed([""] * len(object_indices))
    abar = prior.alphas_cumprod
    print(f"{len(object_indices)} held-out images of objects, {len(train_latents)} training latents")
    print(f"{'sigma':>6} {'caption':>8} {'empty':>8} {'mean of latents':>16}")
    for target_sigma in SIGMAS:
        t = int((((1 - abar) / abar).sqrt() - target_sigma).abs().argmin())
        sigma = float(((1 - abar[t]) / abar[t]).sqrt())
        noisy = abar[t].sqrt() * (z + sigma * noise)
        time = torch.full((len(z),), t)
        with torch.no_grad():
            errors = [
                float((prior.predict_noise(noisy, time, words) - noise).square().mean()) * sigma**2
                for words in (captioned, empty)
            ]
        guess = mean_of_latents((z + sigma * noise).flatten(1), train_latents, sigma)
        errors.append(float((guess - z.flatten(1)).square().mean()))
        print(f"{sigma:6.2f} {errors[0]:8.4f} {errors[1]:8.4f} {errors[2]:16.4f}", flush=True)


if __name__ == "__main__":
    main()
