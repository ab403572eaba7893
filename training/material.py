"""Trains the material network: pictures under any light to unlit base colour, roughness, metalness and relief.

    python -m training.data pool --config training/configs/embedded.toml --which material
    python -m training.data pool --config training/configs/embedded.toml --which material_held
    python -m training.material train --config training/configs/embedded.toml --minutes 60
    python -m training.material assess --config training/configs/embedded.toml
    python -m training.material sheet --config training/configs/embedded.toml --out materials.png
    python -m training.material export --config training/configs/embedded.toml --out material

Continues from `material.safetensors` in the work folder. New shards are used after the next start.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from pipeline.prior.material_net import MaterialNet, estimate, log_scales
from training import checkpoint
from training.optimiser import Orthogonal, matrices
from training.samples import RELIEF
from training.settings import Log, Settings, load


class Shards:
    """The shards of a pool of the material network, read on demand."""

    def __init__(self, folder: Path) -> None:
        self.parts = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))]
        if not self.parts:
            raise SystemExit(
                f"training.material: no pictures in {folder}: run training.data pool --which {folder.name}"
            )
        self.starts = np.cumsum([0] + [len(p) for p in self.parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """One picture, uint8 (S, S, 12): lit, base colour, and maps as in `samples.MaterialSample`."""
        k = int(np.searchsorted(self.starts, index, side="right")) - 1
        return np.asarray(self.parts[k][index - self.starts[k]])


@dataclass
class Batch:
    """Pictures and their true maps, float32.

    Attributes:
        lit, albedo: (N, 3, H, W).
        slopes: (N, 2, H, W) to the right and up.
        mask: (N, 1, H, W), 1 where the subject fills the pixel.
        All others: (N, 1, H, W).
    """

    lit: Tensor
    albedo: Tensor
    roughness: Tensor
    metalness: Tensor
    relief: Tensor
    slopes: Tensor
    mask: Tensor


def batch_of(rows: np.ndarray) -> Batch:
    """Convert uint8 rows (N, H, W, 12) to a batch."""
    x = torch.from_numpy(np.array(rows)).permute(0, 3, 1, 2).float()
    n = (x[:, 9:11] - 128) / 127
    slopes = -n / (1 - n.square().sum(1, keepdim=True)).clamp_min(0.02).sqrt()
    return Batch(
        x[:, :3] / 255,
        x[:, 3:6] / 255,
        x[:, 6:7] / 255,
        (x[:, 7:8] / 255 > 0.5).float(),
        (x[:, 8:9] - 128) / RELIEF,
        slopes,
        (x[:, 11:12] > 250).float(),
    )


def rotate_randomly(row: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Mirror or rotate a picture at random, with its normals."""
    row = row.copy()
    if g.random() < 0.5:
        row = row[:, ::-1].copy()
        row[..., 9] = 256 - np.maximum(row[..., 9], 1).astype(int)
    if g.random() < 0.25:
        row = row[::-1].copy()
        row[..., 10] = 256 - np.maximum(row[..., 10], 1).astype(int)
    if g.random() < 0.25:
        # A quarter turn to the left: right becomes up.
        row = np.rot90(row).copy()
        x, y = row[..., 9].astype(int), row[..., 10].astype(int)
        row[..., 9], row[..., 10] = 256 - np.maximum(y, 1), x
    return row


