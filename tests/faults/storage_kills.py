"""Kills nodes and the S3 server at random moments of runs into a bucket; then one last run has to make all whole.

Prints kills by kind and the seconds it took. Each node is a process of its own with a cache of its own; all that
they share is the bucket.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(TESTS)]

from counting_recipe import counting  # noqa: E402
from harness import arguments, finish  # noqa: E402
from s3_server import BUCKET, S3Server, connect, environment  # noqa: E402
from stub_recipe import item  # noqa: E402

STEPS = 20
NODE = f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from counting_recipe import counting
from stub_recipe import item
from pipeline.core.place import Remote
from pipeline.fleet import depot, driver
depot.SHIP_SECONDS = 0.3
print("ready", flush=True)
rows = [item(name) for name in sys.argv[2:]]
settings = driver.FleetSettings(lockstep=1, threads=1, serial=True)
driver.run(rows, Remote(sys.argv[1]), prior_spec="stub", settings=settings, toolbox=counting({STEPS}, 0.02))
print("done", flush=True)
"""


def main() -> None:
    chosen = arguments(__doc__, kills=(4, 100), rows=(12, 40))
    from pipeline.core.place import Remote
    from pipeline.fleet import driver
    from pipeline.storage import assets
    from pipeline.storage.store import store_of

    chance, begun = random.Random(chosen.seed), time.monotonic()
    counts = {"node": 0, "server": 0}
    with tempfile.TemporaryDirectory(prefix="lks-") as folder:
        server = S3Server(Path(folder) / "s3")
        server.start()
        try:
            os.environ.update(environment(server.endpoint) | {"LATENTKILN_CACHE": f"{folder}/last"})
            connect()
            out, rows = Remote(f"s3://{BUCKET}/out"), [f"r{n:03d}" for n in range(chosen.rows)]
            while sum(counts.values()) < chosen.kills:
                names = chance.sample(rows, len(rows))
                home = os.environ | {"LATENTKILN_CACHE": f"{folder}/node{sum(counts.values()) % 3}"}
                node = subprocess.Popen(
                    [sys.executable, "-c", NODE, str(out), *names], env=home, stdout=subprocess.PIPE, text=True
                )
                assert node.stdout is not None and node.stdout.readline() == "ready\n"
                deadline = time.monotonic() + chance.uniform(0.0, 6.0)
                while time.monotonic() < deadline and node.poll() is None:
                    time.sleep(0.01)
                if node.poll() is not None:
                    break  # nothing left to build
                kind = "server" if chance.random() < 0.25 else "node"
                counts[kind] += 1
                if kind == "server":
                    server.kill()
                    time.sleep(chance.uniform(0.0, 2.0))
                    server.start()
                    time.sleep(chance.uniform(0.0, 3.0))
                node.kill()
                node.wait()
            settings = driver.FleetSettings(lockstep=1, threads=1, serial=True)
            summary = driver.run(
                [item(name) for name in rows], out, prior_spec="stub", settings=settings, toolbox=counting(STEPS)
            )
            expected = f"fine after {STEPS}".encode()
            wrong = [name for name in rows if assets.read_output(out / name, "asset.glb")[0] != expected]
            stray = [
                name
                for name in store_of(out).files(out)
                if any(mark in name for mark in (".lease", ".work", ".next", ".tmp-", "failure.json"))
            ]
        finally:
            server.kill()
    whole = not wrong and not stray and not summary.failures
    seconds = round(time.monotonic() - begun, 1)
    finish(whole, kills=counts, rows=len(rows), wrong=wrong, stray=stray, failed=summary.failures, seconds=seconds)


if __name__ == "__main__":
    main()
