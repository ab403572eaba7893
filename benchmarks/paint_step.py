"""Measures the share of the prior in a paint step, and the gain of lockstep, as ratios within one run.

python benchmarks/paint_step.py [--prior DIR] [--steps 20]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from pipeline.core.job import Job, no_report
from pipeline.core.location import InputFile
from pipeline.optimize.loop import Optimization, optimize
from pipeline.prior.load import Prior, load_prior
from pipeline.recipes.asset_build import RowContext
from pipeline.recipes.build import start
from pipeline.recipes.paint import Paint
from pipeline.recipes.paint_settings import PaintOptions

MESHES = Path(__file__).parent.parent / "manifests" / "meshes"


def prepare_optimizations(
    prior: Prior, mesh: Path, count: int, steps: int, out: Path, lockstep: int
) -> list[Optimization]:
    """Prepare ``count`` paint jobs on ``mesh`` with the prior's default settings, as the recipe does."""
    optimizations = []
    for seed in range(count):
        settings = PaintOptions(steps=steps, preview=False).model_dump(mode="json")
        job = Job(f"bench-{seed}", "paint", "a red brick object", "", seed, InputFile(mesh), settings)
        asset_build = start(Paint(), RowContext(job, "bench", out / job.id, no_report), prior, out, lockstep)
        optimization = asset_build.variants[0].optimizations[0]
        optimization.checkpoint = None
        optimizations.append(optimization)
    return optimizations


def measure(prior: Prior, mesh: Path, lockstep: int, steps: int, out: Path) -> tuple[float, float]:
    """Seconds per step and asset: (in the prior, elsewhere)."""
    group = prepare_optimizations(prior, mesh, lockstep, steps + 2, out, lockstep)
    # Warm up for two steps (compiled kernels, allocator).
    optimize(group, prior, lockstep=lockstep, stop=lambda: group[0].step >= 2)
    for optimization in group:
        optimization.seconds = {"prior": 0.0, "scene": 0.0}
    optimize(group, prior, lockstep=lockstep)
    parts = [[s.seconds[name] / steps for s in group] for name in ("prior", "scene")]
    return statistics.mean(parts[0]), statistics.mean(parts[1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mesh", type=Path, default=next(iter(sorted(MESHES.glob("*.obj"))), None))
    parser.add_argument("--out", type=Path, default=Path("outputs") / "bench")
    args = parser.parse_args()
    prior = load_prior(args.prior)
    print(f"prior {prior.name}, mesh {args.mesh.name}, its own settings, {torch.get_num_threads()} threads")
    print(f"{'lockstep':>8} {'prior ms':>9} {'beside ms':>10} {'beside/prior':>13} {'assets per time':>16}")
    base = None
    for lockstep in (1, 2, 4, 8):
        inside, beside = measure(prior, args.mesh, lockstep, args.steps, args.out)
        base = base or inside + beside
        ratio = base / (inside + beside)
        print(f"{lockstep:>8} {inside * 1e3:>9.1f} {beside * 1e3:>10.1f} {beside / inside:>12.0%} {ratio:>15.2f}x")


if __name__ == "__main__":
    main()
