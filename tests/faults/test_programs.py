"""The fault programs at their quick size; each prints its counts, and says itself whether all was as promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("cluster")
HERE = Path(__file__).parent
PROGRAMS = ("kill_matrix", "bad_store", "many_rows", "check_million", "fuzz_manifests", "fuzz_meshes")
# They mount file systems and make network namespaces.
AS_ROOT = (["bad_disk"], ["two_nodes", "--part", "together"])


def run(name: str, *options: str) -> None:
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is True


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str) -> None:
    run(name)


def may_isolate() -> bool:
    """This user may mount and make network namespaces: root, and not in a container that forbids it."""
    if os.geteuid() != 0:
        return False
    words = ["unshare", "--mount", "--net", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_isolate(), reason="needs root, mounts and network namespaces")
@pytest.mark.parametrize("words", AS_ROOT, ids="-".join)
def test_program_of_root(words: list[str]) -> None:
    run(*words)
