"""Training images with captions and labels: an endless stream, a pure function of (seed, index).

python -m training.data sheet --out sheet.png            # look at it
python -m training.data pool --config training/configs/embedded.toml   # cached shards for training
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training import shapes
from training.patterns import PATTERNS
from training.render import ROW, SLOT, render
from training.vocabulary import (
    COLOUR_WORDS,
    COLOURS,
    MATERIALS,
    SHADES,
    VIEWS,
    Material,
    natural,
    swatch,
    tinted,
)

MATERIAL_NAMES, COLOUR_NAMES, OBJECT_NAMES = (
    list(MATERIALS),
    list(COLOURS),
    ["surface", "object", *shapes.THINGS],
)
Rng = np.random.Generator
# Patterns on whole shapes are coarser than on flat pieces: they must be told apart where a part is 20 pixels wide.
_WHOLE = 0.85


@dataclass
class Sample:
    """One training image: pixels uint8 (S, S, 3), caption, labels (-1: not said or not sure)."""

    pixels: np.ndarray
    caption: str
    material: int
    colour: int
    thing: int
    view: int
    close: bool


def _pick(g: Rng, options):
    return options[int(g.integers(len(options)))]


def _colour(g: Rng) -> tuple[str, int, np.ndarray]:
    """A colour word or phrase, its label and an rgb."""
    if g.random() < 0.16:
        word = _pick(g, list(COLOUR_WORDS))
        base, value, white = COLOUR_WORDS[word]
        return word, COLOUR_NAMES.index(base), swatch(g, base, value, white)
    base = _pick(g, COLOUR_NAMES)
    if g.random() < 0.1 and base not in ("black", "white"):
        shade = _pick(g, list(SHADES))
        value, white = SHADES[shade]
        return f"{shade} {base}", COLOUR_NAMES.index(base), swatch(g, base, value, white)
    return base, COLOUR_NAMES.index(base), swatch(g, base)


def _article(g: Rng, phrase: str) -> str:
    k = g.random()
    if k < 0.72:
        return ("an " if phrase[0] in "aeiou" else "a ") + phrase
    return "the " + phrase if k < 0.8 else phrase


@dataclass
class Look:
    """A material with a colour: the words for it and its palette (3, 3)."""

    name: str
    colour: str
    colour_id: int
    palette: np.ndarray

    @property
    def material(self) -> Material:
        return MATERIALS[self.name]

    def adjective(self, g: Rng) -> str:
        return f"{self.colour} {_pick(g, self.material.adjectives)}".strip()

    def noun(self, g: Rng) -> str:
        return f"{self.colour} {_pick(g, self.material.nouns)}".strip()


def _look(g: Rng, name: str | None = None, coloured: float = 0.58) -> Look:
    name = name or _pick(g, MATERIAL_NAMES)
    m = MATERIALS[name]
    if name == "plastic" or g.random() < coloured:
        word, cid, rgb = _colour(g)
        palette = tinted(g, rgb, m.tint)
        if m.tint[1] == "C" and name != "honeycomb" and g.random() < 0.3:
            word2, _, rgb2 = _colour(g)
            if word2 != word and np.abs(rgb - rgb2).sum() > 0.5:
                palette[1] = rgb2
                return Look(name, f"{word} and {word2}", -1, palette)
        return Look(name, word, cid, palette)
    return Look(name, "", -1, natural(g, name))


def _fixed(g: Rng, name: str, colour: str) -> Look:
    """A part's own material: colour may be a plain colour, '', or one of two special palettes."""
    if colour == "skin":
        tone = _pick(g, ("e8b894", "c68e64", "8c5a3c", "f0c8a8"))
        return Look(name, "", -1, np.tile([int(tone[i : i + 2], 16) / 255 for i in (0, 2, 4)], (3, 1)))
    if colour == "cow":
        return Look(name, "", -1, np.array([[0.95, 0.94, 0.92], [0.12, 0.1, 0.1], [0.95, 0.94, 0.92]]))
    if colour:
        return Look(name, colour, COLOUR_NAMES.index(colour), tinted(g, swatch(g, colour), MATERIALS[name].tint))
    return Look(name, "", -1, natural(g, name))


