"""What has to be built, and why: the fingerprint of a job against the record that stands beside its asset."""

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
from pipeline.recipes import LIMIT_SETTINGS, MESH_FIELDS, RECIPE_VERSIONS
from pipeline.recipes.half_built import goes_on_from
from pipeline.storage import publish
from pipeline.storage.inputs import fetch_mesh, prefetch_inputs, with_local_adapters
from pipeline.storage.snapshot import Snapshot, take_snapshots

Action = Literal["build", "keep", "blocked"]

# What the fingerprint is made of. Raised when its make-up changes, which rebuilds every asset.
_FINGERPRINT_SCHEMA = 1
_MAX_SHOWN = 40
# Rows whose assets at a URL are looked at together.
_WINDOW = 256


@dataclass(frozen=True)
class PlanItem:
    """What is to happen with one job: ``build`` it, ``keep`` what is there, or nothing because it is ``blocked``.

    ``reason`` says why in words; ``fingerprint`` is empty for a blocked job whose mesh cannot be read. ``alone``
    keeps the job out of groups: it was quarantined, and nothing of it has changed since. ``foreign``: its folder is
    somebody else's, in which nothing may be written, not even why it is blocked.
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
    """Hex sha256 that names the asset: same fingerprint, nothing to do.

    Made of everything that decides the asset: recipe and its version, prompts, seed, settings, the bytes of the
    mesh, the prior, and of ``adapters`` (as ``adapter_hashes`` gives them). Not of ids, paths, the machine, or settings
    that are mere limits.
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


# Why a job cannot be built although its files are there; "" where it can.
Refuse = Callable[[Job], str]


def plan(jobs: Iterable[Job], out: Location, *, prior_identity: str, refuse: Refuse = lambda job: "") -> list[PlanItem]:
    """One PlanItem for each job, in order, from the records under ``out``. Writes nothing, raises nothing.

    Each mesh is hashed once in a process while its size and time stay as they are; so is each output. ``refuse`` is
    asked about jobs that would be built; what is up to date stays so.
    """
    return list(iterate(jobs, out, prior_identity=prior_identity, refuse=refuse))


def iterate(
    jobs: Iterable[Job], out: Location, *, prior_identity: str, refuse: Refuse = lambda job: ""
) -> Iterator[PlanItem]:
    """As ``plan``, one by one; of an output root at a URL a window of rows at a time. Raises StorageError for that."""
    meshes: dict[Location | None, tuple[str, str]] = {None: ("", "")}
    for manifest_job, folder in _with_folders(prefetch_inputs(jobs), out):
        job, named = manifest_job, manifest_job.origin or manifest_job.mesh
        if len(meshes) > _MAX_CACHED:
            meshes = {None: ("", "")}
        if named not in meshes:
            meshes[named] = _identify(named)
        mesh, problem = meshes[named]
        if job.origin and mesh:
            job = dataclasses.replace(job, origin=dataclasses.replace(job.origin, sha256=mesh))
        elif mesh:
            job = dataclasses.replace(job, mesh_sha256=mesh)
        job, adapters, adapters_problem = _identify_adapters(job)
        if problem or adapters_problem:
            yield PlanItem(job, "blocked", problem or adapters_problem, "", foreign=is_foreign(folder))
            continue
        version = RECIPE_VERSIONS[job.recipe]
        mark = fingerprint(
            job, prior_identity=prior_identity, recipe_version=version, mesh_sha256=mesh, adapters=adapters
        )
        if isinstance(folder, Path) and (why := _obstruction(folder)):
            yield PlanItem(job, "blocked", why, mark, foreign=True)
            continue
        reason = _reason_to_build(job, folder, mark, mesh, prior_identity, version, adapters)
        if not reason:
            yield PlanItem(job, "keep", "up to date", mark)
            continue
        if others := foreign_without_record(folder):
            why = f"{folder} holds other files than an asset's ({_one_line(others[0])}); choose another id or --out"
            yield PlanItem(job, "blocked", why, mark, foreign=True)
            continue
        if why := refuse(job):
            yield PlanItem(job, "blocked", why, mark)
            continue
        failure = read_failure(folder)
        alone = bool(failure and failure.get("quarantined") and failure.get("fingerprint") == mark)
        half = goes_on_from(folder, mark) if isinstance(folder, Path) else ""
        yield PlanItem(job, "build", f"{reason}; {half}" if half else reason, mark, alone)


