"""Writes the prior's model card, with words from the vocabulary and measured figures from the logs.

python -m training.card --config training/configs/embedded.toml --out pipeline/prior/embedded/README.md
"""

from __future__ import annotations

import json
from pathlib import Path

from training.curves import points
from training.sample import GUIDANCE
from training.settings import Settings, load, parser
from training.shapes import GENERIC_NOUNS, THINGS
from training.vocabulary import COLOUR_WORDS, COLOURS, MATERIALS, SHADES, VIEWS, words

_TEXT = """# The embedded prior

A small text-conditional latent diffusion model, trained from scratch on images rendered by `training/` in this
repository. With it `latentkiln` runs, can be tested and can be demonstrated without a download and without a GPU.

**Use it for** continuous integration, demonstrations, tests and stylised assets.
**For production use Stable Diffusion** (`--prior <folder>`): this model knows {n_words} words and pictures of
64 to 128 pixels, and nothing of the real world.

Licence: Apache-2.0, ours. No third-party image, caption or weight went into it.

## What it is

| part | |
|---|---|
| autoencoder | `AutoencoderTiny`, 4x reduction, 4 channels of zero mean and unit variance (`scaling_factor` 1) |
| text encoder | CLIP text model, 128 wide, 3 layers, 24 tokens, every known word one token |
| UNet | (64, 128, 192), one layer a block, 10.9 M parameters, v-prediction; native at 16x16 latents, tuned at 32x32 |
| latent -> colour | `latent_rgb.json`, least squares on scaled latents |
| words | `words.json`; other words have no meaning for the model |

## What it knows

Forms of prompt: *a red brick object*, *a house made of white marble, front view*, *blue knitted texture*,
*gold surface, close up*, *a wooden barrel with iron bands*, *a mossy stone*, *a red and white striped cube*.

- **Colours** ({n_colours}): {colours}. Shades: {shades}.
- **Materials** ({n_materials}; each in its own colours, or in any of the colours above): {materials}.
- **Objects** ({n_things}; those with a front in bold): {things}. For other shapes: {generic}.
- **Views**: {views}, as in "..., front view". "close up" for details.

It does **not** know: living things other than those above, scenes, people's names, styles of artists, text, numbers,
counts, spatial relations, negations. Unknown words are dropped.

## How good it is

{quality}

The prompts of judged samples use one word per material, and the plain names of colours, objects and views. Synonyms,
"made of", two materials in a prompt, close-ups and views from below are trained but not measured. Pictures in the
repository: `docs/samples.jpg` (96 samples, one of each kind of question in turn), `docs/samples-128.jpg` (the same with
128 pixels), `docs/reconstructions.jpg` (held-out images above their reconstructions), `docs/painted.jpg`
(painted meshes), `docs/recognition.jpg` (assets grown from prompts), `docs/demo.jpg`; `docs/held-out.svg` draws the
errors above.

## How it was made

{made} Autoencoder, decoder, text encoder and judge took further
hours, which are not counted. `training/README.md` describes how to repeat it and how to continue from these weights.

## Known weaknesses

{ugly}
"""


_THROUGH = "_through_autoencoder"


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _last_samples(rows: list[dict], size: int = 16) -> list[dict]:
    """The last judgement of each seed's samples of `size` latent pixels a side, at the default guidance."""
    rows = [row for row in rows if row.get("stage") == "samples" and row.get("size", 16) == size]
    return list({row["seed"]: row for row in rows if row["guidance"] == GUIDANCE}.values())


