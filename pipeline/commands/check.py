"""``latentkiln check``: every mistake of every row, before anything is built."""

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

# Bounded, so that a long manifest fills no memory.
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
    """Prints every problem of the manifest, one a line, and a last line that counts them. Builds nothing.

    Each mesh is read once to see whether it can be painted, unless ``skip_meshes``, and of each LoRA and concept the
    header. What the prior does not see of a prompt, and what is odd about a mesh or lost of it, are warnings; a prompt
    of which nothing is known is a problem, unless ``allow_unknown``. Returns 0, or 2 where there is any problem.
    Raises UsageError for wrong ``overrides``, PriorError for a ``prior`` that does not exist.
    """
    checker = _RowChecker(prior, None if skip_meshes else MeshChecker(), allow_unknown)
    stream = ManifestStream(
        manifest,
        overrides=overrides,
        allow_outside=allow_outside,
        mesh_reason=checker.meshes.reason if checker.meshes else None,
        adapter_faults=checker.adapter_faults,
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
        complain(f"latentkiln: note: not all is checked: {checker.unchecked}")
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
    """Looks at what good rows name: meshes, prompts, LoRAs and concepts."""

    def __init__(self, prior: str, meshes: MeshChecker | None, allow_unknown: bool):
        self.meshes = meshes
        self._missing = ""
        self._jobs: JobChecker | None = None
        # Rows of which the prior sees the same, by a hash of all that decides their assets.
        self._seen: dict[str, int] = {}
        try:
            self._jobs = job_checker(prior, allow_unknown=allow_unknown)
        except PriorError as error:
            if prior != EMBEDDED:
                raise
            self._missing = error.message

    @property
    def unchecked(self) -> str:
        """Why rows could not be held against the prior; "" where they could."""
        return self._missing or (self._jobs.problem if self._jobs else "")

    def adapter_faults(self, files: Sequence[AdapterFile]) -> list[tuple[str, str]]:
        """What is wrong with the LoRAs and concepts of a row; those at a URL are looked at for good rows alone."""
        local = [file for file in files if file.origin is None]
        return list(self._jobs.adapter_errors(local)) if self._jobs else []

    def problems(self, job: Job) -> Iterator[tuple[Problem, bool]]:
        """Problems of ``job``, each with whether it is a mere warning."""
        if self.meshes and (problem := self.meshes.problem(job)):
            yield problem, False
        elif self.meshes:
            yield from ((problem, True) for problem in self.meshes.warnings(job))
        if self._jobs is None:
            return
        try:
            warnings = self._jobs.check(with_local_adapters(job))
        except LatentkilnError as error:
            field = next(file.kind for file in job.adapters if file.origin)
            yield _problem(job, field, error.message), False
            return
        yield from ((_problem(job, field, message), False) for field, message in warnings.errors)
        yield from ((_problem(job, field, message), True) for field, message in warnings.warnings)
        if warnings.seen and (row := self._first_like(job, warnings.seen)):
            yield _problem(job, "prompt", f"the prior sees the same of it as of row {row}"), True

    def _first_like(self, job: Job, like_key: tuple[str, str]) -> int:
        """The row that differs from ``job`` in nothing that the prior sees; 0 for the first one of its kind."""
        adapters = [(file.kind, str(file.origin or file.path), file.weight) for file in job.adapters]
        mesh = str(job.origin or job.mesh)
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
