"""Makes contact sheets of samples and of reconstructions.

python -m training.sample --config training/configs/embedded.toml --out samples.png
python -m training.sample --config training/configs/embedded.toml --out recon.png --reconstruct
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor

from pipeline.prior.defaults import SampleDefaults, read_defaults
from pipeline.prior.identity import EMBEDDED_FOLDER
from training.autoencoder import bytes_of, tensor
from training.data import read_pool, sheet
from training.settings import Settings, load, parser

# The best of the scales tried: see README.md, "Where it stands".
GUIDANCE = read_defaults(EMBEDDED_FOLDER, "sample", SampleDefaults).guidance_scale

PROMPTS = (
    "red brick texture",
    "a red brick object",
    "white marble surface",
    "a white marble thing, side view",
    "wooden planks texture",
    "an oak shape",
    "a gold object",
    "gold surface, close up",
    "a lava object",
    "lava texture",
    "a mossy stone object",
    "a blue knitted object",
    "blue tiles texture",
    "a green scaly thing",
    "a leopard object",
    "zebra texture",
    "a camouflage object",
    "checkered surface",
    "a red and white striped object",
    "yellow polka dot shape",
    "a house, front view",
    "a house, back view",
    "a red car, side view",
    "a red car, front view",
    "a castle",
    "a castle, front view",
    "a chair, back view",
    "a snowman",
    "a wooden chair, side view",
    "a mushroom",
    "a brick house, front view",
    "a gold vase",
    "a wooden barrel with iron bands",
    "a donut",
    "a stone castle",
    "a purple chair, side view",
    "a rusty car, front view",
    "a tree",
    "a leather sphere",
    "a red cone",
    "a table",
    "ice texture, close up",
    "cobblestone texture",
    "a furry brown object, close up",
    "a pink tiled cube",
    "an orange sphere",
    "a blue knitted vase",
    "a black and white checkered cone",
)


def load_pipeline(cfg: Settings, prior: Path | None = None) -> StableDiffusionPipeline:
    """Load the float32 pipeline of an exported folder, or of the averages in the work folder."""
    if prior is None:
        from training.export import pipeline

        return pipeline(cfg)
    return StableDiffusionPipeline.from_pretrained(
        prior,
        dtype=torch.float32,
        local_files_only=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def draw(
    pipe: StableDiffusionPipeline, prompts: list[str], seed: int, guidance: float, steps: int, size: int = 16
) -> np.ndarray:
    """Draw uint8 samples (N, 4 * size, 4 * size, 3), one per prompt, each with its own seeded generator."""

    def states(texts: list[str]) -> Tensor:
        ids = pipe.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=pipe.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return pipe.text_encoder(ids).last_hidden_state

    out = []
    for start in range(0, len(prompts), 32):
        part = prompts[start : start + 32]
        both = torch.cat([states([""] * len(part)), states(list(part))])
        z = torch.stack(
            [
                torch.randn(4, size, size, generator=torch.Generator().manual_seed(seed * 100003 + start + i))
                for i in range(len(part))
            ]
        )
        pipe.scheduler.set_timesteps(steps)
        for t in pipe.scheduler.timesteps:
            with torch.autocast("cpu", torch.bfloat16):
                e0, e1 = pipe.unet(torch.cat([z, z]), t, both).sample.float().chunk(2)
            z = pipe.scheduler.step(e0 + guidance * (e1 - e0), t, z).prev_sample
        x = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
        out.append(bytes_of(x))
    return np.concatenate(out)


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = parser(__doc__)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--prior", type=Path, help="exported folder to sample; default: the work folder")
    p.add_argument("--prompt", action="append")
    p.add_argument("--guidance", type=float, default=GUIDANCE)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--size", type=int, default=16, help="latent side")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--each", type=int, default=1)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--reconstruct", action="store_true")
    a = p.parse_args(argv)
    torch.set_num_threads(a.threads)
    cfg = load(a.config, a.work)
    if a.reconstruct:
        vae = AutoencoderTiny.from_pretrained(cfg.work / "vae")
        pixels = read_pool(cfg.work / "pool" / "held", 1)[0][:48]
        with torch.no_grad():
            y = bytes_of(vae.decode(vae.encode(tensor(pixels)).latents).sample)
        rows = [r for i in range(0, 48, 12) for r in (pixels[i : i + 12], y[i : i + 12])]
        sheet(np.concatenate(rows), 12).save(a.out)
        return
    pipe = load_pipeline(cfg, a.prior)
    prompts = [q for q in (a.prompt or PROMPTS) for _ in range(a.each)]
    sheet(draw(pipe, prompts, a.seed, a.guidance, a.steps, a.size), 12 if a.each == 1 else a.each).save(a.out)


if __name__ == "__main__":
    main()
