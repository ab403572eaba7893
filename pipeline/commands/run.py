"""``latentkiln run``: builds the assets of a manifest that are missing or out of date."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.asset_layout import UNWRAP_CACHE
from pipeline.core.atomic import remove_stale_temporaries
from pipeline.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_ROWS_FAILED, EXIT_USAGE, UsageError
from pipeline.core.job import Job
from pipeline.core.location import Location, RemotePath, require_folder
from pipeline.core.redact import redact
from pipeline.core.stdout import own_stdout
from pipeline.core.terminal import OutputLost, complain, flush, say, say_json, shell_join, silence_stdout
from pipeline.export.record import write_failure
from pipeline.manifest import Problem, ValidatedManifest
from pipeline.manifest.meshes import MeshChecker
from pipeline.plan import PlanItem, Refuse, is_foreign, iterate
from pipeline.prior.identity import PriorIdentity, prior_identity
from pipeline.prior.job_check import JobChecker, job_checker
from pipeline.prior.options import Precision, PriorOptions, low_memory
from pipeline.scheduler.file_lock import asset_lock
from pipeline.scheduler.output_root import local_root, refuse_links_in
from pipeline.scheduler.progress import duration, make_progress, result_json
from pipeline.scheduler.runner import RunSettings, run
from pipeline.scheduler.task_tracker import RunSummary
from pipeline.scheduler.tasks import Hooks, TaskResult, load_worker_prior
from pipeline.storage import publish
from pipeline.storage.errors import StorageError
from pipeline.storage.snapshot import take_snapshot
from pipeline.storage.store import deadline

# Number of wrong rows in the last line of ``--json``. Each has been reported and has its failure.json.
_MAX_REPORTED = 1000
# Time limit in seconds for writing a failure at a URL.
_DEADLINE_SECONDS = 10.0


@dataclass(frozen=True)
class RunOptions:
    """Options of ``latentkiln run``; see its ``--help``.

    ``overrides`` are the ``--set`` pairs, ``max_memory`` is in gigabytes (10^9 bytes), ``lockstep`` None is ``auto``.
    """

    manifest: Location
    out: Location = Path("outputs")
    prior: str = "embedded"
    only: Sequence[str] = ()
    lockstep: int | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    strict: bool = False
    fail_fast: bool = False
    dry_run: bool = False
    serial: bool = False
    allow_outside: bool = False
    allow_unknown: bool = False
    quiet: bool = False
    json: bool = False
    max_seconds: float | None = None
    max_memory: float | None = None
    checkpoint_seconds: float = 30.0
    precision: Precision = "auto"
    compile: bool = False
    low_memory: bool = False
    download: bool = False

    @property
    def prior_options(self) -> PriorOptions:
        """The options that control how the prior computes."""
        if self.low_memory:
            return dataclasses.replace(low_memory(self.precision), compile=self.compile)
        return PriorOptions(precision=self.precision, compile=self.compile)

    def command(self, *, only: str | None = None) -> str:
        """Returns the command that repeats this run; with ``only``, for one row in the command's own process.

        Redacts credentials, because records contain it.
        """
        words = ["latentkiln", "run", str(self.manifest)]
        if self.out != Path("outputs"):
            words += ["--out", str(self.out)]
        if self.prior != "embedded":
            words += ["--prior", self.prior]
        for name in (only,) if only is not None else self.only:
            words += ["--only", name]
        if self.lockstep is not None:
            words += ["--lockstep", str(self.lockstep)]
        for key, value in self.overrides.items():
            words += ["--set", f"{key}={value}"]
        words += ["--precision", self.precision] if self.precision != "auto" else []
        words += [f"--{name}" for name in ("compile", "low-memory") if getattr(self, name.replace("-", "_"))]
        if self.allow_outside:
            words.append("--allow-outside")
        if self.allow_unknown:
            words.append("--allow-unknown")
        if only is not None:
            words.append("--serial")
        else:
            words += ["--address", self.address] if self.address else []
            words += ["--workers", str(self.workers)] if self.workers else []
            words += ["--gpus-per-worker", f"{self.gpus_per_worker:g}"] if self.gpus_per_worker else []
            words += ["--serial"] if self.serial else []
            words += ["--max-memory", f"{self.max_memory:g}"] if self.max_memory else []
            words += ["--checkpoint-seconds", f"{self.checkpoint_seconds:g}"] if self.checkpoint_seconds != 30 else []
        words += ["--max-seconds", f"{self.max_seconds:g}"] if self.max_seconds else []
        return redact(shell_join(words))


def run_manifest(options: RunOptions, *, hooks: Hooks | None = None) -> int:
    """Builds the manifest's rows into ``options.out`` and prints the progress. Returns the exit code.

    Reports wrong rows, records them as failures, and builds the others. Builds nothing if the whole manifest is wrong,
    or with ``strict`` if any row is. Imports neither Ray nor torch if all rows are up to date. ``hooks`` replaces prior
    and recipes. Raises ManifestError, UsageError, PriorError or SchedulerError.
    """
    start_time = time.monotonic()
    require_folder(options.out)
    refuse_links_in(options.out)
    if options.address == "":
        raise UsageError("--address: it is empty; name a Ray cluster, or leave it out")
    validated = ValidatedManifest(
        options.manifest,
        overrides=options.overrides,
        only=options.only,
        allow_outside=options.allow_outside,
        on_problem=_problem_printer(options),
    )
    prior = prior_identity(options.prior, download=options.download)
    # With hooks another prior takes the place of the named one, and knows other words.
    checker = None if hooks else job_checker(options.prior, allow_unknown=options.allow_unknown)
    if options.strict and (wrong := validated.bad + _bad_files(validated, checker, options)):
        return _refuse(wrong, options)
    if options.dry_run:
        return _show_plan(validated, prior, checker, options)
    # Remove temporary files of killed runs. The next builder of an asset clears the asset's own folder.
    for folder in (local_root(options.out), local_root(options.out) / UNWRAP_CACHE):
        remove_stale_temporaries(folder)
    wrong_rows = _WrongRows(options)
    plan = iterate(
        _jobs(validated, wrong_rows.add), options.out, prior_identity=prior.identity, refuse=_refusal(checker)
    )
    items = _closing(wrong_rows, plan)
    code = EXIT_ROWS_FAILED

    def conclude(summary: RunSummary) -> int:
        nonlocal code
        summary.seconds = time.monotonic() - start_time
        code = EXIT_ROWS_FAILED if summary.exit_code == EXIT_OK and validated.bad else summary.exit_code
        code = _tell_the_end(summary, validated.bad, wrong_rows.reported, options, code)
        return code

    # Libraries may print during the run.
    with own_stdout() if options.json else contextlib.nullcontext() as stream:
        progress = make_progress(quiet=options.quiet, as_json=options.json, stream=stream)
        run(
            items,
            options.out,
            prior_spec=options.prior,
            settings=RunSettings(
                lockstep=options.lockstep,
                workers=options.workers,
                gpus_per_worker=options.gpus_per_worker,
                address=options.address,
                serial=options.serial,
                fail_fast=options.fail_fast,
                checkpoint_seconds=options.checkpoint_seconds,
                max_seconds=options.max_seconds,
                max_memory=int(options.max_memory * 1e9) if options.max_memory else None,
            ),
            progress=progress,
            hooks=hooks or Hooks(functools.partial(load_worker_prior, options=options.prior_options)),
            header=_header(options, validated, prior),
            reproduce=lambda job: options.command(only=job.id),
            total=validated.good,
            listen=wrong_rows.listen,
            conclude=conclude,
        )
    return code


def _closing(wrong_rows: _WrongRows, items: Iterator[PlanItem]) -> Iterator[PlanItem]:
    """Yields the plan, then closes the last wrong row."""
    yield from items
    wrong_rows.close()


def _tell_the_end(
    summary: RunSummary, bad: int, wrong: Mapping[str, Sequence[str]], options: RunOptions, code: int
) -> int:
    """Prints the summary, on standard error if standard output is lost. Returns the exit code, in that case not 0."""
    try:
        _print_summary(summary, bad, wrong, options, code)
        flush()
        return code
    except OutputLost as lost:
        silence_stdout()
        end = f"standard output cannot be written ({lost.reason})"
        if code == EXIT_INTERRUPTED:
            complain(f"latentkiln: {end}; interrupted; finished assets are kept; continue with: {options.command()}")
        else:
            complain(f"latentkiln: error: {end}; built {summary.built}, {summary.failures + bad} failed: see status")
        return code or EXIT_ROWS_FAILED


def _problem_printer(options: RunOptions) -> Callable[[Problem], None]:
    def tell(problem: Problem) -> None:
        if not options.json:
            say(problem)

    return tell


def _jobs(validated: ValidatedManifest, on_problem: Callable[[Problem], None]) -> Iterator[Job]:
    for item in validated:
        if isinstance(item, Job):
            yield item
        else:
            on_problem(item)


def _refusal(checker: JobChecker | None) -> Refuse:
    return checker.reason if checker else lambda job: ""


def _bad_files(validated: ValidatedManifest, checker: JobChecker | None, options: RunOptions) -> int:
    """Reports and counts good rows whose meshes are unusable or that do not fit the prior."""
    count = 0
    tell = _problem_printer(options)
    meshes = MeshChecker()
    for job in _jobs(validated, lambda problem: None):
        problem = meshes.problem(job)
        if problem is None and checker and (errors := checker.errors(job)):
            field, message = errors[0]
            problem = Problem(job.row_location.file, job.row_location.row, field, message, job.id)
        if problem is not None:
            count += 1
            tell(problem)
    return count


def _refuse(rows: int, options: RunOptions) -> int:
    if options.json:
        say_json({"event": "refused", "wrong_rows": rows})
    else:
        say(f"nothing built: {rows} wrong row{'s' * (rows != 1)}, and --strict is set")
    return EXIT_USAGE


def _show_plan(
    validated: ValidatedManifest, prior: PriorIdentity, checker: JobChecker | None, options: RunOptions
) -> int:
    counts: Counter[str] = Counter()
    jobs = _jobs(validated, lambda problem: None)
    for item in iterate(jobs, options.out, prior_identity=prior.identity, refuse=_refusal(checker)):
        counts[item.action] += 1
        if options.json:
            line = {"id": item.job.id, "action": item.action, "reason": item.reason}
            say_json({"event": "plan"} | line)
        elif not options.quiet or item.action == "blocked":
            say(item.job.id, item.action, item.reason)
    if not options.json:
        say(
            f"would build {counts['build']}, keep {counts['keep']}; "
            f"{counts['blocked'] + validated.bad} cannot be built; nothing was done"
        )
    return EXIT_ROWS_FAILED if validated.bad or counts["blocked"] else EXIT_OK


class _WrongRows:
    """Writes ``failure.json`` for each wrong row with a valid id, unless its folder is foreign.

    ``reported`` holds the first thousand, by id.
    """

    def __init__(self, options: RunOptions):
        self._options = options
        self._refused: Callable[[TaskResult, str], None] = lambda result, source: None
        self._row: list[Problem] = []
        self.reported: dict[str, list[str]] = {}

    def add(self, problem: Problem) -> None:
        """Collects a problem. The problems of a row arrive consecutively."""
        if self._row and self._row[0].row != problem.row:
            self.close()
        self._row.append(problem)

    def listen(self, refused: Callable[[TaskResult, str], None]) -> None:
        """Calls ``refused`` with the id, file and number of each wrong row from now on."""
        self._refused = refused

    def close(self) -> None:
        """Ends the current row."""
        problems, self._row = self._row, []
        if not problems:
            return
        job_id, source = problems[0].row_id, f"{problems[0].file}:{problems[0].row}"
        name = job_id or f"row {problems[0].row}"
        message = redact("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        if len(self.reported) < _MAX_REPORTED:
            self.reported[name] = [str(problem) for problem in problems]
        self._refused(TaskResult(name, "failed", "manifest", "ManifestError", message), source)
        if job_id is None:
            return
        out = self._options.out
        failure = {
            "id": job_id,
            "fingerprint": "",
            "source": source,
            "stage": "manifest",
            "error": "ManifestError",
            "message": message,
            "reproduce": self._options.command(only=job_id),
            "finished": time.time(),
        }
        # The problem has been printed; a failed write of the record adds nothing.
        with contextlib.suppress(OSError, StorageError):
            if isinstance(out, RemotePath):
                with deadline(_DEADLINE_SECONDS):
                    if not is_foreign(take_snapshot(out / job_id)):
                        publish.write_failure(out / job_id, failure)
                return
            if is_foreign(out / job_id):
                return
            with asset_lock(out / job_id) as held:
                if held:
                    write_failure(out / job_id, failure)


def _header(options: RunOptions, validated: ValidatedManifest, prior: PriorIdentity) -> dict[str, object]:
    return {
        "manifest": str(options.manifest),
        "rows": validated.rows,
        "wrong_rows": validated.bad_numbers,
        "prior": {"name": prior.name, "identity": prior.identity},
        "lockstep": options.lockstep or "auto",
        "serial": options.serial,
        "command": options.command(),
    }


def _print_summary(
    summary: RunSummary, bad: int, wrong: Mapping[str, Sequence[str]], options: RunOptions, code: int
) -> None:
    counts = summary.counts
    resume = options.command() if code == EXIT_INTERRUPTED else ""
    failed = summary.failures + bad
    if options.json:
        event = {
            "event": "summary",
            "run": summary.run_id,
            "built": summary.built,
            "kept": summary.kept + counts["kept"],
            "failed": [result_json(result) for result in summary.failed],
            "failed_rows": failed,
            "quarantined": counts["quarantined"],
            "wrong": wrong,
            "interrupted": counts["interrupted"],
            "elsewhere": counts["elsewhere"],
            "waiting": counts["waiting"],
            "seconds": round(summary.seconds, 3),
            "exit_code": code,
        }
        details = {"problem": summary.problem, "resume": resume}
        say_json(event | {name: text for name, text in details.items() if text}, flush=True)
        return
    for result in (*summary.refused, *summary.failed):
        say(f"{result.state}: {result.job_id}: {result.stage}: {result.message}")
        if result.reproduce:
            say(f"    try it alone: {result.reproduce}")
    if (left := failed - len(summary.refused) - len(summary.failed)) > 0:
        say(f"and {left} more, each with a failure.json")
    pieces = [f"built {summary.built}", f"{summary.kept + counts['kept']} up to date", f"{failed} failed"]
    pieces += [f"{counts['quarantined']} of these quarantined"] if counts["quarantined"] else []
    pieces += [f"{counts['interrupted']} interrupted"] if counts["interrupted"] else []
    pieces += [f"{counts['elsewhere']} being built by another run"] if counts["elsewhere"] else []
    pieces += [f"{counts['waiting']} not started"] if counts["waiting"] else []
    say(f"{', '.join(pieces)} in {_seconds(summary.seconds)} -> {options.out}")
    if summary.problem:
        say(f"some rows were not read: {summary.problem}")
    if resume:
        say(f"continue with: {resume}")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
