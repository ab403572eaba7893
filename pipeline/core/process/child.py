"""Runs native libraries that cannot be interrupted in a child process, and kills it at a time limit."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import LatentkilnError
from pipeline.core.job import Reporter, no_report
from pipeline.core.private import private_folder
from pipeline.core.safe_path import without_current_folder

_POLL_SECONDS = 0.25


def run_child(
    program: Path | Sequence[str],
    name: str,
    inputs: Mapping[str, NDArray[np.generic]],
    outputs: Sequence[str],
    *,
    time_limit: float,
    stage: str,
    report: Reporter = no_report,
) -> tuple[dict[str, NDArray[np.generic]] | None, str]:
    """Runs ``program`` on the arrays ``inputs``. Returns the arrays ``outputs`` and "", or None and a reason.

    program  a Python file, or the beginning of a command. We append a folder, this process's id and a number of
             seconds. The program reads ``<name>.npy`` files from the folder and writes its own there, the last of
             ``outputs`` last.
    name     name of the library, for messages.
    report   called as (stage, elapsed seconds, time_limit) while the child runs.

    The child ends with this process, and after ``time_limit`` seconds at the latest. Its folder is removed. Raises
    LatentkilnError if the arrays cannot be written.
    """
    command = (sys.executable, "-P", str(program.absolute())) if isinstance(program, Path) else tuple(program)
    with private_folder() as folder:
        try:
            for key, array in inputs.items():
                np.save(folder / f"{key}.npy", array, allow_pickle=False)
        except OSError as error:
            # NumPy's error has no errno for a short write.
            reason = error.strerror or "only a part was written: is the disk full?"
            message = f"{folder}: temporary files cannot be written ({reason}); free some space there or set TMPDIR"
            raise LatentkilnError(message, stage=stage) from error
        began = time.monotonic()
        with _started([*command, str(folder), str(os.getpid()), str(math.ceil(time_limit) + 5)], folder) as child:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_POLL_SECONDS)
                    break
                elapsed = time.monotonic() - began
                report(stage, int(elapsed), max(1, math.ceil(time_limit)))
                if elapsed > time_limit:
                    return None, f"{name} did not finish within {time_limit:g} s"
        if child.returncode != 0 or not (folder / f"{outputs[-1]}.npy").is_file():
            log_lines = (folder / "said.txt").read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(log_lines) if line.strip()), "")
            return None, f"{name} failed (exit code {child.returncode}){': ' + last[:120] if last else ''}"
        return {key: np.load(folder / f"{key}.npy", allow_pickle=False) for key in outputs}, ""


@contextlib.contextmanager
def _started(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs ``command`` in ``folder`` and kills it if the block ends first. The child imports nothing from the current
    folder."""
    path = without_current_folder(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    with (folder / "said.txt").open("wb") as log:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
