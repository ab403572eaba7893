"""The latent diffusion prior: text embedding, noise prediction, decoding and encoding.

Supports Stable Diffusion 1.x, 2.x and SDXL, their fine-tunes, and small models of the same architecture (the embedded
one). Reads all constants (latent channels, scaling factor, prediction type, sample size, text length) from configs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.errors import PriorError
from pipeline.core.job import AdapterFile
from pipeline.prior import adapters as adapter_files
from pipeline.prior.adapters import NO_ADAPTERS, Adapter, Adapters, Concept, Lora
from pipeline.prior.components import Components, load_components
from pipeline.prior.cuda_graphs import GraphedUNet
from pipeline.prior.defaults import (
    DEFAULTS_FILE,
    GenerateDefaults,
    MaterialDefaults,
    PaintDefaults,
    S,
    SampleDefaults,
    read_defaults,
)
from pipeline.prior.identity import PriorIdentity, prior_identity
from pipeline.prior.latent_rgb import LatentRgb, read_latent_rgb
from pipeline.prior.material_estimator import MaterialEstimator, load_estimator
from pipeline.prior.material_folder import estimator_folder
from pipeline.prior.options import PriorOptions
from pipeline.prior.precision import compiled, device_of, prepare_cuda, text_dtype, vae_dtype
from pipeline.prior.prompts import Concepts, PromptReader
from pipeline.prior.text import TextEmbedding, TextEncoders, split_concepts
from pipeline.prior.words import keep_known, names_material_alone, surface_prompt, unknown_words

__all__ = ["Prior", "TextEmbedding", "load_prior", "to_image"]

# Limits of the caches on the device. 512 prompts take 60 MB (SD 1.x) or 160 MB (SDXL), more than 32 rows need. A LoRA
# of SDXL can take 600 MB.
_MOST_PROMPTS = 512
_MOST_LORAS = 16


class Prior:
    """A loaded latent diffusion model, frozen. Created by ``load_prior``.

    Attributes:
        name, identity: as in ``PriorIdentity``.
        latent_channels (C), vae_scale_factor (r: image pixels per latent pixel), sample_size (native latent side),
        train_steps (T), prediction_type (``epsilon`` or ``v_prediction``).
        scheduler: diffusers' scheduler of the training noise (DDPM).
        alphas_cumprod: (T,) float32, abar_t of the noise schedule.
        latent_rgb: the linear map from scaled latents to RGB in [0, 1].
        defaults, generate_defaults: default settings of ``paint`` and ``generate``.
        sample_defaults, material_defaults: defaults of ``sample_images`` and ``sample_tile``.
        device, dtype: of the UNet; options: as given to ``load_prior``.
        unet, vae: the networks themselves, as diffusers' classes, to inspect; ``predict_noise``, ``encode`` and
        ``decode`` call them. text: the text encoders.
    """

    def __init__(self, identity: PriorIdentity, components: Components, device: torch.device, options: PriorOptions):
        self.name, self.folder, self.identity = identity.name, identity.folder, identity.identity
        self.device, self.dtype, self.options = device, text_dtype(options, device, identity.folder), options
        self._rgb_file, self._is_xl, self._zero_empty = identity.latent_rgb, components.is_xl, components.zero_empty
        self.text = TextEncoders(components)
        self.prompts = PromptReader(identity.name, identity.folder, identity.file)
        self.unet, self.vae = components.unet, components.vae
        self._vae_dtype = vae_dtype(self.dtype, components)
        self._set_up(components)
        self._fast_unet = compiled(self.unet, device) if options.compile else self.unet

        self.scheduler = scheduler = components.scheduler
        self.alphas_cumprod: torch.Tensor = scheduler.alphas_cumprod.float().to(device)
        self.train_steps = int(scheduler.config.num_train_timesteps)
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise PriorError(f"{self.folder}: prediction type {self.prediction_type!r} is not supported")
        self.latent_channels = int(self.unet.config.in_channels)
        size = self.unet.config.sample_size
        self.sample_size = int(size if isinstance(size, int) else size[0])
        vae = self.vae.config
        self._scaling = float(getattr(vae, "scaling_factor", 1.0) or 1.0)
        self._shift = float(getattr(vae, "shift_factor", 0.0) or 0.0)
        self.vae_scale_factor = self._measure_vae_scale_factor()
        self.defaults = self._defaults_in_pixels(read_defaults(self.folder, "paint", PaintDefaults))
        self.generate_defaults = self._defaults_in_pixels(read_defaults(self.folder, "generate", GenerateDefaults))
        self.sample_defaults = read_defaults(self.folder, "sample", SampleDefaults)
        self.material_defaults = read_defaults(self.folder, "material", MaterialDefaults)
        self._embedded: dict[tuple[str, Adapters, bool], tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._loras: dict[Adapter, Lora] = {}
        # Batch shapes that give the same bits for this model on this machine, measured by the loop.
        self.batch_invariance: dict[tuple[object, ...], bool] = {}

    def _set_up(self, components: Components) -> None:
        """Moves every network to its number format and device."""
        home = torch.device("cpu") if self.options.offload else self.device
        for model in components.texts:
            model.to(home, self.dtype).eval().requires_grad_(False)
        components.vae.to(home, self._vae_dtype).eval().requires_grad_(False)
        components.unet.to(self.device, self.dtype).eval().requires_grad_(False)
        for model in (components.unet, components.vae):
            # Twice as fast for float32 convolutions on the CPU; tensor cores on CUDA need it.
            model.to(memory_format=torch.channels_last)
        if self.options.vae_slicing and hasattr(components.vae, "enable_slicing"):
            components.vae.enable_slicing()
        if self.options.vae_tiling and hasattr(components.vae, "enable_tiling"):
            components.vae.enable_tiling()

    def _defaults_in_pixels(self, defaults: S) -> S:
        """Adapts ``defaults`` to the prior's native view size (64 for SD 1.x), unless it defines its own defaults."""
        if (self.folder / DEFAULTS_FILE).is_file():
            return defaults
        size = self.sample_size
        return dataclasses.replace(defaults, view_size=size, texture_size=2 * size * self.vae_scale_factor)

    @functools.cached_property
    def latent_rgb(self) -> LatentRgb:
        """The linear map from scaled latents to RGB. Raises PriorError if it must be fitted first."""
        return read_latent_rgb(self._rgb_file, self.latent_channels, self.vae_scale_factor, self._scaling)

    @functools.cached_property
    def material_estimator(self) -> MaterialEstimator | None:
        """Estimates materials in pictures: the network of this prior's folder, else the embedded prior's, else None.

        Another estimator may be assigned. Raises PriorError for damaged files.
        """
        folder = estimator_folder(self.folder)
        return None if folder is None else load_estimator(folder, self.device)

    def unknown_words(self, prompt: str, adapters: Adapters = NO_ADAPTERS) -> list[str]:
        """Returns the words of ``prompt`` that this prior does not know and drops."""
        plain = [piece for piece in split_concepts(prompt, self._concepts(adapters)) if isinstance(piece, str)]
        return unknown_words(self.folder, " ".join(plain))

    def fit_prompt(self, prompt: str, suffix: str, adapters: Adapters = NO_ADAPTERS) -> str:
        """Cuts ``prompt`` to the tokens that this prior has left beside ``suffix`` (``PromptReader.fit``)."""
        return self.prompts.fit(prompt, suffix, self._concept_lengths(adapters))

    def prompt_warnings(
        self, prompt: str, negative: str, suffixes: Sequence[str], adapters: Adapters = NO_ADAPTERS
    ) -> list[str]:
        """Returns warnings about parts of a row's prompts that this prior ignores. ``suffixes`` are view suffixes."""
        concepts = self._concept_lengths(adapters)
        return self.prompts.row_warnings(prompt, negative, suffixes, concepts)

    def _concept_lengths(self, adapters: Adapters) -> Concepts:
        return {c.word.lower(): max(map(len, c.vectors)) for c in self._concepts(adapters)}

    def names_material_alone(self, prompt: str) -> bool:
        """Tells whether ``prompt`` names a material and no object with parts (``words.names_material_alone``)."""
        return names_material_alone(self.folder, prompt)

    def surface_prompt(self, prompt: str) -> str:
        """Returns the prompt for views that show only surface (``words.surface_prompt``)."""
        return surface_prompt(self.folder, prompt)

    @torch.no_grad()
    def embed(self, prompts: list[str], adapters: Adapters = NO_ADAPTERS, *, negative: bool = False) -> TextEmbedding:
        """Returns text embeddings of ``prompts``. Encodes each distinct prompt once per process.

        ``negative``: these are negative prompts; an empty one gives the unconditional embedding of the training (zeros
        for SDXL). Raises PriorError if ``adapters`` do not fit this prior.
        """
        # The cache may be cleared half way through a very long list.
        embeddings = [self._embed(prompt, adapters, negative and self._zero_empty and not prompt) for prompt in prompts]
        pooled = [p for _, p in embeddings if p is not None]
        return TextEmbedding(torch.stack([s for s, _ in embeddings]), torch.stack(pooled) if pooled else None, adapters)

    def _embed(self, prompt: str, adapters: Adapters, zero: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        key = (prompt, adapters, zero)
        if key not in self._embedded:
            if len(self._embedded) >= _MOST_PROMPTS:
                self._embedded.clear()
            with contextlib.ExitStack() as stack:
                for lora in self._active_loras(adapters):
                    stack.enter_context(lora.active("text"))
                    stack.enter_context(lora.active("text2"))
                for model in self.text.models:
                    stack.enter_context(self._on_device(model))
                # One prompt per call, so that the bytes of its embedding do not depend on the other prompts.
                states, pooled = self.text.encode(
                    prompt, self._concepts(adapters), self.device, lambda text: keep_known(self.folder, text)
                )
            keep = [None if x is None else torch.zeros_like(x) if zero else x for x in (states, pooled)]
            self._embedded[key] = tuple(None if x is None else x.to(self.dtype) for x in keep)  # type: ignore[assignment]
        return self._embedded[key]

    @torch.no_grad()
    def predict_noise(self, noisy: torch.Tensor, t: torch.Tensor, text: TextEmbedding) -> torch.Tensor:
        """Predicts the noise eps_hat of noisy latents.

        Args:
            noisy: (B, C, h, w) float32, x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps.
            t: (B,) int64 in [0, T).
            text: B embeddings; their adapters' LoRAs apply to this call only.
        Returns: (B, C, h, w) float32. A v-prediction is converted: eps = sqrt(abar) v + sqrt(1 - abar) x_t.
        """
        x = noisy.to(self.dtype).contiguous(memory_format=torch.channels_last)
        added = None
        if text.pooled is not None:
            added = {"text_embeds": text.pooled, "time_ids": self._time_ids(len(noisy))}
        loras = self._active_loras(text.adapters)
        # Compiled code would not see the hooks of a LoRA.
        unet = self.unet if loras else self._fast_unet
        with contextlib.ExitStack() as stack:
            for lora in loras:
                stack.enter_context(lora.active("unet"))
            out = unet(x, t, encoder_hidden_states=text.states, added_cond_kwargs=added, return_dict=False)[0]
        # Copy the result of compiled code: CUDA graphs overwrite it in the next call.
        out = out.float().clone() if self.options.compile else out.float()
        out = out.contiguous()
        if self.prediction_type == "v_prediction":
            abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
            out = abar.sqrt() * out + (1 - abar).sqrt() * noisy
        result: torch.Tensor = out
        return result

    def release(self, *, everything: bool = False) -> None:
        """Releases device memory that is cached for later calls of the same shape; with ``everything`` also LoRAs,
        embeddings and CUDA graphs of compiled code. All are rebuilt on demand."""
        if isinstance(self._fast_unet, GraphedUNet):
            self._fast_unet.clear()
        if not everything:
            return
        self._loras.clear()
        self._embedded.clear()
        if self._fast_unet is not self.unet and not isinstance(self._fast_unet, GraphedUNet):
            torch.compiler.reset()

    @contextlib.contextmanager
    def uncompiled(self) -> Iterator[None]:
        """For the length of the block the UNet is neither compiled nor recorded: for shapes that do not come again."""
        fast, self._fast_unet = self._fast_unet, self.unet
        try:
            yield
        finally:
            self._fast_unet = fast

    @contextlib.contextmanager
    def tileable(self) -> Iterator[None]:
        """Makes images wrap around inside the block: convolutions of the UNet and the decoder use circular padding.

        Attention spans the whole image anyway. The UNet runs without compilation and CUDA graphs.
        """
        padded = [
            module
            for model in (self.unet, self.vae)
            for module in model.modules()
            if isinstance(module, torch.nn.Conv2d) and any(module._reversed_padding_repeated_twice)
        ]
        before = [module.padding_mode for module in padded]
        with self.uncompiled():
            try:
                for module in padded:
                    module.padding_mode = "circular"
                yield
            finally:
                for module, mode in zip(padded, before, strict=True):
                    module.padding_mode = mode

    def _time_ids(self, count: int) -> torch.Tensor:
        """(count, 6) SDXL conditions (original size, crop corner, target size) for uncropped images of native size."""
        return self._whole_image.expand(count, 6)

    @functools.cached_property
    def _whole_image(self) -> torch.Tensor:
        side = self.sample_size * self.vae_scale_factor
        return torch.tensor([[side, side, 0, 0, side, side]], dtype=self.dtype, device=self.device)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes scaled latents (N, C, h, w) to RGB (N, 3, h r, w r) in [0, 1], float32. Differentiable.

        The decoders of some fine-tunes overflow float16; such latents are decoded again in float32. Raises PriorError
        if that result is not finite either.
        """
        with self._on_device(self.vae, graph=latents.requires_grad):
            images = self._decode(latents, self._vae_dtype)
            if not images.isfinite().all() and self._vae_dtype != torch.float32:
                # Only for this call: a row must not change the bytes of other rows.
                self.vae.to(torch.float32)
                images = self._decode(latents, torch.float32)
                self.vae.to(self._vae_dtype)
        if not images.isfinite().all():
            raise PriorError(f"{self.name}: its decoder returns numbers that are not finite, even in float32")
        return ((images + 1) / 2).clamp(0, 1)

    def _decode(self, latents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        z = latents.to(self.device, dtype) / self._scaling + self._shift
        with contextlib.suppress(torch.OutOfMemoryError):
            decoded: torch.Tensor = self.vae.decode(z, return_dict=False)[0].float()
            return decoded
        # Retry one image at a time, after releasing the UNet's cached memory.
        self.release()
        torch.cuda.empty_cache()
        return torch.cat([self.vae.decode(latent, return_dict=False)[0].float() for latent in z.split(1)])  # type: ignore[no-untyped-call]  # torch

    def encode(self, rgb: torch.Tensor) -> torch.Tensor:
        """Encodes RGB (N, 3, H, W) in [0, 1] to scaled latents (N, C, H / r, W / r), float32. Differentiable.

        Uses the mean of the encoder's distribution, so the result is deterministic.
        """
        with self._on_device(self.vae, graph=rgb.requires_grad):
            out = self.vae.encode(rgb.to(self.device, self._vae_dtype) * 2 - 1)
        z = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
        result: torch.Tensor = ((z - self._shift) * self._scaling).float()
        return result

    @contextlib.contextmanager
    def _on_device(self, model: Any, *, graph: bool = False) -> Iterator[None]:
        """With ``offload``, moves ``model`` to the device inside the block.

        It stays there if an autograd ``graph`` through it is kept, because the backward pass needs its weights.
        """
        if not self.options.offload:
            yield
            return
        model.to(self.device)
        try:
            yield
        finally:
            if not (graph and torch.is_grad_enabled()):
                model.to("cpu")

    def _measure_vae_scale_factor(self) -> int:
        """Image pixels per latent pixel along a side, measured on the model instead of derived from its config."""
        image = torch.zeros(1, 3, 64, 64, dtype=self._vae_dtype, device=self.device)
        # On the device even if it will wait in main memory: not every CPU has half precision convolutions.
        with torch.no_grad(), self._on_device(self.vae):
            out = self.vae.encode(image)
        z = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
        return 64 // int(z.shape[-1])

    def adapters(self, files: Sequence[AdapterFile]) -> Adapters:
        """Loads the adapters of a row and checks them against this prior. Raises PriorError if one does not fit."""
        loaded = adapter_files.read_files(files)
        self._active_loras(loaded)
        self._concepts(loaded)
        return loaded

    def unused_concepts(self, prompt: str, adapters: Adapters) -> list[str]:
        """Returns a warning for each concept whose word is not in ``prompt``."""
        concepts = self._concepts(adapters)
        used = split_concepts(prompt, concepts)
        return [
            f"the concept {concept.word!r} is not in the prompt, so it changes nothing; write its word into the prompt"
            for concept in concepts
            if not any(piece is concept for piece in used)
        ]

    def _concepts(self, adapters: Adapters) -> list[Concept]:
        return [c for adapter in adapters.concepts for c in self._read_concepts(adapter)]

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a process has one prior
    def _read_concepts(self, adapter: Adapter) -> list[Concept]:
        return adapter_files.read_concepts(adapter, self.text.widths)

    def _active_loras(self, adapters: Adapters) -> list[Lora]:
        for adapter in adapters.loras:
            if adapter not in self._loras:
                if len(self._loras) >= _MOST_LORAS:
                    self._loras.clear()
                networks = {"unet": self.unet, **self.text.names()}
                self._loras[adapter] = adapter_files.read_lora(adapter, networks, self.unet.config)
        return [self._loras[adapter] for adapter in adapters.loras]


def load_prior(
    spec: str | Path = "embedded", device: str = "auto", options: PriorOptions | None = None, *, fitted: bool = True
) -> Prior:
    """Loads a prior from this machine; downloads nothing. ``spec`` as in ``find_prior``.

    Uses half precision on CUDA, and float32 or the prior's preferred format on the CPU, unless ``options`` override it.
    With ``fitted`` off, accepts a prior whose map from latents to colours is not fitted yet. Raises PriorError, in one
    line, for missing, damaged or unsupported files.
    """
    options = options or PriorOptions()
    identity = prior_identity(spec)
    resolved_device = device_of(device)
    prepare_cuda(resolved_device, options)
    prior = Prior(
        identity,
        load_components(identity, text_dtype(options, resolved_device, identity.folder)),
        resolved_device,
        options,
    )
    if fitted:
        _ = prior.latent_rgb
    return prior


def to_image(rgb: torch.Tensor) -> np.ndarray:
    """Converts (3, H, W) float in [0, 1] to (H, W, 3) uint8, rounded and clamped."""
    scaled = (rgb.detach().float().clamp(0, 1) * 255).round()
    return scaled.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
