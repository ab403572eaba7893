"""Native libraries that cannot be interrupted run in a process of their own: it is killed when its time is over."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    inputs: Mapping[str, NDArray[Any]],
    outputs: Sequence[str],
    *,
    time_limit: float,
    stage: str,
    report: Reporter = no_report,
) -> tuple[dict[str, NDArray[Any]] | None, str]:
    """Runs ``program`` on the arrays ``inputs``; returns the arrays ``outputs`` and "", or None and one line why not.

    program  a Python file, or the beginning of a command; a folder, this process's id and a number of seconds
             follow. It reads ``<name>.npy`` files in the folder and writes its own there, the last wanted one last.
    name     of the library, for the messages.
    report   is called as (stage, seconds so far, time_limit) while the child runs.

    The child ends with this process and after ``time_limit`` seconds in any case; its folder is removed. Raises
    LatentkilnError where the arrays cannot be put there.
    """
    command = (sys.executable, "-P", str(program.absolute())) if isinstance(program, Path) else tuple(program)
    with private_folder() as folder:
        try:
            for key, array in inputs.items():
                np.save(folder / f"{key}.npy", array, allow_pickle=False)
        except OSError as error:
            # NumPy says how many bytes went in, not why no more did.
            reason = error.strerror or "not all was written: is the disk full?"
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
                    return None, f"{name} was not done after {time_limit:g} s"
        if child.returncode != 0 or not (folder / f"{outputs[-1]}.npy").is_file():
            log_lines = (folder / "said.txt").read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(log_lines) if line.strip()), "")
            return None, f"{name} failed (exit code {child.returncode}){': ' + last[:120] if last else ''}"
        return {key: np.load(folder / f"{key}.npy", allow_pickle=False) for key in outputs}, ""


@contextlib.contextmanager
def _started(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``command`` at work in ``folder``; killed when the block ends before it. Nothing of the current folder is on its
    way to modules or settings."""
    path = without_current_folder(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    with (folder / "said.txt").open("wb") as said:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
