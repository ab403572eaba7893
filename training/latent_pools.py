"""Pools of encoded training images: cached latents and token ids, from which the UNet's batches are drawn."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import text
from training.autoencoder import encode_all
from training.data import MATERIAL_NAMES, read_labels, read_shard
from training.settings import Settings


def odds(labels: np.ndarray, more: dict[str, float]) -> np.ndarray:
    """Sampling weights (N,) of images, from their labels (`pool.read_shard`).

    `more` has factors by material, the factor "named" for named objects with a named material, and the factor "surface"
    for flat pieces. All others have weight 1.
    """
    factors = np.array([more.get(name, 1.0) for name in MATERIAL_NAMES] + [1.0])  # the last one stands for no material
    material, thing = labels[:, 0], labels[:, 2]
    named = np.where((material >= 0) & (thing > 1), more.get("named", 1.0), 1.0)
    return factors[material] * named * np.where(thing == 0, more.get("surface", 1.0), 1.0)


class Latents:
    """Latents and token ids of all existing shards of a pool. Encodes each shard once. ``more`` as in ``odds``."""

    def __init__(
        self,
        cfg: Settings,
        which: str,
        vae: AutoencoderTiny,
        vocabulary: text.Vocabulary,
        more: dict[str, float] | None = None,
    ) -> None:
        self.source = cfg.work / "pool" / which
        # The name contains the encoder's hash, so that latents of other encoders are not used.
        weights = b"".join(v.numpy().tobytes() for v in vae.encoder.state_dict().values())
        self.cache = cfg.work / "latents" / hashlib.sha256(weights).hexdigest()[:8] / which
        self.cache.mkdir(parents=True, exist_ok=True)
        self.vae, self.vocabulary = vae, vocabulary
        self.done: set[str] = set()
        self.z: Tensor | None = None
        self.ids: Tensor | None = None
        self.more = more or {}
        self.odds: list[np.ndarray] = []

    def refresh(self, limit: int = 1000) -> int:
        """Load all encoded shards and encode up to `limit` more. Returns the number of loaded samples."""
        zs, ids = ([self.z], [self.ids]) if self.z is not None else ([], [])
        for path in sorted(self.source.glob("*.npy")):
            cached = self.cache / f"{path.stem}.safetensors"
            # Latents of an earlier shard with the same number belong to other images.
            there = cached.exists() and cached.stat().st_mtime >= path.stat().st_mtime
            if path.stem in self.done or (limit <= 0 and not there):
                continue
            if there:
                d = load_file(cached)
            else:
                pixels, captions, _ = read_shard(path)
                d = {"z": encode_all(self.vae, pixels), "ids": self.vocabulary.ids(captions).short()}
                save_file(d, cached.with_suffix(".partial"))
                cached.with_suffix(".partial").rename(cached)
                limit -= 1
            zs.append(d["z"])
            ids.append(d["ids"])
            self.odds.append(odds(read_labels(path), self.more))
            self.done.add(path.stem)
        if zs:
            self.z, self.ids = torch.cat(zs), torch.cat(ids)
            self.sums = np.cumsum(np.concatenate(self.odds))
        return 0 if self.z is None else len(self.z)

    def batch(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw float32 latents (n, 4, h, w) and token ids (n, 24)."""
        i = torch.from_numpy(np.searchsorted(self.sums, rng.uniform(0, self.sums[-1], n), side="right"))
        return self.z[i].float(), self.ids[i].long()


class Images:
    """The pools that a run draws from, and fixed held-out images.

    ``large`` is the share of steps on large images; None: that of the settings. ``rank`` numbers the worker: worker 0
    encodes shards, and the others wait for them.
    """

    def __init__(self, cfg: Settings, vocabulary: text.Vocabulary, *, large: float | None, rank: int) -> None:
        c = cfg["unet"]
        vae = AutoencoderTiny.from_pretrained(cfg.work / "vae").eval().requires_grad_(False)
        vae.to(memory_format=torch.channels_last)
        self.large = c["large"] if large is None else large
        self.small_pool = Latents(cfg, "train", vae, vocabulary, c.get("more"))
        self.pools = [self.small_pool]
        if self.large > 0:
            self.pools.append(Latents(cfg, "large", vae, vocabulary, c.get("more_large")))
        # Training starts with the encoded shards; the first worker encodes the others one by one during training.
        if rank:
            while not all(pool.refresh(0) for pool in self.pools):
                time.sleep(1)
            return
        for pool in self.pools:
            if not pool.refresh(1):
                which = pool.source.name
                raise SystemExit(f"training.unet: no images in {pool.source}: run training.data pool --which {which}")
        held = Latents(cfg, "held", vae, vocabulary)
        held.refresh()
        self.held = held.z[: c["held"]].float(), held.ids[: c["held"]].long()

    def refresh(self, limit: int) -> None:
        """Load newly encoded shards, and encode up to ``limit`` shards of each pool."""
        for pool in self.pools:
            pool.refresh(limit)

    def batch(self, share: int, large: bool, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw latents and token ids of ``share`` small images, or of a quarter as many large ones at the same cost."""
        return self.pools[1].batch(max(share // 4, 1), rng) if large else self.small_pool.batch(share, rng)
