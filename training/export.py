"""Stage 4: writes the averaged weights as a diffusers folder.

    python -m training.export --config training/configs/embedded.toml --out pipeline/prior/embedded

Files are written to a temporary folder beside the target and moved in one by one, so that no reader sees an incomplete
file.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open

from training import checkpoint, text
from training.autoencoder import encode_all, latent_rgb, tensor
from training.data import read_pool
from training.settings import Settings, load, parser
from training.shapes import GENERIC_NOUNS, THINGS
from training.unet import Trainee
from training.unet import build as build_unet
from training.vocabulary import COLOUR_WORDS, COLOURS, MATERIALS, SHADES, VIEWS, words


def pipeline(cfg: Settings) -> StableDiffusionPipeline:
    """The float32 pipeline of the averaged weights in the work folder."""
    vocabulary = text.Vocabulary()
    model = Trainee(build_unet(cfg["unet"], cfg["text"]["width"]), text.build(vocabulary, cfg["text"]))
    ema = checkpoint.Average(model, 0.0)
    checkpoint.load(cfg.work / "unet.safetensors", {"ema": ema})
    text.fill_pieces(ema.model.encoder, vocabulary)
    vae = AutoencoderTiny.from_pretrained(cfg.work / "vae")
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=cfg["unet"]["prediction"],
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=ema.model.encoder,
        tokenizer=vocabulary.tokenizer,
        unet=ema.model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def word_list() -> dict:
    """The content of `words.json`: every known word, and the words by kind."""
    return {
        "words": words(),
        "materials": {
            n: sorted({*m.nouns, *m.adjectives} - {n}, key=lambda w: (len(w), w)) for n, m in MATERIALS.items()
        },
        "colours": {n: [w for w, v in COLOUR_WORDS.items() if v[0] == n] for n in COLOURS},
        "shades": list(SHADES),
        "objects": {n: [w for w in t.nouns if w != n] for n, t in THINGS.items()},
        "objects_with_front": [n for n, t in THINGS.items() if t.front],
        # Objects of several materials: a single tile cannot paint them.
        "objects_with_parts": [n for n, t in THINGS.items() if t.parts],
        "any_object": list(GENERIC_NOUNS),
        "surface": "surface",
        "views": list(VIEWS),
    }


def export(cfg: Settings, out: Path) -> None:
    """Write the folder `out` from the work folder. Other files in `out`, such as the card, stay."""
    pipe = pipeline(cfg).to(torch.float16)
    pixels = read_pool(cfg.work / "pool" / "held", 1)[0][: cfg["export"]["fit"]]
    vae = AutoencoderTiny.from_pretrained(cfg.work / "vae")
    matrix, bias, r2 = latent_rgb(encode_all(vae, pixels).float(), tensor(pixels))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as tmp:
        pipe.save_pretrained(tmp, safe_serialization=True)
        new = Path(tmp)
        for config in new.rglob("*.json"):
            values = json.loads(config.read_text())
            if not isinstance(values, dict):
                continue
            # Remove local paths, which are private and would change the hash.
            changed = values.pop("_name_or_path", None) is not None
            # transformers loads a model in the format that its config names, diffusers its own models in float32. The
            # weights stay float16 on disk, and every part of the pipeline is loaded in one format.
            for key in ("dtype", "torch_dtype"):
                if key in values:
                    changed, values[key] = True, "float32"
            if changed:
                config.write_text(json.dumps(values, indent=2) + "\n")
        # Number of samples of these weights, so that training that continues from them counts on.
        with safe_open(cfg.work / "unet.safetensors", "pt") as f:
            (new / "training.json").write_text(f.metadata()["state"] + "\n")
        (new / "words.json").write_text(json.dumps(word_list(), indent=1) + "\n")
        rows = {
            "convention": "rgb in [0,1] = latent @ matrix + bias, on scaled latents",
            "matrix": [[round(float(v), 6) for v in row] for row in matrix],
            "bias": [round(float(v), 6) for v in bias],
            "r2": [round(float(v), 4) for v in r2],
        }
        (new / "latent_rgb.json").write_text(json.dumps(rows, indent=1) + "\n")
        for source in sorted(new.rglob("*")):
            target = out / source.relative_to(new)
            if source.is_dir():
                target.mkdir(exist_ok=True)
            else:
                partial = target.with_name(f".{target.name}.partial")
                shutil.copyfile(source, partial)
                os.replace(partial, target)


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = parser(__doc__)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args(argv)
    export(load(a.config, a.work), a.out)


if __name__ == "__main__":
    main()
