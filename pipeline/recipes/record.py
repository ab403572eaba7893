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
    from pipeline.recipes.asset_build import AssetBuild, Variant


def done_record(
    asset_build: AssetBuild, built: list[Variant], prior: Prior, lockstep: int, outputs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The record of a finished row (schema 1). ``built``: its variants, the best one first."""
    job, best = asset_build.job, built[0]
    assert best.asset is not None
    uvmesh = best.asset.uvmesh
    mesh = uvmesh.mesh
    phases = [(f"{phase}_{part}", value) for phase, optimization in best.phases.items()
              for part, value in optimization.seconds.items()]  # fmt: skip
    record = {
        "schema": 1,
        "id": job.id,
        "status": "done",
        "fingerprint": asset_build.fingerprint,
        "recipe": job.recipe,
        "recipe_version": RECIPE_VERSIONS[job.recipe],
        "inputs": {
            "job": {
                "prompt": job.prompt,
                "negative_prompt": job.negative_prompt,
                "seed": job.seed,
                "settings": dict(job.settings),
            },
            "mesh": {"name": job.mesh.name if job.mesh else None, "sha256": asset_build.input_sha256},
            "prior": {"name": prior.name, "identity": prior.identity},
            "adapters": adapter_hashes(job.adapters),
        },
        "resolved_settings": asset_build.settings.model_dump(mode="json"),
        "outputs": outputs,
        "backends": backends(prior, asset_build),
        "lockstep": lockstep,
        # The fewest that went at once; less than asked for when memory did not suffice for all.
        "lockstep_used": min(
            (s.batch_size for v in asset_build.variants for s in v.optimizations if s.batch_size), default=lockstep
        ),
        "timings": {stage: round(seconds, 4) for stage, seconds in asset_build.timings.items()}
        | {name: round(seconds, 4) for name, seconds in phases},
        "resumed_from_step": best.optimizations[0].resumed_from if best.optimizations else 0,
        "peak_rss_mb": peak_rss_mb(),
        "warnings": asset_build.warnings,
        "unwrap": {"method": uvmesh.method, "reason": uvmesh.reason},
        "bake": best.asset.notes,
        "mesh_stats": {
            "vertices": len(mesh.vertices),
            "faces": len(mesh.faces),
            "charts": int(uvmesh.charts.max()) + 1,
            "format": mesh.source_format,
        },
        "started": asset_build.started,
        "finished": time.time(),
    }
    if len(asset_build.variants) > 1:
        record["variants"] = [
            {"seed": v.seed, "score": v.score, "error": v.error.message if v.error else None}
            for v in [*built, *(v for v in asset_build.variants if v.asset is None)]
        ]
    return record


def backends(prior: Prior, asset_build: AssetBuild) -> dict[str, Any]:
    """What computed the asset: another of these may give other bytes."""
    device = prior.device.type
    used = {}
    if asset_build.job.recipe == "generate":
        rooms = {"grid": grid.backend_for, "network": mlp.backend_for, "volume": volume.backend_for}
        used = {name: backend_for(device) for name, backend_for in rooms.items()}
    if asset_build.job.recipe == "paint" and device == "cuda":
        used["texture"] = select_backend("texture").name
    if asset_build.job.recipe == "paint" and asset_build.settings.antialias:
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


def failed_result(asset_build: AssetBuild, error: LatentkilnError) -> BuildResult:
    """Writes ``failure.json`` beside whatever good asset is there, and gives the row's Outcome."""
    seconds = time.time() - asset_build.started
    record = {
        "schema": 1,
        "id": asset_build.job.id,
        "status": "failed",
        "fingerprint": asset_build.fingerprint,
        "source": str(asset_build.job.row_location),
        "stage": error.stage,
        "error": type(error).__name__,
        "message": error.message,
        "warnings": asset_build.warnings,
        "timings": {stage: round(value, 4) for stage, value in asset_build.timings.items()},
        "finished": time.time(),
    }
    message = error.message
    try:
        write_failure(asset_build.folder, record)
    except OSError as unwritable:
        message += f" (and its failure could not be recorded: {describe_os_error(unwritable)})"
    return BuildResult(
        asset_build.job.id, "failed", error.stage, type(error).__name__, message, seconds, asset_build.warnings
    )


def peak_rss_mb() -> float:
    """The process's largest resident set so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
