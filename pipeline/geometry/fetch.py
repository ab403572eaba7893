"""Meshes and adapters at a URL: fetched once per node, kept under their content's hash, checked by it before use."""

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
from pipeline.core.location import RemotePath
from pipeline.geometry.source import may_have_buffers, mesh_sha256
from pipeline.storage import cache
from pipeline.storage.store import store_of

MAX_BYTES = 1 << 30
_WINDOW, _AT_ONCE, _REMEMBERED = 64, 8, 1 << 16

T = TypeVar("T")


def localised(job: Job) -> Job:
    """``job`` with its files on this node, and their hashes in their ``origin``; as it is where no URL is involved.

    Raises MeshError, also where the mesh has other bytes than those it was planned with, and StorageError.
    """
    job = with_adapters(job)
    if job.origin is None:
        # One that cannot be read says so when it is.
        with contextlib.suppress(OSError):
            if job.mesh and job.mesh_sha256 and mesh_sha256(job.mesh) != job.mesh_sha256:
                raise MeshError(f"{job.mesh.name}: its bytes have changed since the run was planned; run again")
        return job
    path, sha256 = fetch_mesh(job.origin)
    return dataclasses.replace(job, mesh=path, origin=dataclasses.replace(job.origin, sha256=sha256))


def with_adapters(job: Job) -> Job:
    """As ``localised``, of the job's adapters alone."""
    if not any(file.origin for file in job.adapters):
        return job
    found = []
    for file in job.adapters:
        if file.origin is not None:
            path, sha256 = fetch_mesh(file.origin)
            file = dataclasses.replace(file, path=path, origin=dataclasses.replace(file.origin, sha256=sha256))
        found.append(file)
    return dataclasses.replace(job, adapters=tuple(found))


def fetch_mesh(place: RemotePath) -> tuple[Path, str]:
    """This node's copy of the mesh (or adapter) at ``place`` and its hash (``mesh_sha256``).

    That has to be ``place.sha256`` where it is given. A glTF comes with its buffers. Raises MeshError and
    StorageError.
    """
    try:
        with cache.only_one(place):
            if place.sha256 and (path := _sound(place, place.sha256)):
                return path, place.sha256
            return _fetch(place)
    except FileNotFoundError:
        raise MeshError(f"{place}: there is no such file") from None
    except OSError as error:
        raise MeshError(f"{place}: cannot be kept in {cache.cache_root()}: {error.strerror or error}") from error


def fetched_ahead(items: Iterable[T]) -> Iterator[T]:
    """``items`` as they come, with the meshes that the jobs among them name at URLs fetched some way ahead.

    What cannot be fetched is told when it is asked for by itself.
    """
    rest, seen = iter(items), set[RemotePath]()
    while window := list(islice(rest, _WINDOW)):
        new = {item.origin for item in window if isinstance(item, Job) and item.origin is not None} - seen
        if len(new) > 1:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(_try_to_fetch, new))
        seen = seen | new if len(seen) < _REMEMBERED else new
        yield from window


def _try_to_fetch(place: RemotePath) -> None:
    with contextlib.suppress(LatentkilnError):
        fetch_mesh(place)


def _fetch(place: RemotePath) -> tuple[Path, str]:
    store = store_of(place)
    found = store.stat(place)
    if found is None:
        raise FileNotFoundError(str(place))
    if found.size == 0:
        raise MeshError(f"{place}: it is an empty file")
    known = cache.remembered(place, found)
    if known and known == (place.sha256 or known) and (path := _sound(place, known)):
        return path, known
    with cache.staging() as folder:
        data, found = store.read(place, MAX_BYTES)
        path = folder / place.name
        path.write_bytes(data)
        uris = _fetch_buffers(place, path, folder)
        sha256 = mesh_sha256(path)
        if place.sha256 and sha256 != place.sha256:
            raise MeshError(f"{place}: its bytes have changed since the run was planned; run again")
        kept = cache.keep(folder, sha256)
        if not uris:
            # The tag of a glTF says nothing of its buffers.
            cache.remember(place, found, sha256)
        return kept / place.name, sha256


def _sound(place: RemotePath, sha256: str) -> Path | None:
    """The copy in the cache, if its bytes are still what they were."""
    path = cache.kept(sha256) / place.name
    try:
        return path if mesh_sha256(path) == sha256 else None
    except (OSError, LatentkilnError):
        return None


def _fetch_buffers(place: RemotePath, path: Path, folder: Path) -> list[str]:
    """The buffers that the glTF copied to ``path`` names, fetched beside it: their names as it writes them.

    What it may not name is refused here already.
    """
    from pipeline.geometry.readers.gltf_file import document_of, outside_uris

    uris = outside_uris(document_of(path) or {}) if may_have_buffers(place) else []
    left = MAX_BYTES
    for uri in uris:
        name = urllib.parse.unquote(uri)
        if urllib.parse.urlsplit(uri).scheme or any(part in ("", ".", "..") for part in name.split("/")):
            raise MeshError(f"{place.name}: its buffer {uri[:60]!r} is not a plain relative path")
        if "\\" in name or not name.isprintable():
            raise MeshError(f"{place.name}: its buffer {uri[:60]!r} is not a plain relative path")
        try:
            content, _ = store_of(place).read(place.parent / name, left)
        except FileNotFoundError:
            raise MeshError(f"{place.name}: its buffer {uri[:60]!r} does not exist") from None
        left -= len(content)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return uris
