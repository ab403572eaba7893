"""Kills a run, whole tree and all, at moments spread over its life; what is built in the end must not differ."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fake_prior import make_prior

from pipeline.export.record import read_record

CUBE = """v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 -1\nv -1 -1 1\nv 1 -1 1\nv 1 1 1\nv -1 1 1
f 1 4 3 2\nf 5 6 7 8\nf 1 2 6 5\nf 3 4 8 7\nf 2 3 7 6\nf 1 5 8 4\n"""
ROWS = ("one", "two", "three")


def start(folder: Path, out: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline", "run", "m.csv", "--out", out, "--prior", "prior", *more]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_tree(process: subprocess.Popen[str]) -> int:
    """SIGKILL to the command and everything it started; how many processes that were."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        return len(family)
    return 0


def digests(out: Path) -> dict[str, str]:
    return {row: hashlib.sha256((out / row / "asset.glb").read_bytes()).hexdigest() for row in ROWS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    make_prior(folder / "prior")
    (folder / "cube.obj").write_text(CUBE)
    rows = "".join(f"{row},a red brick cube,cube.obj,{seed},100\n" for seed, row in enumerate(ROWS))
    (folder / "m.csv").write_text("id,prompt,mesh,seed,steps\n" + rows)
    return folder


@pytest.mark.parametrize("mode", [["--serial"], []], ids=["serial", "ray"])
def test_killed_runs_end_in_the_same_bytes(folder: Path, mode: list[str]) -> None:
    more = ["--lockstep", "2", *mode]
    name = f"whole-{len(mode)}"
    # Once to compile what a fresh checkout has not compiled yet: the kills are timed by a run that only works.
    start(folder, f"warm-{len(mode)}", *more).communicate(timeout=240)
    whole = start(folder, name, *more)
    begun = time.monotonic()
    output, _ = whole.communicate(timeout=240)
    seconds = time.monotonic() - begun
    assert whole.returncode == 0, output
    out = folder / f"parts-{len(mode)}"
    kills = 0
    # Early enough that two of them come in time even where the cores are freer by then.
    for share in (0.2, 0.35, 0.5, 0.8):
        process = start(folder, out.name, *more)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=share * seconds)
        kills += kill_tree(process) > 0
    assert kills >= 2
    last = start(folder, out.name, *more)
    output, _ = last.communicate(timeout=240)
    assert last.returncode == 0, output
    assert digests(out) == digests(folder / name)
    for row in ROWS:
        record = read_record(out / row)
        assert record is not None and record["status"] == "done"
    strays = [p for p in out.rglob("*") if p.name.startswith(".tmp-") or p.name in (".work", ".lock")]
    assert strays == []
