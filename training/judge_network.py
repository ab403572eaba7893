"""The judge's network: its training, its accuracy on images of the renderer, and its weights."""

from __future__ import annotations

import copy
import json
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from training import checkpoint
from training.autoencoder import bytes_of, encode_all, tensor
from training.data import COLOUR_NAMES, MATERIAL_NAMES, OBJECT_NAMES, read_pool
from training.optimiser import Orthogonal, matrices
from training.settings import Log, Settings
from training.shapes import THINGS
from training.text import HEADS
from training.vocabulary import VIEWS

NAMES = {"material": MATERIAL_NAMES, "colour": COLOUR_NAMES, "thing": OBJECT_NAMES, "view": list(VIEWS)}


# Decay of the averaged weights, which are the ones stored, and the number of images that recompute their norm
# statistics.
_EMA, _NORM_IMAGES = 0.998, 4096


KEPT = Path(__file__).parent / "judge.safetensors"


EMBEDDED = Path(__file__).parents[1] / "pipeline" / "prior" / "embedded"


class _Block(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.n1 = nn.BatchNorm2d(b)
        self.two = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.n2 = nn.BatchNorm2d(b)
        self.skip = nn.Conv2d(a, b, 1, stride, bias=False) if stride > 1 or a != b else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.n2(self.two(F.relu(self.n1(self.one(x))))) + self.skip(x))


