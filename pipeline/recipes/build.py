"""Build the rows of any recipe: prepare, optimise phase by phase in lockstep, finish, rank, write.

A recipe defines ``Recipe``. Checkpoints, variants, records and failures are the same for all recipes. One row never
stops another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.core.asset_layout import WORK_DIR
from pipeline.core.errors import ExportError, LatentkilnError, describe_os_error
from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.core.job import Job, Reporter, no_report
from pipeline.core.outcome import TaskResult
from pipeline.optimize.loop import Optimization, optimize
from pipeline.optimize.prompts import PromptTable
from pipeline.optimize.sds import SdsSettings
from pipeline.prior.load import Prior
from pipeline.prior.prompts import suffixes
from pipeline.recipes.asset_build import AssetBuild, InputsT, Phase, RowContext, ScenesT, SettingsT, Variant
from pipeline.recipes.paintable_mesh import unreached_warning
from pipeline.recipes.ranking import score
from pipeline.recipes.recipe import Recipe
from pipeline.recipes.record import failed_result
from pipeline.recipes.shared_settings import CommonSettings, SharedSettings
from pipeline.recipes.write_outputs import write_outputs
from pipeline.storage.shared_cache import SharedCache


def build(
    recipe: Recipe[SettingsT, InputsT, ScenesT],
    jobs: Sequence[Job],
    prior: Prior,
    out: Path,
    *,
    fingerprints: Sequence[str],
    lockstep: int,
    report_for: Callable[[int], Reporter] = lambda index: no_report,
    checkpoint_seconds: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
    unwrap_cache: SharedCache | None = None,
) -> list[TaskResult]:
    """Build ``jobs``, at most ``lockstep`` of them, into ``out/<id>/``. Returns one result per job, in order.

    Never raises for a row. When ``stop`` turns true, unfinished rows leave checkpoints and end as ``interrupted``.
    ``unwrap_cache`` shares texture coordinates with other nodes.
    """
    results: dict[int, TaskResult] = {}
    builds: dict[int, AssetBuild[SettingsT, InputsT, ScenesT]] = {}
    for index, (job, fingerprint) in enumerate(zip(jobs, fingerprints, strict=True)):
        if stop():
            results[index] = TaskResult(job.id, "interrupted")
            continue
        row = RowContext(job, fingerprint, out / job.id, _stoppable(report_for(index), stop), unwrap_cache)
        try:
            builds[index] = start(recipe, row, prior, out, lockstep)
        except LatentkilnError as error:
            results[index] = failed_result(row, error)
    _run_phases(list(builds.values()), prior, lockstep, checkpoint_seconds, stop)
    for index, asset_build in builds.items():
        row = asset_build.row
        if stop() and not asset_build.phases:
            # Such a row saves nothing on its way.
            results[index] = TaskResult(row.job.id, "interrupted", stage="sample", seconds=row.seconds)
        else:
            try:
                results[index] = _finish(recipe, asset_build, prior, lockstep)
            except _Stopped:
                results[index] = TaskResult(row.job.id, "interrupted", stage="sample", seconds=row.seconds)
    return [results[index] for index in range(len(jobs))]


class _Stopped(Exception):
    """Sampling was interrupted between two steps. No error of the row: its stages let it pass."""


def _stoppable(report: Reporter, stop: Callable[[], bool]) -> Reporter:
    """``report``, which also ends sampling when ``stop`` turns true: a large sample takes minutes."""

    def report_or_stop(stage: str, done: int, total: int) -> None:
        report(stage, done, total)
        if stage == "sample" and stop():
            raise _Stopped

    return report_or_stop


def start(
    recipe: Recipe[SettingsT, InputsT, ScenesT], row: RowContext, prior: Prior, out: Path, lockstep: int
) -> AssetBuild[SettingsT, InputsT, ScenesT]:
    """Do everything before the first step: resolve settings, read inputs, begin the first phase of each variant.

    Removes temporary files of a killed run: the caller holds the asset's lock. Raises LatentkilnError.
    """
    settings = recipe.resolve(row.job, prior)
    # The seeds of a row's variants are consecutive.
    variants = [
        Variant(i, row.job.seed + i, row.folder / WORK_DIR / str(i), recipe.new_scenes()) for i in range(settings.seeds)
    ]
    _remove_leftovers([row.folder, row.folder / WORK_DIR, *(variant.folder for variant in variants)])
    inputs = recipe.prepare(row, settings, prior, out)
    asset_build = AssetBuild(row, settings, inputs, recipe.phases(settings), variants)
    with row.stage("prepare"):
        row.warnings += _prompt_warnings(row.job, settings, prior, close_up=recipe.uses_close_ups(settings))
    if asset_build.phases:
        for variant in variants:
            _begin_phase(asset_build, variant, prior, lockstep)
    return asset_build


def begin_next_phase(asset_build: AssetBuild[SettingsT, InputsT, ScenesT], prior: Prior, lockstep: int) -> None:
    """Begin the next phase of every variant whose earlier phases are done. A variant whose scene cannot be made fails
    alone."""
    for variant in asset_build.variants:
        runs = variant.optimizations
        if not 0 < len(runs) < len(asset_build.phases) or variant.failed or not all(o.finished for o in runs):
            continue
        try:
            with asset_build.row.stage("checkpoint"):
                # An interruption of the next phase must not repeat this one.
                runs[-1].save()
            _begin_phase(asset_build, variant, prior, lockstep)
        except LatentkilnError as error:
            runs[-1].error = error


def _begin_phase(
    asset_build: AssetBuild[SettingsT, InputsT, ScenesT], variant: Variant[ScenesT], prior: Prior, lockstep: int
) -> None:
    """Make the scene of the variant's next phase, and its optimisation."""
    phase = asset_build.phases[len(variant.optimizations)]
    row, settings = asset_build.row, asset_build.settings
    # Phases optimise views of a mesh or of a field.
    assert isinstance(settings, SharedSettings)
    phase_scene = phase.make_scene(asset_build, variant, prior)
    with row.stage(phase.preparation):
        prompts = PromptTable(
            prior,
            row.job.prompt,
            row.job.negative_prompt,
            view_words=settings.view_words,
            close_up=phase.close_up,
            adapters=prior.adapters(row.job.adapters),
        )
        checkpoint_key = [row.fingerprint, variant.seed, phase.name, lockstep, *phase_scene.key]
        optimization = Optimization(
            phase_scene.scene,
            prompts,
            SdsSettings(phase.guidance_scale, settings.t_min, phase.t_max, settings.timesteps),
            variant.seed,
            phase.steps if phase_scene.steps is None else phase_scene.steps,
            checkpoint=variant.folder / f"{phase.name}.safetensors",
            key=sha256_bytes(canonical_json(checkpoint_key)),
            report=_phase_reporter(asset_build, phase, variant),
            stream=phase.stream,
            batch_shape=(row.job.recipe, phase.name, *_view_shape(settings)),
        )
    variant.optimizations.append(optimization)


