"""The storage fault program at small size; ``python tests/faults/storage_kills.py --full`` is the large one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_nodes_and_server_killed_at_random_moments() -> None:
    program = Path(__file__).with_name("storage_kills.py")
    command = [sys.executable, str(program), "--kills", "3", "--rows", "6", "--seed", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    counts = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and counts["ok"], (counts, done.stderr[-2000:])
    assert sum(counts["kills"].values()) >= 1