def _permute_channels(row: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Permute the colour channels of a tenth of the pictures."""
    if g.random() < 0.1:
        order = g.permutation(3)
        row = np.concatenate([row[..., order], row[..., 3 + order], row[..., 6:]], -1)
    return row


def draw(shards: Shards, count: int, crop: int, g: np.random.Generator) -> Batch:
    """Draw a random batch of crops."""
    rows = []
    for i in g.integers(0, len(shards), count):
        row = shards[int(i)]
        free = len(row) - crop
        y, x = (int(v) for v in g.integers(0, free + 1, 2))
        rows.append(_permute_channels(rotate_randomly(row[y : y + crop, x : x + crop], g), g))
    b = batch_of(np.stack(rows))
    _degrade(b, g)
    return b


def _degrade(b: Batch, g: np.random.Generator) -> None:
    """Imitate decoders and cameras with some blur, noise and exposure, in place."""
    n = len(b.lit)
    soft = F.avg_pool2d(F.pad(b.lit, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.from_numpy((g.random((n, 1, 1, 1)) * (g.random((n, 1, 1, 1)) < 0.5)).astype(np.float32))
    noise = torch.from_numpy((g.uniform(0, 0.04, (n, 1, 1, 1)) * (g.random((n, 1, 1, 1)) < 0.5)).astype(np.float32))
    seed = torch.Generator().manual_seed(int(g.integers(1 << 30)))
    b.lit = (b.lit + share * (soft - b.lit) + noise * torch.randn(b.lit.shape, generator=seed)).clamp(0, 1)


def relief_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of a relief (N, 1, H, W) in pixels, to the right and up."""
    right = F.pad((x[..., 2:] - x[..., :-2]) / 2, (1, 1, 0, 0), mode="replicate")
    down = F.pad((x[..., 2:, :] - x[..., :-2, :]) / 2, (0, 0, 1, 1), mode="replicate")
    return right, -down


def losses(raw: Tensor, b: Batch) -> dict[str, Tensor]:
    """Parts of the loss. Errors are divided by the scales that the network predicts for them: a Laplace likelihood,
    damped
    as in Seitzer et al. (2022), so that the network also predicts its confidence."""
    log_b = log_scales(raw)
    mask, area = b.mask, b.mask.sum().clamp_min(1)

    def likelihood(error: Tensor, k: int) -> Tensor:
        s = log_b[:, k : k + 1]
        return ((error * (-s).exp() + s) * s.detach().exp().sqrt() * mask).sum() / area

    colour = (b.lit + raw[:, :3] - b.albedo).abs()
    edges = [(a[..., 1:] - a[..., :-1], a[..., 1:, :] - a[..., :-1, :]) for a in (b.lit + raw[:, :3], b.albedo)]
    sharp = (edges[0][0] - edges[1][0]).abs().mean() + (edges[0][1] - edges[1][1]).abs().mean()
    gloss = (torch.sigmoid(raw[:, 3:4]) - b.roughness).abs()
    is_metal = F.binary_cross_entropy_with_logits(raw[:, 4:5], b.metalness, reduction="none")
    # Compare slopes like normals, among which steep slopes differ little.
    predicted, true = (s / (1 + s.square().sum(1, keepdim=True)).sqrt() for s in (raw[:, 6:8], b.slopes))
    shape = (predicted - true).abs().sum(1, keepdim=True)
    right, up = relief_steps(raw[:, 5:6])
    rise, lift = relief_steps(b.relief)
    relief = ((right - rise).abs() + (up - lift).abs()).clamp_max(2) * mask
    return {
        "colour": 2.0 * likelihood(colour.mean(1, keepdim=True), 0) + 1.5 * sharp,
        "gloss": likelihood(gloss + 0.2 * is_metal, 1) + 0.3 * (is_metal * mask).sum() / area,
        "shape": likelihood(shape, 2) + 0.5 * relief.sum() / area,
    }


@torch.no_grad()
def assess(net: MaterialNet, held: Shards, count: int, size: int = 16) -> dict[str, float]:
    """Figures on held-out pictures, over the pixels that the subject fills.

    psnr: of the base colour, dB, mean over pictures. psnr_lit: the same for the lit picture as an estimate. gain: their
    difference. roughness: mean error. metalness: share of correct pixels. angle: mean angle between normals, degrees.
    flat_angle: the same for a flat estimate. trust: rank correlation of confidence and error.
    """
    rows: list[list[float]] = []
    sure: list[tuple[float, float]] = []
    for start in range(0, min(count, len(held)), size):
        b = batch_of(np.stack([held[i] for i in range(start, min(start + size, count, len(held)))]))
        maps = estimate(net, b.lit.contiguous(memory_format=torch.channels_last))
        true = F.normalize(torch.cat([-b.slopes, torch.ones_like(b.slopes[:, :1])], 1), dim=1)
        for i in range(len(b.lit)):
            m = b.mask[i, 0] > 0
            if m.sum() < 50:
                continue
            errors = [(x[i][:, m] - b.albedo[i][:, m]).square().mean().item() for x in (maps.albedo, b.lit)]
            cosine = (maps.normal[i][:, m] * true[i][:, m]).sum(0).clamp(-1, 1)
            rows.append(
                [
                    *(-10 * math.log10(max(e, 1e-5)) for e in errors),
                    (maps.roughness[i, 0][m] - b.roughness[i, 0][m]).abs().mean().item(),
                    ((maps.metalness[i, 0][m] > 0.5) == (b.metalness[i, 0][m] > 0.5)).float().mean().item(),
                    torch.rad2deg(torch.acos(cosine)).mean().item(),
                    torch.rad2deg(torch.acos(true[i, 2][m].clamp(-1, 1))).mean().item(),
                ]
            )
            sure.append((maps.confidence[i, 0][m].mean().item(), errors[0]))
    psnr, lit, rough, metal, angle, flat = np.mean(rows, 0)
    ranks = np.argsort(np.argsort(np.array(sure), 0), 0)
    trust = float(np.corrcoef(ranks[:, 0], -ranks[:, 1])[0, 1])
    return {
        "psnr": round(float(psnr), 2),
        "psnr_lit": round(float(lit), 2),
        "gain": round(float(psnr - lit), 2),
        "roughness": round(float(rough), 4),
        "metalness": round(float(metal), 4),
        "angle": round(float(angle), 2),
        "flat_angle": round(float(flat), 2),
        "trust": round(trust, 3),
    }


def build(c: dict) -> MaterialNet:
    """Build the network from its settings table."""
    return MaterialNet(tuple(c["widths"]), tuple(c["blocks"]))


def _rate(c: dict, step: int, progress: float) -> float:
    """Learning rate: warm-up, constant, then falling over the rest of this run."""
    rate = c["lr"] * min(1.0, (step + 1) / c["warmup"])
    return rate if progress < c["hold"] else rate * (0.02 + 0.98 * (1 - (progress - c["hold"]) / (1 - c["hold"])))


def train(cfg: Settings, minutes: float | None = None, steps: int | None = None) -> None:
    """Train for either ``minutes`` of wall time or ``steps`` more steps."""
    c = cfg["material"]
    log = Log(cfg.work / "material.jsonl")
    shards, held = (Shards(cfg.work / "pool" / name) for name in ("material", "material_held"))
    torch.manual_seed(c["seed"])
    net = build(c).to(memory_format=torch.channels_last)
    mean = checkpoint.Average(net, c["ema"])
    opt = Orthogonal([{"params": list(net.parameters()), "weight_decay": c["weight_decay"]}], matrices(net), lr=c["lr"])
    path, step, seen = cfg.work / "material.safetensors", 0, 0
    if path.exists():
        state = checkpoint.load(path, {"net": net, "mean": mean}, opt)
        step, seen = state["step"], state["seen"]
    count = sum(p.numel() for p in net.parameters())
    log(stage="material", begins=True, step=step, pictures=len(shards), parameters=count)
    g = np.random.default_rng([c["seed"], step])
    first, begun, saved, recent = step, time.time(), time.time(), []
    progress = 0.0
    while progress < 1.0:
        for group in opt.param_groups:
            group["lr"] = _rate(c, step - first, progress)
        small = g.random() < c["small"]
        crop, n = (c["crop"], c["batch"] * 4) if small else (c["full"], c["batch"])
        b = draw(shards, n, crop, g)
        with torch.autocast("cpu", torch.bfloat16, enabled=c["bf16"]):
            raw = net(b.lit.contiguous(memory_format=torch.channels_last))
        parts = losses(raw.float(), b)
        opt.zero_grad(set_to_none=True)
        sum(parts.values()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        step, seen = step + 1, seen + n
        mean.update(net, step)
        recent.append([v.item() for v in parts.values()])
        progress = (step - first) / steps if steps else (time.time() - begun) / 60 / float(minutes or 1)
        if step % c["log_every"] == 0 or progress >= 1:
            figures = assess(mean.model, held, c["held"]) if step % (5 * c["log_every"]) == 0 or progress >= 1 else {}
            rate = round((step - first) / (time.time() - begun), 2)
            means = dict(zip(parts, np.round(np.mean(recent, 0), 4).tolist(), strict=True))
            log(stage="material", step=step, seen=seen, steps_per_s=rate, **means, **figures)
            recent = []
        if time.time() - saved > 60 * c["save_minutes"] or progress >= 1:
            saved = time.time()
            checkpoint.save(
                path, {"net": net, "mean": mean}, opt, step=step, seen=seen, widths=net.widths, blocks=net.blocks
            )


def load_average(cfg: Settings) -> MaterialNet:
    """The network with the averaged weights of the work folder."""
    net = build(cfg["material"]).to(memory_format=torch.channels_last)
    mean = checkpoint.Average(net, 0.0)
    checkpoint.load(cfg.work / "material.safetensors", {"mean": mean})
    return mean.model


def export(cfg: Settings, out: Path) -> None:
    """Write the network as a folder: config.json, model.safetensors in half precision, and the held-out figures."""
    net = load_average(cfg)
    out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in net.state_dict().items()}
    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps({"widths": net.widths, "blocks": net.blocks}) + "\n")
    figures = assess(net, Shards(cfg.work / "pool" / "material_held"), cfg["material"]["held"])
    (out / "figures.json").write_text(json.dumps(figures) + "\n")