def leftovers(out: Location, knows: Callable[[str], bool]) -> Iterator[tuple[str, Path | Snapshot]]:
    """Folders of rows under ``out`` of which ``knows`` is false, by name: rows that are no longer in the manifest,
    built, failed or half built. Nothing is looked at through links. Raises StorageError."""
    if isinstance(out, RemotePath):
        unknown = sorted(name for name in publish.asset_ids(out) if not knows(name))
        yield from ((name, there) for name, there in take_snapshots(out, unknown) if is_ours(there, name))
        return
    try:
        with os.scandir(out) as entries:
            folders = [entry for entry in entries if not entry.name.startswith(".") and not knows(entry.name)]
            names = sorted(entry.name for entry in folders if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    yield from ((name, out / name) for name in names if is_ours(out / name, name))


def _with_folders(jobs: Iterable[Job], out: Location) -> Iterator[tuple[Job, Path | Snapshot]]:
    """Each job with its folder, or with what stands in it at a URL."""
    if not isinstance(out, RemotePath):
        yield from ((job, out / job.id) for job in jobs)
        return
    remaining = iter(jobs)
    while window := list(islice(remaining, _WINDOW)):
        for job, (_, there) in zip(window, take_snapshots(out, (job.id for job in window)), strict=True):
            yield job, there


def is_foreign(folder: Path | Snapshot) -> bool:
    """Whether nothing may be written in a row's folder, not even why it is not built."""
    return bool(isinstance(folder, Path) and _obstruction(folder)) or bool(foreign_without_record(folder))


def _obstruction(folder: Path) -> str:
    """Empty when the asset's folder can be used, else what stands in its place."""
    try:
        mode = folder.lstat().st_mode
        if stat.S_ISDIR(mode):
            return ""
        if not stat.S_ISLNK(mode):
            return f"{folder} is no folder; remove it"
        target = Path(os.path.realpath(folder))
        if not target.is_relative_to(os.path.realpath(folder.parent)):
            return f"{folder} is a link that leaves the output folder; remove it"
        return "" if target.is_dir() else f"{folder} is a link to no folder; remove it"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{folder} cannot be used: {error.strerror or error}"


def _reason_to_build(
    job: Job, folder: Path | Snapshot, mark: str, mesh: str, prior: str, version: str, adapters: Sequence[Json]
) -> str:
    """Why the asset in ``folder`` has to be built (again); empty when it is up to date."""
    record, damage = load_record(folder)
    if record is not None and record["fingerprint"] == mark:
        # The last words of an earlier failure do not matter to an asset that is whole.
        problem = _output_problem(folder, record)
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
    # A failure of just these inputs: the change was tried already.
    return f"{changes}; {failed}" if failure and failure.get("fingerprint") == mark else changes


def _changes(record: Json, job: Job, mesh: str, prior: str, version: str) -> Iterator[str]:
    """What differs between what the record was made from and what the job says now, in words."""
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
    """A recorded value in a reason; ``None`` is what the prior recommends."""
    if value is None:
        return "the prior's"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _one_line(f"{value:g}" if isinstance(value, float) else value)


def _one_line(value: object) -> str:
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 5 * _MAX_SHOWN else text[: 5 * _MAX_SHOWN - 3] + "..."


# Hashes of files, by what the file system says of them: a file that keeps all of it keeps its bytes.
_FileStamp = tuple[str, int, int, int]
# Bounded, so that a long manifest fills no memory: beyond, they start anew.
_MAX_CACHED = 1 << 16
_mesh_hashes: dict[_FileStamp, str] = {}
_verified_outputs: set[tuple[_FileStamp, str]] = set()


def _stamp(path: Path) -> _FileStamp:
    stat = path.stat()
    return (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _identify(mesh: Location | None) -> tuple[str, str]:
    """The hash of a mesh and "", or "" and why there is none."""
    if mesh is None:
        return "", ""
    try:
        return (fetch_mesh(mesh)[1] if isinstance(mesh, RemotePath) else _hash_mesh(mesh)), ""
    except LatentkilnError as error:
        return "", f"the mesh cannot be used: {error.message}"
    except OSError as error:
        return "", f"the mesh cannot be read: {error.strerror or error}"


def _identify_adapters(job: Job) -> tuple[Job, Sequence[Json], str]:
    """The job with its LoRAs and concepts on this node, what they are, and "" or why they cannot be used."""
    try:
        job = with_local_adapters(job)
        return job, adapter_hashes(job.adapters), ""
    except LatentkilnError as error:
        return job, [], f"an adapter cannot be used: {error.message}"


def _hash_mesh(path: Path) -> str:
    # The buffers beside a glTF have stamps of their own: such a mesh is hashed once in each plan.
    if may_have_buffers(path):
        return mesh_sha256(path)
    stamp = _stamp(path)
    if len(_mesh_hashes) > _MAX_CACHED:
        _mesh_hashes.clear()
    if stamp not in _mesh_hashes:
        _mesh_hashes[stamp] = mesh_sha256(path)
    return _mesh_hashes[stamp]


def _output_problem(folder: Path | Snapshot, record: Json) -> str:
    """As ``export.record.output_problem``, hashing an output once while it stays as it is."""
    if isinstance(folder, Snapshot):
        if LEASE in folder.files:
            return "its builder is still at it, or was killed at the very end"
        return output_problem(folder, record) if record["outputs"] else "the record names no outputs"
    try:
        outputs = publish.outputs_of(record)
        keys = {(_stamp(folder / name), str(expected["sha256"])) for name, expected in outputs.items()}
    except OSError:
        return output_problem(folder, record)
    if not record["outputs"]:
        return "the record names no outputs"
    if keys <= _verified_outputs:
        return ""
    problem = output_problem(folder, record)
    if len(_verified_outputs) > _MAX_CACHED:
        _verified_outputs.clear()
    if not problem:
        _verified_outputs.update(keys)
    return problem
