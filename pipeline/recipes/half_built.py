"""Read from an interrupted row's folder the step from which the row will go on. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.core.asset_layout import LOG, WORK_DIR
from pipeline.core.errors import PriorError
from pipeline.prior.single_file import read_header
from pipeline.recipes import PHASE_STAGES

# Bytes at the end of a log that are searched for the last start.
_SEEN = 64 << 10
_LARGEST_HEADER = 1 << 20


def goes_on_from(folder: Path, fingerprint: str) -> str:
    """``goes on from step 40 (distill)`` where ``folder`` holds a checkpoint of this ``fingerprint``, else "".

    Only the run that loads the checkpoint can tell whether the rest of its key fits, as ``--lockstep``. Raises nothing.
    """
    work = folder / WORK_DIR
    # A link may lead anywhere.
    if work.is_symlink() or not work.is_dir() or _last_fingerprint(folder / LOG) != fingerprint:
        return ""
    for name, stage in reversed(PHASE_STAGES.items()):
        paths = sorted(work.glob(f"*/{name}.safetensors"))
        if steps := [step for path in paths if (step := _step(path)) is not None]:
            return f"continues from step {min(steps)} ({stage})"
    return ""


def _step(path: Path) -> int | None:
    try:
        return int(read_header(path, _LARGEST_HEADER).metadata["step"])
    except (PriorError, KeyError, ValueError):
        return None


def _last_fingerprint(log: Path) -> str:
    """The fingerprint of the last start in ``log``; "" where there is none."""
    try:
        if log.is_symlink():
            return ""
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _SEEN))
            lines = stream.read(_SEEN).splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        if b'"began"' in line:
            try:
                return str(json.loads(line)["fingerprint"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return ""
