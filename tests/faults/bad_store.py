"""Runs into an S3 server that misbehaves, one kind of misbehaviour a part: it answers 500 and 503 at random; it is
slow; it throttles, as a bucket that is asked too often does; it cuts connections, loses answers and sends halves of
them; or it refuses all that is written for good. Then a run in peace.

Behind the faults every row has to be built, with the bytes of an undisturbed run, and nothing but assets left. Where
the store stays away, each row fails in one line that says so, nothing half is seen, and the next run builds it.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

FAKES = Path(__file__).parents[1] / "fakes"
sys.path[:0] = [str(Path(__file__).parent), str(FAKES)]

from counting_recipe import counting  # noqa: E402
from harness import arguments, finish  # noqa: E402
from s3_server import BUCKET, FaultProxy, S3Server, connect, environment  # noqa: E402
from stub_recipe import item  # noqa: E402

from pipeline.core.location import RemotePath  # noqa: E402
from pipeline.scheduler import runner  # noqa: E402
from pipeline.scheduler.runner import RunSettings, RunSummary  # noqa: E402
from pipeline.storage import publish  # noqa: E402
from pipeline.storage.store import store_of  # noqa: E402

STEPS = 5
# Share of the requests that something goes wrong with, where it is left to chance.
SHARE = 0.3
CHANCES = {"errors": (500, 503), "slow": ("slow",), "lossy": ("drop", "lose", "half")}
# Requests a second that a store that throttles lets pass, and how many at once.
RATE, BURST = 12.0, 6.0
# Seconds that a store that stays away is waited for.
PATIENCE = "2"
PEACE = ("failure.json", ".lease", ".work", ".next", ".tmp-")


class Chance:
    """A rule for the proxy: by chance one of the faults; ``done`` counts them."""

    def __init__(self, seed: int, faults: tuple[int | str, ...]):
        self._chance, self._faults, self.done = random.Random(seed), faults, 0

    def __call__(self, method: str, path: str) -> int | str | None:
        if self._chance.random() >= SHARE:
            return None
        self.done += 1
        return self._chance.choice(self._faults)


class Throttle:
    """A rule for the proxy: a token bucket. What comes too fast is told to slow down (503)."""

    def __init__(self) -> None:
        self._tokens, self._filled, self.done = BURST, time.monotonic(), 0
        self._lock = threading.Lock()

    def __call__(self, method: str, path: str) -> int | None:
        with self._lock:
            now = time.monotonic()
            self._tokens = min(BURST, self._tokens + (now - self._filled) * RATE)
            self._filled = now
            if self._tokens >= 1:
                self._tokens -= 1
                return None
            self.done += 1
            return 503


class Away:
    """A rule for the proxy: nothing may be written any more."""

    done = 0

    def __call__(self, method: str, path: str) -> int | None:
        refused = method in ("PUT", "DELETE", "POST")
        self.done += refused
        return 503 if refused else None


def build(out: RemotePath, names: list[str]) -> RunSummary:
    """A run of rows of a few steps in this process."""
    settings = RunSettings(lockstep=1, threads=1, serial=True)
    return runner.run([item(name) for name in names], out, prior_spec="stub", settings=settings, hooks=counting(STEPS))


def part(name: str, proxy: FaultProxy, rows: int, seed: int) -> dict:
    """One run while the store misbehaves, and one in peace."""
    out, begun = RemotePath(f"s3://{BUCKET}/{name}"), time.monotonic()
    names = [f"r{number:03d}" for number in range(rows)]
    rule = Throttle() if name == "throttled" else Away() if name == "away" else Chance(seed, CHANCES[name])
    if name == "away":
        os.environ["LATENTKILN_STORAGE_SECONDS"] = PATIENCE
    proxy.rule, proxy.slow_seconds = rule, 0.1
    troubled = build(out, names)
    seconds = time.monotonic() - begun
    os.environ.pop("LATENTKILN_STORAGE_SECONDS", None)
    proxy.rule = lambda method, path: None
    half = sum("record" in path or "asset" in path for path in store_of(out).files(out)) if name == "away" else 0
    said = "run again when the store answers"
    told = sum(said in result.message and "\n" not in result.message for result in troubled.failed)
    last = build(out, names)
    expected = f"fine after {STEPS}".encode()
    wrong = sum(publish.read_output(out / each, "asset.glb")[0] != expected for each in names)
    stray = [path for path in store_of(out).files(out) if any(mark in path for mark in PEACE)]
    ok = (troubled.built, told) == ((0, rows) if name == "away" else (rows, 0))
    ok = ok and rule.done > 0 and not (half or wrong or stray or last.failures)
    counts = {"ok": ok, "faults": rule.done, "built": troubled.built, "told_in_a_line": told}
    return counts | {"half": half, "wrong": wrong, "stray": len(stray), "seconds": round(seconds, 1)}


def main() -> None:
    chosen = arguments(__doc__, ("errors", "slow", "throttled", "lossy", "away"), rows=(2, 60))
    with tempfile.TemporaryDirectory(prefix="lkb-") as folder:
        server = S3Server(Path(folder) / "s3")
        server.start()
        proxy = FaultProxy(server.endpoint)
        try:
            os.environ.update(environment(proxy.endpoint) | {"LATENTKILN_CACHE": f"{folder}/cache"})
            connect()
            found = {name: part(name, proxy, chosen.rows, chosen.seed) for name in chosen.parts}
        finally:
            proxy.close()
            server.kill()
    finish(all(one["ok"] for one in found.values()), rows=chosen.rows, **found)


if __name__ == "__main__":
    main()