class Stage:
    """The numeric side of one scene: four surface slots, camera, light, background."""

    def __init__(self, g: Rng) -> None:
        self.kinds = np.zeros(4, np.int64)
        self.freq = np.ones(4)
        self.rot = np.tile(np.eye(3).ravel(), (4, 1))
        self.off = g.uniform(-40, 40, (4, 3))
        self.pal = np.full((4, 3, 3), 0.5)
        self.seeds = g.integers(1, 1 << 20, 4)
        self.overlay = np.array([-1.0, 0, 0, 0, -1])

    def surface(self, g: Rng, slot: int, look: Look, scale: float = 1.0) -> None:
        """Put a look into a slot with a random density and turn."""
        m = look.material
        self.kinds[slot] = PATTERNS.index(look.name)
        self.freq[slot] = 3.5 * m.scale * math.exp(g.uniform(-0.22, 0.22)) * scale
        turn = m.turn * math.pi if g.random() < 0.8 else 0.04
        a = g.uniform(-turn, turn)
        b = g.uniform(-math.pi, math.pi) if m.turn >= 1 else 0.0
        self.rot[slot] = shapes.rotation(b, 0.0, a).ravel()
        self.pal[slot] = look.palette


def _background(g: Rng, avoid: np.ndarray) -> tuple[np.ndarray, str]:
    """Background row (15,) and its caption word ('' when it has none)."""
    bg = np.zeros(15)

    def colour() -> tuple[np.ndarray, str]:
        k = g.random()
        for _ in range(6):
            if k < 0.45:
                name = _pick(g, ("white", "black", "grey"))
                c = swatch(g, name)
            elif k < 0.65:
                name, c = "", np.full(3, g.uniform(0, 1))
            elif k < 0.85:
                name = _pick(g, COLOUR_NAMES)
                c = swatch(g, name)
            else:
                name, c = "", g.uniform(0, 1, 3)
            if np.abs(c - avoid).sum() > 0.45:
                break
        return c, name

    kind = int(g.choice(4, p=[0.74, 0.14, 0.07, 0.05]))
    bg[0] = kind
    bg[1:4], name = colour()
    bg[4:7], _ = colour()
    bg[7:10], _ = colour()
    if kind == 3:
        bg[10], bg[11] = g.uniform(-0.4, 0.4), g.uniform(-0.15, 0.15)
    else:
        a = g.uniform(0, 2 * math.pi)
        bg[10], bg[11] = math.cos(a), math.sin(a)
    bg[12], bg[13], bg[14] = g.uniform(0.8, 3.0), float(g.integers(1, 99999)), g.uniform(0, 0.9)
    return bg, name if kind == 0 else ""


