"""Measures overheads: start of the command, records of a run, texture layouts, previews.

    python benchmarks/overheads.py

Prints each time in milliseconds and as a multiple of the time of a simple operation on the same machine. Uses the best
of three repeats.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pipeline  # noqa: F401  (before torch: it makes idle threads sleep)

# isort: split
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "fakes"))

import meshes  # noqa: E402
import stub_recipe  # noqa: E402

from pipeline.core.atomic import atomic_write  # noqa: E402
from pipeline.export.gltf import split_corners  # noqa: E402
from pipeline.export.preview import render_views  # noqa: E402
from pipeline.mesh.normalise import normalise  # noqa: E402
from pipeline.scheduler import runner  # noqa: E402
from pipeline.scheduler.runner import RunSettings  # noqa: E402
from pipeline.uv.pack import pack  # noqa: E402
from pipeline.uv.unwrap import unwrap  # noqa: E402

ROWS = 300
TRIES = 3


def seconds(action: Callable[[], object]) -> float:
    """Seconds of the fastest of some repeats, which other load on the machine affects least."""
    times = []
    for _ in range(TRIES):
        start_time = time.perf_counter()
        action()
        times.append(time.perf_counter() - start_time)
    return min(times)


def command(*words: str) -> Callable[[], object]:
    """A call that runs this Python with the arguments ``words``."""
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=ROOT)


def commands() -> Iterator[tuple[str, float, float]]:
    """Start-up times that a user waits for."""
    python, usage = seconds(command("-c", "pass")), seconds(command("-m", "pipeline", "--help"))
    yield "latentkiln --help / start of Python", usage, python
    plan = seconds(command("-m", "pipeline", "plan", str(ROOT / "manifests" / "demo.csv")))
    yield "latentkiln plan of the demo / --help", plan, usage


def records() -> Iterator[tuple[str, float, float]]:
    """Log, queue, locks and record per row, with a recipe that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        root, tries = Path(folder), iter(range(TRIES))

        def write() -> None:
            for n in range(ROWS):
                with atomic_write(root / f"{n}") as path:
                    path.write_text("{}")

        def run() -> None:
            rows = [stub_recipe.item(f"r{n:05d}") for n in range(ROWS)]
            settings = RunSettings(serial=True, lockstep=8, threads=1)
            out = root / f"out{next(tries)}"
            runner.run(rows, out, prior_spec="stub", settings=settings, hooks=stub_recipe.make_toolbox())

        yield "a row of a run that does nothing / a file", seconds(run) / ROWS, seconds(write) / ROWS


def large_meshes() -> Iterator[tuple[str, float, float]]:
    """Operations on large meshes, relative to sorting three numbers per face."""
    mesh = meshes.large()
    unsorted = np.random.default_rng(0).integers(0, 1 << 40, 3 * len(mesh.faces))
    sort = seconds(lambda: np.sort(unsorted))
    layout = unwrap(mesh, texture_size=1024)
    name = f"of {len(mesh.faces):,} faces"
    yield f"texture layout {name} / sort", seconds(lambda: unwrap(mesh, texture_size=1024)), sort
    yield f"corners split {name} / sort", seconds(lambda: split_corners(layout, math.radians(60))), sort


def many_charts() -> Iterator[tuple[str, float, float]]:
    """Packing more charts than a texture has room for, relative to a quarter of them."""

    def action(count: int) -> Callable[[], object]:
        square = 0.01 * np.array([(0.0, 0), (1, 0), (1, 1), (0, 1)])
        points = np.tile(square, (count, 1))
        start = 4 * np.arange(count)[:, None]
        faces = np.stack([start + np.array([0, 1, 2]), start + np.array([0, 2, 3])], axis=1).reshape(-1, 3)
        return lambda: pack(points, faces, np.repeat(np.arange(count), 2), padding=1 / 128)

    many, quarter = seconds(action(60_000)), seconds(action(15_000))
    yield "60,000 charts packed / 15,000", many, quarter


def previews() -> Iterator[tuple[str, float, float]]:
    """Drawing eight views of an asset, relative to one."""
    mesh = unwrap(meshes.blob(2000), texture_size=256)
    image = np.full((1024, 1024, 3), 128, np.uint8)
    frame = normalise(mesh.mesh.vertices)
    eight, one = (seconds(lambda n=n: render_views(mesh, image, frame, views=n)) for n in (8, 1))
    yield "a preview of eight views / one view", eight, one


def main() -> None:
    """Print a line for each measurement."""
    for measured in (commands, records, large_meshes, many_charts, previews):
        for name, time_taken, base in measured():
            print(f"{name:56} {time_taken / base:8.1f}   {1000 * time_taken:9.1f} ms", flush=True)


if __name__ == "__main__":
    main()
