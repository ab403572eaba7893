"""The Khronos glTF validator, called from tests. A missing validator is a failure, never a skip."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
SEVERITIES = ("error", "warning", "info", "hint")


def reports(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The validator's report for each file, in order; fails the test where the validator cannot run."""
    node = shutil.which("node")
    if node is None:
        pytest.fail("Node.js is not on PATH; the glTF validator needs it (install Node 18 or newer)")
    if not (FOLDER / "node_modules" / "gltf-validator").is_dir():
        pytest.fail("the Khronos validator is not installed: run `npm ci --prefix tests/real` (or `make test`)")
    command = [node, str(FOLDER / "validate.mjs"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.fail(f"the glTF validator did not run (exit {done.returncode}): {done.stderr.strip()}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(found) == len(paths)
    return found


def complaints(report: dict[str, Any]) -> list[str]:
    """The report's issues, one line each: severity, code, where, message."""
    return [
        f"{SEVERITIES[issue['severity']]} {issue['code']} {issue.get('pointer', '')}: {issue['message']}"
        for issue in report["issues"]["messages"]
    ]


def validate_glb(path: Path, *, infos: bool = False) -> dict[str, Any]:
    """The validator's report of one file; fails the test on anything it finds.

    ``infos=True`` lets notes of severity info and hint pass; errors and warnings never do.
    """
    return validate_glbs([path], infos=infos)[0]


def validate_glbs(paths: Sequence[Path], *, infos: bool = False) -> list[dict[str, Any]]:
    """As ``validate_glb`` for several files in one Node process."""
    found = reports(paths)
    for path, report in zip(paths, found, strict=True):
        issues = report["issues"]
        counted = issues["numErrors"] + issues["numWarnings"]
        if not infos:
            counted += issues["numInfos"] + issues["numHints"]
        if counted:
            pytest.fail(f"{path.name} is not clean:\n  " + "\n  ".join(complaints(report)[:20]))
    return found
