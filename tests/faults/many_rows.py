"""Ten thousand rows of a recipe that does nothing, then the same again: seconds, and memory of driver and workers.

It works in memory (/dev/shm) where there is such a thing: what is measured is the fleet. On a disk each row costs four
flushes more, which is what the disk makes of them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from harness import arguments, family, faults_of, finish, start_run, workplace, write_manifest


def watched(process) -> tuple[float, float, dict[str, float]]:
    """Seconds until ``process`` ended, the most that it and its workers held in MB (not Ray's own servers), and the
    processor's seconds of both."""
    begun, most = time.monotonic(), 0.0
    spent: dict[str, float] = {}
    while process.poll() is None:
        held = 0.0
        for member in family(process):
            try:
                if member.pid == process.pid or member.name().startswith("ray::Worker"):
                    held += member.memory_info().rss / 1e6
                    who = "driver" if member.pid == process.pid else f"worker {member.pid}"
                    spent[who] = round(sum(member.cpu_times()[:2]), 2)
            except Exception:  # it ended meanwhile
                continue
        most = max(most, held)
        time.sleep(0.2)
    return time.monotonic() - begun, most, spent


def main() -> None:
    chosen = arguments(__doc__, rows=(300, 10_000))
    if chosen.folder is None and Path("/dev/shm").is_dir():
        tempfile.tempdir = "/dev/shm"
    with workplace(chosen) as folder:
        manifest, out = write_manifest(folder, chosen.rows, "work 1"), folder / "out"
        first = start_run(manifest, out, "--quiet")
        seconds, memory, spent = watched(first)
        second = start_run(manifest, out, "--quiet")
        again, _, _ = watched(second)
        faults = faults_of(out, manifest)
        codes = [first.returncode, second.returncode]
        ok = codes == [0, 0] and not any(faults.values()) and memory < 1000
        if chosen.full:
            ok = ok and seconds <= 60 and again <= 10
        figures = {"seconds": round(seconds, 1), "memory_mb": round(memory), "again": round(again, 1), "cpu": spent}
        finish(ok, rows=chosen.rows, **figures, **faults)


if __name__ == "__main__":
    main()
