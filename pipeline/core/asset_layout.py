"""Names of the files and folders in an asset's folder and in an output root."""

from __future__ import annotations

from pathlib import Path

WORK_DIR = ".work"
"""Checkpoints, in an asset's folder. The scheduler deletes it when the row is built."""
RECORD = "record.json"
FAILURE = "failure.json"
NEXT = ".next"
LEASE = ".lease"
LOG = "log.jsonl"
DEPTH, NORMAL = "depth.png", "normal.png"


def map_file(stem: str, name: str) -> str:
    """Name of the file of a tileable map: ``asset_base_colour.png`` for the map ``base_colour`` of ``asset.glb``."""
    return f"{stem}_{name}.png"


LOCK = ".lock"
RUN_FILE = "run.json"
EVENTS_FILE = "run.events.jsonl"
LOCK_FILE = ".run.lock"
RUNS_FOLDER = ".runs"
# Unwrapped texture coordinates, below the output root. Its rows, workers and runs share them.
UNWRAP_CACHE = Path(".cache") / "unwrap"
# Winding-number grids of sketches, shared likewise.
SKETCH_CACHE = Path(".cache") / "sketch"
