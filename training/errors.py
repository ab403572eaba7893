"""Where a prior denoises badly: its error by noise level, beside a mean of the training latents.

    python -m training.errors --config training/configs/embedded.toml --prior pipeline/prior/embedded

The mean weighs every cached training latent by how likely it is under the noisy one: the best guess of one who has
seen these latents alone and no caption. At high noise it is hard to beat; at low noise it has too few of them.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from pipeline.prior.load import load_prior
from training import text
from training.data import OBJECT_NAMES, read_pool
from training.settings import load, parser
from training.unet import Latents

SIGMAS = (11.0, 6.5, 4.1, 2.75, 1.9, 1.4, 0.7)


def mean_of_latents(noisy: Tensor, latents: Tensor, sigma: float) -> Tensor:
    """(N, D) posterior mean of ``latents`` (M, D), all equally likely, given ``noisy`` (N, D), one of them noised."""
    distance = latents.square().sum(1) - 2 * noisy @ latents.T
    return (-distance / (2 * sigma**2)).softmax(1) @ latents


def main(argv: list[str] | None = None) -> None:
    """Prints mean squared errors of the latent on held-out images of named objects."""
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
    things = [i for i, label in enumerate(labels[:, 2]) if label >= OBJECT_NAMES.index("object") + 1][: a.count]
    z = held.z[things].float()
    seen = train.z.float().flatten(1)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    said = prior.embed([captions[i] for i in things])
    empty = prior.embed([""] * len(things))
    abar = prior.alphas_cumprod
    print(f"{len(things)} held-out images of objects, {len(seen)} training latents")
    print(f"{'sigma':>6} {'caption':>8} {'empty':>8} {'mean of latents':>16}")
    for wanted in SIGMAS:
        t = int((((1 - abar) / abar).sqrt() - wanted).abs().argmin())
        sigma = float(((1 - abar[t]) / abar[t]).sqrt())
        noisy = abar[t].sqrt() * (z + sigma * noise)
        time = torch.full((len(z),), t)
        with torch.no_grad():
            errors = [
                float((prior.predict_noise(noisy, time, words) - noise).square().mean()) * sigma**2
                for words in (said, empty)
            ]
        guess = mean_of_latents((z + sigma * noise).flatten(1), seen, sigma)
        errors.append(float((guess - z.flatten(1)).square().mean()))
        print(f"{sigma:6.2f} {errors[0]:8.4f} {errors[1]:8.4f} {errors[2]:16.4f}", flush=True)


if __name__ == "__main__":
    main()
