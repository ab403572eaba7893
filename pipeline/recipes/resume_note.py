"""Reads the step from which an interrupted row continues. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.core.asset_layout import LOG, WORK_DIR
from pipeline.core.errors import PriorError
from pipeline.prior.single_file import read_header
from pipeline.recipes import PHASE_STAGES

# Number of bytes at a log's end in which the last start is searched.
_TAIL_BYTES = 64 << 10
_LARGEST_HEADER = 1 << 20


def resume_note(folder: Path, fingerprint: str) -> str:
    """Returns "continues from step 40 (distill)" if ``folder`` has a checkpoint of this ``fingerprint``, else "".

    The checkpoint's key has further parts, such as ``--lockstep``, which only the run that loads it compares. Never
    raises.
    """
    work = folder / WORK_DIR
    # Links are not followed.
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
    """The fingerprint of the last start in ``log``; "" if there is none."""
    try:
        if log.is_symlink():
            return ""
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = stream.read(_TAIL_BYTES).splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        if b'"began"' in line:
            try:
                return str(json.loads(line)["fingerprint"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return ""