def _camera(g: Rng, close: bool) -> tuple[np.ndarray, str]:
    """Camera row (14,) and its view word, by the buckets of the program (front is +-35 degrees about +Z); none within
    8 degrees of where one word ends and another begins, where either is right."""
    k = g.random()
    if k < 0.10:
        theta = math.radians(g.uniform(2, 30))
    elif k < 0.13:
        theta = math.radians(g.uniform(150, 178))
    else:
        theta = math.radians(np.clip(g.normal(76, 13), 31, 120))
    phi = g.uniform(-math.pi, math.pi)
    k = g.random()
    # The two narrow buckets are worth more than their share of the circle.
    if k < 0.22:
        phi = math.radians(g.uniform(-35, 35))
    elif k < 0.34:
        phi = math.pi + math.radians(g.uniform(-35, 35))
    deg = abs(math.degrees(math.atan2(math.sin(phi), math.cos(phi))))
    if theta <= math.radians(30):
        view = "overhead"
    elif theta >= math.radians(150):
        view = "bottom"
    else:
        view = "front" if deg <= 35 else "back" if deg >= 145 else "side"
        if min(abs(deg - 35), abs(deg - 145)) < 8:
            view = ""
    # As the program's own cameras look; what varies here without need is learned at the cost of shapes.
    fov = math.radians(g.uniform(36, 52))
    half = g.uniform(1.1, 1.3) if not close else g.uniform(0.5, 0.8)
    dist = half / math.tan(fov / 2) if not close else 1.3 / math.tan(fov / 2)
    tan = math.tan(fov / 2) if not close else half / dist
    d = np.array([math.sin(theta) * math.sin(phi), math.cos(theta), math.sin(theta) * math.cos(phi)])
    eye = d * dist
    look = g.normal(0, 0.02, 3) if not close else g.normal(0, 0.22, 3)
    fwd = look - eye
    fwd /= np.linalg.norm(fwd)
    right = np.cross(fwd, [0, 1, 0])
    right /= np.linalg.norm(right)
    up = np.cross(right, fwd)
    return np.concatenate([eye, right, up, fwd, [tan, 1.0]]), view


