"""A manifest's file becomes jobs and problems: as a stream, or all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import ManifestError, UsageError
from pipeline.core.job import Job
from pipeline.manifest.problems import Problem, shown, suggestion
from pipeline.manifest.readers import Fields, read_rows
from pipeline.manifest.rows import RowChecker
from pipeline.manifest.schema import FIELDS

# Without a column that says otherwise, all rows are painted.
_FIELDS = Fields(known=frozenset(FIELDS), required={"prompt": "", "mesh": "recipe"})
# How many problems an error's one line names; ``check`` names all.
_NAMED = 5


@dataclass(frozen=True)
class Manifest:
    """A manifest that can be used: ``jobs`` of its good rows, ``problems`` of its bad ones, both in row order.

    ``rows`` counts all rows of the file, ``ids`` are those of all rows, also of bad ones that have a usable id
    and of rows left out by ``only``.
    """

    path: Path
    rows: int
    jobs: list[Job]
    problems: list[Problem]
    ids: frozenset[str] = field(default_factory=frozenset)

    @property
    def bad_rows(self) -> int:
        """How many rows have problems."""
        return len({problem.row for problem in self.problems})


class ManifestStream:
    """Iterating yields a Job for each good row and the Problems of each bad one, in the order of the file.

    Memory is bounded by the longest row, plus the ids (they have to differ). Problems with ``whole`` set make
    the manifest as a whole unusable; iteration goes on after them where it can, so that all are named at once.
    ``rows`` and ``ids`` (lower case -> id as written, row) are complete when the iteration has ended. Raises
    UsageError at once for ``overrides`` that no row could take, and at the end for those that no row took because
    of its recipe.
    """

    def __init__(
        self,
        path: Path,
        *,
        overrides: Mapping[str, str] | None = None,
        allow_outside: bool = False,
        check_files: bool = True,
    ):
        self.path = path
        self.rows = 0
        self.ids: dict[str, tuple[str, int, bool]] = {}
        self._checker = RowChecker(path, overrides=overrides, allow_outside=allow_outside, check_files=check_files)

    def __iter__(self) -> Iterator[Job | Problem]:
        sound = True
        for raw in read_rows(self.path, _FIELDS):
            if isinstance(raw, Problem):
                sound = False
                yield raw
                continue
            if raw.row == 0:
                if wrong := self._checker.defaults(raw):
                    yield from wrong
                    # Every row would repeat them.
                    return
                continue
            self.rows += 1
            job, problems, row_id = self._checker.check(raw)
            clash = self._clash(row_id, raw.row, "id" in raw.values) if row_id else None
            if clash:
                yield clash
            yield from problems
            if job is not None and clash is None:
                yield job
        if sound and not self.rows:
            yield Problem(str(self.path), 0, "", "the manifest has no rows", whole=True)
        self._checker.raise_for_unused()

    def _clash(self, row_id: str, row: int, written: bool) -> Problem | None:
        other = self.ids.setdefault(row_id.lower(), (row_id, row, written))
        if other[1] == row:
            return None
        first_id, first_row, first_written = other
        if not written and not first_written:
            message = f"this row is a duplicate of row {first_row}, and neither has an id; remove one or give it an id"
        elif row_id == first_id:
            message = f"{shown(row_id)} is the id of row {first_row} already; allowed: ids that differ"
        else:
            message = (
                f"{shown(row_id)} clashes with {shown(first_id)} of row {first_row}: file names that differ in "
                "case only are one on many systems; allowed: ids that differ"
            )
        return Problem(str(self.path), row, "id", message, row_id, whole=True)


def load_manifest(
    path: Path,
    *,
    overrides: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    allow_outside: bool = False,
    check_files: bool = True,
) -> Manifest:
    """Reads and checks the manifest at ``path``: CSV, JSON or JSON Lines, by the ending of its name.

    ``overrides`` (``--set``) win over what the rows say. ``only`` keeps the rows with these ids. Meshes have to
    lie in the manifest's folder unless ``allow_outside``, and to exist unless ``check_files`` is off.

    Raises ManifestError where the manifest as a whole cannot be used, UsageError for wrong ``overrides`` or an id
    in ``only`` that no row has. What is wrong with single rows is in ``problems``.
    """
    stream = ManifestStream(path, overrides=overrides, allow_outside=allow_outside, check_files=check_files)
    jobs: list[Job] = []
    problems: list[Problem] = []
    whole: list[Problem] = []
    wanted = frozenset(only)
    for item in stream:
        if isinstance(item, Job):
            if not wanted or item.id in wanted:
                jobs.append(item)
        elif item.whole:
            whole.append(item)
        elif not wanted or item.row_id in wanted:
            problems.append(item)
    if whole:
        raise _as_error(whole)
    ids = frozenset(written for written, _, _ in stream.ids.values())
    for name in only:
        if name not in ids:
            near = suggestion(name, ids) if len(ids) <= 10_000 else ""
            raise UsageError(f"--only {name}: no row of {path} has this id{near}")
    return Manifest(path, stream.rows, jobs, problems, ids)


def _as_error(problems: Sequence[Problem]) -> ManifestError:
    named = " | ".join(str(problem) for problem in problems[:_NAMED])
    more = len(problems) - _NAMED
    rest = f" | and {more} more ('latentkiln check' names them all)" if more > 0 else ""
    return ManifestError(named + rest)
