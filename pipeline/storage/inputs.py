"""Fetch meshes and adapters at URLs once per node, cache them by their hash and check it before use."""

from __future__ import annotations

import contextlib
import dataclasses
import urllib.parse
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pipeline.core.errors import LatentkilnError, MeshError
from pipeline.core.job import Job
from pipeline.core.location import InputFile, RemotePath
from pipeline.mesh.mesh_hash import mesh_sha256
from pipeline.storage import input_cache
from pipeline.storage.store import store_of

MAX_BYTES = 1 << 30
_WINDOW, _MAX_CONCURRENT, _MAX_CACHED = 64, 8, 1 << 16

T = TypeVar("T")


def with_local_files(job: Job) -> Job:
    """Return ``job`` with its files on this node and their hashes; unchanged without URLs.

    Raises MeshError, also if the mesh's bytes have changed since the run was planned, and StorageError.
    """
    job = with_local_adapters(job)
    if job.mesh is None:
        return job
    if job.mesh.is_remote:
        return dataclasses.replace(job, mesh=_fetched(job.mesh))
    # An unreadable mesh fails later, when the recipe reads it.
    with contextlib.suppress(OSError):
        if job.mesh.sha256 and mesh_sha256(job.mesh.local()) != job.mesh.sha256:
            raise MeshError(f"{job.mesh.name}: its bytes have changed since the run was planned; run again")
    return job


def with_local_adapters(job: Job) -> Job:
    """As ``with_local_files``, but for the job's adapters only."""
    if not any(adapter.file.is_remote for adapter in job.adapters):
        return job
    adapters = [dataclasses.replace(adapter, file=_fetched(adapter.file)) for adapter in job.adapters]
    return dataclasses.replace(job, adapters=tuple(adapters))


def _fetched(file: InputFile) -> InputFile:
    """Return ``file`` with its copy on this node and its hash; unchanged if it is at a path."""
    if not isinstance(file.location, RemotePath):
        return file
    path, sha256 = fetch_mesh(file.location, file.sha256)
    return InputFile(file.location, sha256, path)


def fetch_mesh(location: RemotePath, sha256: str = "") -> tuple[Path, str]:
    """Return this node's copy of the mesh (or adapter) at ``location``, and its hash (``mesh_sha256``).

    A glTF is fetched with its buffers. Raises MeshError, also if the hash differs from a given ``sha256``, and
    StorageError.
    """
    try:
        with input_cache.exclusive(location):
            if sha256 and (path := _verified_copy(location, sha256)):
                return path, sha256
            return _fetch(location, sha256)
    except FileNotFoundError:
        raise MeshError(f"{location}: there is no such file") from None
    except OSError as error:
        raise MeshError(
            f"{location}: cannot be kept in {input_cache.cache_root()}: {error.strerror or error}"
        ) from error


def prefetch_inputs(items: Iterable[T]) -> Iterator[T]:
    """Yield ``items`` in order, and fetch the meshes of jobs at URLs some way ahead.

    Ignores errors here; they are raised when the mesh itself is fetched.
    """
    remaining, requested = iter(items), set[RemotePath]()
    while window := list(islice(remaining, _WINDOW)):
        meshes = [item.mesh for item in window if isinstance(item, Job) and item.mesh is not None]
        new = {mesh.location for mesh in meshes if isinstance(mesh.location, RemotePath)} - requested
        if len(new) > 1:
            with ThreadPoolExecutor(_MAX_CONCURRENT) as pool:
                list(pool.map(_try_to_fetch, new))
        requested = requested | new if len(requested) < _MAX_CACHED else new
        yield from window


def _try_to_fetch(location: RemotePath) -> None:
    with contextlib.suppress(LatentkilnError):
        fetch_mesh(location)


def _fetch(location: RemotePath, expected: str) -> tuple[Path, str]:
    store = store_of(location)
    meta = store.stat(location)
    if meta is None:
        raise FileNotFoundError(str(location))
    if meta.size == 0:
        raise MeshError(f"{location}: it is an empty file")
    known = input_cache.recorded_hash(location, meta)
    if known and known == (expected or known) and (path := _verified_copy(location, known)):
        return path, known
    with input_cache.staging() as folder:
        data, meta = store.read(location, MAX_BYTES)
        path = folder / location.name
        path.write_bytes(data)
        uris = _fetch_buffers(location, path, folder)
        sha256 = mesh_sha256(path)
        if expected and sha256 != expected:
            raise MeshError(f"{location}: its bytes have changed since the run was planned; run again")
        cached_folder = input_cache.commit(folder, sha256)
        if not uris:
            # The tag of a glTF does not cover its buffers.
            input_cache.record_hash(location, meta, sha256)
        return cached_folder / location.name, sha256


def _verified_copy(location: RemotePath, sha256: str) -> Path | None:
    """Return the copy in the cache if its bytes are still the same."""
    path = input_cache.entry_folder(sha256) / location.name
    try:
        return path if mesh_sha256(path) == sha256 else None
    except (OSError, LatentkilnError):
        return None


def _fetch_buffers(location: RemotePath, path: Path, folder: Path) -> list[str]:
    """Fetch the buffers and images of the glTF that was copied to ``path``. Return their URIs as the glTF writes them.

    Refuses URIs that a glTF may not have. Raises MeshError, StorageError.
    """
    from pipeline.mesh.readers.gltf_file import document_of, image_uris, outside_uris

    is_gltf = location.suffix.lower() in (".gltf", ".glb")
    document = (document_of(path) or {}) if is_gltf else {}
    uris, images = outside_uris(document), image_uris(document)
    left = MAX_BYTES
    for uri in [*uris, *images]:
        is_image = uri in images
        name = urllib.parse.unquote(uri)
        scheme = urllib.parse.urlsplit(uri).scheme
        if scheme or "\\" in name or not name.isprintable() or {"", ".", ".."} & set(name.split("/")):
            if is_image:
                continue  # it stays a reference
            raise MeshError(f"{location.name}: its buffer {uri[:60]!r} is not a plain relative path")
        try:
            content, _ = store_of(location).read(location.parent / name, left)
        except FileNotFoundError:
            if is_image:
                continue
            raise MeshError(f"{location.name}: its buffer {uri[:60]!r} does not exist") from None
        left -= len(content)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return [*uris, *images]
