"""Reads the meshes that jobs name, to say before anything is built which of them cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.core.errors import MeshError
from pipeline.core.job import Job
from pipeline.core.place import Place, Remote
from pipeline.geometry.fetch import fetch_mesh
from pipeline.manifest.problems import Problem
from pipeline.recipes import MESH_FIELDS
from pipeline.storage.errors import StorageError

# Bounded, so that a long manifest fills no memory: beyond, meshes are read again.
_REMEMBERED = 1 << 16


class MeshChecker:
    """Reads each mesh once, however many jobs name it."""

    def __init__(self) -> None:
        self._known: dict[tuple[Place, int], tuple[str, list[str]]] = {}

    def problem(self, job: Job) -> Problem | None:
        """What is wrong with the mesh of ``job``; None where it can be used."""
        mesh = job.origin or job.mesh
        if mesh is None:
            return None
        message = self.reason(mesh, int(job.settings["max_faces"]))
        return Problem(job.source.file, job.source.row, MESH_FIELDS[job.recipe], message, job.id) if message else None

    def warnings(self, job: Job) -> list[Problem]:
        """What is odd about the mesh of ``job``, or is lost of it, one Problem a line; [] where it cannot be used."""
        mesh = job.origin or job.mesh
        if mesh is None:
            return []
        source, field = job.source, MESH_FIELDS[job.recipe]
        told = self._read(mesh, int(job.settings["max_faces"]))[1]
        return [Problem(source.file, source.row, field, f"{mesh.name}: {line}", job.id) for line in told]

    def reason(self, mesh: Place, max_faces: int) -> str:
        """What is wrong with a mesh of at most ``max_faces`` faces; "" where it can be used."""
        return self._read(mesh, max_faces)[0]

    def _read(self, mesh: Place, max_faces: int) -> tuple[str, list[str]]:
        key = (mesh, max_faces)
        found = self._known.get(key)
        if found is None:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            found = self._known[key] = _read(*key)
        return found


def mesh_problems(jobs: Iterable[Job]) -> Iterator[Problem]:
    """One Problem for each of ``jobs`` whose mesh cannot be read or used; each mesh is read once."""
    checker = MeshChecker()
    for job in jobs:
        if problem := checker.problem(job):
            yield problem


def _read(mesh: Place, max_faces: int) -> tuple[str, list[str]]:
    """(what is wrong with the mesh or "", its warnings)."""
    from pipeline.geometry.load import load_mesh

    try:
        path = fetch_mesh(mesh)[0] if isinstance(mesh, Remote) else mesh
        return "", load_mesh(path, max_faces=max_faces).warnings
    except (MeshError, StorageError) as error:
        return error.message, []