def _phase_reporter(
    asset_build: AssetBuild[SettingsT, InputsT, ScenesT],
    phase: Phase[SettingsT, InputsT, ScenesT],
    variant: Variant[ScenesT],
) -> Reporter:
    """A reporter that names the phase's stage, and the variant's number where there are several variants."""
    count = len(asset_build.variants)
    suffix = f" {variant.index + 1}/{count}" if count > 1 else ""

    def report(stage: str, done: int, total: int) -> None:
        asset_build.row.report((phase.stage if stage == "distill" else stage) + suffix, done, total)

    return report


def _prompt_warnings(job: Job, settings: CommonSettings, prior: Prior, *, close_up: bool) -> list[str]:
    """Warnings about words that the prior ignores, and adapters that the prompt does not use."""
    adapters = prior.adapters(job.adapters)
    added = suffixes(view_words=settings.names_views, close_up=close_up)
    return [
        *prior.prompt_warnings(job.prompt, job.negative_prompt, added, adapters),
        *prior.unused_concepts(job.prompt, adapters),
    ]


def _view_shape(settings: SharedSettings) -> tuple[int, ...]:
    """Number and size of the views of a step."""
    return settings.views, settings.view_size, settings.patch_views, settings.patch_size


def _run_phases(
    builds: list[AssetBuild[SettingsT, InputsT, ScenesT]],
    prior: Prior,
    lockstep: int,
    checkpoint_seconds: float,
    stop: Callable[[], bool],
) -> None:
    """Run the first phase of all rows, then the second of those that have one, and so on."""
    for index in range(max((len(asset_build.phases) for asset_build in builds), default=0)):
        due = [asset_build for asset_build in builds if len(asset_build.phases) > index]
        for asset_build in due:
            if index and not stop():
                begin_next_phase(asset_build, prior, lockstep)
        variants = [variant for asset_build in due for variant in asset_build.variants]
        runs = [variant.optimizations[index] for variant in variants if len(variant.optimizations) > index]
        for group in _lockstep_groups(runs, lockstep):
            optimize(group, prior, lockstep=lockstep, checkpoint_seconds=checkpoint_seconds, stop=stop)


