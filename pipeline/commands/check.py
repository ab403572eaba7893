"""``latentkiln check``: every mistake of every row, before anything is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.core.errors import EXIT_OK, EXIT_USAGE, PriorError
from pipeline.core.job import Job
from pipeline.core.place import Place
from pipeline.core.terminal import complain, say, say_json
from pipeline.geometry.fetch import fetched_ahead
from pipeline.manifest import ManifestStream, Problem, json_schema
from pipeline.manifest.meshes import MeshChecker
from pipeline.prior.identity import EMBEDDED, find_prior
from pipeline.prior.words import known_words, split_words


def show_schema() -> int:
    """Prints the JSON Schema of manifests."""
    say_json(json_schema(), indent=2)
    return EXIT_OK


def check(
    manifest: Place,
    *,
    prior: str = "embedded",
    overrides: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    skip_meshes: bool = False,
    json: bool = False,
) -> int:
    """Prints every problem of the manifest, one a line, and a last line that counts them. Builds nothing.

    Each mesh is read once to see whether it can be painted, unless ``skip_meshes``. Words that the prior does not
    know, and what is odd about a mesh or lost of it, are warnings. Returns 0, or 2 where there is any problem.
    Raises UsageError for wrong ``overrides``, PriorError for a ``prior`` that does not exist.
    """
    meshes = None if skip_meshes else MeshChecker()
    stream = ManifestStream(
        manifest, overrides=overrides, allow_outside=allow_outside, mesh_reason=meshes.reason if meshes else None
    )
    problems, warnings = 0, 0
    bad_rows: set[int] = set()
    listed: list[dict[str, Any]] = []
    warner = _Warner(prior)
    for item in _with_meshes(stream, meshes) if meshes else stream:
        found: Iterable[Problem] = (item,) if isinstance(item, Problem) else warner.words(item)
        if meshes and isinstance(item, Job):
            found = (*found, *meshes.warnings(item))
        for problem in found:
            is_warning = isinstance(item, Job)
            warnings += is_warning
            problems += not is_warning
            if not is_warning and problem.row:
                bad_rows.add(problem.row)
            if json:
                entry = {"level": "warning" if is_warning else "error", **dataclasses.asdict(problem)}
                listed.append({key: value for key, value in entry.items() if key != "file"})
            else:
                say(_line(problem, is_warning))
    if warner.problem and not json:
        complain(f"latentkiln: note: words are not checked: {warner.problem}")
    if json:
        result = {
            "manifest": str(manifest), "rows": stream.rows, "ok": not problems, "errors": problems,
            "warnings": warnings, "problems": listed,
        }  # fmt: skip
        say_json(result, indent=1)
        return EXIT_USAGE if problems else EXIT_OK
    say(_summary(manifest, stream.rows, problems, len(bad_rows), warnings))
    return EXIT_USAGE if problems else EXIT_OK


def _with_meshes(stream: ManifestStream, meshes: MeshChecker) -> Iterator[Job | Problem]:
    """The stream, with a Problem in the place of each job whose mesh cannot be used."""
    for item in fetched_ahead(stream):
        yield (meshes.problem(item) if isinstance(item, Job) else None) or item


class _Warner:
    """Warnings about prompts: words that the prior does not know."""

    def __init__(self, prior: str):
        self.name = prior
        self.problem = ""
        # None: any word will do, or it cannot be said.
        self._known: frozenset[str] | None = None
        # Of these, what is one word between two spaces.
        self._plain: frozenset[str] = frozenset()
        try:
            folder = find_prior(prior)
        except PriorError as error:
            if prior != EMBEDDED:
                raise
            self.problem = error.message
            return
        try:
            self._known = known_words(folder)
        except PriorError as error:
            self.problem = error.message
        self._plain = frozenset(word for word in self._known or () if split_words(word) == [word])

    def words(self, job: Job) -> Sequence[Problem]:
        """A Problem for the job's prompt where it has unknown words."""
        if self._known is None or self._plain.issuperset(job.prompt.split()):
            return ()
        unknown = [word for word in dict.fromkeys(split_words(job.prompt)) if word not in self._known]
        if not unknown:
            return ()
        message = f"the prior '{self.name}' does not know: {', '.join(unknown)}"
        return (Problem(job.source.file, job.source.row, "prompt", message, job.id),)


def _line(problem: Problem, is_warning: bool) -> str:
    if not is_warning:
        return str(problem)
    return str(dataclasses.replace(problem, message=f"warning: {problem.message}"))


def _summary(manifest: Place, rows: int, problems: int, bad_rows: int, warnings: int) -> str:
    count = f"{rows} row{'s' * (rows != 1)}"
    warned = f", {warnings} warning{'s' * (warnings != 1)}" if warnings else ""
    if not problems:
        return f"{manifest}: {count}, all good{warned}"
    where = f" in {bad_rows} row{'s' * (bad_rows != 1)}" if bad_rows else ""
    return f"{manifest}: {count}, {problems} error{'s' * (problems != 1)}{where}{warned}"
