"""What the fault programs share: a recipe that computes slowly and can be resumed, manifests of it, a run in its own
process, and the last line of each program: a JSON object with its counts.

Run any of them by hand from the repository's root: ``python tests/faults/kill_matrix.py --full``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))
CUBE = "v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 1\nf 1 2 3\nf 1 3 4\nf 1 4 2\nf 2 4 3\n"


def arguments(description: str | None, parts: tuple[str, ...] = (), **sizes: tuple[int, int]) -> argparse.Namespace:
    """``--full`` chooses the second of each pair of ``sizes``, which are options themselves; ``--part`` (repeated)
    chooses among ``parts``, else all of them are done."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the size the project promises, not the quick one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="work here and leave it; else in a temporary folder")
    if parts:
        parser.add_argument("--part", dest="parts", action="append", choices=parts, help="only this; all when left out")
    for name, (small, full) in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{small}, or {full} with --full")
    chosen = parser.parse_args()
    if parts:
        chosen.parts = chosen.parts or list(parts)
    for name, pair in sizes.items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, pair[chosen.full])
    return chosen


@contextlib.contextmanager
def workplace(chosen: argparse.Namespace) -> Iterator[Path]:
    """A folder with a mesh and a prior's shell in it."""
    with contextlib.ExitStack() as stack:
        folder = chosen.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lkf-")))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cube.obj").write_text(CUBE)
        (folder / "prior").mkdir(exist_ok=True)
        (folder / "prior" / "model_index.json").write_text("{}")
        yield folder


def finish(ok: bool, **counts: Any) -> None:
    """Prints the counts as the last line and ends the program: 0 when all is as promised, else 1."""
    print(json.dumps({"ok": ok} | counts), flush=True)
    sys.exit(0 if ok else 1)


def write_manifest(folder: Path, rows: int, prompt: str, name: str = "m.csv") -> Path:
    """``rows`` rows of ``prompt``, each with a seed of its own."""
    path = folder / name
    with path.open("w") as stream:
        stream.write("id,prompt,mesh,seed\n")
        for number in range(rows):
            stream.write(f"asset-{number:06d},{prompt},cube.obj,{number}\n")
    return path


def start_run(manifest: Path, out: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """``latentkiln run`` with the recipe below, in a process group of its own; its output goes to ``out``.log."""
    log = out.with_name(out.name + ".log")
    with log.open("a") as stream:
        return subprocess.Popen(
            [sys.executable, str(HERE / "slow_run.py"), str(manifest), str(out), *options],
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env=os.environ | environment,
        )


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Everything ``process`` started, and itself last."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [*parent.children(recursive=True), parent]
    return []


def kill(victims: list[psutil.Process]) -> int:
    """SIGKILL to each; how many there were."""
    count = 0
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            count += 1
    return count


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Raises TimeoutError with ``what`` when ``condition`` stays false."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def expected_asset(prompt: str, seed: int) -> bytes:
    """The bytes that the recipe of ``slow_run`` makes of a row, computed in one go."""
    state = hashlib.sha256(f"{prompt} {seed}".encode()).digest()
    for step in range(steps_of(prompt)):
        state = advance(state, step)
    return glb(state)


def steps_of(prompt: str) -> int:
    """``work 50`` takes 50 steps."""
    return int(prompt.split()[1])


def advance(state: bytes, step: int) -> bytes:
    """One step of the work."""
    return hashlib.sha256(state + step.to_bytes(4, "little")).digest()


def glb(state: bytes) -> bytes:
    """The smallest GLB there is, with the work's result in it."""
    text = json.dumps({"asset": {"version": "2.0", "extras": {"state": state.hex()}}}).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sII", b"glTF", 2, 20 + len(text)) + struct.pack("<I4s", len(text), b"JSON") + text


def faults_of(out: Path, manifest: Path) -> dict[str, int]:
    """What is not as an undisturbed run would have left it: rows missing or with other bytes, stray files."""
    from pipeline.export.record import output_problem, read_record

    missing = different = 0
    for line in manifest.read_text().splitlines()[1:]:
        job_id, prompt, _, seed = line.split(",")
        record = read_record(out / job_id)
        if record is None or output_problem(out / job_id, record):
            missing += 1
        elif (out / job_id / "asset.glb").read_bytes() != expected_asset(prompt, int(seed)):
            different += 1
    strays = [
        path
        for path in out.rglob("*")
        if path.name.startswith(".tmp-") or path.name in (".lock", "checkpoint.json", ".run.lock.tmp")
    ]
    for path in strays:
        print(f"stray: {path}", file=sys.stderr)
    return {"missing": missing, "different": different, "strays": len(strays)}
