"""Write the prior's card: the words it knows come from the vocabulary, the measured figures from the logs.

python -m training.card --config training/configs/embedded.toml --out pipeline/prior/embedded/README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training.settings import Settings, load
from training.shapes import GENERIC_NOUNS, THINGS
from training.vocabulary import COLOUR_WORDS, COLOURS, MATERIALS, SHADES, VIEWS, words

_TEXT = """# The embedded prior

A small text-conditional latent diffusion model, trained from nothing on images rendered by `training/` in this
repository. It is here so that `latentkiln` runs, is tested and can be shown without a download and without a GPU.

**Use it for** continuous integration, demonstrations, tests and stylised assets.
**For production use Stable Diffusion** (`--prior <folder>`): this model knows {n_words} words and pictures of
64 pixels, nothing of the real world.

Licence: Apache-2.0, ours. No third-party image, caption or weight went into it.

## What it is

| part | |
|---|---|
| autoencoder | `AutoencoderTiny`, 4x reduction, 4 channels of zero mean and unit variance (`scaling_factor` 1) |
| text encoder | CLIP text model, 128 wide, 3 layers, 24 tokens, every known word one token |
| UNet | (64, 128, 192), one layer a block, 10.9 M parameters, native at 16x16 latents (64 pixels), epsilon prediction |
| latent -> colour | `latent_rgb.json`, least squares on scaled latents |
| words | `words.json`; a word that is not in it means nothing to the model |

## What it knows

Forms of prompt: *a red brick object*, *a house made of white marble, front view*, *blue denim texture*, *gold surface,
close up*, *a wooden crate with iron bands*, *a mossy stone thing*, *a red and white striped cube*.

- **Colours** ({n_colours}): {colours}. Shades: {shades}.
- **Materials** ({n_materials}; each in its own colours, or in any of the colours above): {materials}.
- **Objects** ({n_things}; those with a front in bold): {things}. For anything else: {generic}.
- **Views**: {views}, as in "..., front view". "close up" for details.

It does **not** know: living things other than those above, scenes, people's names, styles of artists, text, numbers,
counts, spatial relations, negations. Unknown words are dropped.

## How good it is

{quality}

## How it was made

{made} `training/README.md` tells how to repeat it and how to go on from these weights.

## What is still ugly

{ugly}
"""


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def quality(cfg: Settings) -> str:
    """The measured figures as Markdown, from the logs of the stages."""
    out = ["| measured | value | target |", "|---|---|---|"]
    auto = [r for r in _rows(cfg.work / "autoencoder.jsonl") if r.get("done")]
    if auto:
        r2 = json.loads((cfg.work / "r2.json").read_text()) if (cfg.work / "r2.json").exists() else auto[-1]["r2"]
        out.append(f"| autoencoder, held-out PSNR | {auto[-1]['psnr']:.1f} dB | 30 dB |")
        out.append(f"| linear latent -> RGB, R2 of red, green, blue | {r2[0]:.2f}, {r2[1]:.2f}, {r2[2]:.2f} | 0.90 |")
    judge = _rows(cfg.work / "judge.jsonl")
    if judge:
        j = judge[-1]
        out.append(
            f"| judge on real held-out images: material / colour / object / view | "
            f"{j['material']:.0%} / {j['colour']:.0%} / {j['object']:.0%} / {j['view']:.0%} | 90% |"
        )
    best = max(_rows(cfg.work / "judged.jsonl"), key=lambda r: r["material"]["top1"], default=None)
    if judge and judge[-1]["material"] < 0.9:
        out.append("| samples, by the judge | not reported: the judge itself is below 90% on real images | 80-95% |")
    elif best:
        for k, want in (("material", "85%"), ("colour", "95%"), ("thing", "80%"), ("view", "75%")):
            b = best[k]
            out.append(
                f"| samples, {k} top-1 (guidance {best['guidance']:g}, n = {b['n']}, chance {b['chance']:.0%}) | "
                f"{b['top1']:.0%} | {want} |"
            )
    # Errors on the latents of another autoencoder cannot be compared.
    since = cfg["card"].get("since_step", 0)
    errors = [r for r in _rows(cfg.work / "unet.jsonl") if "caption" in r and r["step"] >= since]
    if errors:
        out += [
            "",
            "Held-out noise error of the averaged weights over training, for all noise levels and for high noise",
            "(t >= 600), with the caption, the empty caption and another image's caption: the wider apart, the more",
            "the text steers.",
            "",
            "| samples | caption | empty | shuffled | caption, high | empty, high | shuffled, high |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in dict.fromkeys(range(0, len(errors), max(1, len(errors) // 8))) | {len(errors) - 1: None}:
            e = errors[r]
            cells = [f"{e[k]:.4f}" for k in ("caption", "empty", "shuffled")]
            cells += [f"{e[k + '_high']:.5f}" for k in ("caption", "empty", "shuffled")]
            out.append(f"| {e['samples']:,} | {' | '.join(cells)} |")
    return "\n".join(out)


def card(cfg: Settings) -> str:
    """The whole card."""
    last = _rows(cfg.work / "unet.jsonl")[-1]
    c = cfg["card"]
    return _TEXT.format(
        n_words=len(words()),
        n_colours=len(COLOURS),
        colours=", ".join(
            f"{n} ({', '.join(s)})" if (s := [w for w, v in COLOUR_WORDS.items() if v[0] == n]) else n for n in COLOURS
        ),
        shades=", ".join(SHADES),
        n_materials=len(MATERIALS),
        materials="; ".join(", ".join(dict.fromkeys([n, *m.nouns, *m.adjectives])) for n, m in MATERIALS.items()),
        n_things=len(THINGS),
        things="; ".join(
            (f"**{n}**" if t.front else n) + "".join(f", {w}" for w in t.nouns if w != n) for n, t in THINGS.items()
        ),
        generic=", ".join(GENERIC_NOUNS),
        views=", ".join(VIEWS),
        quality=quality(cfg),
        made=f"The UNet has seen {last['samples']:,} samples in {last['hours']:.1f} hours of {c['machine']}.",
        ugly="\n".join(f"- {line}" for line in c["ugly"]),
    )


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--work", type=Path)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args(argv)
    a.out.write_text(card(load(a.config, a.work)))


if __name__ == "__main__":
    main()
