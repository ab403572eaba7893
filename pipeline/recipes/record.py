"""The record of a finished row, and the record of a failed one."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping

import torch

from pipeline.core.backends import select_backend
from pipeline.core.errors import LatentkilnError, describe_os_error
from pipeline.core.json_types import Json
from pipeline.core.outcome import TaskResult
from pipeline.export.record import write_failure
from pipeline.prior.adapter_hashes import adapter_hashes
from pipeline.prior.load import Prior
from pipeline.recipes import recipe_version
from pipeline.recipes.asset_build import AssetBuild, InputsT, RowContext, ScenesT, SettingsT, Variant
from pipeline.recipes.recipe import Recipe


def done_record(
    recipe: Recipe[SettingsT, InputsT, ScenesT],
    asset_build: AssetBuild[SettingsT, InputsT, ScenesT],
    built: list[Variant[ScenesT]],
    prior: Prior,
    lockstep: int,
    outputs: Mapping[str, Json],
    quality: Mapping[str, float],
) -> dict[str, object]:
    """The record of a finished row (schema 1).

    Args:
        built: the variants that became assets, the best one first.
        outputs: ``sha256`` and ``bytes`` of each file, by name.
        quality: ``asset_quality`` of the best variant.
    """
    row, best = asset_build.row, built[0]
    job = row.job
    assert best.asset is not None
    uvmesh = best.asset.uvmesh
    mesh = uvmesh.mesh
    phase_runs = list(zip(asset_build.phases, best.optimizations, strict=False))
    parts = {f"{phase.stage}_{part}": value for phase, o in phase_runs for part, value in o.seconds.items()}
    batch_sizes = [o.batch_size for v in asset_build.variants for o in v.optimizations if o.batch_size]
    record: dict[str, object] = {
        "schema": 1,
        "id": job.id,
        "status": "done",
        "fingerprint": row.fingerprint,
        "recipe": job.recipe,
        "recipe_version": recipe_version(job.recipe, job.mesh.name if job.mesh else ""),
        "inputs": {
            "job": {
                "prompt": job.prompt,
                "negative_prompt": job.negative_prompt,
                "seed": job.seed,
                "settings": dict(job.settings),
            },
            "mesh": {"name": job.mesh.name if job.mesh else None, "sha256": row.input_sha256},
            "prior": {"name": prior.name, "identity": prior.identity},
            "adapters": adapter_hashes(job.adapters),
        },
        "resolved_settings": asset_build.settings.model_dump(mode="json"),
        "outputs": outputs,
        "backends": backends(recipe, asset_build.settings, prior),
        "lockstep": lockstep,
        # The smallest batch; smaller than ``lockstep`` where memory did not suffice.
        "lockstep_used": min(batch_sizes, default=lockstep),
        "timings": {stage: round(seconds, 4) for stage, seconds in (row.timings | parts).items()},
        "resumed_from_step": best.optimizations[0].resumed_from if best.optimizations else 0,
        "peak_rss_mb": peak_rss_mb(),
        "warnings": row.warnings,
        "unwrap": {"method": uvmesh.method, "reason": uvmesh.reason},
        "bake": best.asset.notes,
        "quality": dict(quality),
        "mesh_stats": {
            "vertices": len(mesh.vertices),
            "faces": len(mesh.faces),
            "charts": int(uvmesh.charts.max()) + 1,
            "format": mesh.source_format,
        },
        "started": row.started,
        "finished": time.time(),
    }
    if best.asset.document is not None:
        record["document"] = best.asset.document.notes
    if len(asset_build.variants) > 1:
        record["variants"] = [
            {"seed": v.seed, "score": v.score, "error": v.error.message if v.error else None}
            for v in [*built, *(v for v in asset_build.variants if v.asset is None)]
        ]
    return record


def backends(recipe: Recipe[SettingsT, InputsT, ScenesT], settings: SettingsT, prior: Prior) -> dict[str, object]:
    """The backends, libraries and number formats that computed the asset; others may give other bytes."""
    return {
        "rasterise": select_backend("rasterise").name,
        **recipe.backends(settings, prior.device.type),
        "torch": torch.__version__,
        "device": str(prior.device),
        "dtype": str(prior.dtype).removeprefix("torch."),
        **prior.options.non_default(),
        "threads": torch.get_num_threads(),
    }


def failed_result(row: RowContext, error: LatentkilnError) -> TaskResult:
    """Write ``failure.json``, beside an earlier asset where there is one, and return the row's result."""
    record = {
        "schema": 1,
        "id": row.job.id,
        "status": "failed",
        "fingerprint": row.fingerprint,
        "source": str(row.job.row_location),
        "stage": error.stage,
        "error": type(error).__name__,
        "message": error.message,
        "warnings": row.warnings,
        "timings": {stage: round(value, 4) for stage, value in row.timings.items()},
        "finished": time.time(),
    }
    message = error.message
    try:
        write_failure(row.folder, record)
    except OSError as unwritable:
        message += f" (and its failure could not be recorded: {describe_os_error(unwritable)})"
    return TaskResult(row.job.id, "failed", error.stage, type(error).__name__, message, row.seconds, row.warnings)


def peak_rss_mb() -> float:
    """The process's largest resident set so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
