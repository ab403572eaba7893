"""Caches meshes with texture coordinates: in memory for the next row, on disk for the next run.

Unwrapping can take minutes, and its fallback depends on a time limit. The first result is kept, so that rows, workers
and resumed runs that share a mesh also share its layout.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.core.atomic import atomic_write
from pipeline.core.hashing import canonical_json, sha256_arrays, sha256_bytes
from pipeline.core.job import Reporter, no_report
from pipeline.core.plain import is_plain
from pipeline.mesh.load import READER_VERSION, load_mesh
from pipeline.mesh.mesh import Mesh, UVMesh
from pipeline.storage.shared_cache import SharedCache
from pipeline.uv.unwrap import unwrap

# Bump it when the unwrapper would lay out the same mesh differently.
_LAYOUT_VERSION = "2"
# Keys of the entry and the attributes that they hold.
_STORED_FIELDS = {"method": "method", "reason": "reason", "padding": "padding", "use": "coverage"}
_ARRAYS = ("uv", "uv_faces", "charts")
_IN_MEMORY = 2

_memory: OrderedDict[str, UVMesh] = OrderedDict()
_lock = threading.Lock()


def load_unwrapped(
    path: Path,
    cache: Path,
    *,
    texture_size: int,
    mode: str = "auto",
    time_limit: float = 120.0,
    max_faces: int = 2_000_000,
    report: Reporter = no_report,
    shared: SharedCache | None = None,
) -> UVMesh:
    """Returns the mesh at ``path`` with texture coordinates, from memory, from ``cache``, or newly unwrapped.

    ``shared`` shares the files of ``cache`` with other nodes; None: they stay on this node. Detects a damaged cache
    entry by its checksum and replaces it. Raises MeshError and UnwrapError as ``load_mesh`` and ``unwrap`` do.
    """
    stat = path.stat()
    key = sha256_bytes(
        canonical_json(
            [str(path), stat.st_size, stat.st_mtime_ns, texture_size, mode, time_limit, max_faces, str(cache)]
        )
    )
    with _lock:
        if key in _memory:
            _memory.move_to_end(key)
            return _memory[key]
    mesh = load_mesh(path, max_faces=max_faces)
    content = [_LAYOUT_VERSION, READER_VERSION, mesh.source_sha256, mesh.source_format, texture_size, mode, time_limit]
    unwrapped = _unwrapped(
        mesh,
        cache / f"{sha256_bytes(canonical_json(content))}.safetensors",
        texture_size=texture_size,
        mode=mode,
        time_limit=time_limit,
        report=report,
        shared=shared,
    )
    with _lock:
        _memory[key] = unwrapped
        while len(_memory) > _IN_MEMORY:
            _memory.popitem(last=False)
    return unwrapped


def unwrap_cached(
    mesh: Mesh,
    cache: Path,
    *,
    texture_size: int,
    mode: str = "auto",
    time_limit: float = 120.0,
    report: Reporter = no_report,
    shared: SharedCache | None = None,
) -> UVMesh:
    """As ``load_unwrapped`` for a mesh that is not a file of its own: its arrays name the entry in ``cache``."""
    arrays: dict[str, NDArray[np.number]] = {"vertices": mesh.vertices, "faces": mesh.faces}
    if mesh.uv is not None and mesh.uv_faces is not None:
        arrays |= {"uv": mesh.uv, "uv_faces": mesh.uv_faces}
    content = [_LAYOUT_VERSION, sha256_arrays("mesh", arrays), texture_size, mode, time_limit]
    return _unwrapped(
        mesh,
        cache / f"{sha256_bytes(canonical_json(content))}.safetensors",
        texture_size=texture_size,
        mode=mode,
        time_limit=time_limit,
        report=report,
        shared=shared,
    )


def _unwrapped(
    mesh: Mesh,
    entry: Path,
    *,
    texture_size: int,
    mode: str,
    time_limit: float,
    report: Reporter,
    shared: SharedCache | None,
) -> UVMesh:
    """The layout in the file ``entry``, or a new one, which is written there."""
    if shared is not None:
        shared.fetch(entry)
    unwrapped = _read(entry, mesh)
    if unwrapped is None:
        unwrapped = _as_stored(unwrap(mesh, texture_size=texture_size, mode=mode, time_limit=time_limit, report=report))
        _write(entry, unwrapped)
        if shared is not None and shared.publish(entry):
            shared_atlas = _read(entry, mesh)
            if shared_atlas is None:
                # Another node has shared a damaged entry, which no node could use. Replace it.
                _write(entry, unwrapped)
                shared.replace(entry)
            else:
                unwrapped = shared_atlas
    return unwrapped


def _as_stored(uvmesh: UVMesh) -> UVMesh:
    """``uvmesh`` as it will be read back, because later rows must compute with the same dtypes and memory layout."""
    return replace(
        uvmesh,
        uv=np.ascontiguousarray(uvmesh.uv, dtype=np.float32),
        uv_faces=np.ascontiguousarray(uvmesh.uv_faces, dtype=np.int64),
        charts=np.ascontiguousarray(uvmesh.charts, dtype=np.int32),
    )


def _write(entry: Path, uvmesh: UVMesh) -> None:
    arrays = {name: getattr(uvmesh, name) for name in _ARRAYS}
    notes = json.dumps({key: getattr(uvmesh, name) for key, name in _STORED_FIELDS.items()})
    with atomic_write(entry) as temporary:
        save_file(arrays, temporary, metadata={"unwrap": notes, "sha256": sha256_arrays(notes, arrays)})


def _read(entry: Path, mesh: Mesh) -> UVMesh | None:
    if not is_plain(entry):
        return None
    try:
        with safe_open(entry, framework="numpy") as stream:
            metadata = stream.metadata()
            stored = json.loads(metadata["unwrap"])
            notes = {name: stored[key] for key, name in _STORED_FIELDS.items()}
            arrays = {name: stream.get_tensor(name).copy() for name in _ARRAYS}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    if metadata.get("sha256") != sha256_arrays(metadata["unwrap"], arrays):
        return None
    uv, uv_faces, charts = (arrays[name] for name in _ARRAYS)
    fits = uv_faces.shape == mesh.faces.shape and charts.shape == (len(mesh.faces),) and uv.shape == (len(uv), 2)
    dtypes = (uv.dtype, uv_faces.dtype, charts.dtype) == (np.float32, np.int64, np.int32)
    if not (fits and dtypes) or uv_faces.min(initial=0) < 0 or uv_faces.max(initial=-1) >= len(uv):
        return None
    return UVMesh(mesh, uv, uv_faces, charts=charts, **notes)
