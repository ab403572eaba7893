"""SIGKILL to runs of the real recipes with the embedded prior: to a worker, the raylet, the driver, or all of a run.

Rows are painted by patches, by score, in variants with refinement, and generated, in every phase; checkpoints are
written several times a second, and a kill waits for one. Then a run in peace: every file must have the bytes of an
undisturbed run. Rows take few steps; with ``--defaults`` none of their settings is changed. ``--kinds N`` takes the
first N kinds of rows.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from harness import ROOT, arguments, finish, kill, workplace
from kill_matrix import KILL_SECONDS, TARGETS, victims

from pipeline.export.record import output_problem, read_record

MESH = ROOT / "manifests" / "meshes" / "vase.obj"
OPTIONS = ("--quiet", "--workers", "1", "--lockstep", "2", "--checkpoint-seconds", "0.2")
# Each phase has steps before and after a checkpoint; patches and textures are of two groups.
SHORT = {
    "patches": {"recipe": "paint", "distillation": "patches", "steps": 28},
    "score": {"recipe": "paint", "distillation": "score", "steps": 24},
    "variants": {"recipe": "paint", "seeds": 2, "steps": 8, "refine": True, "refine_steps": 6},
    "generated": {"recipe": "generate", "steps": 20, "texture_steps": 24},
}
WITHOUT = {"steps", "refine_steps", "texture_steps"}


def write_rows(folder: Path, kinds: list[str], *, defaults: bool) -> Path:
    """A manifest with a row of each of ``kinds``."""
    rows: list[dict[str, object]] = []
    shutil.copy(MESH, folder / MESH.name)
    for name in kinds:
        settings = SHORT[name]
        kept = {key: value for key, value in settings.items() if not (defaults and key in WITHOUT)}
        mesh = {"mesh": MESH.name} if settings["recipe"] == "paint" else {}
        rows.append({"id": name, "prompt": "a red brick vase", "seed": len(rows)} | mesh | kept)
    path = folder / "real.json"
    path.write_text(json.dumps(rows))
    return path


def start(manifest: Path, out: Path) -> subprocess.Popen[str]:
    """``latentkiln run``; its output goes to ``out``.log."""
    command = [sys.executable, "-m", "pipeline", "run", str(manifest), "--out", str(out), *OPTIONS]
    with out.with_name(out.name + ".log").open("a") as stream:
        return subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=ROOT
        )


def saved(out: Path, since: float) -> list[str]:
    """The phases with a checkpoint of unfinished rows written after ``since``."""
    phases = []
    for path in out.glob("*/.work/*/*.safetensors"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > since:
                phases.append(f"{path.parts[-4]} {path.stem}")
    return phases


def disturb(manifest: Path, out: Path, rng: random.Random, most: int, kills: Counter[str], met: Counter[str]) -> None:
    """Kills until there were ``most`` in all, or every row is built."""
    process, since = None, 0.0
    while kills.total() < most:
        if process is None or process.poll() is not None:
            if process is not None and process.returncode == 0:
                return
            since = time.time()
            process = start(manifest, out)
        end = time.monotonic() + 2 * KILL_SECONDS
        while not saved(out, since) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 4.0))
        target = TARGETS[kills.total() % len(TARGETS)]
        found, phases = victims(process, target), saved(out, since)
        if found and phases and process.poll() is None and kill(found):
            kills[target] += 1
            met.update(phases)
            # A run of hours may be cut short: what was done so far is known then, too.
            print(f"kill {kills.total()}: {target}; checkpoints of {phases}", file=sys.stderr, flush=True)
            since = time.time()
            if target in ("driver", "tree"):
                process.wait()
    if process is not None and process.poll() is None:
        process.terminate()
        process.wait()


def hashes(out: Path, kinds: list[str]) -> dict[str, dict[str, str]]:
    """The hashes of what is there of each row; nothing for a row that is not whole."""
    found = {}
    for name in kinds:
        record = read_record(out / name)
        whole = record is not None and not output_problem(out / name, record)
        found[name] = {key: value["sha256"] for key, value in record["outputs"].items()} if record and whole else {}
    return found


def main() -> None:
    chosen = arguments(__doc__, kills=(3, 40), kinds=(1, len(SHORT)), defaults=(0, 0))
    kinds = list(SHORT)[: chosen.kinds]
    rng, begun = random.Random(chosen.seed), time.monotonic()
    kills, met, faults, codes, rounds = Counter[str](), Counter[str](), Counter[str](), [], 0
    with workplace(chosen) as folder:
        manifest = write_rows(folder, kinds, defaults=bool(chosen.defaults))
        codes.append(start(manifest, folder / "whole").wait())
        expected = hashes(folder / "whole", kinds)
        resumed = 0
        while kills.total() < chosen.kills and time.monotonic() - begun < 3 * KILL_SECONDS * (chosen.kills + 4):
            out = folder / f"real{rounds}"
            disturb(manifest, out, rng, chosen.kills, kills, met)
            codes.append(start(manifest, out).wait())
            rounds += 1
            for name, files in hashes(out, kinds).items():
                faults["missing" if not files else "different"] += not files or files != expected[name]
                resumed += bool(files) and (read_record(out / name) or {}).get("resumed_from_step", 0) > 0
            strays = [path for path in out.rglob("*") if path.name.startswith(".tmp-") or path.name == ".work"]
            faults["strays"] += len(strays)
    ok = not any(codes) and all(expected.values()) and not any(faults.values()) and kills.total() >= chosen.kills
    seconds = round(time.monotonic() - begun, 1)
    counts = {"rows": rounds * len(kinds), "rounds": rounds, "resumed": resumed, "checkpoints_met": dict(met)}
    finish(ok, kills=dict(kills), **counts, **faults, seconds=seconds)


if __name__ == "__main__":
    main()
