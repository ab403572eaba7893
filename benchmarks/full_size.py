"""Measures memory and time of a few paint steps with a full-size Stable Diffusion of random weights (no download).

    python benchmarks/full_size.py [--kind sd1] [--steps 3] [--lockstep 1] [--precision bfloat16] [--texture-size 512]

One process makes the model and another uses it, so that the peak is that of a worker. sd1 needs about 6 GB of memory,
2.5 GB of disk, and some minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from full_size import make_full_size
make_full_size(Path(sys.argv[2]), sys.argv[3])
"""

PAINT = """
import json, sys, time
from pathlib import Path
from pipeline.core.job import Job
from pipeline.core.location import InputFile
from pipeline.export.record import read_record
from pipeline.prior.load import load_prior
from pipeline.prior.options import PriorOptions
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions
from pipeline.recipes.record import peak_rss_mb
prior, mesh, out, steps, lockstep, precision, size = sys.argv[1:]
begun = time.monotonic()
loaded = load_prior(prior, options=PriorOptions(precision=precision))
load = time.monotonic() - begun
after_load = peak_rss_mb()
settings = PaintOptions(steps=int(steps), texture_size=int(size), preview=False).model_dump(mode="json")
count = int(lockstep)
jobs = [Job(f"m{i}", "paint", "a red brick cube", "", i, InputFile(Path(mesh)), settings) for i in range(count)]
outcomes = paint(jobs, loaded, Path(out), fingerprints=["f"] * count, lockstep=count)
assert all(o.state == "done" for o in outcomes), outcomes
record = read_record(Path(out) / "m0")
print(json.dumps({"load": load, "after_load": after_load, "peak": peak_rss_mb(), "device": record["backends"]["device"],
                  "bytes": record["outputs"]["asset.glb"]["bytes"], "timings": record["timings"]}))
"""


def main() -> None:
    """Print peak memory and the time of each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="sd1", choices=["sd1", "sd2", "sd2-768-v", "sdxl"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lockstep", type=int, default=1)
    parser.add_argument("--precision", default="bfloat16", choices=["auto", "float32", "float16", "bfloat16"])
    parser.add_argument("--texture-size", type=int, default=512)
    parser.add_argument(
        "--mesh", type=Path, default=next(iter(sorted((ROOT / "manifests/meshes").glob("*.obj"))), None)
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / args.kind
        start_time = time.monotonic()
        subprocess.run([sys.executable, "-c", MAKE, str(ROOT / "tests" / "fakes"), folder, args.kind], check=True)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{args.kind}: {size / 1e9:.2f} GB made in {time.monotonic() - start_time:.0f} s")
        options = [str(args.steps), str(args.lockstep), args.precision, str(args.texture_size)]
        done = subprocess.run(
            [sys.executable, "-c", PAINT, folder, args.mesh, Path(temporary) / "out", *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"device {result['device']}, {args.precision}, lockstep {args.lockstep}, {args.steps} steps")
    print(
        f"peak memory {result['peak']:.0f} MB ({result['after_load']:.0f} MB after loading in {result['load']:.1f} s)"
    )
    print(f"asset.glb {result['bytes']} bytes")
    for stage, seconds in result["timings"].items():
        print(f"  {stage:<20} {seconds:>9.1f} s")


if __name__ == "__main__":
    main()
