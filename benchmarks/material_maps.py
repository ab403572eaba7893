"""Do the maps say what a material is? Estimates for painted assets, and what maps cost.

    python benchmarks/material_maps.py outputs/maps [--mesh manifests/meshes/teapot.obj]

Paints a mesh with each of twelve materials, with maps and without, by the command. Prints for each material the mean
metalness and roughness, how far normals lean from the surface on average, and the correlation of the base colour's
luminance with the light that the relief would catch from above (0: no light is left in the colour); then the ratio of
the seconds with maps and without, from the same run.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# prompt, and whether it is a metal.
MATERIALS = (
    ("gold", True), ("copper", True), ("steel metal", True),
    ("red brick", False), ("blue knit", False), ("brown leather", False), ("oak wood", False), ("white marble", False),
    ("grey cobblestone", False), ("green grass", False), ("green dragon scales", False), ("white tiles", False),
)  # fmt: skip
_MAPS = "base_colour,normal,metallic_roughness,occlusion"
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def paint(mesh: Path, out: Path, maps: str) -> dict[str, float]:
    """Paints all materials into the new folder ``out``.

    Returns the seconds of each asset without unwrapping, which is shared.
    """
    out.mkdir(parents=True)
    with (out / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "mesh", "prompt", "seed"])
        rows.writerows([prompt.replace(" ", "-"), mesh.resolve(), prompt, 1] for prompt, _ in MATERIALS)
    command = [sys.executable, "-m", "pipeline", "run", str(out / "rows.csv"), "--out", str(out)]
    subprocess.run([*command, "--allow-outside", "--serial", "--set", f"maps={maps}"], check=True)
    seconds = {}
    for prompt, _ in MATERIALS:
        record = json.loads((out / prompt.replace(" ", "-") / "record.json").read_text())
        seconds[prompt] = sum(value for stage, value in record["timings"].items() if stage != "unwrap")
    return seconds


def figures(folder: Path) -> tuple[float, float, float, float]:
    """(metalness, roughness, lean in degrees, correlation of luminance with light from above) of an asset."""
    data = np.asarray(Image.open(folder / "asset_metallic_roughness.png"), np.float64) / 255
    normal = np.asarray(Image.open(folder / "asset_normal.png"), np.float64) / 127.5 - 1
    colour = np.asarray(Image.open(folder / "asset_base_colour.png").convert("RGB"), np.float64) / 255
    lean = np.degrees(np.arccos(np.clip(normal[..., 2], -1, 1)))
    # By texels that lean: elsewhere no light could show.
    bent = lean > 3
    lit = normal[bent] @ (np.array([0, 1, 1]) / np.sqrt(2))
    luminance = colour[bent] @ _LUMINANCE
    enough = bent.sum() > 100 and lit.std() > 1e-6 and luminance.std() > 1e-6
    correlation = float(np.corrcoef(lit, luminance)[0, 1]) if enough else 0.0
    return float(data[..., 2].mean()), float(data[..., 1].mean()), float(lean.mean()), correlation


def main() -> None:
    """Paints, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mesh", type=Path, default=Path("manifests/meshes/teapot.obj"))
    args = parser.parse_args()
    # Once before, so that neither of the two runs unwraps the mesh or compiles kernels.
    paint(args.mesh, args.out / "warm-up", _MAPS)
    plain = paint(args.mesh, args.out / "plain", "base_colour")
    mapped = paint(args.mesh, args.out / "mapped", _MAPS)
    print(f"{'material':22}{'metalness':>10}{'roughness':>10}{'lean':>7}{'light left':>11}{'time':>7}")
    for prompt, metal in MATERIALS:
        metalness, roughness, lean, correlation = figures(args.out / "mapped" / prompt.replace(" ", "-"))
        ratio = mapped[prompt] / plain[prompt]
        right = metalness > 0.9 and roughness < 0.5 if metal else metalness < 0.1
        print(
            f"{prompt:22}{metalness:10.2f}{roughness:10.2f}{lean:7.1f}{correlation:11.2f}{ratio:7.2f}"
            f"  {'right' if right else 'WRONG'}"
        )
    print(f"time with maps over time without: {sum(mapped.values()) / sum(plain.values()):.2f}")


if __name__ == "__main__":
    main()
