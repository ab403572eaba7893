"""A recipe that counts to ``steps`` and keeps its count in a checkpoint, to see where a row goes on after a death."""

from __future__ import annotations

import dataclasses
import shutil
import time

from stub_recipe import make_toolbox

from pipeline.core.outcome import TaskResult
from pipeline.export.record import describe_outputs, write_record


def counting(steps: int, pause: float = 0.0, log: list[int] | None = None):
    """A toolbox with that recipe, for rows built one by one. ``log`` takes the step each start goes on from."""

    def recipe(jobs, prior, root, *, fingerprints, lockstep, report_for, checkpoint_seconds, stop, unwrap_cache):
        (job,), (fingerprint,) = jobs, fingerprints
        folder = root / job.id
        checkpoint = folder / ".work" / "0" / "latent.safetensors"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        begun = int(checkpoint.read_text()) if checkpoint.exists() else 0
        if log is not None:
            log.append(begun)
        for step in range(begun, steps):
            if stop():
                return [TaskResult(job.id, "interrupted", "distill")]
            time.sleep(pause)
            temporary = checkpoint.with_name(".tmp-0-x")
            temporary.write_text(str(step + 1))
            temporary.replace(checkpoint)
        (folder / "asset.glb").write_text(f"{job.prompt} after {steps}")
        shutil.rmtree(folder / ".work")
        outputs = describe_outputs(folder, ["asset.glb"])
        write_record(folder, {"id": job.id, "fingerprint": fingerprint, "recipe": "paint", "outputs": outputs})
        return [TaskResult(job.id, "done", seconds=0.1)]

    return dataclasses.replace(make_toolbox(), recipe=lambda name: recipe)
