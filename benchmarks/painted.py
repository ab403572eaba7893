"""Writes a manifest of twelve materials on each given mesh, to measure whether painted meshes show their prompts.

    python benchmarks/painted.py outputs/painted-rows manifests/meshes/{vase.obj,boulder.off,knight.glb} ...
    latentkiln run outputs/painted-rows/painted.json --out outputs/painted
    python -m training.judge assets --config training/configs/embedded.toml --out outputs/painted

The meshes are copied beside the manifest. The prompts were chosen before anything was painted; half of them name a
colour. The noun is "object", so that the prompt does not suggest a shape.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

PROMPTS = {
    "brick": "a red brick object",
    "marble": "a white marble object",
    "wood": "a wooden object",
    "moss": "a mossy object",
    "rust": "a rusty object",
    "gold": "a golden object",
    "cobblestone": "a cobblestone object",
    "stripes": "a blue striped object",
    "dots": "a red polka dot object",
    "zebra": "a zebra object",
    "leopard": "a leopard object",
    "checker": "a blue checkered object",
}


def manifest(meshes: list[Path], seed: int) -> dict:
    """A manifest with a row for each prompt and mesh; mesh paths are names in ``meshes/``."""
    rows = [
        {"id": f"{name}-{mesh.stem.lower()}", "prompt": prompt, "mesh": f"meshes/{mesh.name}", "seed": seed}
        for name, prompt in PROMPTS.items()
        for mesh in meshes
    ]
    return {"defaults": {"recipe": "paint"}, "rows": rows}


def main() -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("meshes", type=Path, nargs="+")
    p.add_argument("--seed", type=int, default=5)
    a = p.parse_args()
    (a.out / "meshes").mkdir(parents=True, exist_ok=True)
    for mesh in a.meshes:
        shutil.copyfile(mesh, a.out / "meshes" / mesh.name)
    (a.out / "painted.json").write_text(json.dumps(manifest(a.meshes, a.seed), indent=1) + "\n")


if __name__ == "__main__":
    main()
