"""SIGKILL at random moments: a worker, the raylet, the driver, or everything a run started; then a run in peace.

Every row must be built with the bytes of an undisturbed run, and no stray file be left. A driver that is killed, or
ends because its raylet was, is started again, as a person would.
"""

from __future__ import annotations

import random
import time
from collections import Counter

from harness import arguments, family, faults_of, finish, kill, start_run, workplace, write_manifest

TARGETS = ("worker", "raylet", "driver", "tree")
STEP = {"LATENTKILN_STEP_SECONDS": "0.02"}
OPTIONS = ("--quiet", "--lockstep", "2", "--workers", "2")


def victims(process, target: str) -> list:
    """The processes of this run that ``target`` names; the driver is the one that was started."""
    relatives = family(process)
    if target == "tree":
        return relatives
    if target == "driver":
        return relatives[-1:]
    name = {"worker": "ray::Worker", "raylet": "raylet"}[target]
    found = []
    for relative in relatives:
        try:
            if relative.name().startswith(name):
                found.append(relative)
        except Exception:  # it ended meanwhile
            continue
    return found


def main() -> None:
    chosen = arguments(__doc__, kills=(6, 200), rows=(12, 400))
    rng = random.Random(chosen.seed)
    done: Counter[str] = Counter()
    starts = 0
    with workplace(chosen) as folder:
        manifest, out = write_manifest(folder, chosen.rows, "work 60"), folder / "out"
        process = None
        begun = time.monotonic()
        while sum(done.values()) < chosen.kills and time.monotonic() - begun < 40 * chosen.kills:
            if process is None or process.poll() is not None:
                if process is not None and process.returncode == 0:
                    break  # all was built before the last kill
                process = start_run(manifest, out, *OPTIONS, **STEP)
                starts += 1
                # Ray takes a while to start: half of the kills shall meet work.
                time.sleep(rng.uniform(0.5, 12))
            target = TARGETS[sum(done.values()) % len(TARGETS)]
            found = victims(process, target)
            if found and kill(rng.sample(found, 1) if target == "worker" else found):
                done[target] += 1
                if target in ("driver", "tree"):
                    process.wait()
            time.sleep(rng.uniform(0.1, 3))
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait()
        last = start_run(manifest, out, *OPTIONS, **STEP)
        code = last.wait()
        faults = faults_of(out, manifest)
        finish(
            code == 0 and not any(faults.values()) and bool(done),
            kills=sum(done.values()),
            of=dict(done),
            rows=chosen.rows,
            starts=starts + 1,
            last_exit=code,
            **faults,
        )


if __name__ == "__main__":
    main()
