"""Loads a manifest file as jobs and problems: as a stream, or all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.core.errors import ManifestError, UsageError
from pipeline.core.job import Job
from pipeline.core.location import Location, RemotePath
from pipeline.manifest.problems import Problem, quoted, suggestion
from pipeline.manifest.readers import Fields, read_rows
from pipeline.manifest.rows import AdapterErrors, MeshReason, RowChecker
from pipeline.manifest.schema import FIELDS
from pipeline.storage.errors import StorageError
from pipeline.storage.store import store_of

# Rows without a recipe column have the recipe ``paint``.
_FIELDS = Fields(known=frozenset(FIELDS), required={"prompt": "", "mesh": "recipe"})
# Number of problems in an error's line; ``check`` lists all.
_MAX_NAMED = 5
# Number of bad rows remembered.
_MAX_PROBLEMS = 1000


@dataclass(frozen=True)
class Manifest:
    """A usable manifest: ``jobs`` of its good rows and ``problems`` of its bad ones, both in row order.

    ``rows`` counts all rows of the file. ``ids`` are the valid ids of all rows, also of bad rows and of rows that
    ``only`` leaves out.
    """

    path: Location
    rows: int
    jobs: list[Job]
    problems: list[Problem]
    ids: frozenset[str] = field(default_factory=frozenset)

    @property
    def bad_rows(self) -> int:
        """The number of rows with problems."""
        return len({problem.row for problem in self.problems})


class IdIndex:
    """The ids of a manifest's rows, which must be unique regardless of case. Stores one string and one number a row."""

    def __init__(self) -> None:
        # Lower-case id to its first row; negative if the id was derived.
        self._rows: dict[str, int] = {}
        # Lower-case id to the id as written, where they differ.
        self._spelled: dict[str, str] = {}

    def __contains__(self, row_id: str) -> bool:
        return row_id.lower() in self._rows

    def __iter__(self) -> Iterator[str]:
        """All ids as written."""
        return (self._spelled.get(lower, lower) for lower in self._rows)

    def add(self, row_id: str, row: int, written: bool) -> int:
        """Returns 0, or the earlier row with this id: negative if that id was derived."""
        lower, mark = row_id.lower(), row if written else -row
        first = self._rows.setdefault(lower, mark)
        if first != mark:
            return first
        if lower != row_id:
            self._spelled[lower] = row_id
        return 0

    def spelled(self, row_id: str) -> str:
        """Returns ``row_id`` as its first row writes it; "" if no row has it."""
        lower = row_id.lower()
        return self._spelled.get(lower, lower) if lower in self._rows else ""


class ManifestStream:
    """Yields a Job for each good row and the Problems of each bad one, in file order.

    Memory is bounded by the longest row and the ids. Problems with ``unusable`` set make the whole manifest unusable;
    iteration continues after them if possible, to report all problems. ``rows`` and ``ids`` are complete after the
    iteration. ``mesh_reason`` and ``adapter_errors`` as in RowChecker. Raises UsageError at once for ``overrides`` that
    no recipe has, and at the end for those that no row's recipe has.
    """

    def __init__(
        self,
        path: Location,
        *,
        overrides: Mapping[str, str] | None = None,
        allow_outside: bool = False,
        check_files: bool = True,
        unique: bool = False,
        mesh_reason: MeshReason | None = None,
        adapter_errors: AdapterErrors | None = None,
    ):
        self.path = path
        self.rows = 0
        self._unique = unique
        self.ids = IdIndex()
        self._checker = RowChecker(
            path,
            overrides=overrides,
            allow_outside=allow_outside,
            check_files=check_files,
            mesh_reason=mesh_reason,
            adapter_errors=adapter_errors,
        )

    def __iter__(self) -> Iterator[Job | Problem]:
        sound, check, ids = True, self._checker.check, None if self._unique else self.ids
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
            job, problems, row_id = check(raw)
            if row_id and ids is not None and (first := ids.add(row_id, raw.row, "id" in raw.values)):
                yield self._duplicate_id(row_id, raw.row, "id" in raw.values, first)
                job = None
            if problems:
                yield from problems
            if job is not None:
                yield job
        if sound and not self.rows:
            yield Problem(str(self.path), 0, "", "the manifest has no rows", unusable=True)
        self._checker.raise_for_unused()

    def _duplicate_id(self, row_id: str, row: int, written: bool, first: int) -> Problem:
        first_id, first_row, first_written = self.ids.spelled(row_id), abs(first), first > 0
        if not written and not first_written:
            message = f"this row is a duplicate of row {first_row}, and neither has an id; remove one or give it an id"
        elif row_id == first_id:
            message = f"{quoted(row_id)} is already the id of row {first_row}; allowed: an id that no other row has"
        else:
            message = (
                f"{quoted(row_id)} clashes with {quoted(first_id)} of row {first_row}: on many systems file "
                "names that differ only in case are the same; allowed: ids that differ in more than case"
            )
        return Problem(str(self.path), row, "id", message, row_id, unusable=True)