def picture_sheet(net: MaterialNet, pictures: Tensor, truth: Tensor | None = None) -> Image.Image:
    """A sheet with a row per picture (N, 3, S, S): the picture, base colour (and the true one), roughness, metalness,
    normal, relief, confidence."""
    m = estimate(net, pictures)
    relief = (m.relief - m.relief.mean((2, 3), keepdim=True)) / 8 + 0.5
    grey = [t.expand(-1, 3, -1, -1) for t in (m.roughness, m.metalness, relief)]
    columns = [pictures, m.albedo, *([] if truth is None else [truth]), *grey[:2], m.normal / 2 + 0.5, grey[2]]
    columns.append(m.confidence)
    rows = [F.pad(torch.cat(list(row), 2), (0, 0, 0, 2), value=1) for row in zip(*columns, strict=True)]
    sheet = torch.cat(rows, 1).clamp(0, 1).permute(1, 2, 0)
    return Image.fromarray((sheet.numpy() * 255).round().astype(np.uint8))


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=("train", "assess", "sheet", "export"))
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--work", type=Path, help="work folder; default: that of the settings")
    p.add_argument("--minutes", type=float, help="how long to train")
    p.add_argument("--steps", type=int, help="how many steps to train")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, help="a picture of `sheet`, a folder of `export`")
    p.add_argument("--pictures", type=Path, nargs="*", help="for `sheet`: pictures of your own, cut to squares")
    a = p.parse_args(argv)
    torch.set_num_threads(a.threads)
    cfg = load(a.config, a.work)
    if a.command == "train":
        if (a.minutes is None) == (a.steps is None):
            p.error("give either --minutes or --steps")
        train(cfg, a.minutes, a.steps)
        return
    if a.command == "assess":
        held = Shards(cfg.work / "pool" / "material_held")
        print(json.dumps(assess(load_average(cfg), held, len(held))))
        return
    if a.out is None:
        p.error(f"{a.command} needs --out")
    if a.command == "export":
        export(cfg, a.out)
        return
    if a.pictures:
        opened = [Image.open(path).convert("RGB") for path in a.pictures]
        squares = [im.crop((0, 0, min(im.size), min(im.size))).resize((256, 256)) for im in opened]
        x = torch.from_numpy(np.stack([np.asarray(im) for im in squares])).permute(0, 3, 1, 2).float() / 255
        picture_sheet(load_average(cfg), x).save(a.out)
        return
    held = Shards(cfg.work / "pool" / "material_held")
    b = batch_of(np.stack([held[i] for i in range(min(24, len(held)))]))
    picture_sheet(load_average(cfg), b.lit, b.albedo).save(a.out)


if __name__ == "__main__":
    main()
