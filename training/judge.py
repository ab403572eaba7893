"""The judge: a small classifier of images, trained on images that the prior has not seen.

    python -m training.judge train --config training/configs/embedded.toml
    python -m training.judge real --config training/configs/embedded.toml
    python -m training.judge samples --config training/configs/embedded.toml --guidance 3.5
    python -m training.judge assets --config training/configs/embedded.toml --out outputs/generate
    python -m training.judge keep --config training/configs/embedded.toml

`keep` writes the trained weights beside this file in half precision. They are used if the work folder has none, so the
figures of a prior can be reproduced without first training a judge for an hour.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor, nn

from training import checkpoint
from training.autoencoder import bytes_of, encode_all, tensor
from training.data import COLOUR_NAMES, MATERIAL_NAMES, OBJECT_NAMES, read_pool, sheet
from training.optimiser import Orthogonal, matrices
from training.settings import Log, Settings, load
from training.shapes import THINGS
from training.text import HEADS
from training.vocabulary import COLOUR_WORDS, COLOURS, MATERIALS, VIEWS

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


def _mirrored_logits(model: Judge, x: Tensor) -> dict[str, Tensor]:
    """Logits by head of images (N, 3, 64, 64), averaged over each image and its mirror image."""
    plain, mirrored = model(x), model(torch.flip(x, [3]))
    return {head: (plain[head] + mirrored[head]) / 2 for head in plain}


@torch.no_grad()
def accuracy(model: Judge, x: Tensor, labels: Tensor) -> dict:
    """Top-1 accuracy by head over the labelled images; for materials also by kind, as ``material_of``."""
    was_training = model.training
    model.eval()
    logits = [_mirrored_logits(model, p) for p in x.split(100)]
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
            out["material_of"] = _by_kind((p == y)[known].numpy(), labels[known, 2].numpy())
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


def _by_kind(hits: np.ndarray, things: np.ndarray) -> dict[str, float]:
    """Shares of `hits` (N,) bool by kind: surfaces, arbitrary shapes, named objects (`things` (N,): 0, 1, larger)."""
    kinds = {"surfaces": things == 0, "shapes": things == 1, "objects": things > 1}
    return {kind: round(float(hits[these].mean()), 3) for kind, these in kinds.items() if these.any()}


def real(cfg: Settings) -> dict:
    """Accuracy of the judge on held-out images of the renderer and on their reconstructions by the autoencoder.

    They are the reference for samples. Returns the figures of ``accuracy``.
    """
    pixels, _, labels = (part[: cfg["judge"]["held"]] for part in read_pool(cfg.work / "pool" / "held", 1))
    model = _load(weights_of(cfg))
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
    model = _load(trained)
    average = copy.deepcopy(model)
    for parameter in average.parameters():
        parameter.data = parameter.data.half()
    checkpoint.save(out, {"model": average}, width=cfg["judge"]["width"])


@cache
def _load(path: Path) -> Judge:
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        width = json.loads(f.metadata()["state"])["width"]
    model = Judge(width)
    checkpoint.load(path, {"model": model})
    return model.eval()


@torch.no_grad()
def score(images: np.ndarray, weights: Path = KEPT) -> list[dict]:
    """Classify images (N, H, W, 3), uint8 or float in [0, 1], which are resized to 64 x 64.

    Returns for each image and head (material, colour, thing, view) the best name, its probability, and all logits as
    `<head>_logits` (n,) float32.
    """
    x = torch.from_numpy(np.ascontiguousarray(images))
    x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float() * 2 - 1
    x = (
        F.interpolate(x.permute(0, 3, 1, 2), size=(64, 64), mode="area")
        if x.shape[1:3] != (64, 64)
        else x.permute(0, 3, 1, 2)
    )
    rows: list[dict] = []
    for part in x.split(100):
        logits = _mirrored_logits(_load(weights), part)
        for i in range(len(part)):
            row: dict = {}
            for k, names in NAMES.items():
                p = logits[k][i].softmax(0)
                row[k] = names[int(p.argmax())]
                row[k + "_p"] = round(float(p.max()), 4)
                row[k + "_logits"] = logits[k][i].numpy()
            rows.append(row)
    return rows


def questions(count: int, seed: int) -> list[tuple[str, dict[str, str]]]:
    """Prompts with the labels of their samples, in turn of three kinds: surfaces, arbitrary shapes, named objects."""
    g = np.random.default_rng([seed, 77])
    out: list[tuple[str, dict[str, str]]] = []
    materials = [m for m in MATERIAL_NAMES if m != "plastic"]
    for i in range(count):
        m, c = materials[i % len(materials)], COLOUR_NAMES[int(g.integers(len(COLOUR_NAMES)))]
        adjective = MATERIALS[m].adjectives[0]
        coloured = g.random() < 0.6
        want = {"material": m, **({"colour": c} if coloured else {})}
        word = f"{c} {adjective}" if coloured else adjective
        kind = i % 3
        if kind == 0:
            out.append((f"{word} texture", want))
        elif kind == 1:
            out.append((f"a {word} object", want))
        else:
            names = [n for n, t in THINGS.items() if t.front] if g.random() < 0.6 else list(THINGS)
            n = names[int(g.integers(len(names)))]
            plain = g.random() < 0.5
            want = {"thing": n} if plain else {**want, "thing": n}
            prompt = f"a {n}" if plain else f"a {word} {n}"
            if THINGS[n].front:
                view = ("front", "side", "back", "overhead")[int(g.integers(4))]
                prompt += f", {view} view"
                want["view"] = view
            out.append((prompt, want))
    return out


def joint_answer(rows: list[dict], head: str) -> str:
    """The joint answer of several rows of `score`: the name with the largest product of probabilities."""
    total = sum(torch.from_numpy(row[head + "_logits"]).log_softmax(0) for row in rows)
    return NAMES[head][int(total.argmax())]


def score_tiles(image: np.ndarray, weights: Path) -> dict[str, str]:
    """Classify the 64-pixel tiles of a larger flat piece (S, S, 3) jointly, by head."""
    n = image.shape[0] // 64
    tiles = image[: 64 * n, : 64 * n].reshape(n, 64, n, 64, 3).swapaxes(1, 2).reshape(-1, 64, 64, 3)
    rows = score(tiles, weights)
    return {head: joint_answer(rows, head) for head in NAMES}


def judge_samples(
    cfg: Settings,
    count: int,
    guidance: float,
    steps: int,
    seed: int,
    out: Path | None,
    prior: Path | None = None,
    size: int = 16,
) -> dict:
    """Draw `count` samples with the exported folder `prior`, or with the work folder, and return top-1 by label.

    size: latent pixels a side. Larger samples of surfaces are judged by their tiles, others at 64 pixels.
    """
    from training.sample import draw, load_pipeline

    asked = questions(count, seed)
    images = draw(load_pipeline(cfg, prior), [p for p, _ in asked], seed, guidance, steps, size)
    weights = weights_of(cfg)
    if size == 16:
        got = score(images, weights)
    else:
        # Every third asks for a surface (see `questions`).
        others = iter(score(images[np.arange(count) % 3 > 0], weights))
        got = [next(others) if i % 3 else score_tiles(image, weights) for i, image in enumerate(images)]
    hits: dict[str, list[bool]] = {}
    kinds = []
    for i, ((_, want), row) in enumerate(zip(asked, got, strict=True)):
        for k, v in want.items():
            hits.setdefault(k, []).append(row[k] == v)
            kinds += [i % 3] if k == "material" else []
    if out:
        sheet(images[:96], 12).save(out)
    return {"material_of": _by_kind(np.array(hits["material"]), np.array(kinds))} | {
        k: {"top1": round(float(np.mean(v)), 3), "n": len(v), "chance": round(1 / len(NAMES[k]), 3)}
        for k, v in hits.items()
    }


def labels_in(prompt: str) -> dict[str, str]:
    """The labels that a prompt names, by head: material, colour and object."""
    words = " ".join(w.strip(",.") for w in prompt.lower().split())
    names = {
        "material": {w: m for m, about in MATERIALS.items() for w in (*about.nouns, *about.adjectives)},
        "colour": {c: c for c in COLOURS} | {w: about[0] for w, about in COLOUR_WORDS.items()},
        "thing": {w: n for n, about in THINGS.items() for w in about.nouns},
    }
    labels_found = {}
    for head, table in names.items():
        # Prefer longer phrases ("polka dots" to "dots"), then the first word.
        hits = [(f" {words} ".find(f" {w} "), -len(w), name) for w, name in table.items() if f" {w} " in f" {words} "]
        if hits:
            labels_found[head] = min(hits)[2]
    return labels_found


def judge_assets(root: Path, weights: Path) -> dict:
    """Top-1 by label over the finished assets below ``root``, from six views of each, jointly and one by one.

    The views are those of ``preview.png``: level from four sides, and from two corners. ``all`` is the share of assets
    with every label of the prompt right.
    """
    all_right: list[bool] = []
    guessed: list[float] = []
    asset: dict[str, list[bool]] = {}
    view: dict[str, list[bool]] = {}
    for record in sorted(root.glob("*/record.json")):
        prompt = str(json.loads(record.read_text(encoding="utf-8"))["inputs"]["job"]["prompt"])
        picture = np.asarray(Image.open(record.parent / "preview.png").convert("RGB"))
        side = picture.shape[1] // 4
        tiles = picture.reshape(-1, side, 4, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[:6]
        rows = score(tiles, weights)
        answers = {}
        asked = labels_in(prompt)
        for head, name in asked.items():
            if name not in NAMES[head]:
                continue
            answers[head] = joint_answer(rows, head)
            asset.setdefault(head, []).append(answers[head] == name)
            view.setdefault(head, []).extend(row[head] == name for row in rows)
        if answers:
            all_right.append(all(name == asked[head] for head, name in answers.items()))
            guessed.append(float(np.prod([1 / len(NAMES[head]) for head in answers])))
        print(f"{record.parent.name}: {prompt!r} looks like {answers}", flush=True)
    labels_found = {}
    if all_right:
        labels_found["all"] = {
            "top1": round(float(np.mean(all_right)), 3),
            "n": len(all_right),
            "chance": round(float(np.mean(guessed)), 4),
        }
    return labels_found | {
        k: {
            "top1": round(float(np.mean(v)), 3),
            "views": round(float(np.mean(view[k])), 3),
            "n": len(v),
            "chance": round(1 / len(NAMES[k]), 3),
        }
        for k, v in asset.items()
    }


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("command", choices=("train", "real", "samples", "assets", "keep"))
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--work", type=Path)
    p.add_argument("--count", type=int, default=258)
    p.add_argument("--guidance", type=float, action="append")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--size", type=int, default=16, help="samples: latent pixels a side")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--resume", action="store_true", help="train: continue from existing weights")
    p.add_argument("--prior", type=Path, help="samples: exported folder; default: the work folder")
    p.add_argument("--out", type=Path, help="samples: a contact sheet; assets: the output root of a run; keep: a file")
    a = p.parse_args(argv)
    torch.set_num_threads(a.threads)
    cfg = load(a.config, a.work)
    if a.command == "train":
        train(cfg, a.resume)
        return
    if a.command == "keep":
        keep(cfg, a.out or KEPT)
        return
    if a.command == "real":
        Log(cfg.work / "judge.jsonl")(stage="judge", real=True, **real(cfg))
        return
    log = Log(cfg.work / "judged.jsonl")
    if a.command == "assets":
        if a.out is None:
            p.error("assets: --out names the output root of a run")
        log(stage="assets", root=a.out.name, **judge_assets(a.out, weights_of(cfg)))
        return
    from training.sample import GUIDANCE

    for guidance in a.guidance or [GUIDANCE]:
        log(
            stage="samples",
            guidance=guidance,
            steps=a.steps,
            seed=a.seed,
            size=a.size,
            **judge_samples(cfg, a.count, guidance, a.steps, a.seed, a.out, a.prior, a.size),
        )


if __name__ == "__main__":
    main()