def quality(cfg: Settings) -> str:
    """The measured figures as Markdown, read from the stages' logs."""
    out = ["| measured | value | target |", "|---|---|---|"]
    auto = [r for r in _rows(cfg.work / "autoencoder.jsonl") if r.get("done")]
    if auto:
        r2 = auto[-1]["r2"]
        out.append(f"| autoencoder, held-out PSNR | {auto[-1]['psnr']:.1f} dB | 30 dB |")
        out.append(f"| linear latent -> RGB, R2 of red, green, blue | {r2[0]:.2f}, {r2[1]:.2f}, {r2[2]:.2f} | 0.90 |")
    judge = _rows(cfg.work / "judge.jsonl")
    if judge:
        j = judge[-1]
        out.append(
            f"| judge on real held-out images: material / colour / object / view | "
            f"{j['material']:.0%} / {j['colour']:.0%} / {j['object']:.0%} / {j['view']:.0%} | 90% |"
        )
        if "material_of" in j:
            real, back = (", ".join(f"{k} {v:.0%}" for k, v in j["material_of" + n].items()) for n in ("", _THROUGH))
            out.append(f"| its materials by kind | {real} | |")
            out.append(
                f"| the same images through the autoencoder: material | {j['material' + _THROUGH]:.0%} ({back}) | |"
            )
    samples = _last_samples(_rows(cfg.work / "judged.jsonl"))
    for k, name, want in (("material", "material", "85%"), ("colour", "colour", "95%"), ("thing", "object", "80%"),
                          ("view", "view word", "75%")):  # fmt: skip
        if judge and samples:
            shares = [row[k]["top1"] for row in samples]
            out.append(
                f"| samples, {name} top-1 by that judge (guidance {samples[0]['guidance']:g}, seeds: {len(samples)}, "
                f"n = {sum(row[k]['n'] for row in samples)}, chance {samples[0][k]['chance']:.0%}) | "
                f"{sum(shares) / len(shares):.0%} ({min(shares):.0%} to {max(shares):.0%}) | {want} |"
            )
    if judge and samples and all("material_of" in row for row in samples):
        means = {k: sum(row["material_of"][k] for row in samples) / len(samples) for k in samples[0]["material_of"]}
        out.append(f"| samples, material by kind | {', '.join(f'{k} {v:.0%}' for k, v in means.items())} | |")
    for row in _last_samples(_rows(cfg.work / "judged.jsonl"), 32)[-1:] if judge else []:
        kinds = ", ".join(f"{k} {v:.0%}" for k, v in row["material_of"].items())
        asked = [row[k] for k in ("material", "colour", "thing", "view")]
        shares, counts = " / ".join(f"{a['top1']:.0%}" for a in asked), " / ".join(str(a["n"]) for a in asked)
        out.append(
            f"| samples of 128 pixels (32x32 latents), material / colour / object / view word by that judge (guidance "
            f"{GUIDANCE:g}, one seed, n = {counts}) | {shares} (material: {kinds}) | |"
        )
    painted = [r for r in _rows(cfg.work / "judged.jsonl") if r.get("stage") == "assets" and r["root"] == "painted"]
    if judge and painted:  # of benchmarks/painted.py
        row = painted[-1]
        for k, want in (("material", "80%"), ("colour", "90%")):
            out.append(
                f"| painted meshes, {k} top-1 by that judge (one answer from all views of an asset, n = {row[k]['n']}, "
                f"chance {row[k]['chance']:.0%}) | {row[k]['top1']:.0%} | {want} |"
            )
    if judge and samples and judge[-1]["material"] < 0.9:
        out += [
            "",
            "The judge's own errors affect these figures: what it misses on held-out images it also misses on samples.",
        ]
    # Errors on the latents of another autoencoder cannot be compared.
    errors = points(cfg.work / "unet.jsonl", cfg["card"].get("since_step", 0))
    if errors:
        out += [
            "",
            "Held-out noise error of the averaged weights over training, for all noise levels and for high noise",
            "(t >= 600), with the caption, the empty caption and another image's caption. The wider apart they are,",
            "the stronger is the influence of the text.",
            "",
            "| samples | caption | empty | shuffled | caption, high | empty, high | shuffled, high |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in dict.fromkeys(range(0, len(errors), max(1, len(errors) // 8))) | {len(errors) - 1: None}:
            e = errors[r]
            cells = [f"{e[k]:.4f}" for k in ("caption", "empty", "shuffled")]
            cells += [f"{e[k + '_high']:.5f}" for k in ("caption", "empty", "shuffled")]
            out.append(f"| {e['samples']:,} | {' | '.join(cells)} |")
        if "about_errors" in cfg["card"]:
            out += ["", cfg["card"]["about_errors"]]
    return "\n".join(out)


def card(cfg: Settings) -> str:
    """The card as Markdown."""
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
    p = parser(__doc__)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args(argv)
    a.out.write_text(card(load(a.config, a.work)))


if __name__ == "__main__":
    main()
