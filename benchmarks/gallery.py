"""Joins the first views of every preview of a run into one small picture, for the README.

python benchmarks/gallery.py outputs/demo docs/demo.jpg [--views 2] [--columns 4] [--side 180]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.export.record import read_record

_LABEL = 18


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--views", type=int, default=2, help="views of each asset, side by side")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--side", type=int, default=180, help="pixels of one view")
    args = parser.parse_args()
    tiles = [tile(folder, args.views, args.side) for folder in sorted(args.out.iterdir()) if read_record(folder)]
    width, height = tiles[0].size
    columns = min(args.columns, len(tiles))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), (255, 255, 255))
    for index, image in enumerate(tiles):
        sheet.paste(image, (index % columns * width, index // columns * height))
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.picture, quality=85, optimize=True)
    print(args.picture, sheet.size, f"{args.picture.stat().st_size / 1024:.0f} KB")


def tile(folder: Path, views: int, side: int) -> Image.Image:
    """The first views of one asset in a row, with its prompt below."""
    preview = Image.open(folder / "preview.png").convert("RGB")
    cell = preview.width // 4
    image = Image.new("RGB", (views * side, side + _LABEL), (255, 255, 255))
    for view in range(views):
        left, top = view % 4 * cell, view // 4 * cell
        part = preview.crop((left, top, left + cell, top + cell)).resize((side, side), Image.Resampling.LANCZOS)
        image.paste(part, (view * side, 0))
    record = read_record(folder) or {}
    prompt = str(record["inputs"]["job"]["prompt"])
    ImageDraw.Draw(image).text((4, side + 2), prompt, fill=(40, 40, 40), font=ImageFont.load_default(11))
    return image


if __name__ == "__main__":
    main()
