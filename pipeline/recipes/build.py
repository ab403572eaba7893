"""What every recipe does with its rows: prepare, distil in lockstep, refine, texture, rank, write. One row never stops
another.

A recipe brings ``Steps``; everything else, from checkpoints to variants and records, is the same for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.errors import ExportError, LatentkilnError, describe_os_error
from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.core.job import WORK_DIR, Job, Reporter, no_report
from pipeline.core.outcome import BuildResult
from pipeline.core.scene import Scene
from pipeline.optimize.loop import Optimization, optimize
from pipeline.optimize.prompts import PromptTable
from pipeline.optimize.sds import SdsSettings
from pipeline.prior.load import Prior
from pipeline.prior.prompts import suffixes
from pipeline.recipes.canvas import unreached_warning
from pipeline.recipes.deliver import deliver
from pipeline.recipes.rank import score
from pipeline.recipes.record import failed
from pipeline.recipes.work import Asset, Variant, Work


class Steps(Protocol):
    """What is a recipe's own."""

    name: str

    def resolve(self, job: Job, prior: Prior) -> Any:
        """The job's settings with nothing left open."""
        ...

    def prepare(self, work: Work, prior: Prior, out: Path) -> None:
        """What all variants of a row share. Raises LatentkilnError."""
        ...

    def scene(self, work: Work, variant: Variant, prior: Prior) -> tuple[Scene | None, str]:
        """The scene of one variant (None where nothing is optimised), and a word that changes whenever its
        checkpoints stop fitting."""
        ...

    def refined(self, work: Work, variant: Variant, prior: Prior) -> Scene:
        """The scene that goes on in RGB from where the variant's first one ended."""
        ...

    def textured(self, work: Work, variant: Variant, prior: Prior) -> tuple[Scene, str]:
        """The surface of the variant's scene, to be painted, where ``settings.texturing`` is ``patches``; and a word
        as for ``scene``. Raises LatentkilnError."""
        raise LatentkilnError(f"{self.name} has no surface to paint by patches", stage="texture")

    def asset(self, work: Work, variant: Variant, prior: Prior) -> Asset:
        """Mesh and maps of a variant whose scenes are done. Raises LatentkilnError."""
        ...


def build(
    steps: Steps,
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
    works: dict[int, Work] = {}
    for index, (job, fingerprint) in enumerate(zip(jobs, fingerprints, strict=True)):
        if stop():
            outcomes[index] = BuildResult(job.id, "interrupted")
            continue
        work = Work(job, fingerprint, out / job.id, None, report_for(index))
        try:
            work.settings = steps.resolve(job, prior)
            work.variants = variants(work)
            prepare(steps, work, prior, out, lockstep)
            works[index] = work
        except LatentkilnError as error:
            outcomes[index] = failed(work, error)

    def run(phase: list[tuple[Work, Variant, Optimization]]) -> None:
        for group in _same_batch(phase, lockstep):
            subjects = [subject for _, _, subject in group]
            optimize(subjects, prior, lockstep=lockstep, checkpoint_seconds=checkpoint_seconds, stop=stop)

    run([(work, v, v.subject) for work in works.values() for v in work.variants if v.subject is not None])
    for work in works.values():
        if not stop():
            begin_refinement(steps, work, prior, lockstep)
    run([(work, v, v.refinement) for work in works.values() for v in work.variants if v.refinement is not None])
    for work in works.values():
        if not stop():
            begin_texturing(steps, work, prior, lockstep)
    run([(work, v, v.texturing) for work in works.values() for v in work.variants if v.texturing is not None])
    for index, work in works.items():
        if stop() and any(variant.scene is None for variant in work.variants):
            # Nothing was begun that could be saved.
            outcomes[index] = BuildResult(
                work.job.id, "interrupted", stage="sample", seconds=time.time() - work.started
            )
        else:
            outcomes[index] = _finish(steps, work, prior, lockstep)
    return [outcomes[index] for index in range(len(jobs))]


def variants(work: Work) -> list[Variant]:
    """One variant per seed of the row; the seeds follow on."""
    return [Variant(i, work.job.seed + i, work.folder / WORK_DIR / str(i)) for i in range(work.settings.seeds)]


def prepare(steps: Steps, work: Work, prior: Prior, out: Path, lockstep: int) -> None:
    """Everything before the first step: leftovers removed, inputs read, a scene per variant. Raises
    LatentkilnError."""
    _remove_leftovers(work)
    steps.prepare(work, prior, out)
    with work.stage("prepare"):
        adapters = prior.adapters(work.job.adapters)
        added = suffixes(
            view_words=bool(work.settings.view_words),
            close_up=bool(getattr(work.settings, "prompt_close_up", False)) or _textures(work),
        )
        work.warnings += prior.prompt_warnings(work.job.prompt, work.job.negative_prompt, added, adapters)
        work.warnings += prior.unused_concepts(work.job.prompt, adapters)
        for variant in work.variants:
            variant.scene, layout = steps.scene(work, variant, prior)
            if variant.scene is not None:
                variant.subject = _subject(work, variant, prior, variant.scene, "latent", (lockstep, layout))


def begin_refinement(steps: Steps, work: Work, prior: Prior, lockstep: int) -> None:
    """Gives every variant whose latent steps are done its scene in RGB, where the row asks for it."""
    if not work.settings.refine:
        return
    for variant, subject in _ready(work):
        try:
            with work.stage("prepare_refinement"):
                # The latent phase need not be run again, should the refinement be interrupted.
                subject.save()
                variant.refined = steps.refined(work, variant, prior)
                variant.refinement = _subject(work, variant, prior, variant.refined, "rgb", (lockstep,))
        except LatentkilnError as error:
            subject.error = error


def begin_texturing(steps: Steps, work: Work, prior: Prior, lockstep: int) -> None:
    """Gives every variant whose steps so far are done its surface to be painted, where the row asks for it."""
    if not _textures(work):
        return
    for variant, subject in _ready(work):
        try:
            with work.stage("checkpoint"):
                subject.save()
            variant.textured, layout = steps.textured(work, variant, prior)
            variant.texturing = _subject(work, variant, prior, variant.textured, "texture", (lockstep, layout))
        except LatentkilnError as error:
            subject.error = error


def _textures(work: Work) -> bool:
    return getattr(work.settings, "texturing", None) == "patches"


def _ready(work: Work) -> list[tuple[Variant, Optimization]]:
    """Variants all of whose phases so far are done, with the last of these."""
    begun = [(variant, variant.subjects) for variant in work.variants]
    done = [
        (v, subjects) for v, subjects in begun if subjects and all(s.finished and s.error is None for s in subjects)
    ]
    return [(variant, subjects[-1]) for variant, subjects in done]


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


def _subject(
    work: Work, variant: Variant, prior: Prior, scene: Scene, phase: str, fits: tuple[object, ...]
) -> Optimization:
    job, settings, how = work.job, work.settings, _phase(work.settings, phase)
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
        key=sha256_bytes(canonical_json([work.fingerprint, variant.seed, phase, *fits])),
        report=lambda stage, done, total: work.report(_stage_name(stage, how, work, variant), done, total),
        stream=how.stream,
        batch_shape=(work.job.recipe, phase, *_shape(settings)),
    )


