"""Reads the meshes that jobs name, to say before anything is built which of them cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.core.errors import MeshError
from pipeline.core.job import Job
from pipeline.manifest.problems import Problem
from pipeline.recipes import MESH_FIELDS


class MeshChecker:
    """Reads each mesh once, however many jobs name it."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int], str] = {}

    def problem(self, job: Job) -> Problem | None:
        """What is wrong with the mesh of ``job``; None where it can be used."""
        if job.mesh is None:
            return None
        key = (job.mesh, int(job.settings["max_faces"]))
        if key not in self._known:
            self._known[key] = _reason(*key)
        message = self._known[key]
        field = MESH_FIELDS[job.recipe]
        return Problem(job.source.file, job.source.row, field, message, job.id) if message else None


def mesh_problems(jobs: Iterable[Job]) -> Iterator[Problem]:
    """One Problem for each of ``jobs`` whose mesh cannot be read or used; each mesh is read once."""
    checker = MeshChecker()
    for job in jobs:
        if problem := checker.problem(job):
            yield problem


def _reason(path: Path, max_faces: int) -> str:
    from pipeline.geometry.load import load_mesh

    try:
        load_mesh(path, max_faces=max_faces)
    except MeshError as error:
        return error.message
    return ""
