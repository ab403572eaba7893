"""What a row that was interrupted left: from which step it will go on. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.core.asset_layout import LOG, WORK_DIR
from pipeline.core.errors import PriorError
from pipeline.prior.single_file import read_header

# The phases of a row by their checkpoints' names, the last one first, as progress calls them.
_PHASES = {"texture": "texture", "rgb": "refine", "latent": "distill"}
# Bytes at the end of a log in which its last beginning is looked for.
_SEEN = 64 << 10
_LARGEST_HEADER = 1 << 20


def goes_on_from(folder: Path, fingerprint: str) -> str:
    """``goes on from step 40 (distill)`` where ``folder`` holds a checkpoint of this ``fingerprint``, else "".

    Whether it fits all else (as ``--lockstep``) is only seen by who loads it. Raises nothing.
    """
    asset_build = folder / WORK_DIR
    # A link may lead anywhere.
    if asset_build.is_symlink() or not asset_build.is_dir() or _last_fingerprint(folder / LOG) != fingerprint:
        return ""
    for name, phase in _PHASES.items():
        steps = [
            step for path in sorted(asset_build.glob(f"*/{name}.safetensors")) if (step := _step(path)) is not None
        ]
        if steps:
            return f"goes on from step {min(steps)} ({phase})"
    return ""


def _step(path: Path) -> int | None:
    try:
        return int(read_header(path, _LARGEST_HEADER).metadata["step"])
    except (PriorError, KeyError, ValueError):
        return None


def _last_fingerprint(log: Path) -> str:
    """What was last begun in the folder of ``log``."""
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
