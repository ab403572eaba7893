"""Training images with captions and labels: an endless stream, a pure function of (seed, index).

python -m training.data sheet --out sheet.png            # look at it
python -m training.data materials --out materials.png    # every material, as the prior sees it, and its maps
python -m training.data pool --config training/configs/embedded.toml   # cached shards for training
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from training import lights
from training.compose import OBJECT_NAMES, SCALES, slot_of
from training.looks import COLOUR_NAMES, MATERIAL_NAMES, METALS, Look, any_look
from training.pool import generator_hash, read_labels, read_pool, read_shard, write_pool
from training.samples import Sample, make, stream, to_bytes, views
from training.scene import Picture, Scene, flat_picture

__all__ = [
    "COLOUR_NAMES",
    "MATERIAL_NAMES",
    "OBJECT_NAMES",
    "Sample",
    "generator_hash",
    "make",
    "read_labels",
    "read_pool",
    "read_shard",
    "stream",
    "views",
    "write_pool",
]


def sheet(images: np.ndarray, columns: int, zoom: int = 2) -> Image.Image:
    """Make a contact sheet of uint8 images (N, S, S, 3)."""
    n, s = len(images), images.shape[1]
    rows = -(-n // columns)
    canvas = np.full((rows * (s + 2), columns * (s + 2), 3), 255, np.uint8)
    for i, img in enumerate(images):
        y, x = (i // columns) * (s + 2), (i % columns) * (s + 2)
        canvas[y : y + s, x : x + s] = img
    return Image.fromarray(canvas).resize((canvas.shape[1] * zoom, canvas.shape[0] * zoom), Image.Resampling.NEAREST)


def close_up(
    name: str, seed: int, size: int = 128, scale: str = "", varied: bool = False, look: Look | None = None
) -> Picture:
    """Draw a flat piece of a material, in its own colours unless ``look`` is given.

    The lighting is that of the prior's images, or with ``varied`` any lighting.
    """
    g = np.random.default_rng([seed, 3])
    look = look or any_look(g, name, 0.0)
    facing, up = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    light = lights.varied(g, facing, up) if varied else lights.soft(g, facing, up, name in METALS, True)
    return flat_picture(Scene({0: slot_of(g, look, 1.0, SCALES.get(scale, 1.0))}, light), size)


def materials_sheet(names: list[str], seed: int, size: int = 128) -> Image.Image:
    """A sheet with a row per material: three close-ups, a fine and a large one, one under varied light, base colour,
    roughness, metalness and normals."""
    rows = []
    for name in names:
        plain = [close_up(name, seed + k, size) for k in range(3)]
        others = [close_up(name, seed, size, word) for word in SCALES]
        odd = close_up(name, seed + 3, size, varied=True)
        pictures = [p.lit for p in (*plain, *others, odd)] + [odd.albedo]
        pictures += [np.repeat(m[..., None], 3, 2) for m in (odd.roughness, odd.metalness)]
        rows += [*pictures, odd.detail * 0.5 + 0.5]
    return sheet(np.stack([to_bytes(p) for p in rows]), 10, 1)


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    q = sub.add_parser("sheet", help="draw images of a stream, with their captions on standard output")
    q.add_argument("--out", type=Path, required=True)
    q.add_argument("--seed", type=int, default=1)
    q.add_argument("--start", type=int, default=0)
    q.add_argument("--count", type=int, default=96)
    q.add_argument("--size", type=int, default=64)
    q = sub.add_parser("materials", help="draw close-ups of every material, and their maps")
    q.add_argument("--out", type=Path, required=True)
    q.add_argument("--seed", type=int, default=1)
    q.add_argument("--only", nargs="*", default=MATERIAL_NAMES)
    q = sub.add_parser("pool", help="write the missing shards of a stream")
    q.add_argument("--config", type=Path, required=True)
    q.add_argument("--work", type=Path, help="work folder; default: that of the settings")
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
    if args.command == "materials":
        materials_sheet(args.only, args.seed).save(args.out)
        return
    from training.settings import load

    cfg = load(args.config, args.work)
    c = cfg["pool"][args.which]
    shards = args.shards or c["shards"]
    drawn = {key: c[key] for key in ("finer", "maps") if key in c}
    write_pool(cfg.work / "pool" / args.which, c["seed"], c["size"], c["shard"], shards, args.part, args.parts, **drawn)


if __name__ == "__main__":
    main()
