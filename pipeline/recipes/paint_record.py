"""What a painted row leaves behind: the record of an asset, or of a failure."""

from __future__ import annotations

import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.backends import choose
from pipeline.core.errors import LatentkilnError
from pipeline.core.outcome import Outcome
from pipeline.export.record import write_failure
from pipeline.recipes import RECIPE_VERSIONS

if TYPE_CHECKING:
    from pipeline.bake.bake import BakedMaps
    from pipeline.prior.load import Prior
    from pipeline.recipes.paint import Work


def done_record(
    work: Work, prior: Prior, lockstep: int, baked: BakedMaps, outputs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The record of a finished asset (schema 1)."""
    assert work.uvmesh is not None and work.subject is not None and work.scene is not None
    job, mesh, subject = work.job, work.uvmesh.mesh, work.subject
    return {
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
            "mesh": {"name": job.mesh.name if job.mesh else None, "sha256": mesh.source_sha256},
            "prior": {"name": prior.name, "identity": prior.identity},
        },
        "resolved_settings": work.settings.model_dump(mode="json"),
        "outputs": outputs,
        "backends": backends(prior),
        "lockstep": lockstep,
        "timings": {stage: round(seconds, 4) for stage, seconds in work.timings.items()}
        | {f"distill_{part}": round(seconds, 4) for part, seconds in subject.seconds.items()},
        "resumed_from_step": subject.resumed_from,
        "peak_rss_mb": peak_rss_mb(),
        "warnings": work.warnings,
        "unwrap": {"method": work.uvmesh.method, "reason": work.uvmesh.reason},
        "bake": baked.notes,
        "mesh_stats": {
            "vertices": len(mesh.vertices),
            "faces": len(mesh.faces),
            "charts": int(work.uvmesh.charts.max()) + 1,
            "format": mesh.source_format,
        },
        "started": work.started,
        "finished": time.time(),
    }


def backends(prior: Prior) -> dict[str, Any]:
    """What computed the asset: another of these may give other bytes."""
    return {
        "rasterise": choose("rasterise").name,
        "torch": torch.__version__,
        "device": str(prior.device),
        "dtype": str(prior.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def failed(work: Work, error: LatentkilnError) -> Outcome:
    """Writes ``failure.json`` beside whatever good asset is there, and gives the row's Outcome."""
    seconds = time.time() - work.started
    record = {
        "schema": 1,
        "id": work.job.id,
        "status": "failed",
        "fingerprint": work.fingerprint,
        "source": str(work.job.source),
        "stage": error.stage,
        "error": type(error).__name__,
        "message": error.message,
        "reproduce": f"latentkiln run {work.job.source.file} --only {work.job.id} --serial",
        "warnings": work.warnings,
        "timings": {stage: round(value, 4) for stage, value in work.timings.items()},
        "finished": time.time(),
    }
    message = error.message
    try:
        write_failure(work.folder, record)
    except OSError as unwritable:
        message += f" (and its failure could not be recorded: {unwritable.strerror})"
    return Outcome(work.job.id, "failed", error.stage, type(error).__name__, message, seconds, work.warnings)


def peak_rss_mb() -> float:
    """The process's largest resident set so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
