"""``run --json``: every line of standard output is a JSON object, whatever dies and whatever a library prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

FAULTS = Path(__file__).parent / "faults"
sys.path.insert(0, str(FAULTS))

from harness import CUBE, faults_of, wait_until, write_manifest  # noqa: E402

PRINTS = """
import os, subprocess, sys
from pipeline.core.stdout import own_stdout
print("before")
with own_stdout() as stream:
    print("a library")
    sys.stdout.write("unfinished")
    os.write(1, b"compiled code\\n")
    subprocess.run(["echo", "a child"], check=True)
    print("ours", file=stream, flush=True)
print("after")
"""


def test_only_our_lines_reach_standard_output() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["before", "ours", "after", ""]
    for text in ("a library", "unfinished", "compiled code", "a child"):
        assert text in done.stderr


def test_a_closed_standard_error_is_no_obstacle() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, PRINTS], capture_output=True, check=True
    )
    assert done.stdout.split(b"\n") == [b"before", b"ours", b"after", b""]


@pytest.mark.xdist_group("cluster")
def test_a_dead_worker_and_a_dead_raylet_leave_nothing_but_json(tmp_path: Path) -> None:
    (tmp_path / "cube.obj").write_text(CUBE)
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model_index.json").write_text("{}")
    manifest, out = write_manifest(tmp_path, 2, "work 40"), tmp_path / "out"
    command = [sys.executable, str(FAULTS / "slow_run.py"), str(manifest), str(out), "--json", "--workers", "1"]
    environment = os.environ | {"LATENTKILN_STEP_SECONDS": "0.1"}
    with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)

        def events() -> list[dict[str, object]]:
            return [json.loads(line) for line in (tmp_path / "stdout").read_text().splitlines()]

        def rows_begun() -> int:
            return sum(event["event"] == "row" and event["state"] == "running" for event in events())

        for number, name in enumerate(("ray::Worker", "raylet")):
            wait_until(lambda begun=number: rows_begun() > begun, 120, "no row began")
            family = psutil.Process(process.pid).children(recursive=True)
            victims = [child for child in family if child.name().startswith(name)]
            assert victims
            for victim in victims:
                victim.kill()
        assert process.wait(180) == 0
    # Each line is an object; what Ray has to say about the dead is in the run's log.
    told = [str(event["text"]) for event in events() if event["event"] == "note"]
    assert any(text.startswith("worker 1 died") for text in told)
    died = "Ray's servers on this machine died; they are started again"
    assert told.count(died) == 1
    assert (tmp_path / "stderr").read_text() == f"latentkiln: {died}\n"
    log = (out / "run.events.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("text", "").startswith("Ray: ") for line in log)
    assert faults_of(out, manifest) == {"missing": 0, "different": 0, "strays": 0}
