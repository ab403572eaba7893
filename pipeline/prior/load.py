"""The latent diffusion prior: text to embeddings, noise prediction, decoding and encoding.

Any ``StableDiffusionPipeline`` folder of diffusers works. Every constant (latent channels, scaling factor,
prediction type, sample size, text length) is read from its configs. Only safetensors weights are read, and only
classes named below are ever constructed, whatever ``model_index.json`` says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.errors import PriorError
from pipeline.prior.defaults import GenerateDefaults, PaintDefaults, read_defaults
from pipeline.prior.identity import PriorIdentity, prior_identity, read_config
from pipeline.prior.latent_rgb import LatentRgb, read_latent_rgb
from pipeline.prior.words import keep_known, unknown_words

_PIPELINES = {"StableDiffusionPipeline"}
_VAES = {"AutoencoderTiny", "AutoencoderKL"}


@dataclass(frozen=True)
class TextEmbedding:
    """Text encoder states of N prompts: ``states`` (N, L, D) in the prior's dtype, on its device."""

    states: torch.Tensor

    def __getitem__(self, index: Any) -> TextEmbedding:
        return TextEmbedding(self.states[index])


class Prior:
    """A loaded latent diffusion model, frozen. Make one with ``load_prior``.

    Attributes:
        name, identity: as in ``PriorIdentity``.
        latent_channels (C), reduction (r: image pixels per latent pixel), sample_size (native latent side),
        train_steps (T), prediction_type (``epsilon`` or ``v_prediction``).
        scheduler: diffusers' scheduler of the training noise (DDPM).
        alphas_cumprod: (T,) float32, abar_t of the noise schedule.
        latent_rgb: the linear map from scaled latents to RGB in [0, 1].
        defaults, generate_defaults: settings a row of ``paint`` or ``generate`` may leave out.
    """

    def __init__(self, found: PriorIdentity, parts: dict[str, Any], device: torch.device, dtype: torch.dtype):
        self.name, self.folder, self.identity = found.name, found.folder, found.identity
        self.device, self.dtype = device, dtype
        self._tokenizer, self._text, self._unet, self._vae = (
            parts[key] for key in ("tokenizer", "text_encoder", "unet", "vae")
        )
        self.scheduler = scheduler = parts["scheduler"]
        self.alphas_cumprod: torch.Tensor = scheduler.alphas_cumprod.float().to(device)
        self.train_steps = int(scheduler.config.num_train_timesteps)
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise PriorError(f"{self.folder}: prediction type {self.prediction_type!r} is not supported")
        self.latent_channels = int(self._unet.config.in_channels)
        size = self._unet.config.sample_size
        self.sample_size = int(size if isinstance(size, int) else size[0])
        vae = self._vae.config
        self._scaling = float(getattr(vae, "scaling_factor", 1.0) or 1.0)
        self._shift = float(getattr(vae, "shift_factor", 0.0) or 0.0)
        self.reduction = _reduction(self._vae)
        self.latent_rgb: LatentRgb = read_latent_rgb(self.folder, self.latent_channels, self.reduction)
        self.defaults = read_defaults(self.folder, "paint", PaintDefaults)
        self.generate_defaults = read_defaults(self.folder, "generate", GenerateDefaults)
        self._cache: dict[str, torch.Tensor] = {}
        # What the loop found out about this model on this machine: batch shapes that give the same bits.
        self.batch_invariance: dict[tuple[object, ...], bool] = {}

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt`` that this prior does not know (and drops)."""
        return unknown_words(self.folder, prompt)

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> TextEmbedding:
        """Text embeddings of ``prompts``: (N, L, D). Each distinct prompt is encoded once per process."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._cache]
        # One prompt per call: the same text must give the same bytes whatever is asked for with it.
        for prompt in missing:
            tokens = self._tokenizer(
                keep_known(self.folder, prompt),
                padding="max_length",
                max_length=self._tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            if len(self._cache) > 4096:
                self._cache.clear()
            self._cache[prompt] = self._text(tokens.input_ids.to(self.device))[0][0].to(self.dtype)
        # The cache may have been cleared half way through a very long list.
        states = [self._cache[p] if p in self._cache else self.embed([p]).states[0] for p in prompts]
        return TextEmbedding(torch.stack(states))

    @torch.no_grad()
    def predict_noise(self, noisy: torch.Tensor, t: torch.Tensor, text: TextEmbedding) -> torch.Tensor:
        """eps_hat of noisy latents.

        Args:
            noisy: (B, C, h, w) float32, x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps.
            t: (B,) int64 in [0, T).
            text: B embeddings.
        Returns: (B, C, h, w) float32. A v-prediction is converted: eps = sqrt(abar) v + sqrt(1 - abar) x_t.
        """
        x = noisy.to(self.dtype).contiguous(memory_format=torch.channels_last)
        out = self._unet(x, t, encoder_hidden_states=text.states, return_dict=False)[0].float()
        out = out.contiguous()
        if self.prediction_type == "v_prediction":
            abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
            out = abar.sqrt() * out + (1 - abar).sqrt() * noisy
        return out

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (N, C, h, w) to RGB (N, 3, h r, w r) in [0, 1], float32. Differentiable."""
        z = latents.to(self.device, self.dtype) / self._scaling + self._shift
        return ((self._vae.decode(z, return_dict=False)[0].float() + 1) / 2).clamp(0, 1)

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        """RGB (N, 3, H, W) in [0, 1] to scaled latents (N, C, H / r, W / r), float32. Differentiable.

        The mean of the encoder's distribution is used, so that encoding is a function.
        """
        out = self._vae.encode(rgb.to(self.device, self.dtype) * 2 - 1)
        z = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
        return ((z - self._shift) * self._scaling).float()


def load_prior(spec: str | Path = "embedded", device: str = "auto") -> Prior:
    """Loads a prior from a folder; nothing is downloaded.

    Half precision on CUDA, float32 on the CPU. Raises PriorError, in one line, for anything missing or damaged.
    """
    found = prior_identity(spec)
    index = read_config(found.folder, "", "model_index.json")
    if index.get("_class_name") not in _PIPELINES:
        raise PriorError(
            f"{found.folder}: a {index.get('_class_name')} is not supported; supported: {', '.join(_PIPELINES)}"
        )
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    dtype = torch.float16 if where.type == "cuda" else torch.float32
    try:
        parts = _load_parts(found.folder, index)
    except PriorError:
        raise
    except Exception as error:  # diffusers and transformers raise many kinds for a damaged folder
        reason = " ".join(str(error).split())[:300]
        raise PriorError(f"{found.folder}: cannot be loaded ({type(error).__name__}: {reason})") from error
    for key in ("text_encoder", "unet", "vae"):
        parts[key] = parts[key].to(where, dtype).eval().requires_grad_(False)
    for key in ("unet", "vae"):
        # Twice as fast for float32 convolutions on the CPU, and what tensor cores want on CUDA.
        parts[key] = parts[key].to(memory_format=torch.channels_last)
    return Prior(found, parts, where, dtype)


def _load_parts(folder: Path, index: dict[str, object]) -> dict[str, Any]:
    # Neither library may look for anything beyond the folder.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import diffusers
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    for library in (logging, diffusers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    entry = index.get("vae")
    vae_class = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if vae_class not in _VAES:
        raise PriorError(f"{folder}: the autoencoder {vae_class!r} is not supported; supported: {', '.join(_VAES)}")
    local: dict[str, Any] = {"local_files_only": True}
    weights = {**local, "use_safetensors": True}
    return {
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer", **local),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", **weights),
        "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **weights),
        "vae": getattr(diffusers, str(vae_class)).from_pretrained(folder / "vae", **weights),
        "scheduler": diffusers.DDPMScheduler.from_pretrained(folder / "scheduler", **local),
    }


def _reduction(vae: Any) -> int:
    """Image pixels per latent pixel along a side, measured on the model rather than guessed from its config."""
    parameter = next(vae.parameters())
    with torch.no_grad():
        out = vae.encode(torch.zeros(1, 3, 64, 64, dtype=parameter.dtype, device=parameter.device))
    z = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
    return 64 // int(z.shape[-1])


def to_image(rgb: torch.Tensor) -> np.ndarray:
    """(3, H, W) float in [0, 1] to (H, W, 3) uint8, rounded and clamped."""
    scaled = (rgb.detach().float().clamp(0, 1) * 255).round()
    return scaled.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