def _stage_name(stage: str, phase: _Phase, work: Work, variant: Variant) -> str:
    name = phase.stage if stage == "distill" else stage
    return f"{name} {variant.index + 1}/{len(work.variants)}" if len(work.variants) > 1 else name


def _same_batch(
    phase: list[tuple[Work, Variant, Optimization]], lockstep: int
) -> list[list[tuple[Work, Variant, Optimization]]]:
    """Scenes whose views make UNet batches of one shape go together, ``lockstep`` at a time."""
    groups: dict[tuple[Any, ...], list[tuple[Work, Variant, Optimization]]] = {}
    for entry in phase:
        groups.setdefault(_shape(entry[0].settings), []).append(entry)
    return [group[i : i + lockstep] for group in groups.values() for i in range(0, len(group), lockstep)]


def _shape(settings: Any) -> tuple[Any, ...]:
    """What decides how many views of what size a step has."""
    return settings.views, settings.view_size, settings.patch_views, settings.patch_size


def _finish(steps: Steps, work: Work, prior: Prior, lockstep: int) -> BuildResult:
    for variant in work.variants:
        for phase, subject in variant.phases.items():
            work.timings[phase] = work.timings.get(phase, 0.0) + sum(subject.seconds.values())
            work.warnings += [note for note in subject.notes if note not in work.warnings]
    try:
        if any(_is_unfinished(work, variant) for variant in work.variants):
            # Variants that are done wait for their siblings: what they came to must be there when the row goes on.
            with work.stage("checkpoint"):
                for subject in (s for v in work.variants for s in v.subjects if s.error is None):
                    subject.save()
            return BuildResult(
                work.job.id,
                "interrupted",
                stage="distill",
                seconds=time.time() - work.started,
                warnings=work.warnings,
            )
        for variant in work.variants:
            _finish_variant(steps, work, variant, prior)
        built = [variant for variant in work.variants if variant.asset is not None]
        if not built:
            raise work.variants[0].error or LatentkilnError(f"{work.job.id}: no variant was built")
        for variant in work.variants:
            if variant.error is not None:
                work.warnings.append(f"variant with seed {variant.seed} failed: {variant.error.message}")
        if len(work.variants) > 1:
            with work.stage("rank"):
                for variant in built:
                    variant.score = score(work, variant, prior)
            built.sort(key=lambda v: (-(v.score or 0.0), v.index))
        deliver(steps.name, work, built, prior, lockstep)
        return BuildResult(work.job.id, "done", seconds=time.time() - work.started, warnings=work.warnings)
    except LatentkilnError as error:
        return failed(work, error)
    except OSError as error:
        # Between the stages: an asset that does not reach the disk, or its record.
        reason = f"{work.job.id}: {describe_os_error(error, work.folder)}"
        return failed(work, ExportError(reason, stage="export"))


def _is_unfinished(work: Work, variant: Variant) -> bool:
    """Whether the variant was interrupted before its last phase ended."""
    if any(subject.error is not None for subject in variant.subjects):
        return False
    wanted = (variant.scene is not None) + bool(work.settings.refine) + _textures(work)
    return len(variant.subjects) < wanted or not all(subject.finished for subject in variant.subjects)


def _finish_variant(steps: Steps, work: Work, variant: Variant, prior: Prior) -> None:
    """Sets ``asset``, or ``error``."""
    try:
        for subject in variant.subjects:
            if subject.error is not None:
                with work.stage("distill"):
                    raise subject.error
        variant.asset = steps.asset(work, variant, prior)
        unreached = unreached_warning(variant.asset.notes)
        work.warnings += [unreached] if unreached and unreached not in work.warnings else []
    except LatentkilnError as error:
        variant.error = error


def _remove_leftovers(work: Work) -> None:
    """Temporary files that a killed run left. The caller holds the asset's lock."""
    for base in (work.folder, work.folder / WORK_DIR, *(variant.folder for variant in work.variants)):
        for path in base.glob(".tmp-*"):
            path.unlink(missing_ok=True)
