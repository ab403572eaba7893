"""Draws the UNet's held-out error over its training, from its log, as an SVG.

python -m training.curves --config training/configs/embedded.toml --out docs/held-out.svg --from-step 2600
"""

from __future__ import annotations

import json
from pathlib import Path

from training.settings import load, parser

_KINDS = {"shuffled": "#c0392b", "empty": "#7f8c8d", "caption": "#1f6f8b"}
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 360, 220, 60, 40, 90


def points(log: Path, first: int) -> list[dict]:
    """The log's measurements on held-out images from step `first` on, in order.

    A run that ended at `first` is left out, because the run that continued from there measured the same weights again.
    """
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    rows = [row for row in rows if "caption" in row and row["step"] >= first]
    return [row for row in rows if not (row.get("done") and row["step"] == first)]


def panel(rows: list[dict], suffix: str, title: str, left: int) -> list[str]:
    """One diagram of the error over thousands of samples: with the caption, the empty one and another image's."""
    xs = [row["samples"] / 1000 for row in rows]
    values = [row[kind + suffix] for row in rows for kind in _KINDS]
    low, high = min(values), max(values)
    across = max(xs) - min(xs) or 1.0

    def place(x: float, y: float) -> str:
        right = left + (x - min(xs)) / across * _WIDTH
        return f"{right:.1f},{_TOP + (high - y) / ((high - low) or 1.0) * _HEIGHT:.1f}"

    out = [
        f'<rect x="{left}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#bbb"/>',
        f'<text x="{left}" y="{_TOP - 12}">{title}</text>',
    ]
    for value in (low, (low + high) / 2, high):
        y = place(xs[0], value).split(",")[1]
        out.append(f'<text x="{left - 6}" y="{y}" text-anchor="end" dominant-baseline="middle">{value:.4f}</text>')
    for x in (min(xs), max(xs)):
        at = place(x, low).split(",")[0]
        out.append(f'<text x="{at}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{x:.0f}k samples</text>')
    for kind, colour in _KINDS.items():
        line = " ".join(place(x, row[kind + suffix]) for x, row in zip(xs, rows, strict=True))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return out


def draw(rows: list[dict]) -> str:
    """The SVG. Raises ValueError for fewer than two measurements."""
    if len(rows) < 2:
        raise ValueError("curves: the log has fewer than two held-out measurements from that step on")
    width = 2 * (_WIDTH + _GAP) + _LEFT
    body = panel(rows, "", "held-out noise error, all time steps", _LEFT)
    body += panel(rows, "_high", "time steps from 600 on", _LEFT + _WIDTH + _GAP)
    for index, (kind, colour) in enumerate(_KINDS.items()):
        name = {"caption": "its caption", "empty": "no caption", "shuffled": "another's caption"}[kind]
        body.append(f'<text x="{_LEFT + index * 150}" y="{_TOP + _HEIGHT + 40}" fill="{colour}">{name}</text>')
    size = f'width="{width}" height="{_TOP + _HEIGHT + 55}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>", ""])


def main() -> None:
    """Command line of this module."""
    p = parser(__doc__)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument(
        "--from-step", type=int, default=0, help="first step of the curve, for example where the latents changed"
    )
    a = p.parse_args()
    a.out.write_text(draw(points(load(a.config, a.work).work / "unet.jsonl", a.from_step)), encoding="utf-8")


if __name__ == "__main__":
    main()
