"""Compares one worker with all cores to one worker per core, on the same rows, in turn, in one run.

    python benchmarks/workers.py [MANIFEST] [--rows 8] [--turns 2]

Prints the wall time of each run, and the ratio of their sums. On a CPU a small UNet gains little from threads, which
synchronise at the end of each layer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

from pipeline.commands.run import RunOptions, run_manifest
from pipeline.core.job import Job
from pipeline.manifest import ValidatedManifest
from pipeline.scheduler import resources


def seconds(manifest: Path, ids: list[str], workers: int, threads: int) -> float:
    """Seconds to build the rows into an empty folder, with Ray's start. Raises SystemExit if a row fails."""
    with tempfile.TemporaryDirectory() as out, mock.patch.object(resources, "threads_per_worker", lambda: threads):
        start_time = time.monotonic()
        code = run_manifest(RunOptions(manifest=manifest, out=Path(out), only=ids, workers=workers, quiet=True))
        if code:
            raise SystemExit(f"{manifest}: a row failed (exit code {code})")
        return time.monotonic() - start_time


def main() -> None:
    """Print a line per run, then the ratio."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("manifest", type=Path, nargs="?", default=Path("manifests/demo.csv"))
    p.add_argument("--rows", type=int, default=8)
    p.add_argument("--turns", type=int, default=2)
    a = p.parse_args()
    ids = [item.id for item in ValidatedManifest(a.manifest) if isinstance(item, Job)][: a.rows]
    cores = resources.core_count()
    total = {(1, cores): 0.0, (cores, 1): 0.0}
    for turn in range(a.turns):
        for way in (list(total), list(total)[::-1])[turn % 2]:
            spent = seconds(a.manifest, ids, *way)
            total[way] += spent
            print(f"{way[0]} worker(s) of {way[1]} thread(s): {len(ids)} rows in {spent:.0f} s", flush=True)
    print(f"one worker a core is {total[1, cores] / total[cores, 1]:.2f} times as fast")


if __name__ == "__main__":
    main()
