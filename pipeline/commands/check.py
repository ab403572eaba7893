"""``latentkiln check``: lists every error of a manifest before anything is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.core.errors import EXIT_OK, EXIT_USAGE, LatentkilnError, PriorError
from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.core.job import AdapterFile, Job
from pipeline.core.location import Location
from pipeline.core.terminal import complain, say, say_json
from pipeline.manifest import ManifestStream, Problem, json_schema
from pipeline.manifest.meshes import MeshChecker
from pipeline.prior.identity import EMBEDDED
from pipeline.prior.job_check import JobChecker, job_checker
from pipeline.storage.inputs import prefetch_inputs, with_local_adapters

# Bounds the memory for a long manifest.
_REMEMBERED = 1 << 16


def show_schema() -> int:
    """Prints the JSON Schema of manifests."""
    say_json(json_schema(), indent=2)
    return EXIT_OK


def check(
    manifest: Location,
    *,
    prior: str = "embedded",
    overrides: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    allow_unknown: bool = False,
    skip_meshes: bool = False,
    json: bool = False,
) -> int:
    """Prints each problem of the manifest on a line, then their number. Builds nothing.

    Reads each mesh once, unless ``skip_meshes``, and the header of each LoRA and concept. Warns about parts of a prompt
    that the prior ignores, about defects of a mesh, and about what the asset will lack of it. A prompt of unknown words
    only is a problem, unless ``allow_unknown``. Returns 0, or 2 if there is any problem. Raises UsageError for wrong
    ``overrides``, PriorError for an unknown ``prior``.
    """
    checker = _RowChecker(prior, None if skip_meshes else MeshChecker(), allow_unknown)
    stream = ManifestStream(
        manifest,
        overrides=overrides,
        allow_outside=allow_outside,
        mesh_reason=checker.meshes.reason if checker.meshes else None,
        adapter_errors=checker.adapter_errors,
    )
    problems, warnings = 0, 0
    bad_rows: set[int] = set()
    listed: list[dict[str, Any]] = []
    for item in stream if skip_meshes else prefetch_inputs(stream):
        item_problems = checker.problems(item) if isinstance(item, Job) else [(item, False)]
        for problem, is_warning in item_problems:
            warnings += is_warning
            problems += not is_warning
            if not is_warning and problem.row:
                bad_rows.add(problem.row)
            if json:
                entry = {"level": "warning" if is_warning else "error", **dataclasses.asdict(problem)}
                listed.append({key: value for key, value in entry.items() if key != "file"})
            else:
                say(_line(problem, is_warning))
    if checker.unchecked and not json:
        complain(f"latentkiln: note: some checks were left out: {checker.unchecked}")
    if json:
        result = {
            "manifest": str(manifest), "rows": stream.rows, "ok": not problems, "errors": problems,
            "warnings": warnings, "problems": listed,
        }  # fmt: skip
        say_json(result, indent=1)
        return EXIT_USAGE if problems else EXIT_OK
    say(_summary(manifest, stream.rows, problems, len(bad_rows), warnings))
    return EXIT_USAGE if problems else EXIT_OK


class _RowChecker:
    """Checks the meshes, prompts, LoRAs and concepts of good rows."""

    def __init__(self, prior: str, meshes: MeshChecker | None, allow_unknown: bool):
        self.meshes = meshes
        self._missing = ""
        self._jobs: JobChecker | None = None
        # Maps a hash of all that the prior sees of a row, and of its other inputs, to the first such row.
        self._seen: dict[str, int] = {}
        try:
            self._jobs = job_checker(prior, allow_unknown=allow_unknown)
        except PriorError as error:
            if prior != EMBEDDED:
                raise
            self._missing = error.message

    @property
    def unchecked(self) -> str:
        """Why rows could not be checked against the prior; "" if they could."""
        return self._missing or (self._jobs.problem if self._jobs else "")

    def adapter_errors(self, files: Sequence[AdapterFile]) -> list[tuple[str, str]]:
        """Returns the errors of a row's LoRAs and concepts. Checks remote ones for good rows only."""
        local = [adapter for adapter in files if not adapter.file.is_remote]
        return list(self._jobs.adapter_errors(local)) if self._jobs else []

    def problems(self, job: Job) -> Iterator[tuple[Problem, bool]]:
        """Yields the problems of ``job``, each with a flag that marks a warning."""
        if self.meshes and (problem := self.meshes.problem(job)):
            yield problem, False
        elif self.meshes:
            yield from ((problem, True) for problem in self.meshes.warnings(job))
        if self._jobs is None:
            return
        try:
            warnings = self._jobs.check(with_local_adapters(job))
        except LatentkilnError as error:
            field = next(adapter.kind for adapter in job.adapters if adapter.file.is_remote)
            yield _problem(job, field, error.message), False
            return
        yield from ((_problem(job, field, message), False) for field, message in warnings.errors)
        yield from ((_problem(job, field, message), True) for field, message in warnings.warnings)
        if warnings.seen and (row := self._first_like(job, warnings.seen)):
            yield _problem(job, "prompt", f"to the prior it is the same as that of row {row}"), True

    def _first_like(self, job: Job, like_key: tuple[str, str]) -> int:
        """Returns an earlier row that gives the same asset as ``job``, because the prior sees no difference; else 0."""
        adapters = [(adapter.kind, str(adapter.file.location), adapter.weight) for adapter in job.adapters]
        mesh = str(job.mesh and job.mesh.location)
        key = sha256_bytes(canonical_json([job.recipe, *like_key, job.seed, mesh, dict(job.settings), adapters]))
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        first = self._seen.setdefault(key, job.row_location.row)
        return first if first != job.row_location.row else 0


def _problem(job: Job, field: str, message: str) -> Problem:
    return Problem(job.row_location.file, job.row_location.row, field, message, job.id)


def _line(problem: Problem, is_warning: bool) -> str:
    if not is_warning:
        return str(problem)
    return str(dataclasses.replace(problem, message=f"warning: {problem.message}"))


def _summary(manifest: Location, rows: int, problems: int, bad_rows: int, warnings: int) -> str:
    count = f"{rows} row{'s' * (rows != 1)}"
    warned = f", {warnings} warning{'s' * (warnings != 1)}" if warnings else ""
    if not problems:
        return f"{manifest}: {count}, all good{warned}"
    row_count = f" in {bad_rows} row{'s' * (bad_rows != 1)}" if bad_rows else ""
    return f"{manifest}: {count}, {problems} error{'s' * (problems != 1)}{row_count}{warned}"
