"""Decide what must be built and why: compare the fingerprint of each job with the record beside its asset."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pipeline.core.asset_layout import LEASE
from pipeline.core.errors import LatentkilnError
from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.core.job import Job
from pipeline.core.json_types import Json
from pipeline.core.location import Location, RemotePath
from pipeline.export.record import foreign_without_record, is_ours, load_record, output_problem, read_failure
from pipeline.mesh.mesh_hash import may_have_buffers, mesh_sha256
from pipeline.prior.adapter_hashes import adapter_hashes
from pipeline.recipes import LIMIT_SETTINGS, MESH_FIELDS, recipe_version
from pipeline.recipes.resume_note import resume_note
from pipeline.storage import publish
from pipeline.storage.inputs import fetch_mesh, prefetch_inputs, with_local_adapters
from pipeline.storage.snapshot import Snapshot, take_snapshots

Action = Literal["build", "keep", "blocked"]

# The version of the fingerprint's content. Raising it rebuilds every asset.
_FINGERPRINT_SCHEMA = 1
_MAX_SHOWN = 40
# Rows whose assets at a URL are read together.
_WINDOW = 256


@dataclass(frozen=True)
class PlanItem:
    """The decision about one job: ``build`` it, ``keep`` its asset, or neither because it is ``blocked``.

    A run turns the items to build into tasks (``scheduler.tasks.Task``). The two types differ in their lifetime: a
    decision never changes, and most runs keep most rows; a task counts its attempts and has no reason.
    ``reason`` gives the reason in words. ``fingerprint`` is empty for a blocked job whose mesh cannot be read.
    ``alone`` keeps the job out of batches, because it was quarantined and has not changed since. ``foreign`` says that
    its folder contains files that latentkiln did not write, so nothing may be written there, not even a failure.
    """

    job: Job
    action: Action
    reason: str
    fingerprint: str
    alone: bool = False
    foreign: bool = False


def fingerprint(
    job: Job,
    *,
    prior_identity: str,
    recipe_version: str,
    mesh_sha256: str,
    adapters: Sequence[Json] = (),
) -> str:
    """Return the hex sha256 that names the asset. An asset with the same fingerprint is up to date.

    The fingerprint covers everything that decides the bytes of the asset: the recipe and its version, prompts, seed,
    settings, the bytes of the mesh, the prior, and ``adapters`` (as returned by ``adapter_hashes``). It covers neither
    ids, paths and the machine, nor settings that are mere limits.
    """
    limits = LIMIT_SETTINGS.get(job.recipe, frozenset())
    content = {
        "schema": _FINGERPRINT_SCHEMA,
        "recipe": job.recipe,
        "recipe_version": recipe_version,
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seed,
        "settings": {name: value for name, value in job.settings.items() if name not in limits},
        "mesh": mesh_sha256,
        "prior": prior_identity,
    }
    if adapters:
        content["adapters"] = [dict(mark) for mark in adapters]
    return sha256_bytes(canonical_json(content))


# Returns why a job whose files exist cannot be built; "" if it can.
Refuse = Callable[[Job], str]


def plan(
    jobs: Iterable[Job],
    out: Location,
    *,
    prior_identity: str,
    refuse: Refuse = lambda job: "",
    hashes: FileHashes | None = None,
) -> list[PlanItem]:
    """Return one PlanItem per job, in order, from the records under ``out``. Writes nothing.

    ``refuse`` is called for jobs that would be built, not for those that are up to date. Plans that share ``hashes``
    hash each unchanged mesh and output only once. Raises StorageError for an output root at a URL.
    """
    return list(iterate(jobs, out, prior_identity=prior_identity, refuse=refuse, hashes=hashes))


def iterate(
    jobs: Iterable[Job],
    out: Location,
    *,
    prior_identity: str,
    refuse: Refuse = lambda job: "",
    hashes: FileHashes | None = None,
) -> Iterator[PlanItem]:
    """As ``plan``, but yield the items one by one; for an output root at a URL read a window of rows at a time."""
    hashes = hashes or FileHashes()
    meshes: dict[Location | None, tuple[str, str]] = {None: ("", "")}
    for manifest_job, folder in _with_folders(prefetch_inputs(jobs), out):
        job, named = manifest_job, manifest_job.mesh.location if manifest_job.mesh else None
        if len(meshes) > _MAX_CACHED:
            meshes = {None: ("", "")}
        if named not in meshes:
            meshes[named] = _identify(named, hashes)
        mesh, problem = meshes[named]
        if job.mesh and mesh:
            job = dataclasses.replace(job, mesh=dataclasses.replace(job.mesh, sha256=mesh))
        job, adapters, adapters_problem = _identify_adapters(job)
        if problem or adapters_problem:
            yield PlanItem(job, "blocked", problem or adapters_problem, "", foreign=is_foreign(folder))
            continue
        version = recipe_version(job.recipe, job.mesh.name if job.mesh else "")
        mark = fingerprint(
            job, prior_identity=prior_identity, recipe_version=version, mesh_sha256=mesh, adapters=adapters
        )
        if isinstance(folder, Path) and (why := _obstruction(folder)):
            yield PlanItem(job, "blocked", why, mark, foreign=True)
            continue
        reason = _reason_to_build(job, folder, mark, mesh, prior_identity, version, adapters, hashes)
        if not reason:
            yield PlanItem(job, "keep", "up to date", mark)
            continue
        if foreign_files := foreign_without_record(folder):
            foreign = f"{folder} contains files that do not belong to an asset ({_one_line(foreign_files[0])})"
            yield PlanItem(job, "blocked", f"{foreign}; choose another id or --out", mark, foreign=True)
            continue
        if why := refuse(job):
            yield PlanItem(job, "blocked", why, mark)
            continue
        failure = read_failure(folder)
        alone = bool(failure and failure.get("quarantined") and failure.get("fingerprint") == mark)
        note = resume_note(folder, mark) if isinstance(folder, Path) else ""
        yield PlanItem(job, "build", f"{reason}; {note}" if note else reason, mark, alone)


def leftovers(out: Location, knows: Callable[[str], bool]) -> Iterator[tuple[str, Path | Snapshot]]:
    """Yield (name, folder) of rows under ``out`` for which ``knows(name)`` is false, sorted by name.

    These rows are no longer in the manifest; they may be built, failed or half built. Follows no links. Raises
    StorageError.
    """
    if isinstance(out, RemotePath):
        unknown = sorted(name for name in publish.asset_ids(out) if not knows(name))
        yield from ((name, snapshot) for name, snapshot in take_snapshots(out, unknown) if is_ours(snapshot, name))
        return
    try:
        with os.scandir(out) as entries:
            folders = [entry for entry in entries if not entry.name.startswith(".") and not knows(entry.name)]
            names = sorted(entry.name for entry in folders if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    yield from ((name, out / name) for name in names if is_ours(out / name, name))


def _with_folders(jobs: Iterable[Job], out: Location) -> Iterator[tuple[Job, Path | Snapshot]]:
    """Yield each job with its folder, or with the snapshot of its folder at a URL."""
    if not isinstance(out, RemotePath):
        yield from ((job, out / job.id) for job in jobs)
        return
    remaining = iter(jobs)
    while window := list(islice(remaining, _WINDOW)):
        for job, (_, snapshot) in zip(window, take_snapshots(out, (job.id for job in window)), strict=True):
            yield job, snapshot


def is_foreign(folder: Path | Snapshot) -> bool:
    """Return whether a row's folder contains files that latentkiln did not write. Nothing may be written there."""
    return bool(isinstance(folder, Path) and _obstruction(folder)) or bool(foreign_without_record(folder))


