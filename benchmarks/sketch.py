"""Measures how well Sketch-Shape follows its sketch: volumetric IoU of mesh and sketch by sigma_S, and without a
sketch.

    python benchmarks/sketch.py [--prior embedded] [--prompt TEXT] [--steps 300] [--lambda-shape L]

The sketch is a mushroom of two solids. Winding numbers on a 64^3 grid give the volumes of both. The program also prints
how far the result moves and how much wider it becomes if the sketch is moved and stretched.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.job import Job, RowLocation
from pipeline.mesh.load import load_mesh
from pipeline.mesh.primitives import combine
from pipeline.mesh.winding_grid import build_winding_grid
from pipeline.prior.load import Prior, load_prior
from pipeline.recipes.generate import generate
from pipeline.recipes.generate_settings import GenerateOptions

RESOLUTION = 64
MUSHROOM: list[dict[str, Any]] = [
    {"shape": "cylinder", "position": [0.0, -0.25, 0.0], "rotation": [0.0, 0.0, 0.0], "size": [0.3, 0.6, 0.3]},
    {"shape": "sphere", "position": [0.0, 0.2, 0.0], "rotation": [0.0, 0.0, 0.0], "size": [1.0, 0.6, 1.0]},
]


def inside(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The cells of the scene that a surface encloses, (R, R, R) bool."""
    return build_winding_grid(vertices, faces, resolution=RESOLUTION).winding > 0.5


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two sets of cells."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def grown(prior: Prior, out: Path, name: str, prompt: str, **settings: object) -> np.ndarray | None:
    """Generate an asset and return its cells. Prints the reason and returns None if there is none."""
    values = GenerateOptions(preview=False, texture_size=64, texturing="views", **settings).model_dump(mode="json")  # type: ignore[arg-type]
    job = Job(name, "generate", prompt, "", 0, None, values, RowLocation("benchmark", 1))
    (outcome,) = generate([job], prior, out, fingerprints=[name], lockstep=1)
    if outcome.state != "done":
        print(f"  {name}: {outcome.message}")
        return None
    mesh = load_mesh(out / name / "asset.glb")
    return inside(mesh.vertices, mesh.faces)


def centre_and_width(cells: np.ndarray) -> tuple[float, float]:
    """Mean x of the cells and their standard deviation along it, in scene units."""
    x = np.argwhere(cells)[:, 0] / (RESOLUTION - 1) * 2 - 1
    return float(x.mean()), float(x.std())


def _changed(shape: dict[str, Any], move: float, stretch: float) -> dict[str, Any]:
    (x, *rest_of_position), (width, *size) = shape["position"], shape["size"]
    return {**shape, "position": [x + move, *rest_of_position], "size": [width * stretch, *size]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--prompt", default="a red mushroom")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lambda-shape", type=float, help="else the prior's")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.6, 0.3, 0.1])
    parser.add_argument("--out", type=Path, default=Path("outputs") / "bench-sketch")
    args = parser.parse_args()
    prior = load_prior(args.prior)
    vertices, faces = combine(MUSHROOM)
    sketch = inside(vertices, faces)
    print(f"prior {prior.name}, {args.prompt!r}, {args.steps} steps; sketch fills {sketch.mean():.1%} of the scene")
    print(f"{'sigma_S':>8} {'IoU':>6}")
    more = {"steps": args.steps, "lambda_shape": args.lambda_shape}
    for sigma in args.sigmas:
        cells = grown(prior, args.out, f"s{sigma}", args.prompt, shapes=MUSHROOM, sigma_shape=sigma, **more)
        if cells is not None:
            print(f"{sigma:>8} {iou(cells, sketch):>6.3f}", flush=True)
    cells = grown(prior, args.out, "free", args.prompt, steps=args.steps)
    if cells is not None:
        print(f"{'none':>8} {iou(cells, sketch):>6.3f}", flush=True)
    base = centre_and_width(sketch)
    for name, move, stretch in (("moved", 0.3, 1.0), ("stretched", 0.0, 1.6)):
        changed = [_changed(shape, move, stretch) for shape in MUSHROOM]
        cells = grown(prior, args.out, name, args.prompt, shapes=changed, sigma_shape=0.1, **more)
        if cells is not None:
            centre, width = centre_and_width(cells)
            print(f"{name}: centre {base[0]:+.2f} -> {centre:+.2f}, width {base[1]:.2f} -> {width:.2f}", flush=True)


if __name__ == "__main__":
    main()
