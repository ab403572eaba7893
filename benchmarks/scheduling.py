"""Compares Ray Core actors with Ray Data (``map_batches`` with a class) on the same rows, in turn, in one run.

    python benchmarks/scheduling.py [--rows 2000] [--milliseconds 2]

Each row sleeps briefly and returns the time at which it ended. The program prints for both, with ratios: rows per
second, the driver's memory, and the delay from a row's end until the driver knows of it. It also prints how many other
rows are built if one row always kills its worker, within a time limit. Ray Data needs pandas and pyarrow, which
latentkiln does not install.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import psutil
import ray

WORKERS, GROUP = 2, 4
KILLER = -1


def work(number: int, seconds: float) -> tuple[int, float]:
    """Process one row: returns its number and the time at which it ended."""
    if number == KILLER:
        os._exit(1)
    time.sleep(seconds)
    return number, time.time()


class Builder:
    """The actor of both variants: Ray Core calls ``build``, Ray Data calls the object."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def build(self, numbers: list[int]) -> list[tuple[int, float]]:
        return [work(number, self._seconds) for number in numbers]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = [work(int(number), self._seconds) for number in batch["id"]]
        return {"id": [number for number, _ in done], "done": [when for _, when in done]}


def with_actors(numbers: list[int], seconds: float) -> Iterator[tuple[int, float]]:
    """Process rows as ``scheduler/actor_pool.py`` does: one group in flight per actor.

    Rows of a group whose actor died are retried one by one. A row whose actor dies twice is dropped.
    """
    actor: Any = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Builder)
    groups = [numbers[at : at + GROUP] for at in range(0, len(numbers), GROUP)]
    attempts: dict[int, int] = {}
    flying: dict[Any, tuple[Any, list[int]]] = {}
    idle = [actor.remote(seconds) for _ in range(WORKERS)]
    while groups or flying:
        while idle and groups:
            handle, group = idle.pop(), groups.pop(0)
            flying[handle.build.remote(group)] = handle, group
        for ref in ray.wait(list(flying), num_returns=1)[0]:
            handle, group = flying.pop(ref)
            try:
                yield from ray.get(ref)
                idle.append(handle)
            except ray.exceptions.RayActorError:
                idle.append(actor.remote(seconds))
                for number in group:
                    attempts[number] = attempts.get(number, 0) + 1
                    if attempts[number] < 2:
                        groups.append([number])


def with_data(numbers: list[int], seconds: float) -> Iterator[tuple[int, float]]:
    """Process the same rows in a Ray Data pipeline."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"id": number} for number in numbers])
    built = rows.map_batches(Builder, fn_constructor_args=(seconds,), batch_size=GROUP, concurrency=WORKERS, num_cpus=0)
    for batch in built.iter_batches(batch_size=None, prefetch_batches=0):
        yield from zip(map(int, batch["id"]), map(float, batch["done"]), strict=True)


WAYS = {"actors": with_actors, "data": with_data}


def measure(way: str, rows: int, seconds: float) -> dict[str, float]:
    """Measure a run without failures. The driver's memory is its growth from start to end."""
    process = psutil.Process()
    start_time, before, late = time.time(), process.memory_info().rss, []
    first = 0.0
    for _, done in WAYS[way](list(range(rows)), seconds):
        first = first or done
        late.append(time.time() - done)
    spent = time.time() - start_time
    return {
        "rows_per_second": round(rows / spent, 1),
        # Exclude the start of the workers.
        "rows_per_second_after_the_first": round((rows - 1) / (start_time + spent - first), 1),
        "driver_mb_more": round((process.memory_info().rss - before) / 1e6, 1),
        "known_after_ms_median": round(1000 * statistics.median(late), 1),
        "known_after_ms_most": round(1000 * max(late), 1),
    }


def measure_death(way: str, rows: int, seconds: float) -> dict[str, Any]:
    """Measure a run in which one row always kills its worker: the number of other rows built, and the run's end."""
    numbers = list(range(rows))
    numbers.insert(rows // 2, KILLER)
    start_time, results, end = time.time(), set[int](), "ended"
    try:
        for number, _ in WAYS[way](numbers, seconds):
            results.add(number)
            print(f"built {number}", flush=True)  # counted by the process that ends this one
    except Exception as error:
        end = f"{type(error).__name__} after {time.time() - start_time:.0f} s"
    return {"others_built": len(results), "of": rows, "end": end, "seconds": round(time.time() - start_time, 1)}


def in_a_process(way: str, part: str, rows: int, seconds: float, limit: float) -> dict[str, Any]:
    """Run one measurement in a separate process, which is ended after ``limit`` seconds."""
    import subprocess
    import sys

    command = [sys.executable, __file__, "--way", way, "--part", part, "--rows", str(rows)]
    command += ["--milliseconds", str(1000 * seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as late:
        built_lines = [line for line in (late.stdout or b"").decode().splitlines() if line.startswith("built ")]
        return {"end": f"still running after {limit:g} s", "others_built": len(built_lines), "of": rows}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return (
        json.loads(lines[-1]) if lines else {"end": done.stderr.strip().splitlines()[-1][:200] if done.stderr else "?"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--milliseconds", type=float, default=2.0)
    parser.add_argument("--limit", type=float, default=180.0, help="time limit of each measurement, in seconds")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=("plain", "death"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    seconds = chosen.milliseconds / 1000
    if chosen.way:
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
        run = measure if chosen.part == "plain" else measure_death
        print(json.dumps(run(chosen.way, chosen.rows, seconds)), flush=True)
        return
    results: dict[str, Any] = {way: {} for way in WAYS}
    for part, rows in (("plain", chosen.rows), ("death", chosen.rows // 10)):
        for way in WAYS:
            results[way][part] = in_a_process(way, part, rows, seconds, chosen.limit)
            print(way, part, json.dumps(results[way][part]), flush=True)
    actors, data = results["actors"]["plain"], results["data"]["plain"]
    ratios = {
        key: round(actors[key] / data[key], 2) for key in actors if isinstance(data.get(key), float) and data[key]
    }
    print(json.dumps({"rows": chosen.rows, "actors_by_data": ratios, **results}))


if __name__ == "__main__":
    main()
