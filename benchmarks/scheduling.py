"""Ray Core actors beside Ray Data (``map_batches`` with a class) on the same rows, in one run, in turn.

    python benchmarks/scheduling.py [--rows 2000] [--milliseconds 2]

Each row sleeps a little and says when it was done. Printed for both, with the ratios: rows a second, the driver's
memory, the time from a row's end until the driver knows of it, and what becomes of the others when one row kills its
worker each time (for so many seconds at most). Ray Data needs pandas and pyarrow, which latentkiln does not install.
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
    """One row: its number, and when it was done."""
    if number == KILLER:
        os._exit(1)
    time.sleep(seconds)
    return number, time.time()


class Builder:
    """The actor of both: for Ray Core ``build``, for Ray Data a call."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def build(self, numbers: list[int]) -> list[tuple[int, float]]:
        return [work(number, self._seconds) for number in numbers]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = [work(int(number), self._seconds) for number in batch["id"]]
        return {"id": [number for number, _ in done], "done": [when for _, when in done]}


def with_actors(numbers: list[int], seconds: float) -> Iterator[tuple[int, float]]:
    """As ``fleet/actor_pool.py`` does it: one group in flight for each actor; a group whose actor died is tried row by
    row, and a row whose actor dies twice is given up."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Builder)
    groups = [numbers[at : at + GROUP] for at in range(0, len(numbers), GROUP)]
    tried: dict[int, int] = {}
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
                    tried[number] = tried.get(number, 0) + 1
                    if tried[number] < 2:
                        groups.append([number])


def with_data(numbers: list[int], seconds: float) -> Iterator[tuple[int, float]]:
    """The same rows through a Ray Data pipeline."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"id": number} for number in numbers])
    built = rows.map_batches(Builder, fn_constructor_args=(seconds,), batch_size=GROUP, concurrency=WORKERS, num_cpus=0)
    for batch in built.iter_batches(batch_size=None, prefetch_batches=0):
        yield from zip(map(int, batch["id"]), map(float, batch["done"]), strict=True)


WAYS = {"actors": with_actors, "data": with_data}


def measure(way: str, rows: int, seconds: float) -> dict[str, float]:
    """All rows, none of which does harm. The driver's memory is what it has more of at the end than at the start."""
    process = psutil.Process()
    begun, before, late = time.time(), process.memory_info().rss, []
    first = 0.0
    for _, done in WAYS[way](list(range(rows)), seconds):
        first = first or done
        late.append(time.time() - done)
    spent = time.time() - begun
    return {
        "rows_per_second": round(rows / spent, 1),
        # Without the start of the workers.
        "rows_per_second_after_the_first": round((rows - 1) / (begun + spent - first), 1),
        "driver_mb_more": round((process.memory_info().rss - before) / 1e6, 1),
        "known_after_ms_median": round(1000 * statistics.median(late), 1),
        "known_after_ms_most": round(1000 * max(late), 1),
    }


def measure_death(way: str, rows: int, seconds: float) -> dict[str, Any]:
    """One row in the middle kills its worker whenever it is tried: the others that were built, and how it ended."""
    numbers = list(range(rows))
    numbers.insert(rows // 2, KILLER)
    begun, found, end = time.time(), set[int](), "ended"
    try:
        for number, _ in WAYS[way](numbers, seconds):
            found.add(number)
            print(f"built {number}", flush=True)  # counted by whoever ends this process
    except Exception as error:
        end = f"{type(error).__name__} after {time.time() - begun:.0f} s"
    return {"others_built": len(found), "of": rows, "end": end, "seconds": round(time.time() - begun, 1)}


def in_a_process(way: str, part: str, rows: int, seconds: float, limit: float) -> dict[str, Any]:
    """One measurement in a process of its own, so that neither leaves the other anything; ended after ``limit``."""
    import subprocess
    import sys

    command = [sys.executable, __file__, "--way", way, "--part", part, "--rows", str(rows)]
    command += ["--milliseconds", str(1000 * seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as late:
        told = [line for line in (late.stdout or b"").decode().splitlines() if line.startswith("built ")]
        return {"end": f"still at it after {limit:g} s", "others_built": len(told), "of": rows}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return (
        json.loads(lines[-1]) if lines else {"end": done.stderr.strip().splitlines()[-1][:200] if done.stderr else "?"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--milliseconds", type=float, default=2.0)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for each measurement")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=("plain", "death"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    seconds = chosen.milliseconds / 1000
    if chosen.way:
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
        run = measure if chosen.part == "plain" else measure_death
        print(json.dumps(run(chosen.way, chosen.rows, seconds)), flush=True)
        return
    found: dict[str, Any] = {way: {} for way in WAYS}
    for part, rows in (("plain", chosen.rows), ("death", chosen.rows // 10)):
        for way in WAYS:
            found[way][part] = in_a_process(way, part, rows, seconds, chosen.limit)
            print(way, part, json.dumps(found[way][part]), flush=True)
    one, other = found["actors"]["plain"], found["data"]["plain"]
    ratios = {key: round(one[key] / other[key], 2) for key in one if isinstance(other.get(key), float) and other[key]}
    print(json.dumps({"rows": chosen.rows, "actors_by_data": ratios, **found}))


if __name__ == "__main__":
    main()
