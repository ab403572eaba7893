"""Reads the meshes that jobs name, to say before anything is built which of them cannot be used."""

from __future__ import annotations

from pipeline.core.errors import MeshError
from pipeline.core.job import Job
from pipeline.core.place import Place, Remote
from pipeline.geometry.fetch import fetch_mesh
from pipeline.geometry.readers.unkept import not_in_asset, unkept
from pipeline.manifest.problems import Problem
from pipeline.recipes import MESH_FIELDS
from pipeline.storage.errors import StorageError

# Bounded, so that a long manifest fills no memory: beyond, meshes are read again.
_REMEMBERED = 1 << 16


class MeshChecker:
    """Reads each mesh once, however many jobs name it."""

    def __init__(self) -> None:
        self._known: dict[tuple[Place, int], str] = {}
        self._unkept: dict[Place, str] = {}

    def problem(self, job: Job) -> Problem | None:
        """What is wrong with the mesh of ``job``; None where it can be used."""
        mesh = job.origin or job.mesh
        if mesh is None:
            return None
        message = self.reason(mesh, int(job.settings["max_faces"]))
        return Problem(job.source.file, job.source.row, MESH_FIELDS[job.recipe], message, job.id) if message else None

    def unkept(self, job: Job) -> Problem | None:
        """What of a sound mesh will not be in the asset; None where all of it will, or the mesh is only looked at."""
        mesh = job.origin or job.mesh
        if mesh is None or job.recipe != "paint":
            return None
        if mesh not in self._unkept:
            if len(self._unkept) > _REMEMBERED:
                self._unkept.clear()
            self._unkept[mesh] = _unkept(mesh)
        message = self._unkept[mesh]
        return Problem(job.source.file, job.source.row, MESH_FIELDS[job.recipe], message, job.id) if message else None

    def reason(self, mesh: Place, max_faces: int) -> str:
        """What is wrong with a mesh of at most ``max_faces`` faces; "" where it can be used."""
        key = (mesh, max_faces)
        message = self._known.get(key)
        if message is None:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            message = self._known[key] = _reason(*key)
        return message


def _reason(mesh: Place, max_faces: int) -> str:
    from pipeline.geometry.load import load_mesh

    try:
        path = fetch_mesh(mesh)[0] if isinstance(mesh, Remote) else mesh
        load_mesh(path, max_faces=max_faces)
    except (MeshError, StorageError) as error:
        return error.message
    return ""


def _unkept(mesh: Place) -> str:
    try:
        lost = unkept(fetch_mesh(mesh)[0] if isinstance(mesh, Remote) else mesh)
    except (MeshError, StorageError):
        return ""
    return not_in_asset(lost)
