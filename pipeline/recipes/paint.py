"""``paint``: a latent texture optimised on a given mesh, decoded once, exported as glTF (Latent-Paint).

Reads as the data flows: prepare each row (mesh, UVs, scene), distil them in lockstep, finish each (bake, export,
preview, record). A row that fails becomes an Outcome; the others go on.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bake.bake import BakedMaps, bake_base_colour
from pipeline.core.atomic import replacing
from pipeline.core.content import canonical_json, sha256_bytes, sha256_file
from pipeline.core.errors import ExportError, LatentkilnError
from pipeline.core.job import Job, Reporter, no_report
from pipeline.core.outcome import Outcome
from pipeline.distill.loop import Subject, distill
from pipeline.distill.prompts import PromptTable
from pipeline.distill.sds import SdsSettings
from pipeline.export.gltf import write_glb
from pipeline.export.preview import preview_png
from pipeline.export.record import write_record
from pipeline.geometry.camera import CameraSettings
from pipeline.geometry.mesh import UVMesh
from pipeline.geometry.normalise import Frame, normalise
from pipeline.geometry.unwrap_cache import load_unwrapped
from pipeline.prior.load import Prior
from pipeline.recipes import LIMIT_SETTINGS, RECIPE_VERSIONS, UNWRAP_CACHE
from pipeline.recipes.paint_record import backends, done_record, failed
from pipeline.recipes.paint_settings import PaintSettings
from pipeline.scene.painted_mesh import PaintedMesh, PaintedMeshSettings

RECIPE = "paint"
WORK = ".work"
_MESH_RADIUS = 0.6


@dataclass
class Work:
    """One row on its way through the recipe."""

    job: Job
    fingerprint: str
    folder: Path
    settings: PaintSettings
    report: Reporter
    started: float = field(default_factory=time.time)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    uvmesh: UVMesh | None = None
    frame: Frame | None = None
    scene: PaintedMesh | None = None
    subject: Subject | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage, and names it in the errors that leave it."""
        self.report(name, 0, 1)
        begun = time.perf_counter()
        try:
            yield
        except LatentkilnError:
            raise
        except OSError as error:
            raise ExportError(f"{self.job.id}: {error.strerror or error}: {error.filename}", stage=name) from error
        except (ValueError, RuntimeError, ArithmeticError, IndexError) as error:
            reason = " ".join(str(error).split())[:300]
            raise LatentkilnError(f"{self.job.id}: {type(error).__name__} in {name}: {reason}", stage=name) from error
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - begun
        self.report(name, 1, 1)


def paint(
    jobs: Sequence[Job],
    prior: Prior,
    out: Path,
    *,
    fingerprints: Sequence[str],
    lockstep: int,
    report_for: Callable[[int], Reporter] = lambda index: no_report,
    checkpoint_seconds: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """Builds ``jobs`` (at most ``lockstep`` of them) into ``out/<id>/``; one Outcome each, in order.

    Never raises for a row. ``stop`` turning true leaves checkpoints and gives ``interrupted`` outcomes.
    """
    outcomes: dict[int, Outcome] = {}
    works: dict[int, Work] = {}
    for index, (job, fingerprint) in enumerate(zip(jobs, fingerprints, strict=True)):
        if stop():
            outcomes[index] = Outcome(job.id, "interrupted")
            continue
        settings = resolve(PaintSettings(**job.settings), prior)
        work = Work(job, fingerprint, out / job.id, settings, report_for(index))
        try:
            prepare(work, prior, out, lockstep)
            works[index] = work
        except LatentkilnError as error:
            outcomes[index] = failed(work, error)
    for group in _same_batch(works):
        subjects = [work.subject for work in group.values() if work.subject is not None]
        distill(subjects, prior, lockstep=lockstep, checkpoint_seconds=checkpoint_seconds, stop=stop)
        for index, work in group.items():
            outcomes[index] = _finish(work, prior, lockstep)
    return [outcomes[index] for index in range(len(jobs))]


def resolve(settings: PaintSettings, prior: Prior) -> PaintSettings:
    """``settings`` with what the row left out taken from the prior."""
    defaults = prior.defaults
    missing = {name: value for name, value in vars(defaults).items() if getattr(settings, name) is None}
    if settings.front is None:
        missing["front"] = "-y" if settings.up_axis == "z" else "+z"
    return settings.model_copy(update=missing)


def prepare(work: Work, prior: Prior, out: Path, lockstep: int) -> None:
    """Mesh, UVs and scene of one row. Raises LatentkilnError."""
    job, settings = work.job, work.settings
    if job.mesh is None:
        raise LatentkilnError(f"{job.id}: paint needs a mesh", stage="load")
    _remove_leftovers(work.folder)
    with work.stage("unwrap"):
        work.uvmesh = load_unwrapped(
            job.mesh,
            out / UNWRAP_CACHE,
            texture_size=int(settings.texture_size or 0),
            mode=settings.unwrap,
            time_limit=settings.unwrap_seconds,
            max_faces=settings.max_faces,
            report=work.report,
        )
    work.warnings += work.uvmesh.mesh.warnings
    unknown = prior.unknown_words(job.prompt)
    if unknown:
        work.warnings.append(f"the prior {prior.name} does not know: {', '.join(unknown)}")
    with work.stage("prepare"):
        mesh = work.uvmesh.mesh
        work.frame = normalise(
            mesh.vertices, radius=_MESH_RADIUS, up_axis=settings.up_axis, front=settings.front or "+z"
        )
        work.scene = PaintedMesh(
            work.frame.apply(mesh.vertices),
            mesh.faces,
            work.uvmesh.uv,
            work.uvmesh.uv_faces,
            prior.latent_rgb,
            scene_settings(settings, prior),
            job.seed,
            prior.device,
        )
        prompts = PromptTable(
            prior,
            job.prompt,
            job.negative_prompt,
            view_words=bool(settings.view_words),
            close_up=settings.prompt_close_up,
        )
        work.subject = Subject(
            work.scene,
            prompts,
            SdsSettings(float(settings.guidance_scale or 0), settings.t_min, settings.t_max, settings.anneal),
            job.seed,
            settings.steps,
            checkpoint=work.folder / WORK / "checkpoint.safetensors",
            key=sha256_bytes(canonical_json([work.fingerprint, lockstep, _layout(work.uvmesh)])),
            report=work.report,
        )


def scene_settings(settings: PaintSettings, prior: Prior) -> PaintedMeshSettings:
    """The scene's part of a row's resolved settings."""
    colour = settings.base_colour
    rgb = tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)) if colour else (0.5, 0.5, 0.5)
    return PaintedMeshSettings(
        views=int(settings.views or 1),
        view_size=int(settings.view_size or prior.sample_size),
        texture_size=int(settings.texture_size or 0) // prior.reduction,
        learning_rate=float(settings.learning_rate or 0),
        cameras=CameraSettings(
            close_up=settings.close_up,
            elevation_min=float(np.radians(settings.elevation_min)),
            elevation_max=float(np.radians(settings.elevation_max)),
            fov=float(np.radians(settings.fov)),
            object_radius=_MESH_RADIUS,
        ),
        background="learned" if settings.background == "learned" else "random",
        initial_noise=float(settings.initial_noise or 0),
        base_colour=rgb,  # type: ignore[arg-type]
    )


