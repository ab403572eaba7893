"""SIGKILL at random moments: a worker, the raylet, the driver, or everything a run started (``tree``: the whole node);
then nodes and the server of runs into a bucket, by ``storage_kills.py``, both with a recipe that only hashes; then runs
of the real recipes, by ``real_kills.py``. Each time, a run in peace follows.

Every row must be built with the bytes of an undisturbed run, and no stray file be left. A driver that is killed, or
ends because its raylet was, is started again, as a person would. Where all rows are built before all kills were made,
another round begins, in an output folder of its own.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from harness import HERE, arguments, family, faults_of, finish, kill, start_run, workplace, write_manifest

TARGETS = ("worker", "raylet", "driver", "tree")
STEP = {"LATENTKILN_STEP_SECONDS": "0.02"}
OPTIONS = ("--quiet", "--lockstep", "2", "--workers", "2")
# Of the kills after a start, so many wait until rows are being built; the others may come before.
PATIENT = 0.75
START_SECONDS = 60.0
# What a kill may take on the average before the program gives up.
KILL_SECONDS = 40.0


@dataclass
class Tally:
    """What was done so far: ``kills`` by target, how many of them ``met_work``, and how often a run was started."""

    kills: Counter[str] = field(default_factory=Counter)
    met_work: int = 0
    starts: int = 0


def victims(process: subprocess.Popen[str], target: str) -> list[psutil.Process]:
    """The processes of this run that ``target`` names; the driver is the one that was started."""
    relatives = family(process)
    if target == "tree":
        return relatives
    if target == "driver":
        return relatives[-1:]
    name = {"worker": "ray::Worker", "raylet": "raylet"}[target]
    found = []
    for relative in relatives:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if relative.name().startswith(name):
                found.append(relative)
    return found


def working(out: Path, since: float) -> bool:
    """Whether a row that is not finished got a checkpoint after ``since``."""
    for path in out.glob("*/.work/checkpoint.json"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > since:
                return True
    return False


def disturb(manifest: Path, out: Path, rng: random.Random, most: int, tally: Tally, end: float) -> None:
    """Kills in runs of ``manifest`` until there were ``most`` kills in all, every row is built, or it is ``end``."""
    process, since = None, 0.0
    while tally.kills.total() < most and time.monotonic() < end:
        if process is None or process.poll() is not None:
            if process is not None and process.returncode == 0:
                return
            since = time.time()
            process = start_run(manifest, out, *OPTIONS, **STEP)
            tally.starts += 1
            await_work(process, out, since, patient=rng.random() < PATIENT)
        time.sleep(rng.uniform(0.1, 3))
        target = TARGETS[tally.kills.total() % len(TARGETS)]
        found, met = victims(process, target), working(out, since)
        if found and process.poll() is None and kill(rng.sample(found, 1) if target == "worker" else found):
            tally.kills[target] += 1
            tally.met_work += met
            if target in ("driver", "tree"):
                process.wait()
    if process is not None and process.poll() is None:
        process.terminate()
        process.wait()


def await_work(process: subprocess.Popen[str], out: Path, since: float, *, patient: bool) -> None:
    """Returns when rows are being built; at once unless ``patient``."""
    end = time.monotonic() + START_SECONDS
    while patient and process.poll() is None and time.monotonic() < end and not working(out, since):
        time.sleep(0.05)


def local(folder: Path, rows: int, kills: int, seed: int) -> dict:
    """The kills of runs on this machine, in as many rounds as they take; what was found in all."""
    rng, tally, faults, codes = random.Random(seed), Tally(), Counter[str](), []
    manifest, end = write_manifest(folder, rows, "work 60"), time.monotonic() + KILL_SECONDS * kills
    while tally.kills.total() < kills and time.monotonic() < end:
        out = folder / f"out{len(codes)}"
        disturb(manifest, out, rng, kills, tally, end)
        codes.append(start_run(manifest, out, *OPTIONS, **STEP).wait())
        faults.update(faults_of(out, manifest))
    ok = not any(codes) and not any(faults.values()) and tally.kills.total() >= kills
    counts = {"ok": ok, "kills": dict(tally.kills), "met_work": tally.met_work, "rows": rows * len(codes)}
    return counts | {"starts": tally.starts + len(codes), "rounds": len(codes)} | faults


def printed(program: str, **options: int) -> dict:
    """What another program of this folder prints."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(HERE / program), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads((done.stdout.splitlines() or ['{"ok": false, "kills": {}}'])[-1])


def main() -> None:
    chosen = arguments(
        __doc__, ("local", "storage", "real"), kills=(4, 160), rows=(12, 200), storage_kills=(3, 60),
        storage_rows=(6, 40), real_kills=(2, 40), real_kinds=(1, 4),
    )  # fmt: skip
    begun, found = time.monotonic(), {}
    if "local" in chosen.parts:
        with workplace(chosen) as folder:
            found["local"] = local(folder, chosen.rows, chosen.kills, chosen.seed)
    if "storage" in chosen.parts:
        options = {"kills": chosen.storage_kills, "rows": chosen.storage_rows, "seed": chosen.seed}
        found["storage"] = printed("storage_kills.py", **options)
    if "real" in chosen.parts:
        found["real"] = printed("real_kills.py", kills=chosen.real_kills, kinds=chosen.real_kinds, seed=chosen.seed)
    total = sum(sum(one["kills"].values()) for one in found.values())
    finish(all(one["ok"] for one in found.values()), kills=total, seconds=round(time.monotonic() - begun, 1), **found)


if __name__ == "__main__":
    main()
