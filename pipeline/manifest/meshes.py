"""Loads the meshes of jobs before a build, to report the unusable ones."""

from __future__ import annotations

from pipeline.core.errors import MeshError
from pipeline.core.job import Job
from pipeline.core.location import Location, RemotePath
from pipeline.manifest.problems import Problem
from pipeline.mesh.readers.unkept import not_in_asset, unkept
from pipeline.recipes import MESH_FIELDS
from pipeline.storage.errors import StorageError
from pipeline.storage.inputs import fetch_mesh

# Bounds the memory for a long manifest. Beyond it, meshes are read again.
_REMEMBERED = 1 << 16


class MeshChecker:
    """Checks meshes and caches the results, so each is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Location, int], tuple[str, list[str]]] = {}
        self._unkept: dict[Location, str] = {}

    def problem(self, job: Job) -> Problem | None:
        """Returns the error of ``job``'s mesh; None if it is usable."""
        if job.mesh is None:
            return None
        message = self.reason(job.mesh.location, int(job.settings["max_faces"]))
        return (
            Problem(job.row_location.file, job.row_location.row, MESH_FIELDS[job.recipe], message, job.id)
            if message
            else None
        )

    def warnings(self, job: Job) -> list[Problem]:
        """Returns the warnings of ``job``'s mesh; for ``paint`` also one that lists what the asset will lack.

        Returns [] if the mesh is unusable.
        """
        if job.mesh is None:
            return []
        mesh, source, field = job.mesh.location, job.row_location, MESH_FIELDS[job.recipe]
        reason, warnings = self._read(mesh, int(job.settings["max_faces"]))
        lines = [] if reason else [f"{mesh.name}: {line}" for line in warnings]
        if not reason and job.recipe == "paint" and (not_kept := self._not_kept(mesh)):
            lines.append(not_kept)
        return [Problem(source.file, source.row, field, line, job.id) for line in lines]

    def _not_kept(self, mesh: Location) -> str:
        if mesh not in self._unkept:
            if len(self._unkept) > _REMEMBERED:
                self._unkept.clear()
            self._unkept[mesh] = _unkept(mesh)
        return self._unkept[mesh]

    def reason(self, mesh: Location, max_faces: int) -> str:
        """Returns the error of a mesh of at most ``max_faces`` faces; "" if it is usable."""
        return self._read(mesh, max_faces)[0]

    def _read(self, mesh: Location, max_faces: int) -> tuple[str, list[str]]:
        key = (mesh, max_faces)
        known = self._known.get(key)
        if known is None:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            known = self._known[key] = _read(*key)
        return known


def _read(mesh: Location, max_faces: int) -> tuple[str, list[str]]:
    """Returns (the mesh's error or "", its warnings)."""
    from pipeline.mesh.load import load_mesh

    try:
        path = fetch_mesh(mesh)[0] if isinstance(mesh, RemotePath) else mesh
        return "", load_mesh(path, max_faces=max_faces).warnings
    except (MeshError, StorageError) as error:
        return error.message, []


def _unkept(mesh: Location) -> str:
    try:
        not_kept = unkept(fetch_mesh(mesh)[0] if isinstance(mesh, RemotePath) else mesh)
    except (MeshError, StorageError):
        return ""
    return not_in_asset(not_kept)
