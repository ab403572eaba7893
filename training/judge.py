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
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from training.data import COLOUR_NAMES, MATERIAL_NAMES, sheet
from training.judge_network import (
    KEPT,
    NAMES,
    by_kind,
    keep,
    load_judge,
    mirrored_logits,
    real,
    train,
    weights_of,
)
from training.settings import Log, Settings, load
from training.shapes import THINGS
from training.vocabulary import COLOUR_WORDS, COLOURS, MATERIALS


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
        logits = mirrored_logits(load_judge(weights), part)
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
    return {"material_of": by_kind(np.array(hits["material"]), np.array(kinds))} | {
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
