"""Loads the meshes of jobs before a build, to report the unusable ones."""

from __future__ import annotations

from pipeline.core.errors import MeshError, SettingError
from pipeline.core.hashing import canonical_json
from pipeline.core.job import Job
from pipeline.core.location import Location, RemotePath
from pipeline.manifest.problems import Problem
from pipeline.mesh.mesh_hash import may_have_buffers
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
        self._documents: dict[bytes, tuple[str, str, list[str]]] = {}

    def problem(self, job: Job) -> Problem | None:
        """Returns the error of ``job``'s mesh, or of what the row says of its document; None if it is usable."""
        if job.mesh is None:
            return None
        if _is_document(job):
            source, (field, message, _) = job.row_location, self._document(job)
            return Problem(source.file, source.row, field, message, job.id) if message else None
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
        if _is_document(job):
            _, reason, warnings = self._document(job)
        else:
            reason, warnings = self._read(mesh, int(job.settings["max_faces"]))
        lines = [] if reason else [f"{mesh.name}: {line}" for line in warnings]
        if not reason and job.recipe == "paint" and (not_kept := self._not_kept(mesh)):
            lines.append(not_kept)
        return [Problem(source.file, source.row, field, line, job.id) for line in lines]

    def _document(self, job: Job) -> tuple[str, str, list[str]]:
        """(the field of the error, the error or "", warnings) of a row that paints a document."""
        assert job.mesh is not None
        settings = job.settings
        names = ("max_faces", "target", "uv_set", "variant")
        key = canonical_json([str(job.mesh.location), *(settings.get(name) for name in names)])
        if key not in self._documents:
            if len(self._documents) > _REMEMBERED:
                self._documents.clear()
            self._documents[key] = _read_document(job)
        return self._documents[key]

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


def _is_document(job: Job) -> bool:
    return job.recipe == "paint" and job.mesh is not None and may_have_buffers(job.mesh.location)


def _read_document(job: Job) -> tuple[str, str, list[str]]:
    """(the field of the error, the error or "", warnings) of a row that paints a document."""
    from pipeline.document.kept import document_errors, load_document
    from pipeline.document.parts import find_parts
    from pipeline.document.repaint import variant_names
    from pipeline.document.surface import read_surface

    assert job.mesh is not None
    field = MESH_FIELDS[job.recipe]
    mesh, settings = job.mesh.location, job.settings
    try:
        path = fetch_mesh(mesh)[0] if isinstance(mesh, RemotePath) else mesh
        if reason := _read(mesh, int(settings["max_faces"]))[0]:
            return field, reason, []
        with document_errors(mesh.name):
            document = load_document(path, max_faces=int(settings["max_faces"]))
            surface = read_surface(document, max_faces=int(settings["max_faces"]))
            warnings = [*surface.mesh.warnings, *document.warnings]
            if (variant := settings.get("variant")) is not None and variant in variant_names(document):
                return "variant", f"{mesh.name} has a variant of that name already; choose another", []
            field = "target"
            find_parts(surface, settings.get("target") or (), settings.get("uv_set"))
    except (MeshError, StorageError, SettingError) as error:
        return field, error.message.removeprefix("target "), []
    return field, "", warnings


def _unkept(mesh: Location) -> str:
    try:
        not_kept = unkept(fetch_mesh(mesh)[0] if isinstance(mesh, RemotePath) else mesh)
    except (MeshError, StorageError):
        return ""
    return not_in_asset(not_kept)