def make(seed: int, index: int, size: int = 64, finer: float = 0.0, wide: float = 1.0) -> Sample:
    """Image number `index` of stream `seed` at size x size pixels. Patterns on half of the whole shapes are up to
    exp(`finer`) times finer than elsewhere, all else the same. Flat pieces are `wide` times as wide, and patterns on
    whole shapes as many times finer: with as many times the pixels, patterns are of the same pixels."""
    g = np.random.default_rng([seed, index])
    stage = Stage(g)
    apart = np.random.default_rng([seed, index, 1])
    whole = wide * _WHOLE * (math.exp(apart.uniform(0, finer)) if apart.random() < 0.5 else 1.0)
    k = g.random()
    if k < 0.25:
        return _flat(g, stage, size, wide)
    close = g.random() < (0.3 if k < 0.48 else 0.03)
    warp = np.zeros(3)
    name, thing = "", None
    if k < 0.39:
        prims = shapes.assembly(g)
    elif k < 0.48:
        prims, warp = shapes.blob(g)
    else:
        # Simple solids count less than things with a front, which have more to learn.
        names = list(shapes.THINGS)
        p = np.array([1.0 if not shapes.THINGS[n].front else 2.2 for n in names])
        name = names[int(g.choice(len(names), p=p / p.sum()))]
        thing = shapes.THINGS[name]
        prims = thing.build(g).array(float(g.uniform(1.05, 1.15)))
        if not thing.front and len(prims) <= 2 and g.random() < 0.12:
            prims = _tilt(prims, g)
    noun = (
        _pick(g, thing.nouns)
        if thing
        else _pick(g, shapes.GENERIC_NOUNS[:3] if g.random() < 0.8 else shapes.GENERIC_NOUNS)
    )
    material_id, colour_id = -1, -1
    two = bool((prims[:, SLOT] == 1).any())
    if thing and thing.own and g.random() < 0.12:
        # A thing in its own materials, no material word.
        pick = _pick(g, thing.own)
        if pick[1] and pick[1] not in ("cow", "skin") and pick[0] == "plastic" and g.random() < 0.6:
            word, colour_id, rgb = _colour(g)
            main = Look("plastic", word, colour_id, tinted(g, rgb, MATERIALS["plastic"].tint))
            phrase = f"{word} {noun}"
        else:
            main = _fixed(g, *pick)
            phrase = noun
        main_look = main
    else:
        # The shape of a thing shows best where nothing is drawn on it.
        main_look = _look(g, "plastic" if thing and g.random() < 0.1 else None)
        material_id, colour_id = MATERIAL_NAMES.index(main_look.name), main_look.colour_id
        phrase = ""
    stage.surface(g, 0, main_look, whole)
    extra = ""
    second = None
    for slot in range(1, 4):
        own = thing.parts[slot - 1] if thing and slot - 1 < len(thing.parts) else None
        if own:
            stage.surface(g, slot, _fixed(g, *own), whole)
    if thing is None:
        prims = prims.copy()
        if two and g.random() < 0.3:
            second = _look(g)
            stage.surface(g, 1, second, whole)
            colour_id = -1
            extra = "parts"
        else:
            prims[:, SLOT] = 0
    elif two and phrase == "" and g.random() < 0.2:
        second = _look(
            g,
            _pick(g, ("metal", "gold", "rust", "copper", "planks", "leather")) if name == "barrel" else None,
        )
        stage.surface(g, 1, second, whole)
        extra = "bands" if name == "barrel" else "parts"
    elif thing and thing.roof and phrase == "":
        prims[prims[:, SLOT] == 1, SLOT] = 0
    if phrase == "":
        if main_look.name == "plastic" and g.random() < 0.5:
            phrase = f"{main_look.colour} {noun}"
        else:
            form = g.random()
            if form < 0.6:
                phrase = f"{main_look.adjective(g)} {noun}"
            elif form < 0.82:
                phrase = f"{noun} made of {main_look.noun(g)}"
            elif form < 0.92 and main_look.colour:
                phrase = f"{main_look.colour} {noun} made of {_pick(g, main_look.material.nouns)}"
            else:
                phrase = f"{noun} of {main_look.noun(g)}"
        if second is not None:
            phrase += _pick(g, (" with ", " and ")) + second.adjective(g) + " " + extra
            material_id = -1
        elif g.random() < 0.07 and main_look.name not in ("moss", "rust", "snow"):
            cover = _pick(g, ("moss", "rust", "snow", "gold", "leaves"))
            over = _look(g, cover, 0.0)
            stage.surface(g, 3, over, wide)
            limit = 0.0 if thing else -1.0
            stage.overlay = np.array(
                [
                    3,
                    g.uniform(0.45, 0.6),
                    g.uniform(1.5, 2.6),
                    0.25 if cover in ("moss", "snow") else 0.0,
                    limit,
                ]
            )
            if cover in ("moss", "rust", "snow") and g.random() < 0.6:
                phrase = {"moss": "mossy", "rust": "rusty", "snow": "snowy"}[cover] + " " + phrase
            else:
                phrase += _pick(g, (" covered with ", " with ", " with patches of ")) + over.noun(g)
            material_id = colour_id = -1
    cam, view = _camera(g, close)
    bg, bg_word = _background(g, stage.pal[0].mean(0) if main_look.colour_id < 0 else stage.pal[0, 0])
    light = np.array([*(_light(g, cam)), g.uniform(0.12, 0.34), 0.0])
    light[4] = g.uniform(0.98, 1.04) - 0.72 * light[3]
    img = render(
        size,
        False,
        cam,
        light,
        prims,
        warp,
        stage.kinds,
        stage.freq,
        stage.rot,
        stage.off,
        stage.pal,
        stage.seeds,
        stage.overlay,
        bg,
    )
    caption = _article(g, phrase)
    if bg_word and not close and g.random() < 0.25:
        caption += f" on a {bg_word} background"
    said = -1
    if close:
        caption = caption + ", close up" if g.random() < 0.8 else "a close up of " + caption
    if g.random() < (0.85 if thing else 0.4) and view:
        caption += f", {view} view"
        said = VIEWS.index(view)
    tid = OBJECT_NAMES.index(name) if name else 1
    return Sample(_bytes(img), caption, material_id, colour_id, tid, said if (thing and not close) else -1, close)


def _tilt(prims: np.ndarray, g: Rng) -> np.ndarray:
    """Turn a simple solid as a whole."""
    m = shapes.rotation(*g.uniform(-0.8, 0.8, 3))
    prims = prims.copy()
    for row in prims:
        row[1:4] = m @ row[1:4]
        row[4:13] = (m @ row[4:13].reshape(3, 3).T).T.ravel()
    return prims


