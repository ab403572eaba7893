"""What every recipe does with its rows: prepare, distil in lockstep, refine, texture, rank, write. One row never stops
another.

A recipe brings ``Recipe``; everything else, from checkpoints to variants and records, is the same for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.asset_layout import WORK_DIR
from pipeline.core.errors import ExportError, LatentkilnError, describe_os_error
from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.core.job import Job, Reporter, no_report
from pipeline.core.outcome import BuildResult
from pipeline.core.scene import Scene
from pipeline.optimize.loop import Optimization, optimize
from pipeline.optimize.prompts import PromptTable
from pipeline.optimize.sds import SdsSettings
from pipeline.prior.load import Prior
from pipeline.prior.prompts import suffixes
from pipeline.recipes.asset_build import Asset, AssetBuild, Variant
from pipeline.recipes.paintable_mesh import unreached_warning
from pipeline.recipes.ranking import score
from pipeline.recipes.record import failed_result
from pipeline.recipes.write_outputs import write_outputs


class Recipe(Protocol):
    """What is a recipe's own."""

    name: str

    def resolve(self, job: Job, prior: Prior) -> Any:
        """The job's settings with nothing left open."""
        ...

    def prepare(self, asset_build: AssetBuild, prior: Prior, out: Path) -> None:
        """What all variants of a row share. Raises LatentkilnError."""
        ...

    def scene(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> tuple[Scene | None, str]:
        """The scene of one variant (None where nothing is optimised), and a word that changes whenever its
        checkpoints stop fitting."""
        ...

    def refined(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> Scene:
        """The scene that goes on in RGB from where the variant's first one ended."""
        ...

    def textured(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> tuple[Scene, str]:
        """The surface of the variant's scene, to be painted, where ``settings.texturing`` is ``patches``; and a word
        as for ``scene``. Raises LatentkilnError."""
        raise LatentkilnError(f"{self.name} has no surface to paint by patches", stage="texture")

    def asset(self, asset_build: AssetBuild, variant: Variant, prior: Prior) -> Asset:
        """Mesh and maps of a variant whose scenes are done. Raises LatentkilnError."""
        ...


def build(
    recipe: Recipe,
    jobs: Sequence[Job],
    prior: Prior,
    out: Path,
    *,
    fingerprints: Sequence[str],
    lockstep: int,
    report_for: Callable[[int], Reporter] = lambda index: no_report,
    checkpoint_seconds: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
) -> list[BuildResult]:
    """Builds ``jobs`` (at most ``lockstep`` of them) into ``out/<id>/``; one Outcome each, in order.

    Never raises for a row. ``stop`` turning true leaves checkpoints and gives ``interrupted`` outcomes.
    """
    outcomes: dict[int, BuildResult] = {}
    works: dict[int, AssetBuild] = {}
    for index, (job, fingerprint) in enumerate(zip(jobs, fingerprints, strict=True)):
        if stop():
            outcomes[index] = BuildResult(job.id, "interrupted")
            continue
        asset_build = AssetBuild(job, fingerprint, out / job.id, None, report_for(index))
        try:
            asset_build.settings = recipe.resolve(job, prior)
            asset_build.variants = variants(asset_build)
            prepare(recipe, asset_build, prior, out, lockstep)
            works[index] = asset_build
        except LatentkilnError as error:
            outcomes[index] = failed_result(asset_build, error)

    def run(phase: list[tuple[AssetBuild, Variant, Optimization]]) -> None:
        for group in _same_batch(phase, lockstep):
            optimizations = [optimization for _, _, optimization in group]
            optimize(optimizations, prior, lockstep=lockstep, checkpoint_seconds=checkpoint_seconds, stop=stop)

    run(
        [
            (asset_build, v, v.optimization)
            for asset_build in works.values()
            for v in asset_build.variants
            if v.optimization is not None
        ]
    )
    for asset_build in works.values():
        if not stop():
            begin_refinement(recipe, asset_build, prior, lockstep)
    run(
        [
            (asset_build, v, v.refinement)
            for asset_build in works.values()
            for v in asset_build.variants
            if v.refinement is not None
        ]
    )
    for asset_build in works.values():
        if not stop():
            begin_texturing(recipe, asset_build, prior, lockstep)
    run(
        [
            (asset_build, v, v.texturing)
            for asset_build in works.values()
            for v in asset_build.variants
            if v.texturing is not None
        ]
    )
    for index, asset_build in works.items():
        if stop() and any(variant.scene is None for variant in asset_build.variants):
            # Nothing was begun that could be saved.
            outcomes[index] = BuildResult(
                asset_build.job.id, "interrupted", stage="sample", seconds=time.time() - asset_build.started
            )
        else:
            outcomes[index] = _finish(recipe, asset_build, prior, lockstep)
    return [outcomes[index] for index in range(len(jobs))]


def variants(asset_build: AssetBuild) -> list[Variant]:
    """One variant per seed of the row; the seeds follow on."""
    return [
        Variant(i, asset_build.job.seed + i, asset_build.folder / WORK_DIR / str(i))
        for i in range(asset_build.settings.seeds)
    ]


def prepare(recipe: Recipe, asset_build: AssetBuild, prior: Prior, out: Path, lockstep: int) -> None:
    """Everything before the first step: leftovers removed, inputs read, a scene per variant. Raises
    LatentkilnError."""
    _remove_leftovers(asset_build)
    recipe.prepare(asset_build, prior, out)
    with asset_build.stage("prepare"):
        adapters = prior.adapters(asset_build.job.adapters)
        added = suffixes(
            view_words=bool(asset_build.settings.view_words),
            close_up=bool(getattr(asset_build.settings, "prompt_close_up", False)) or _has_texturing(asset_build),
        )
        asset_build.warnings += prior.prompt_warnings(
            asset_build.job.prompt, asset_build.job.negative_prompt, added, adapters
        )
        asset_build.warnings += prior.unused_concepts(asset_build.job.prompt, adapters)
        for variant in asset_build.variants:
            variant.scene, layout = recipe.scene(asset_build, variant, prior)
            if variant.scene is not None:
                variant.optimization = _optimization(
                    asset_build, variant, prior, variant.scene, "latent", (lockstep, layout)
                )


def begin_refinement(recipe: Recipe, asset_build: AssetBuild, prior: Prior, lockstep: int) -> None:
    """Gives every variant whose latent steps are done its scene in RGB, where the row asks for it."""
    if not asset_build.settings.refine:
        return
    for variant, optimization in _ready(asset_build):
        try:
            with asset_build.stage("prepare_refinement"):
                # The latent phase need not be run again, should the refinement be interrupted.
                optimization.save()
                variant.refined = recipe.refined(asset_build, variant, prior)
                variant.refinement = _optimization(asset_build, variant, prior, variant.refined, "rgb", (lockstep,))
        except LatentkilnError as error:
            optimization.error = error


def begin_texturing(recipe: Recipe, asset_build: AssetBuild, prior: Prior, lockstep: int) -> None:
    """Gives every variant whose steps so far are done its surface to be painted, where the row asks for it."""
    if not _has_texturing(asset_build):
        return
    for variant, optimization in _ready(asset_build):
        try:
            with asset_build.stage("checkpoint"):
                optimization.save()
            variant.textured, layout = recipe.textured(asset_build, variant, prior)
            variant.texturing = _optimization(
                asset_build, variant, prior, variant.textured, "texture", (lockstep, layout)
            )
        except LatentkilnError as error:
            optimization.error = error


def _has_texturing(asset_build: AssetBuild) -> bool:
    return getattr(asset_build.settings, "texturing", None) == "patches"


def _ready(asset_build: AssetBuild) -> list[tuple[Variant, Optimization]]:
    """Variants all of whose phases so far are done, with the last of these."""
    begun = [(variant, variant.optimizations) for variant in asset_build.variants]
    ready = [
        (v, optimizations)
        for v, optimizations in begun
        if optimizations and all(s.finished and s.error is None for s in optimizations)
    ]
    return [(variant, optimizations[-1]) for variant, optimizations in ready]


@dataclass(frozen=True)
class _Phase:
    """How a phase asks the prior. ``stage``: what progress calls it."""

    stage: str
    steps: int
    guidance: float
    t_max: float
    close_up: bool
    stream: str


def _phase(settings: Any, name: str) -> _Phase:
    close_up = bool(getattr(settings, "prompt_close_up", False))
    if name == "rgb":
        guidance, t_max = settings.refine_guidance_scale, settings.refine_t_max
        return _Phase("refine", settings.refine_steps, guidance, t_max, close_up, "sds-rgb")
    if name == "texture":
        return _Phase(
            "texture", settings.texture_steps, settings.texture_guidance_scale, settings.t_max, True, "sds-texture"
        )
    return _Phase("distill", settings.steps, settings.guidance_scale, settings.t_max, close_up, "sds")


def _optimization(
    asset_build: AssetBuild, variant: Variant, prior: Prior, scene: Scene, phase: str, batch_key: tuple[object, ...]
) -> Optimization:
    job, settings, how = asset_build.job, asset_build.settings, _phase(asset_build.settings, phase)
    prompts = PromptTable(
        prior,
        job.prompt,
        job.negative_prompt,
        view_words=bool(settings.view_words),
        close_up=how.close_up,
        adapters=prior.adapters(job.adapters),
    )
    return Optimization(
        scene,
        prompts,
        SdsSettings(float(how.guidance), settings.t_min, how.t_max, settings.timesteps),
        variant.seed,
        how.steps,
        checkpoint=variant.folder / f"{phase}.safetensors",
        key=sha256_bytes(canonical_json([asset_build.fingerprint, variant.seed, phase, *batch_key])),
        report=lambda stage, done, total: asset_build.report(
            _stage_name(stage, how, asset_build, variant), done, total
        ),
        stream=how.stream,
        batch_shape=(asset_build.job.recipe, phase, *_view_shape(settings)),
    )


def _stage_name(stage: str, phase: _Phase, asset_build: AssetBuild, variant: Variant) -> str:
    name = phase.stage if stage == "distill" else stage
    return f"{name} {variant.index + 1}/{len(asset_build.variants)}" if len(asset_build.variants) > 1 else name


def _same_batch(
    phase: list[tuple[AssetBuild, Variant, Optimization]], lockstep: int
) -> list[list[tuple[AssetBuild, Variant, Optimization]]]:
    """Scenes whose views make UNet batches of one shape go together, ``lockstep`` at a time."""
    groups: dict[tuple[Any, ...], list[tuple[AssetBuild, Variant, Optimization]]] = {}
    for entry in phase:
        groups.setdefault(_view_shape(entry[0].settings), []).append(entry)
    return [group[i : i + lockstep] for group in groups.values() for i in range(0, len(group), lockstep)]


def _view_shape(settings: Any) -> tuple[Any, ...]:
    """What decides how many views of what size a step has."""
    return settings.views, settings.view_size, settings.patch_views, settings.patch_size


def _finish(recipe: Recipe, asset_build: AssetBuild, prior: Prior, lockstep: int) -> BuildResult:
    for variant in asset_build.variants:
        for phase, optimization in variant.phases.items():
            asset_build.timings[phase] = asset_build.timings.get(phase, 0.0) + sum(optimization.seconds.values())
            asset_build.warnings += [note for note in optimization.notes if note not in asset_build.warnings]
    try:
        if any(_is_unfinished(asset_build, variant) for variant in asset_build.variants):
            # Variants that are done wait for their siblings: what they came to must be there when the row goes on.
            with asset_build.stage("checkpoint"):
                for optimization in (s for v in asset_build.variants for s in v.optimizations if s.error is None):
                    optimization.save()
            return BuildResult(
                asset_build.job.id,
                "interrupted",
                stage="distill",
                seconds=time.time() - asset_build.started,
                warnings=asset_build.warnings,
            )
        for variant in asset_build.variants:
            _finish_variant(recipe, asset_build, variant, prior)
        built = [variant for variant in asset_build.variants if variant.asset is not None]
        if not built:
            raise asset_build.variants[0].error or LatentkilnError(f"{asset_build.job.id}: no variant was built")
        for variant in asset_build.variants:
            if variant.error is not None:
                asset_build.warnings.append(f"variant with seed {variant.seed} failed: {variant.error.message}")
        if len(asset_build.variants) > 1:
            with asset_build.stage("rank"):
                for variant in built:
                    variant.score = score(asset_build, variant, prior)
            built.sort(key=lambda v: (-(v.score or 0.0), v.index))
        write_outputs(recipe.name, asset_build, built, prior, lockstep)
        return BuildResult(
            asset_build.job.id, "done", seconds=time.time() - asset_build.started, warnings=asset_build.warnings
        )
    except LatentkilnError as error:
        return failed_result(asset_build, error)
    except OSError as error:
        # Between the stages: an asset that does not reach the disk, or its record.
        reason = f"{asset_build.job.id}: {describe_os_error(error, asset_build.folder)}"
        return failed_result(asset_build, ExportError(reason, stage="export"))


def _is_unfinished(asset_build: AssetBuild, variant: Variant) -> bool:
    """Whether the variant was interrupted before its last phase ended."""
    if any(optimization.error is not None for optimization in variant.optimizations):
        return False
    expected = (variant.scene is not None) + bool(asset_build.settings.refine) + _has_texturing(asset_build)
    return len(variant.optimizations) < expected or not all(
        optimization.finished for optimization in variant.optimizations
    )


def _finish_variant(recipe: Recipe, asset_build: AssetBuild, variant: Variant, prior: Prior) -> None:
    """Sets ``asset``, or ``error``."""
    try:
        for optimization in variant.optimizations:
            if optimization.error is not None:
                with asset_build.stage("distill"):
                    raise optimization.error
        variant.asset = recipe.asset(asset_build, variant, prior)
        unreached = unreached_warning(variant.asset.notes)
        asset_build.warnings += [unreached] if unreached and unreached not in asset_build.warnings else []
    except LatentkilnError as error:
        variant.error = error


def _remove_leftovers(asset_build: AssetBuild) -> None:
    """Temporary files that a killed run left. The caller holds the asset's lock."""
    for base in (
        asset_build.folder,
        asset_build.folder / WORK_DIR,
        *(variant.folder for variant in asset_build.variants),
    ):
        for path in base.glob(".tmp-*"):
            path.unlink(missing_ok=True)
