"""Reads every mesh that jobs name, to say before anything is built which of them cannot be painted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.core.errors import MeshError
from pipeline.core.job import Job
from pipeline.manifest.problems import Problem


def mesh_problems(jobs: Iterable[Job]) -> Iterator[Problem]:
    """One Problem for each of ``jobs`` whose mesh cannot be read or used; each mesh is read once."""
    known: dict[tuple[Path, int], str] = {}
    for job in jobs:
        if job.mesh is None:
            continue
        key = (job.mesh, int(job.settings.get("max_faces", 0)))
        if key not in known:
            known[key] = _reason(*key)
        if known[key]:
            yield Problem(job.source.file, job.source.row, "mesh", known[key], job.id)


def _reason(path: Path, max_faces: int) -> str:
    from pipeline.geometry.load import load_mesh

    try:
        load_mesh(path, max_faces=max_faces) if max_faces else load_mesh(path)
    except MeshError as error:
        return error.message
    return ""