class ValidatedManifest:
    """A manifest of any length that one reading has found usable as a whole.

    Each iteration reads the file again and yields a Job for each good row and the Problems of each bad one, in file
    order, restricted to the ids in ``only`` unless that is empty. Memory grows only with the ids. ``rows`` counts all
    rows, ``good`` and ``bad`` the selected ones; ``bad_numbers`` are the first thousand bad rows. The first reading
    passes each Problem to ``on_problem``.

    Raises ManifestError if the whole manifest is unusable or changes between readings, UsageError for wrong
    ``overrides`` or an id in ``only`` that no row has.
    """

    def __init__(
        self,
        path: Location,
        *,
        overrides: Mapping[str, str] | None = None,
        only: Sequence[str] = (),
        allow_outside: bool = False,
        on_problem: Callable[[Problem], None] = lambda problem: None,
    ):
        self.path, self._overrides, self._allow_outside = path, overrides, allow_outside
        self._only = frozenset(only)
        self._stamp = _stamp(path)
        self.good = 0
        self.bad_numbers: list[int] = []
        self.bad = 0
        file_problems: list[Problem] = []
        latest = 0
        stream = ManifestStream(path, overrides=overrides, allow_outside=allow_outside)
        for item in stream:
            if isinstance(item, Job):
                self.good += self._wanted(item.id)
            elif item.unusable:
                file_problems.append(item)
                if len(file_problems) > _MAX_PROBLEMS:
                    break
            elif self._wanted(item.row_id):
                if not file_problems:
                    on_problem(item)
                if item.row != latest:
                    latest, self.bad = item.row, self.bad + 1
                    if self.bad <= _MAX_PROBLEMS:
                        self.bad_numbers.append(latest)
        if file_problems:
            raise _as_error(file_problems)
        self.rows = stream.rows
        self._ids = stream.ids
        _require(only, self)

    def __iter__(self) -> Iterator[Job | Problem]:
        self._unchanged()
        stream = ManifestStream(
            self.path, overrides=self._overrides, allow_outside=self._allow_outside, unique=True
        )  # fmt: skip
        for item in stream:
            if isinstance(item, Job):
                if self._wanted(item.id):
                    yield item
            elif item.unusable:
                raise _as_error([item])
            elif self._wanted(item.row_id):
                yield item
        self._unchanged()

    def knows(self, row_id: str) -> bool:
        """Tells whether any row, selected or not, good or bad, has this id, ignoring case."""
        return row_id in self._ids

    def ids(self) -> Iterator[str]:
        """All valid ids as written, also those of bad rows."""
        return iter(self._ids)

    def has(self, row_id: str) -> bool:
        """Tells whether any row has exactly this id."""
        return row_id != "" and self._ids.spelled(row_id) == row_id

    def _wanted(self, row_id: str | None) -> bool:
        return not self._only or row_id in self._only

    def _unchanged(self) -> None:
        if _stamp(self.path) != self._stamp:
            raise ManifestError(f"{self.path}: the manifest changed while it was being read; run again")


def _stamp(path: Location) -> object:
    """Returns a value that changes with the file; None if it cannot be read."""
    try:
        if isinstance(path, RemotePath):
            meta = store_of(path).stat(path)
            return (meta.size, meta.etag) if meta else None
        stat = path.stat()
    except (OSError, ValueError, StorageError):
        return None  # reading the file reports the error
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _require(only: Sequence[str], manifest: ValidatedManifest) -> None:
    """Raises UsageError for an id in ``only`` that no row has."""
    for name in only:
        if not manifest.has(name):
            near = suggestion(name, manifest.ids()) if manifest.rows <= 10_000 else ""
            raise UsageError(f"--only {name}: no row of {manifest.path} has this id{near}")


def load_manifest(
    path: Location,
    *,
    overrides: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    allow_outside: bool = False,
    check_files: bool = True,
) -> Manifest:
    """Reads and checks the manifest at ``path``: CSV, JSON or JSON Lines, by the ending of its name.

    ``overrides`` (``--set``) replace the rows' values. ``only`` selects rows by id. Meshes must lie in the manifest's
    folder unless ``allow_outside``, and must exist unless ``check_files`` is off.

    Raises ManifestError if the whole manifest is unusable, UsageError for wrong ``overrides`` or an id in ``only``
    that no row has. ``problems`` lists the errors of single rows.
    """
    stream = ManifestStream(path, overrides=overrides, allow_outside=allow_outside, check_files=check_files)
    jobs: list[Job] = []
    problems: list[Problem] = []
    file_problems: list[Problem] = []
    selected = frozenset(only)
    for item in stream:
        if isinstance(item, Job):
            if not selected or item.id in selected:
                jobs.append(item)
        elif item.unusable:
            file_problems.append(item)
        elif not selected or item.row_id in selected:
            problems.append(item)
    if file_problems:
        raise _as_error(file_problems)
    ids = frozenset(stream.ids)
    for name in only:
        if name not in ids:
            near = suggestion(name, ids) if len(ids) <= 10_000 else ""
            raise UsageError(f"--only {name}: no row of {path} has this id{near}")
    return Manifest(path, stream.rows, jobs, problems, ids)


def _as_error(problems: Sequence[Problem]) -> ManifestError:
    named = " | ".join(str(problem) for problem in problems[:_MAX_NAMED])
    unnamed = len(problems) - _MAX_NAMED
    remainder = f" | and {unnamed} more ('latentkiln check' lists them all)" if unnamed > 0 else ""
    return ManifestError(named + remainder)
