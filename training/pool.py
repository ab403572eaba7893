"""Shards of training images on disk, each written once and independently."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np

from training.samples import make, make_material

_SOURCES = (
    "noise",
    "noise_arrays",
    "render",
    "shading",
    "lights",
    "scene",
    "shape_builder",
    "objects",
    "shapes",
    "vocabulary",
    "looks",
    "compose",
    "samples",
)


def generator_hash() -> str:
    """Hash of the sources that determine the images of a stream."""
    here = Path(__file__).parent
    files = [here / f"{name}.py" for name in _SOURCES] + sorted((here / "patterns").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _save(path: Path, array: np.ndarray, meta: dict[str, object]) -> None:
    """Write labels and then the shard, each atomically."""
    path.with_suffix(".json.tmp").write_text(json.dumps(meta))
    os.replace(path.with_suffix(".json.tmp"), path.with_suffix(".json"))
    with open(path.with_suffix(".tmp"), "wb") as f:
        np.save(f, array)
    os.replace(path.with_suffix(".tmp"), path)


def write_pool(
    folder: Path,
    seed: int,
    size: int,
    shard: int,
    shards: int,
    part: int = 0,
    parts: int = 1,
    finer: float = 0.0,
    maps: bool = False,
) -> None:
    """Write the missing shards of a pool to ``folder`` (.npy uint8 and .json).

    A shard holds images of ``make``, (N, S, S, 3), with captions and labels. With ``maps`` it holds pictures of
    ``make_material``, (N, S, S, 12): lit, base colour and maps. Prints how many shards other versions of the sources
    made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made_by = generator_hash()
    others = [p for p in folder.glob("*.json") if json.loads(p.read_text()).get("made_by") != made_by]
    if others:
        print(
            f"{folder}: {len(others)} shards were made by other sources; delete the folder to make them again",
            flush=True,
        )
    for k in range(part, shards, parts):
        path = folder / f"{k:05d}.npy"
        if path.exists():
            continue
        start = time.time()
        indices = range(k * shard, (k + 1) * shard)
        if maps:
            pictures = (make_material(seed, i, size) for i in indices)
            _save(
                path, np.stack([np.concatenate([s.lit, s.albedo, s.maps], -1) for s in pictures]), {"made_by": made_by}
            )
        else:
            rows = [make(seed, i, size, finer) for i in indices]
            meta = {
                "made_by": made_by,
                "captions": [r.caption for r in rows],
                "labels": [[r.material, r.colour, r.thing, r.view, int(r.close)] for r in rows],
            }
            _save(path, np.stack([r.pixels for r in rows]), meta)
        per_image = round((time.time() - start) / shard * 1000, 2)
        print(json.dumps({"pool": folder.name, "shard": k, "ms_per_image": per_image}), flush=True)


def read_labels(path: Path) -> np.ndarray:
    """Read only the labels of one shard, int64 (N, 5)."""
    return np.array(json.loads(path.with_suffix(".json").read_text())["labels"], np.int64)


def read_shard(path: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Read a shard: pixels uint8 (N, S, S, 3), captions, labels int64 (N, 5): material, colour, thing, view, close."""
    meta = json.loads(path.with_suffix(".json").read_text())
    return np.load(path), meta["captions"], np.array(meta["labels"], np.int64)


def read_pool(folder: Path, limit: int | None = None) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Read all finished shards: pixels uint8 (N, S, S, 3), captions, labels int64 (N, 5)."""
    parts = [read_shard(path) for path in sorted(folder.glob("*.npy"))[:limit]]
    pixels, labels = np.concatenate([p[0] for p in parts]), np.concatenate([p[2] for p in parts])
    return pixels, [c for p in parts for c in p[1]], labels
