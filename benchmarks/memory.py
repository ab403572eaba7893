"""Measures the peak memory of a paint worker with a small mesh and with 330,000 faces, each in its own process.

python benchmarks/memory.py [--prior DIR] [--steps 20]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def bumpy_sphere(path: Path, faces: int) -> int:
    """Write a bumpy sphere of about ``faces`` triangles as binary STL. Returns the number of its triangles."""
    rows = max(8, int(np.sqrt(faces / 4)))
    theta = np.linspace(0, np.pi, rows + 1)[:, None]
    phi = np.linspace(0, 2 * np.pi, 2 * rows + 1)[None, :-1]
    radius = 1 + 0.1 * np.sin(7 * theta) * np.cos(5 * phi)
    points = np.stack(
        [
            radius * np.sin(theta) * np.sin(phi),
            radius * np.cos(theta) * np.ones_like(phi),
            radius * np.sin(theta) * np.cos(phi),
        ],
        axis=-1,
    ).astype("<f4")
    points[0], points[-1] = points[0].mean(0), points[-1].mean(0)
    a, b = points[:-1], points[1:]
    right_a, right_b = np.roll(a, -1, axis=1), np.roll(b, -1, axis=1)
    upper = np.stack([a, b, right_b], axis=2)[1:].reshape(-1, 3, 3)
    lower = np.stack([a, right_b, right_a], axis=2)[:-1].reshape(-1, 3, 3)
    # Rows at the poles have one triangle per column, the others two.
    first = np.stack([a[0], b[0], right_b[0]], axis=1)
    last = np.stack([a[-1], b[-1], right_a[-1]], axis=1)
    triangles = np.concatenate([first, upper[: -2 * rows], lower[2 * rows :], last])
    record = np.zeros(len(triangles), dtype=[("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")])
    record["v"] = triangles
    path.write_bytes(b"\0" * 80 + np.uint32(len(triangles)).tobytes() + record.tobytes())
    return len(triangles)


CHILD = """
import json, sys
from pathlib import Path
from pipeline.core.job import Job
from pipeline.core.location import InputFile
from pipeline.prior.load import load_prior
from pipeline.recipes.paint import paint
from pipeline.recipes.record import peak_rss_mb
from pipeline.recipes.paint_settings import PaintOptions
prior, mesh, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
steps, lockstep = int(sys.argv[4]), int(sys.argv[5])
loaded = load_prior(prior)
settings = PaintOptions(steps=steps).model_dump(mode="json")
jobs = [Job(f"m{i}", "paint", "a red brick object", "", i, InputFile(mesh), settings) for i in range(lockstep)]
outcomes = paint(jobs, loaded, out, fingerprints=["f"] * lockstep, lockstep=lockstep)
assert all(o.state == "done" for o in outcomes), outcomes
print(json.dumps(peak_rss_mb()))
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    print(f"{'faces':>8} {'lockstep':>9} {'peak MB':>8} {'wall s':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for face_count, lockstep in ((5_000, 1), (5_000, 8), (330_000, 1)):
            mesh = Path(folder) / f"{face_count}.stl"
            faces = bumpy_sphere(mesh, face_count)
            out = Path(folder) / f"out-{face_count}-{lockstep}"
            start_time = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", CHILD, args.prior, mesh, out, str(args.steps), str(lockstep)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            peak = json.loads(done.stdout.splitlines()[-1])
            print(f"{faces:>8} {lockstep:>9} {peak:>8.0f} {time.monotonic() - start_time:>7.1f}")


if __name__ == "__main__":
    main()
