"""Kills a run, whole tree and all, in the middle of its work; what is built in the end must not differ."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fake_prior import make_prior

from pipeline.export.record import read_record

pytestmark = pytest.mark.xdist_group("cluster")
CUBE = """v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 -1\nv -1 -1 1\nv 1 -1 1\nv 1 1 1\nv -1 1 1
f 1 4 3 2\nf 5 6 7 8\nf 1 2 6 5\nf 3 4 8 7\nf 2 3 7 6\nf 1 5 8 4\n"""
ROWS = ("one", "two", "three")
STEPS = 80
ALWAYS = ("--lockstep", "2", "--checkpoint-seconds", "0.1")


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
    """A manifest, and in ``whole`` what a run makes of it that nobody disturbs."""
    folder = tmp_path_factory.mktemp("kill")
    make_prior(folder / "prior")
    (folder / "cube.obj").write_text(CUBE)
    rows = "".join(f"{row},a red brick cube,cube.obj,{seed},{STEPS}\n" for seed, row in enumerate(ROWS))
    (folder / "m.csv").write_text("id,prompt,mesh,seed,steps\n" + rows)
    whole = start(folder, "whole", *ALWAYS, "--serial")
    output, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, output
    return folder


def half_done(out: Path) -> set[str]:
    """Rows that are not finished, and have something to go on from."""
    begun = {path.parents[2].name for path in out.glob("*/.work/*/latent.safetensors")}
    return {row for row in begun if read_record(out / row) is None}


def both_half_done(out: Path) -> bool:
    """The first group of rows is in the middle of its work."""
    return len(half_done(out)) >= 2


def last_half_done(out: Path) -> bool:
    """The first group is finished, and what comes after it is in the middle of its work."""
    return half_done(out) == {ROWS[-1]} and all(read_record(out / row) is not None for row in ROWS[:-1])


@pytest.mark.parametrize(
    ("mode", "moments"),
    [(["--serial"], [both_half_done, last_half_done]), (["--workers", "1"], [both_half_done])],
    ids=["serial", "ray"],
)
def test_killed_runs_end_in_the_same_bytes(
    folder: Path, mode: list[str], moments: list[Callable[[Path], bool]]
) -> None:
    out = folder / f"parts{mode[0]}"
    interrupted = []
    for moment in moments:
        process = start(folder, out.name, *ALWAYS, *mode)
        deadline = time.monotonic() + 240
        while not moment(out):
            assert process.poll() is None and time.monotonic() < deadline, f"it was never {moment.__name__}"
            time.sleep(0.01)
        assert kill_tree(process) > 0
        interrupted.append(half_done(out))
    assert interrupted == [set(ROWS[:-1]), {ROWS[-1]}][: len(moments)]
    last = start(folder, out.name, *ALWAYS, *mode)
    output, _ = last.communicate(timeout=240)
    assert last.returncode == 0, output
    assert digests(out) == digests(folder / "whole")
    for row in ROWS:
        record = read_record(out / row)
        assert record is not None and record["status"] == "done"
        # A row that was killed went on from where it had been saved.
        assert (record["resumed_from_step"] > 0) == any(row in rows for rows in interrupted)
    strays = [p for p in out.rglob("*") if p.name.startswith(".tmp-") or p.name in (".work", ".lock")]
    assert strays == []
