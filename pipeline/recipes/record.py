"""What a row leaves behind: the record of an asset, or of a failure."""

from __future__ import annotations

import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.backends import select_backend
from pipeline.core.errors import LatentkilnError, describe_os_error
from pipeline.core.outcome import BuildResult
from pipeline.export.record import write_failure
from pipeline.fields import grid, mlp, volume
from pipeline.prior.adapter_hashes import adapter_hashes
from pipeline.recipes import RECIPE_VERSIONS

if TYPE_CHECKING:
    from pipeline.prior.load import Prior
    from pipeline.recipes.work import Variant, Work


def done_record(
    work: Work, built: list[Variant], prior: Prior, lockstep: int, outputs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The record of a finished row (schema 1). ``built``: its variants, the best one first."""
    job, best = work.job, built[0]
    assert best.asset is not None
    uvmesh = best.asset.uvmesh
    mesh = uvmesh.mesh
    phases = [(f"{phase}_{part}", value) for phase, subject in best.phases.items()
              for part, value in subject.seconds.items()]  # fmt: skip
    record = {
        "schema": 1,
        "id": job.id,
        "status": "done",
        "fingerprint": work.fingerprint,
        "recipe": job.recipe,
        "recipe_version": RECIPE_VERSIONS[job.recipe],
        "inputs": {
            "job": {
                "prompt": job.prompt,
                "negative_prompt": job.negative_prompt,
                "seed": job.seed,
                "settings": dict(job.settings),
            },
            "mesh": {"name": job.mesh.name if job.mesh else None, "sha256": work.input_sha256},
            "prior": {"name": prior.name, "identity": prior.identity},
            "adapters": adapter_hashes(job.adapters),
        },
        "resolved_settings": work.settings.model_dump(mode="json"),
        "outputs": outputs,
        "backends": backends(prior, work),
        "lockstep": lockstep,
        # The fewest that went at once; less than asked for when memory did not suffice for all.
        "lockstep_used": min(
            (s.batch_size for v in work.variants for s in v.subjects if s.batch_size), default=lockstep
        ),
        "timings": {stage: round(seconds, 4) for stage, seconds in work.timings.items()}
        | {name: round(seconds, 4) for name, seconds in phases},
        "resumed_from_step": best.subjects[0].resumed_from if best.subjects else 0,
        "peak_rss_mb": peak_rss_mb(),
        "warnings": work.warnings,
        "unwrap": {"method": uvmesh.method, "reason": uvmesh.reason},
        "bake": best.asset.notes,
        "mesh_stats": {
            "vertices": len(mesh.vertices),
            "faces": len(mesh.faces),
            "charts": int(uvmesh.charts.max()) + 1,
            "format": mesh.source_format,
        },
        "started": work.started,
        "finished": time.time(),
    }
    if len(work.variants) > 1:
        record["variants"] = [
            {"seed": v.seed, "score": v.score, "error": v.error.message if v.error else None}
            for v in [*built, *(v for v in work.variants if v.asset is None)]
        ]
    return record


def backends(prior: Prior, work: Work) -> dict[str, Any]:
    """What computed the asset: another of these may give other bytes."""
    device = prior.device.type
    used = {}
    if work.job.recipe == "generate":
        rooms = {"grid": grid.backend_for, "network": mlp.backend_for, "volume": volume.backend_for}
        used = {name: backend_for(device) for name, backend_for in rooms.items()}
    if work.job.recipe == "paint" and device == "cuda":
        used["texture"] = select_backend("texture").name
    if work.job.recipe == "paint" and work.settings.antialias:
        used["antialias"] = select_backend("antialias").name
    return {
        "rasterise": select_backend("rasterise").name,
        **used,
        "torch": torch.__version__,
        "device": str(prior.device),
        "dtype": str(prior.dtype).removeprefix("torch."),
        **prior.options.non_default(),
        "threads": torch.get_num_threads(),
    }


def failed(work: Work, error: LatentkilnError) -> BuildResult:
    """Writes ``failure.json`` beside whatever good asset is there, and gives the row's Outcome."""
    seconds = time.time() - work.started
    record = {
        "schema": 1,
        "id": work.job.id,
        "status": "failed",
        "fingerprint": work.fingerprint,
        "source": str(work.job.row_location),
        "stage": error.stage,
        "error": type(error).__name__,
        "message": error.message,
        "warnings": work.warnings,
        "timings": {stage: round(value, 4) for stage, value in work.timings.items()},
        "finished": time.time(),
    }
    message = error.message
    try:
        write_failure(work.folder, record)
    except OSError as unwritable:
        message += f" (and its failure could not be recorded: {describe_os_error(unwritable)})"
    return BuildResult(work.job.id, "failed", error.stage, type(error).__name__, message, seconds, work.warnings)


def peak_rss_mb() -> float:
    """The process's largest resident set so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
