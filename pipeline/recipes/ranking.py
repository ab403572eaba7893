"""Rank a row's variants with the prior itself.

A variant is good when its picture is easier to denoise knowing the prompt than not knowing it: the score is
1 - error(prompt) / error(empty prompt), the mean squared error of the predicted noise over views, timesteps and noise
that are the same for every variant. It is the likelihood ratio by which diffusion models classify.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.rng import torch_generator
from pipeline.core.scene import View
from pipeline.export.gltf import BASE_COLOUR
from pipeline.export.preview import VIEWS, render_views
from pipeline.optimize.prompts import view_prompt
from pipeline.prior.load import Prior
from pipeline.prior.tile import GOOD_WRAP
from pipeline.raster.camera import view_words
from pipeline.recipes.asset_build import Asset, AssetBuild, InputsT, ScenesT, SettingsT, Variant

# Shares of T: where the prompt decides about colour, material and layout.
_TIMES = (0.35, 0.5, 0.65, 0.8)
_BATCH = 8


def score(asset_build: AssetBuild[SettingsT, InputsT, ScenesT], variant: Variant[ScenesT], prior: Prior) -> float:
    """The score of a finished variant, as the module defines it: higher is better, above 0 where the prompt helps."""
    assert variant.asset is not None
    prompt = asset_build.row.job.prompt
    if variant.asset.tiling is not None:
        return score_texture(variant.asset, prior, prior.surface_prompt(prompt))
    return score_asset(variant.asset, prior, prompt, view_words=asset_build.settings.names_views)


def score_texture(asset: Asset, prior: Prior, prompt: str) -> float:
    """The score of a tileable texture under ``prompt``, reduced if its borders show."""
    side = prior.sample_size * prior.vae_scale_factor
    image = Image.fromarray(np.ascontiguousarray(asset.maps[BASE_COLOUR])).resize((side, side), Image.Resampling.BOX)
    wrap = asset.notes.get("wrap")
    visible = max(0.0, wrap - GOOD_WRAP) if isinstance(wrap, float) else 0.0
    return score_images(np.array(image)[None], [prompt], prior) - visible


def score_asset(asset: Asset, prior: Prior, prompt: str, *, view_words: bool) -> float:
    """The score of ``asset`` under ``prompt``; the same arguments give the same number."""
    images = render_views(
        asset.uvmesh, asset.maps[BASE_COLOUR], asset.frame, size=prior.sample_size * prior.vae_scale_factor
    )
    prompts = [
        view_prompt(prompt, view, view_words=view_words, close_up=False, fit=prior.fit_prompt) for view in _views()
    ]
    return score_images(images, prompts, prior)


@torch.no_grad()
def score_images(images: NDArray[np.uint8], prompts: list[str], prior: Prior) -> float:
    """The score of images (N, H, W, 3) uint8 sRGB, each under its own prompt."""
    rgb = torch.from_numpy(np.ascontiguousarray(images)).to(prior.device).permute(0, 3, 1, 2).float() / 255
    latents = prior.encode(rgb)
    eps = torch.randn(latents.shape, generator=torch_generator(0, "rank")).to(latents)
    count = len(images)
    errors = []
    for share in _TIMES:
        t = torch.full((count,), int(share * prior.train_steps), device=latents.device)
        abar = prior.alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy = abar.sqrt() * latents + (1 - abar).sqrt() * eps
        row = []
        for texts in (prompts, [""] * count):
            wrong = [
                (prior.predict_noise(noisy[i : i + _BATCH], t[i : i + _BATCH], prior.embed(texts[i : i + _BATCH]))
                 - eps[i : i + _BATCH]).square().mean((1, 2, 3))
                for i in range(0, count, _BATCH)
            ]  # fmt: skip
            row.append(torch.cat(wrong).mean())
        errors.append(torch.stack(row))
    # Relative at each timestep: otherwise the errors at low noise outweigh those at high noise.
    ratio = torch.stack(errors)
    return float((1 - ratio[:, 0] / ratio[:, 1].clamp_min(1e-12)).mean())


def _views() -> list[View]:
    """The views of ``render_views``, in order."""
    elevation, azimuth = np.radians(np.array(VIEWS, float)).T
    return [View(word, False) for word in view_words(np.pi / 2 - elevation, azimuth)]
