"""``latentkiln run``: builds what a manifest asks for and is not there yet."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.atomic import sweep
from pipeline.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_ROWS_FAILED, EXIT_USAGE
from pipeline.export.record import write_failure
from pipeline.fleet.book import RunSummary
from pipeline.fleet.driver import DEFAULT_LOCKSTEP, FleetSettings, run
from pipeline.fleet.locks import asset_lock
from pipeline.fleet.progress import duration, make_progress, result_json
from pipeline.fleet.rows import Toolbox
from pipeline.manifest import Manifest, Problem, load_manifest
from pipeline.manifest.meshes import mesh_problems
from pipeline.plan import PlanItem, plan
from pipeline.prior.identity import PriorIdentity, prior_identity
from pipeline.recipes import UNWRAP_CACHE


@dataclass(frozen=True)
class RunOptions:
    """What ``run`` is asked for; see ``latentkiln run --help``. ``overrides`` are the ``--set`` pairs."""

    manifest: Path
    out: Path = Path("outputs")
    prior: str = "embedded"
    only: Sequence[str] = ()
    lockstep: int | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None
    workers: int | None = None
    strict: bool = False
    fail_fast: bool = False
    dry_run: bool = False
    serial: bool = False
    allow_outside: bool = False
    quiet: bool = False
    json: bool = False

    def command(self, *, only: str | None = None) -> str:
        """The command that does this again; with ``only``, for one row in this process, to see it fail."""
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
        if self.allow_outside:
            words.append("--allow-outside")
        if only is not None:
            words.append("--serial")
        else:
            words += ["--address", self.address] if self.address else []
            words += ["--workers", str(self.workers)] if self.workers else []
            words += ["--serial"] if self.serial else []
        return shlex.join(words)


def run_manifest(options: RunOptions, *, toolbox: Toolbox | None = None) -> int:
    """Builds the manifest's rows into ``options.out`` and prints how it went. Returns the exit code.

    Wrong rows are reported and recorded as failures, the others built; nothing is built when the manifest as
    a whole is wrong, or with ``strict`` when any row is. Neither Ray nor torch is imported when all is up to
    date. Raises ManifestError, UsageError, PriorError or FleetError. ``toolbox`` replaces prior and recipes.
    """
    begun = time.monotonic()
    manifest = load_manifest(
        options.manifest,
        overrides=options.overrides,
        only=options.only,
        allow_outside=options.allow_outside,
    )
    problems = list(manifest.problems)
    if options.strict:
        problems += mesh_problems(manifest.jobs)
    if not options.json:
        for problem in problems:
            print(problem)
    if options.strict and problems:
        return _refuse(problems, options)
    prior = prior_identity(options.prior)
    items = plan(manifest.jobs, options.out, prior_identity=prior.identity)
    if options.dry_run:
        return _show_plan(items, problems, options)
    # What a killed run left half written; an asset's own folder is cleared by whoever builds it next.
    for folder in (options.out, options.out / UNWRAP_CACHE):
        sweep(folder)
    failed_rows = _record_problems(problems, options)
    progress = make_progress(quiet=options.quiet, as_json=options.json)
    summary = run(
        items,
        options.out,
        prior_spec=options.prior,
        settings=FleetSettings(
            lockstep=options.lockstep or DEFAULT_LOCKSTEP,
            workers=options.workers,
            address=options.address,
            serial=options.serial,
            fail_fast=options.fail_fast,
        ),
        progress=progress,
        toolbox=toolbox,
        header=_header(options, manifest, prior),
        reproduce=lambda job: options.command(only=job.id),
    )
    summary.seconds = time.monotonic() - begun
    code = summary.exit_code
    if code == EXIT_OK and problems:
        code = EXIT_ROWS_FAILED
    _print_summary(summary, failed_rows, options, code)
    return code


def _refuse(problems: Sequence[Problem], options: RunOptions) -> int:
    rows = len({problem.row for problem in problems})
    if options.json:
        print(json.dumps({"event": "refused", "problems": [str(problem) for problem in problems]}))
    else:
        print(f"nothing built: {rows} wrong row{'s' * (rows != 1)}, and --strict was asked for")
    return EXIT_USAGE


def _show_plan(items: Sequence[PlanItem], problems: Sequence[Problem], options: RunOptions) -> int:
    counts: dict[str, int] = defaultdict(int)
    for item in items:
        counts[item.action] += 1
        if options.json:
            line = {"id": item.job.id, "action": item.action, "reason": item.reason}
            print(json.dumps({"event": "plan"} | line, ensure_ascii=False))
        elif not options.quiet or item.action == "blocked":
            print(f"{item.job.id}\t{item.action}\t{item.reason}")
    wrong = len({problem.row for problem in problems})
    if not options.json:
        print(
            f"would build {counts['build']}, keep {counts['keep']}; "
            f"{counts['blocked'] + wrong} cannot be built; nothing was done"
        )
    return EXIT_ROWS_FAILED if wrong or counts["blocked"] else EXIT_OK


def _record_problems(problems: Sequence[Problem], options: RunOptions) -> dict[str, list[Problem]]:
    """Writes ``failure.json`` for each wrong row that has a usable id. The problems by row."""
    rows: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        rows[problem.row_id or f"row {problem.row}"].append(problem)
    for found in rows.values():
        job_id = found[0].row_id
        if job_id is None:
            continue
        folder = options.out / job_id
        failure = {
            "id": job_id,
            "fingerprint": "",
            "source": f"{found[0].file}:{found[0].row}",
            "stage": "manifest",
            "error": "ManifestError",
            "message": "; ".join(f"{problem.field}: {problem.message}" for problem in found),
            "reproduce": options.command(only=job_id),
            "finished": time.time(),
        }
        # The problem has been printed; a disk that refuses the record adds nothing to it.
        with contextlib.suppress(OSError), asset_lock(folder) as held:
            if held:
                write_failure(folder, failure)
    return rows


def _header(options: RunOptions, manifest: Manifest, prior: PriorIdentity) -> dict[str, object]:
    return {
        "manifest": str(options.manifest),
        "rows": manifest.rows,
        "wrong_rows": sorted({problem.row for problem in manifest.problems})[:1000],
        "prior": {"name": prior.name, "identity": prior.identity},
        "lockstep": options.lockstep or DEFAULT_LOCKSTEP,
        "serial": options.serial,
        "command": options.command(),
    }


def _print_summary(summary: RunSummary, wrong: Mapping[str, Sequence[Problem]], options: RunOptions, code: int) -> None:
    counts = summary.counts
    resume = options.command() if code == EXIT_INTERRUPTED else ""
    failed = len(summary.failed) + len(wrong)
    if options.json:
        event = {
            "event": "summary",
            "built": summary.built,
            "kept": summary.kept + counts["kept"],
            "failed": [result_json(result) for result in summary.failed],
            "wrong": {name: [str(problem) for problem in found] for name, found in wrong.items()},
            "interrupted": counts["interrupted"],
            "elsewhere": counts["elsewhere"],
            "waiting": counts["waiting"],
            "seconds": round(summary.seconds, 3),
            "exit_code": code,
        }
        print(json.dumps(event | ({"resume": resume} if resume else {}), ensure_ascii=False), flush=True)
        return
    for result in summary.failed:
        print(f"failed: {result.job_id}: {result.stage}: {result.message}")
        if result.reproduce:
            print(f"    again alone: {result.reproduce}")
    parts = [f"built {summary.built}", f"{summary.kept + counts['kept']} up to date", f"{failed} failed"]
    parts += [f"{counts['interrupted']} interrupted"] if counts["interrupted"] else []
    parts += [f"{counts['elsewhere']} being built by another run"] if counts["elsewhere"] else []
    parts += [f"{counts['waiting']} not begun"] if counts["waiting"] else []
    print(f"{', '.join(parts)} in {_seconds(summary.seconds)} -> {options.out}")
    if resume:
        print(f"go on with: {resume}")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
