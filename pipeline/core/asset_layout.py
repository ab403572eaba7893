"""Names of files and folders on disk: the one place that knows what an asset's folder and a run's root hold."""

from __future__ import annotations

from pathlib import Path

WORK_DIR = ".work"
"""Below an asset's folder: checkpoints while the row is being built; gone when it is done."""
RECORD = "record.json"
FAILURE = "failure.json"
NEXT = ".next"
LEASE = ".lease"
LOG = "log.jsonl"
DEPTH, NORMAL = "depth.png", "normal.png"
LOCK = ".lock"
RUN_FILE = "run.json"
EVENTS_FILE = "run.events.jsonl"
LOCK_FILE = ".run.lock"
RUNS_FOLDER = ".runs"
# Texture coordinates made for meshes, below the output root; shared by its rows, workers and runs.
UNWRAP_CACHE = Path(".cache") / "unwrap"
# Volumes made of sketches, likewise.
SKETCH_CACHE = Path(".cache") / "sketch"