def _light(g: Rng, cam: np.ndarray) -> np.ndarray:
    """Direction to the key light: above and about where the camera is."""
    d = -cam[9:12] + cam[3:6] * g.normal(0, 0.6) + np.array([0, 1, 0]) * abs(g.normal(0.4, 0.4))
    return d / np.linalg.norm(d)


def _flat(g: Rng, stage: Stage, size: int, wide: float) -> Sample:
    """A flat piece of material that fills the picture, `wide` times as wide as plain ones."""
    look = _look(g)
    stage.surface(g, 0, look)
    close = g.random() < 0.7
    cam = np.zeros(14)
    cam[12] = 1.0
    cam[13] = wide * (g.uniform(0.45, 0.85) if close else g.uniform(0.9, 1.3))
    material_id, colour_id = MATERIAL_NAMES.index(look.name), look.colour_id
    # A flat metal mirrors one tone only: a random normal gives it the tones it has elsewhere.
    light = np.array([g.normal(0, 0.3), g.normal(0, 0.3), 1.0, g.uniform(0.1, 0.25), 0.0])
    light[:3] /= np.linalg.norm(light[:3])
    light[4] = g.uniform(0.98, 1.05) - 0.85 * light[3]
    tail = ""
    if g.random() < 0.06 and look.name not in ("moss", "rust", "snow"):
        cover = _pick(g, ("moss", "rust", "snow", "gold"))
        over = _look(g, cover, 0.0)
        stage.surface(g, 3, over)
        stage.overlay = np.array([3, g.uniform(0.45, 0.58), g.uniform(1.5, 2.6), 0.0, -1.0])
        tail = " with " + over.noun(g)
        material_id = colour_id = -1
    img = render(
        size, True, cam, light, np.zeros((0, ROW)), np.zeros(3), stage.kinds, stage.freq, stage.rot, stage.off,
        stage.pal, stage.seeds, stage.overlay, np.zeros(15),
    )  # fmt: skip
    word = look.noun(g) if g.random() < 0.65 else look.adjective(g)
    form = g.random()
    if form < 0.4:
        caption = word + " texture" + tail
    elif form < 0.72:
        caption = word + " surface" + tail
    elif form < 0.86:
        caption = _pick(g, ("a close up of ", "a detail of ")) + look.noun(g) + tail
        close = True
    else:
        caption = look.noun(g) + tail
    if close and "close up" not in caption and g.random() < 0.55:
        caption += ", close up"
    if g.random() < 0.1 and caption[0] != "a":
        caption = ("an " if caption[0] in "eiou" else "a ") + caption
    return Sample(_bytes(img), caption, material_id, colour_id, 0, -1, close)


def _bytes(img: np.ndarray) -> np.ndarray:
    return (np.clip(img, 0, 1) * 255 + 0.5).astype(np.uint8)


def stream(seed: int, start: int = 0, size: int = 64) -> Iterator[Sample]:
    """Endless samples of one stream from an index on."""
    while True:
        yield make(seed, start, size)
        start += 1


# ---------------------------------------------------------------------------------------------- shards


def generator_hash() -> str:
    """Of the sources that decide what a stream shows."""
    sources = ("data", "noise", "patterns", "render", "shapes", "vocabulary")
    text = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in sources)
    return hashlib.sha256(text).hexdigest()[:16]