class Judge(nn.Module):
    """Residual classifier: images (N, 3, 64, 64) in [-1, 1] to logits by head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(nn.Conv2d(3, w, 5, 2, 2, bias=False), nn.BatchNorm2d(w), nn.ReLU())
        self.body = nn.Sequential(
            _Block(w, w, 1), _Block(w, 2 * w, 2), _Block(2 * w, 4 * w, 2), _Block(4 * w, 6 * w, 2)
        )
        self.out = nn.ModuleDict({k: nn.Linear(6 * w, n) for k, n in HEADS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(self.stem(x)).mean((2, 3))
        return {k: m(x) for k, m in self.out.items()}


def _shift_and_scale(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift each image by up to four pixels, and scale half of them: patterns on painted meshes vary in size."""
    count = len(x)
    nearer = np.where(rng.random(count) < 0.5, np.exp(rng.uniform(-0.45, 0.6, count)), 1.0)
    shifts = (
        rng.integers(-4, 5, (count, 2)) * 2 / x.shape[-1]
    )  # Shift by whole pixels, so that images which are not scaled stay sharp.
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = nearer
    theta[:, :, 2] = shifts
    grid = F.affine_grid(torch.from_numpy(theta), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Add random blur, noise and shifts to each image, so that the judge does not learn the renderer's artefacts."""
    count = len(x)
    flipped = torch.from_numpy(rng.random(count) < 0.5)
    x = torch.where(flipped[:, None, None, None], torch.flip(x, [3]), x)
    x = _shift_and_scale(x, rng)
    side = int(rng.integers(36, 60))
    soft = F.interpolate(F.interpolate(x, size=(side, side), mode="area"), size=(64, 64), mode="bilinear")
    x = torch.where(torch.from_numpy(rng.random(count) < 0.4)[:, None, None, None], soft, x)
    gain, offset, noise = (
        torch.from_numpy(v.astype(np.float32))[:, None, None, None]
        for v in (rng.uniform(0.9, 1.08, count), rng.normal(0, 0.03, count), rng.uniform(0, 0.08, count))
    )
    return x * gain + offset + torch.randn_like(x) * noise


@torch.no_grad()
def _reconstruct(vae: AutoencoderTiny, pixels: np.ndarray) -> np.ndarray:
    """Reconstruct uint8 images (N, S, S, 3) with the autoencoder, so that its losses do not affect the judge."""
    out = []
    for part in np.array_split(pixels, max(1, len(pixels) // 128)):
        z = encode_all(vae, part).float().contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            y = vae.decode(z / vae.config.scaling_factor).sample.float()
        out.append(bytes_of(y))
    return np.concatenate(out)


def recolour(x: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Permute the colour channels of a quarter of the images, and remove their colour labels.

    So the judge recognises materials by their patterns, in rare colours too. Without this it recognised 87% of
    materials in natural colours and 73% in other colours.
    """
    permuted = torch.from_numpy(rng.random(len(x)) < 0.25)
    order = torch.from_numpy(np.stack([rng.permutation(3) for _ in range(len(x))]))
    mixed = x.gather(1, order[:, :, None, None].expand_as(x))
    labels = labels.clone()
    labels[permuted, list(HEADS).index("colour")] = -1
    return torch.where(permuted[:, None, None, None], mixed, x), labels


@torch.no_grad()
def _recompute_norms(model: Judge, batches: list[Tensor]) -> None:
    """Recompute the norms' means and variances over unaugmented images.

    The running statistics of training vary with each batch and include blurred images only. (Accuracy on materials rose
    from .63 to .78.)
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for batch in batches:
        model(batch)


def mirrored_logits(model: Judge, x: Tensor) -> dict[str, Tensor]:
    """Logits by head of images (N, 3, 64, 64), averaged over each image and its mirror image."""
    plain, mirrored = model(x), model(torch.flip(x, [3]))
    return {head: (plain[head] + mirrored[head]) / 2 for head in plain}


@torch.no_grad()
def accuracy(model: Judge, x: Tensor, labels: Tensor) -> dict:
    """Top-1 accuracy by head over the labelled images; for materials also by kind, as ``material_of``."""
    was_training = model.training
    model.eval()
    logits = [mirrored_logits(model, p) for p in x.split(100)]
    out = {}
    for j, k in enumerate(HEADS):
        p, y = torch.cat([q[k] for q in logits]).argmax(1), labels[:, j]
        known = y >= 0
        if k == "thing":
            out["object"] = round(float((p == y)[y > 1].float().mean()), 4)
        elif k == "view":
            front = torch.tensor([THINGS[n].front if n in THINGS else False for n in OBJECT_NAMES])[labels[:, 2]]
            known &= front
        out[k] = round(float((p == y)[known].float().mean()), 4)
        if k == "material":
            out["material_of"] = by_kind((p == y)[known].numpy(), labels[known, 2].numpy())
    model.train(was_training)
    return out


def train(cfg: Settings, resume: bool = False) -> None:
    """Train on the judge's own stream, and report on the prior's held-out stream.

    ``resume`` starts from the existing weights at half the learning rate.
    """
    c = cfg["judge"]
    torch.manual_seed(c["seed"])
    log = Log(cfg.work / "judge.jsonl")
    pixels, _, labels = read_pool(cfg.work / "pool" / "judge", c.get("shards"))
    hp, _, hl = read_pool(cfg.work / "pool" / "held", 1)
    hx = tensor(hp[: c["held"]])
    held_labels = torch.from_numpy(hl[: c["held"]])
    passed = int(len(pixels) * c["through"])
    if passed:
        vae = AutoencoderTiny.from_pretrained(cfg.work / "vae").eval().requires_grad_(False)
        pixels[-passed:] = _reconstruct(vae.to(memory_format=torch.channels_last), pixels[-passed:])
    model = Judge(c["width"]).to(memory_format=torch.channels_last)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.05}]
    opt = Orthogonal(groups, matrices(model), lr=c["lr"])
    if resume:
        checkpoint.load(weights_of(cfg), {"model": model})
    mean = copy.deepcopy(model)
    rate = c["lr"] / 2 if resume else c["lr"]
    lab = torch.from_numpy(labels)
    plain = [tensor(part) for part in np.array_split(pixels[:_NORM_IMAGES], max(1, _NORM_IMAGES // 64)) if len(part)]
    rng = np.random.default_rng(c["seed"])
    start = time.time()
    for step in range(c["steps"]):
        progress = step / c["steps"]
        for group in opt.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (1.0 - 0.98 * progress)
        i = torch.from_numpy(rng.integers(0, len(pixels), c["batch"]))
        x = tensor(pixels[i.numpy()])
        x, targets = recolour(_augment(x, rng), lab[i], rng)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=c["bf16"]):
            logits = model(x)
        losses = [
            F.cross_entropy(logits[k].float(), targets[:, j], ignore_index=-1, label_smoothing=0.05)
            for j, k in enumerate(HEADS)
        ]
        opt.zero_grad(set_to_none=True)
        sum(v for v in losses if torch.isfinite(v)).backward()
        opt.step()
        with torch.no_grad():
            for average, current in zip(mean.parameters(), model.parameters(), strict=True):
                average.lerp_(current, 1 - min(_EMA, (step + 1) / (step + 10)))
        if (step + 1) % c["log_every"] == 0 or step + 1 == c["steps"]:
            _recompute_norms(mean, plain)
            log(
                stage="judge",
                step=step + 1,
                loss=round(sum(v.item() for v in losses), 3),
                s=round(time.time() - start),
                **accuracy(mean, hx, held_labels),
            )
            checkpoint.save(cfg.work / "judge.safetensors", {"model": mean}, width=c["width"])


def by_kind(hits: np.ndarray, things: np.ndarray) -> dict[str, float]:
    """Shares of `hits` (N,) bool by kind: surfaces, arbitrary shapes, named objects (`things` (N,): 0, 1, larger)."""
    kinds = {"surfaces": things == 0, "shapes": things == 1, "objects": things > 1}
    return {kind: round(float(hits[these].mean()), 3) for kind, these in kinds.items() if these.any()}


def real(cfg: Settings) -> dict:
    """Accuracy of the judge on held-out images of the renderer and on their reconstructions by the autoencoder.

    They are the reference for samples. Returns the figures of ``accuracy``.
    """
    pixels, _, labels = (part[: cfg["judge"]["held"]] for part in read_pool(cfg.work / "pool" / "held", 1))
    model = load_judge(weights_of(cfg))
    trained = cfg.work / "vae"
    folder = trained if trained.exists() else EMBEDDED / "vae"
    vae = AutoencoderTiny.from_pretrained(folder).eval().requires_grad_(False)
    labels_found: dict = {}
    for name, images in (("", pixels), ("_through_autoencoder", _reconstruct(vae, pixels))):
        labels_found |= {k + name: v for k, v in accuracy(model, tensor(images), torch.from_numpy(labels)).items()}
    return labels_found


def weights_of(cfg: Settings) -> Path:
    """The weights in the work folder, or the committed ones if there are none."""
    trained = cfg.work / "judge.safetensors"
    return trained if trained.exists() else KEPT


def keep(cfg: Settings, out: Path) -> None:
    """Write the weights of the work folder to ``out``, in half precision except for the norms' statistics."""
    trained = cfg.work / "judge.safetensors"
    if not trained.exists():
        raise SystemExit(f"{trained} is missing: train the judge first")
    model = load_judge(trained)
    average = copy.deepcopy(model)
    for parameter in average.parameters():
        parameter.data = parameter.data.half()
    checkpoint.save(out, {"model": average}, width=cfg["judge"]["width"])


@cache
def load_judge(path: Path) -> Judge:
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        width = json.loads(f.metadata()["state"])["width"]
    model = Judge(width)
    checkpoint.load(path, {"model": model})
    return model.eval()