def _obstruction(folder: Path) -> str:
    """Return why the asset's folder cannot be used; "" if it can."""
    try:
        mode = folder.lstat().st_mode
        if stat.S_ISDIR(mode):
            return ""
        if not stat.S_ISLNK(mode):
            return f"{folder} is not a folder; remove it"
        target = Path(os.path.realpath(folder))
        if not target.is_relative_to(os.path.realpath(folder.parent)):
            return f"{folder} is a link that leaves the output folder; remove it"
        return "" if target.is_dir() else f"{folder} is a link that does not lead to a folder; remove it"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{folder} cannot be used: {error.strerror or error}"


def _reason_to_build(
    job: Job,
    folder: Path | Snapshot,
    mark: str,
    mesh: str,
    prior: str,
    version: str,
    adapters: Sequence[Json],
    hashes: FileHashes,
) -> str:
    """Return why the asset in ``folder`` must be built (again); "" if it is up to date."""
    record, damage = load_record(folder)
    if record is not None and record["fingerprint"] == mark:
        # An earlier failure does not matter if the asset is complete.
        problem = _output_problem(folder, record, hashes)
        return f"output missing or damaged: {problem}" if problem else ""
    failure = read_failure(folder)
    how = "quarantined" if failure and failure.get("quarantined") else "failed"
    failed = f"{how} before: {_one_line(failure.get('message'))}" if failure else ""
    if record is None:
        if failed:
            return failed
        return f"the record is damaged ({damage.split(': ', 1)[-1]})" if damage else "new"
    words = list(_changes(record, job, mesh, prior, version))
    if (_at(record, "inputs", "adapters") or []) != adapters:
        words.append("lora or concept changed")
    changes = "; ".join(words) or "its inputs changed"
    # The last build of these same inputs failed.
    return f"{changes}; {failed}" if failure and failure.get("fingerprint") == mark else changes