def write_pool(
    folder: Path,
    seed: int,
    size: int,
    shard: int,
    shards: int,
    part: int = 0,
    parts: int = 1,
    finer: float = 0.0,
    wide: float = 1.0,
) -> None:
    """Fill `folder` with shards (uint8 .npy (N, S, S, 3) and .json labels) that are not there yet, of the images that
    `make` makes; tells how many of those that are there other sources than the present ones made."""
    folder.mkdir(parents=True, exist_ok=True)
    made_by = generator_hash()
    others = [p for p in folder.glob("*.json") if json.loads(p.read_text()).get("made_by") != made_by]
    if others:
        print(
            f"{folder}: {len(others)} shards were made by other sources; delete the folder to make them anew",
            flush=True,
        )
    for k in range(part, shards, parts):
        path = folder / f"{k:05d}.npy"
        if path.exists():
            continue
        start = time.time()
        rows = [make(seed, k * shard + i, size, finer, wide) for i in range(shard)]
        meta = {
            "made_by": made_by,
            "captions": [r.caption for r in rows],
            "labels": [[r.material, r.colour, r.thing, r.view, int(r.close)] for r in rows],
        }
        path.with_suffix(".json.tmp").write_text(json.dumps(meta))
        os.replace(path.with_suffix(".json.tmp"), path.with_suffix(".json"))
        with open(path.with_suffix(".tmp"), "wb") as f:
            np.save(f, np.stack([r.pixels for r in rows]))
        os.replace(path.with_suffix(".tmp"), path)
        print(
            json.dumps({"shard": k, "ms_per_image": round((time.time() - start) / shard * 1000, 2)}),
            flush=True,
        )


def read_labels(path: Path) -> np.ndarray:
    """The labels of one shard alone, int64 (N, 5)."""
    return np.array(json.loads(path.with_suffix(".json").read_text())["labels"], np.int64)


def read_shard(path: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """One shard: pixels uint8 (N, S, S, 3), captions, labels int64 (N, 5) = material, colour, thing, view, close."""
    meta = json.loads(path.with_suffix(".json").read_text())
    return np.load(path), meta["captions"], np.array(meta["labels"], np.int64)


def read_pool(folder: Path, limit: int | None = None) -> tuple[np.ndarray, list[str], np.ndarray]:
    """All finished shards: pixels uint8 (N, S, S, 3), captions, labels int64 (N, 5)."""
    parts = [read_shard(path) for path in sorted(folder.glob("*.npy"))[:limit]]
    pixels, labels = np.concatenate([p[0] for p in parts]), np.concatenate([p[2] for p in parts])
    return pixels, [c for p in parts for c in p[1]], labels


def sheet(images: np.ndarray, columns: int, zoom: int = 2) -> Image.Image:
    """Contact sheet of uint8 images (N, S, S, 3)."""
    n, s = len(images), images.shape[1]
    rows = -(-n // columns)
    canvas = np.full((rows * (s + 2), columns * (s + 2), 3), 255, np.uint8)
    for i, img in enumerate(images):
        y, x = (i // columns) * (s + 2), (i % columns) * (s + 2)
        canvas[y : y + s, x : x + s] = img
    return Image.fromarray(canvas).resize((canvas.shape[1] * zoom, canvas.shape[0] * zoom), Image.Resampling.NEAREST)


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__)
    sub = p.add_subparsers(dest="command", required=True)
    q = sub.add_parser("sheet")
    q.add_argument("--out", type=Path, required=True)
    q.add_argument("--seed", type=int, default=1)
    q.add_argument("--start", type=int, default=0)
    q.add_argument("--count", type=int, default=96)
    q.add_argument("--size", type=int, default=64)
    q = sub.add_parser("pool")
    q.add_argument("--config", type=Path, required=True)
    q.add_argument("--which", default="train")
    q.add_argument("--shards", type=int)
    q.add_argument("--part", type=int, default=0)
    q.add_argument("--parts", type=int, default=1)
    args = p.parse_args(argv)
    if args.command == "sheet":
        rows = [make(args.seed, args.start + i, args.size) for i in range(args.count)]
        sheet(np.stack([r.pixels for r in rows]), 12).save(args.out)
        for i, r in enumerate(rows):
            print(i, r.caption)
        return
    from training.settings import load

    cfg = load(args.config)
    c = cfg["pool"][args.which]
    shards = args.shards or c["shards"]
    drawn = {key: c[key] for key in ("finer", "wide") if key in c}
    write_pool(cfg.work / "pool" / args.which, c["seed"], c["size"], c["shard"], shards, args.part, args.parts, **drawn)


if __name__ == "__main__":
    main()