def _same_batch(works: dict[int, Work]) -> list[dict[int, Work]]:
    """Rows whose views make UNet batches of one shape go together."""
    groups: dict[tuple[Any, ...], dict[int, Work]] = {}
    for index, work in works.items():
        groups.setdefault((work.settings.views, work.settings.view_size), {})[index] = work
    return list(groups.values())


def _finish(work: Work, prior: Prior, lockstep: int) -> Outcome:
    assert work.subject is not None and work.scene is not None and work.uvmesh is not None
    subject = work.subject
    work.timings["distill"] = sum(subject.seconds.values())
    try:
        if subject.error is not None:
            with work.stage("distill"):
                raise subject.error
        if not subject.finished:
            return Outcome(work.job.id, "interrupted", stage="distill", seconds=time.time() - work.started)
        with work.stage("bake"):
            baked = bake_base_colour(
                work.scene.texture.detach(),
                work.scene.visibility.reached,
                work.uvmesh,
                prior,
                int(work.settings.texture_size or 0),
                work.report,
            )
        _write(work, prior, lockstep, baked)
        return Outcome(work.job.id, "done", seconds=time.time() - work.started, warnings=work.warnings)
    except LatentkilnError as error:
        return failed(work, error)


def _write(work: Work, prior: Prior, lockstep: int, baked: BakedMaps) -> None:
    """Everything under temporary names first; the record last: it is what makes the asset exist."""
    assert work.uvmesh is not None and work.frame is not None
    job, folder = work.job, work.folder
    provenance = {
        "fingerprint": work.fingerprint,
        "id": job.id,
        "recipe": RECIPE,
        "recipe_version": RECIPE_VERSIONS[RECIPE],
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seed,
        "prior": {"name": prior.name, "identity": prior.identity},
        "mesh_sha256": work.uvmesh.mesh.source_sha256,
        # Limits change no byte, so they must not stand in the bytes either.
        "settings": work.settings.model_dump(mode="json", exclude=set(LIMIT_SETTINGS[RECIPE])),
        "backends": backends(prior),
    }
    with contextlib.ExitStack() as stack:
        new: dict[str, Path] = {}
        with work.stage("export"):
            new["asset.glb"] = stack.enter_context(replacing(folder / "asset.glb"))
            write_glb(
                new["asset.glb"],
                work.uvmesh,
                baked.maps,
                name=job.id,
                provenance=provenance,
                crease_angle=float(np.radians(work.settings.crease_angle)),
                image_format=work.settings.image_format,
            )
        if work.settings.preview:
            with work.stage("preview"):
                new["preview.png"] = stack.enter_context(replacing(folder / "preview.png"))
                preview_png(
                    new["preview.png"],
                    work.uvmesh,
                    baked.maps,
                    work.frame,
                    crease_angle=float(np.radians(work.settings.crease_angle)),
                )
        outputs = {n: {"sha256": sha256_file(p), "bytes": p.stat().st_size} for n, p in new.items()}
        # From here to the new record there is no record: a crash leaves garbage that is rebuilt, never a lie.
        (folder / "record.json").unlink(missing_ok=True)
    # Before the record: once that is there, no run looks into this folder again.
    shutil.rmtree(folder / WORK, ignore_errors=True)
    write_record(folder, done_record(work, prior, lockstep, baked, outputs))


def _layout(uvmesh: UVMesh) -> str:
    """Hash of the texture coordinates: a checkpoint belongs to one layout."""
    return sha256_bytes(uvmesh.uv.tobytes() + uvmesh.uv_faces.tobytes())


def _remove_leftovers(folder: Path) -> None:
    """Temporary files that a killed run left. The caller holds the asset's lock."""
    for base in (folder, folder / WORK):
        for path in base.glob(".tmp-*"):
            path.unlink(missing_ok=True)