def _changes(record: Json, job: Job, mesh: str, prior: str, version: str) -> Iterator[str]:
    """Yield the differences between the inputs in the record and the job, in words."""
    before = _at(record, "inputs", "job")
    if record.get("recipe") != job.recipe:
        yield f"recipe changed from {_show(record.get('recipe'))} to {_show(job.recipe)}"
    elif record.get("recipe_version") != version:
        yield f"recipe version changed from {_show(record.get('recipe_version'))} to {_show(version)}"
    if _at(record, "inputs", "prior", "identity") != prior:
        yield "prior changed"
    if _at(record, "inputs", "mesh", "sha256") != (mesh or None):
        yield f"{MESH_FIELDS.get(job.recipe, 'mesh')} bytes changed"
    if not isinstance(before, dict):
        return
    if before.get("prompt") != job.prompt:
        yield "prompt changed"
    if before.get("negative_prompt", "") != job.negative_prompt:
        yield "negative prompt changed"
    if before.get("seed") != job.seed:
        yield f"seed changed from {_show(before.get('seed'))} to {job.seed}"
    old = before.get("settings")
    if not isinstance(old, dict):
        return
    limits = LIMIT_SETTINGS.get(job.recipe, frozenset())
    for name in sorted((set(old) | set(job.settings)) - limits):
        if name not in old:
            yield f"{name} is a new setting"
        elif name not in job.settings:
            yield f"{name} is no longer a setting"
        elif old[name] != job.settings[name] and isinstance(old[name] or job.settings[name], list):
            yield f"{name} changed"
        elif old[name] != job.settings[name]:
            yield f"{name} changed from {_show(old[name])} to {_show(job.settings[name])}"


def _at(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _show(value: object) -> str:
    """Format a recorded value. ``None`` means the value that the prior recommends."""
    if value is None:
        return "the prior's"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _one_line(f"{value:g}" if isinstance(value, float) else value)


def _one_line(value: object) -> str:
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 5 * _MAX_SHOWN else text[: 5 * _MAX_SHOWN - 3] + "..."


# The key of a file's hash. A file whose path, size, time and inode stay the same keeps its bytes.
_FileStamp = tuple[str, int, int, int]
# The caches are cleared beyond this size, so that a long manifest does not fill the memory.
_MAX_CACHED = 1 << 16


class FileHashes:
    """Hashes of meshes and checks of outputs, remembered while a file's path, size, time and inode stay the same."""

    def __init__(self) -> None:
        self._meshes: dict[_FileStamp, str] = {}
        self._verified: set[tuple[_FileStamp, str]] = set()

    def of_mesh(self, path: Path) -> str:
        """Return the hash of a mesh (``mesh_sha256``). Raises OSError, MeshError."""
        # The stamp of a glTF does not cover its buffers, so such a mesh is hashed once in each plan.
        if may_have_buffers(path):
            return mesh_sha256(path)
        stamp = _stamp(path)
        if len(self._meshes) > _MAX_CACHED:
            self._meshes.clear()
        if stamp not in self._meshes:
            self._meshes[stamp] = mesh_sha256(path)
        return self._meshes[stamp]

    def output_problem(self, folder: Path, record: Json) -> str:
        """As ``export.record.output_problem``, but hash an unchanged output only once."""
        outputs = publish.outputs_of(record)
        try:
            keys = {(_stamp(folder / name), str(expected["sha256"])) for name, expected in outputs.items()}
        except OSError:
            return output_problem(folder, record)
        if not outputs:
            return "the record names no outputs"
        if keys <= self._verified:
            return ""
        problem = output_problem(folder, record)
        if len(self._verified) > _MAX_CACHED:
            self._verified.clear()
        if not problem:
            self._verified.update(keys)
        return problem


def _stamp(path: Path) -> _FileStamp:
    stat = path.stat()
    return (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _identify(mesh: Location | None, hashes: FileHashes) -> tuple[str, str]:
    """Return the hash of a mesh and "", or "" and why it cannot be hashed."""
    if mesh is None:
        return "", ""
    try:
        return (fetch_mesh(mesh)[1] if isinstance(mesh, RemotePath) else hashes.of_mesh(mesh)), ""
    except LatentkilnError as error:
        return "", f"the mesh cannot be used: {error.message}"
    except OSError as error:
        return "", f"the mesh cannot be read: {error.strerror or error}"


def _identify_adapters(job: Job) -> tuple[Job, Sequence[Json], str]:
    """Return the job with its adapters on this node, their hashes, and "" or why they cannot be used."""
    try:
        job = with_local_adapters(job)
        return job, adapter_hashes(job.adapters), ""
    except LatentkilnError as error:
        return job, [], f"an adapter cannot be used: {error.message}"


def _output_problem(folder: Path | Snapshot, record: Json, hashes: FileHashes) -> str:
    """Return which output in ``folder`` is missing or damaged; "" if all are complete."""
    if not isinstance(folder, Snapshot):
        return hashes.output_problem(folder, record)
    if LEASE in folder.files:
        return "a run is still building it, or was killed just before it finished"
    return output_problem(folder, record) if record["outputs"] else "the record names no outputs"