def _lockstep_groups(optimizations: list[Optimization], lockstep: int) -> list[list[Optimization]]:
    """Groups of at most ``lockstep``, each of one phase and of views that make UNet batches of one shape."""
    by_shape: dict[tuple[object, ...], list[Optimization]] = {}
    for optimization in optimizations:
        by_shape.setdefault(optimization.batch_shape, []).append(optimization)
    return [group[i : i + lockstep] for group in by_shape.values() for i in range(0, len(group), lockstep)]


def _finish(
    recipe: Recipe[SettingsT, InputsT, ScenesT],
    asset_build: AssetBuild[SettingsT, InputsT, ScenesT],
    prior: Prior,
    lockstep: int,
) -> TaskResult:
    """Write the row's outputs, or its checkpoints where it was interrupted, or its failure."""
    row, variants = asset_build.row, asset_build.variants
    for variant in variants:
        for phase, optimization in zip(asset_build.phases, variant.optimizations, strict=False):
            row.add_seconds(phase.stage, sum(optimization.seconds.values()))
            for note in optimization.notes:
                row.warn(note)
    try:
        if any(_is_unfinished(asset_build, variant) for variant in variants):
            # Finished variants wait for the others: the row needs their checkpoints when it goes on.
            with row.stage("checkpoint"):
                for optimization in (o for variant in variants for o in variant.optimizations if o.error is None):
                    optimization.save()
            return TaskResult(row.job.id, "interrupted", stage="distill", seconds=row.seconds, warnings=row.warnings)
        ranked = _finish_variants(recipe, asset_build, prior)
        write_outputs(recipe, asset_build, ranked, prior, lockstep)
        return TaskResult(row.job.id, "done", seconds=row.seconds, warnings=row.warnings)
    except LatentkilnError as error:
        return failed_result(row, error)
    except OSError as error:
        # Outside the stages: an asset or a record that cannot be written.
        reason = f"{row.job.id}: {describe_os_error(error, row.folder)}"
        return failed_result(row, ExportError(reason, stage="export"))


def _is_unfinished(asset_build: AssetBuild[SettingsT, InputsT, ScenesT], variant: Variant[ScenesT]) -> bool:
    """Whether the variant was interrupted before its last phase ended."""
    if variant.failed:
        return False
    runs = variant.optimizations
    return len(runs) < len(asset_build.phases) or not all(optimization.finished for optimization in runs)


def _finish_variants(
    recipe: Recipe[SettingsT, InputsT, ScenesT], asset_build: AssetBuild[SettingsT, InputsT, ScenesT], prior: Prior
) -> list[Variant[ScenesT]]:
    """The variants that became assets, the best one first. Raises LatentkilnError where none did."""
    row, variants = asset_build.row, asset_build.variants
    for variant in variants:
        _finish_variant(recipe, asset_build, variant, prior)
    built = [variant for variant in variants if variant.asset is not None]
    if not built:
        raise variants[0].error or LatentkilnError(f"{row.job.id}: no variant was built")
    row.warnings += [f"variant with seed {v.seed} failed: {v.error.message}" for v in variants if v.error is not None]
    if len(variants) > 1:
        with row.stage("rank"):
            for variant in built:
                variant.score = score(asset_build, variant, prior)
        built.sort(key=lambda v: (-(v.score or 0.0), v.index))
    return built


def _finish_variant(
    recipe: Recipe[SettingsT, InputsT, ScenesT],
    asset_build: AssetBuild[SettingsT, InputsT, ScenesT],
    variant: Variant[ScenesT],
    prior: Prior,
) -> None:
    """Set the variant's ``asset``, or its ``error``."""
    try:
        for optimization in variant.optimizations:
            if optimization.error is not None:
                with asset_build.row.stage("distill"):
                    raise optimization.error
        variant.asset = recipe.finish(asset_build, variant, prior)
        asset_build.row.warn(unreached_warning(variant.asset.notes))
    except LatentkilnError as error:
        variant.error = error


def _remove_leftovers(folders: Iterable[Path]) -> None:
    """Remove the temporary files that a killed run left in ``folders``."""
    for folder in folders:
        for path in folder.glob(".tmp-*"):
            path.unlink(missing_ok=True)
