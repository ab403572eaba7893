"""A full disk (a tmpfs of a few megabytes), an output root that may not be written, and a clock that jumps: failures
that say what is wrong, nothing corrupt, and the next run builds what is missing.

The first two need root, to mount a tmpfs: a mount that is read-only stops root, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import HERE, ROOT, arguments, faults_of, finish, workplace, write_manifest

PROMPT = "work 12"


def serial(manifest: Path, out: Path, *wrapper: str) -> tuple[int, str]:
    """A run in one process: exit code, and what it printed."""
    command = [*wrapper, sys.executable, str(HERE / "slow_run.py"), str(manifest), str(out), "--serial"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


def built(out: Path) -> int:
    """Records there are, each of an asset that is whole."""
    from pipeline.export.record import output_problem, read_record

    records = [(path.parent, read_record(path.parent)) for path in out.glob("*/record.json")]
    assert all(record and not output_problem(folder, record) for folder, record in records), "a record of no asset"
    return len(records)


@contextlib.contextmanager
def memory_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """``folder`` as a file system of so many kilobytes, for the length of the block."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(disk: Path, option: str) -> None:
    """Mounts ``disk`` again with another ``option``."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def full_disk(folder: Path, rows: int) -> dict:
    """Room for some of the rows; then more of it."""
    manifest = write_manifest(folder, rows, PROMPT, "full.csv")
    # Each row takes five pages or so.
    with memory_disk(folder / "disk", rows * 8) as disk:
        code, printed = serial(manifest, disk / "out")
        first = built(disk / "out")
        remount(disk, "size=64m")
        again, _ = serial(manifest, disk / "out")
        faults = faults_of(disk / "out", manifest)
    clear = code == 1 and "No space left on device" in printed and "Traceback" not in printed
    ok = clear and 0 < first < rows and again == 0 and not any(faults.values())
    return {"ok": ok, "exit": code, "built_before": first, "exit_after": again, **faults}


def read_only(folder: Path, rows: int) -> dict:
    """An output root in which nothing can be written."""
    manifest = write_manifest(folder, rows, PROMPT, "readonly.csv")
    # Room enough for all rows once it may be written.
    with memory_disk(folder / "sealed", 8192 + rows * 32) as disk:
        (disk / "out").mkdir()
        remount(disk, "ro")
        code, printed = serial(manifest, disk / "out")
        remount(disk, "rw")
        again, _ = serial(manifest, disk / "out")
        faults = faults_of(disk / "out", manifest)
    clear = code == 1 and "Read-only file system" in printed and "Traceback" not in printed
    return {"ok": clear and again == 0 and not any(faults.values()), "exit": code, "exit_after": again, **faults}


JUMP = """
import sys, time
real, calls = time.time, 0
def jumping():
    global calls
    calls += 1
    return real() + (0, 3 * 86400, -3 * 86400, -40 * 365 * 86400)[calls // 7 % 4]
time.time = jumping
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def clock(folder: Path, rows: int) -> dict:
    """The wall clock leaps by days, back and forth, all the time; no deadline of ours may stand on it."""
    manifest, out = write_manifest(folder, rows, PROMPT, "clock.csv"), folder / "clock"
    command = [sys.executable, "-c", JUMP, str(HERE / "slow_run.py"), str(manifest), str(out)]
    command += ["--serial", "--max-seconds", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    faults = faults_of(out, manifest)
    state = json.loads((out / "run.json").read_text())["state"] if (out / "run.json").exists() else "none"
    return {"ok": done.returncode == 0 and not any(faults.values()), "exit": done.returncode, "state": state, **faults}


def main() -> None:
    chosen = arguments(__doc__, rows=(40, 1000))
    with workplace(chosen) as folder:
        found = {"clock": clock(folder, chosen.rows)}
        if os.geteuid() == 0:
            found |= {"full_disk": full_disk(folder, chosen.rows), "read_only": read_only(folder, chosen.rows)}
        else:
            found |= {name: {"ok": False, "needs": "root, to mount a tmpfs"} for name in ("full_disk", "read_only")}
    finish(all(one["ok"] for one in found.values()), rows=chosen.rows, **found)


if __name__ == "__main__":
    main()
