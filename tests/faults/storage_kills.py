"""Kills nodes and the S3 server at random moments of runs into a bucket; then one last run has to make all whole.
Where that is so before all kills were made, another round begins, elsewhere in the bucket.

Prints kills by kind and the seconds it took. Each node is a process of its own with a cache of its own; all that
they share is the bucket.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

FAKES = Path(__file__).parents[1] / "fakes"
sys.path[:0] = [str(Path(__file__).parent), str(FAKES)]

from counting_recipe import counting  # noqa: E402
from harness import arguments, finish  # noqa: E402
from s3_server import BUCKET, S3Server, connect, environment  # noqa: E402
from stub_recipe import item  # noqa: E402

from pipeline.core.location import RemotePath  # noqa: E402
from pipeline.scheduler import runner  # noqa: E402
from pipeline.scheduler.runner import RunSettings  # noqa: E402
from pipeline.storage import publish  # noqa: E402
from pipeline.storage.store import store_of  # noqa: E402

STEPS = 20
NODE = f"""
import sys; sys.path.insert(0, {str(FAKES)!r})
from counting_recipe import counting
from stub_recipe import item
from pipeline.core.location import RemotePath
from pipeline.scheduler import output_root, runner
output_root.SYNC_SECONDS = 0.3
print("ready", flush=True)
rows = [item(name) for name in sys.argv[2:]]
settings = runner.RunSettings(lockstep=1, threads=1, serial=True)
runner.run(rows, RemotePath(sys.argv[1]), prior_spec="stub", settings=settings, hooks=counting({STEPS}, 0.02))
print("done", flush=True)
"""


# The server is every third victim.
KINDS = ("node", "server", "node")
# What a kill may take on the average before the program gives up.
KILL_SECONDS = 40.0
LITTER = (".lease", ".work", ".next", ".tmp-", "failure.json")


def disturb(
    server: S3Server,
    out: RemotePath,
    rows: list[str],
    folder: str,
    chance: random.Random,
    most: int,
    counts: Counter[str],
) -> None:
    """Kills until there were ``most`` kills in all, or every row is built."""
    while counts.total() < most:
        names = chance.sample(rows, len(rows))
        home = os.environ | {"LATENTKILN_CACHE": f"{folder}/node{counts.total() % 3}"}
        node = subprocess.Popen(
            [sys.executable, "-c", NODE, str(out), *names], env=home, stdout=subprocess.PIPE, text=True
        )
        assert node.stdout is not None and node.stdout.readline() == "ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A row takes half a second.
            node.wait(chance.uniform(0.0, min(6.0, 0.4 * len(rows))))
            return
        kind = KINDS[counts.total() % len(KINDS)]
        counts[kind] += 1
        if kind == "server":
            server.kill()
            time.sleep(chance.uniform(0.0, 2.0))
            server.start()
            time.sleep(chance.uniform(0.0, 3.0))
        node.kill()
        node.wait()


def peace(out: RemotePath, rows: list[str]) -> Counter[str]:
    """One run in peace; what is wrong after it."""
    settings = RunSettings(lockstep=1, threads=1, serial=True)
    items = [item(name) for name in rows]
    summary = runner.run(items, out, prior_spec="stub", settings=settings, hooks=counting(STEPS))
    expected = f"fine after {STEPS}".encode()
    wrong = sum(publish.read_output(out / name, "asset.glb")[0] != expected for name in rows)
    stray = sum(any(mark in name for mark in LITTER) for name in store_of(out).files(out))
    return Counter({"wrong": wrong, "stray": stray, "failed": summary.failures})


def main() -> None:
    chosen = arguments(__doc__, kills=(4, 100), rows=(12, 40))
    chance, begun = random.Random(chosen.seed), time.monotonic()
    counts, faults, rounds = Counter[str](), Counter[str](), 0
    rows = [f"r{number:03d}" for number in range(chosen.rows)]
    with tempfile.TemporaryDirectory(prefix="lks-") as folder:
        server = S3Server(Path(folder) / "s3")
        server.start()
        try:
            os.environ.update(environment(server.endpoint) | {"LATENTKILN_CACHE": f"{folder}/last"})
            connect()
            while counts.total() < chosen.kills and time.monotonic() - begun < KILL_SECONDS * chosen.kills:
                out = RemotePath(f"s3://{BUCKET}/out{rounds}")
                disturb(server, out, rows, folder, chance, chosen.kills, counts)
                faults.update(peace(out, rows))
                rounds += 1
        finally:
            server.kill()
    ok = not any(faults.values()) and counts.total() >= chosen.kills
    seconds = round(time.monotonic() - begun, 1)
    finish(ok, kills=dict(counts), rows=rounds * len(rows), rounds=rounds, **faults, seconds=seconds)


if __name__ == "__main__":
    main()
