"""Measures time and memory of a step of the radiance field: compiled backends and plain torch, in one run.

    python benchmarks/radiance_field.py [--points 8192 60000] [--log2-table 15 19] [--repeats 3] [--threads 1]

A step is forward, backward and Adam. The backends take turns in each repeat, so that other load on the machine affects
both, and the median is printed. CPU time is the sum over threads. It is more stable on a shared machine, especially
with ``--threads 1``. Memory is the peak of a step above the memory before it (table, MLP, Adam's state), measured in a
separate process.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pipeline  # noqa: F401  (before torch: it makes idle threads sleep)

# isort: split
import numpy as np
import psutil
import torch
from torch.nn import functional

from pipeline.core.rng import torch_generator
from pipeline.fields.grid import encode
from pipeline.fields.grid.layout import GridSettings
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.fields.radiance_field import FieldSettings, RadianceField
from pipeline.fields.volume import composite, march

BACKENDS = ("numba", "torch")
# Takes the number of points.
Step = Callable[[int], None]


def grid_step(field: RadianceField, points: torch.Tensor) -> torch.Tensor:
    """The encoding alone. Returns the loss."""
    return encode(points * 0.5 + 0.5, field.table, field.settings.grid, backend=field.backend).sum()


def field_step(field: RadianceField, points: torch.Tensor) -> torch.Tensor:
    """Grid and MLP."""
    sigma, features = field(points)
    return sigma.mean() + features.square().mean()


def rendered_step(field: RadianceField, points: torch.Tensor) -> torch.Tensor:
    """March, field and compositing of rays through a ball, with about as many samples as ``points``."""
    eye, directions = rays(len(points) // 32)
    packed = march(eye, directions, ball(), step=0.02, backend=field.backend)
    sigma, values = field(packed.points)
    rendered = composite(sigma, values, packed, backend=field.backend)
    return rendered.values.square().mean() + rendered.weight.mean()


@functools.cache
def rays(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins and unit directions (count, 3)."""
    generator = torch_generator(1, "rays")
    eye = 1.4 * functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    target = (torch.rand(count, 3, generator=generator) - 0.5) * 0.6
    return eye, functional.normalize(target - eye, dim=1)


@functools.cache
def ball(radius: float = 0.45) -> OccupancyGrid:
    """An occupancy grid with five per cent of its cells occupied, as after an object has formed."""
    occupancy = OccupancyGrid()
    centres = (np.arange(occupancy.resolution) + 0.5) / occupancy.resolution * 2 - 1
    x, y, z = np.meshgrid(centres, centres, centres, indexing="ij")
    occupancy.binary[:] = x**2 + y**2 + z**2 < radius**2
    return occupancy


PARTS: dict[str, Callable[[RadianceField, torch.Tensor], torch.Tensor]] = {
    "grid": grid_step,
    "field": field_step,
    "field + renderer": rendered_step,
}


def make_step(part: str, backend: str, log2_table: int) -> Step:
    """A step of ``part`` at points in the centre of the scene, with 16 levels of 2 features."""
    field = RadianceField(FieldSettings(GridSettings(log2_table=log2_table), channels=4), 0, backend=backend)
    parameters = [field.table] if part == "grid" else [field.table, *field.network.parameters()]
    adam = torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.99), eps=1e-15, fused=True)

    def step(count: int) -> None:
        points = (torch.rand(count, 3, generator=torch_generator(0, "points")) - 0.5) * 1.2
        loss = PARTS[part](field, points)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()

    # Warm up with a small step: compile kernels and create Adam's state.
    step(256)
    return step


def seconds(steps: dict[str, Step], count: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Median (wall, CPU) seconds of a step by backend. The backends take turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step(count)
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times))
        for name, times in taken.items()
    }


def print_peak(part: str, backend: str, count: int, log2_table: int) -> None:
    """Print the peak memory of a step above the memory before it, in MB (Linux)."""
    step = make_step(part, backend, log2_table)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = psutil.Process().memory_info().rss
    step(count)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    print((peak - before) / 2**20)


def megabytes(part: str, backend: str, count: int, log2_table: int) -> float:
    """Run ``print_peak`` in a separate process and return the number."""
    arguments = ["--peak", part, backend, str(count), str(log2_table)]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[8192, 60000])
    parser.add_argument("--log2-table", type=int, nargs="+", default=[15, 19])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        part, backend, count, log2_table = args.peak
        print_peak(part, backend, int(count), int(log2_table))
        return
    torch.set_num_threads(args.threads)
    print(f"16 levels x 2 features, {torch.get_num_threads()} threads, {args.repeats} repeats")
    print(
        f"{'part':<17}{'points':>7}{'table':>6}{'numba ms':>10}{'torch ms':>10}{'ratio':>7}"
        f"{'cpu ms':>9}{'cpu ms':>9}{'ratio':>7}{'steps/s':>9}{'MB':>8}{'MB':>8}{'ratio':>7}"
    )
    for part in args.parts:
        for log2_table in args.log2_table:
            for count in args.points:
                steps = {name: make_step(part, name, log2_table) for name in BACKENDS}
                (fast, fast_cpu), (plain, plain_cpu) = seconds(steps, count, args.repeats).values()
                del steps
                small, large = (megabytes(part, name, count, log2_table) for name in BACKENDS)
                print(
                    f"{part:<17}{count:>7}  2^{log2_table:<2}{fast * 1e3:>10.1f}{plain * 1e3:>10.1f}"
                    f"{plain / fast:>7.1f}{fast_cpu * 1e3:>9.1f}{plain_cpu * 1e3:>9.1f}{plain_cpu / fast_cpu:>7.1f}"
                    f"{1 / fast:>9.1f}{small:>8.0f}{large:>8.0f}{large / small:>7.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
