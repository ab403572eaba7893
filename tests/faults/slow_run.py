"""``latentkiln run`` with a recipe that does nothing but take its time: ``slow_run.py MANIFEST OUT [run's options]``.

The prompt ``work N`` takes N steps of ``LATENTKILN_STEP_SECONDS``; a checkpoint is written every tenth step. A worker
without rows is kept for ``LATENTKILN_SPARE_SECONDS``, and one that does not come is waited for so long before less is
asked for, ``LATENTKILN_PATIENCE_SECONDS``, where these are set.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from pipeline import cli  # noqa: E402
from pipeline.commands import run as run_module  # noqa: E402
from pipeline.scheduler import actor_pool  # noqa: E402
from pipeline.scheduler.tasks import Hooks  # noqa: E402


def toolbox(faults_folder: str, step_seconds: float) -> Hooks:
    """Nested functions, so that Ray sends them by value: no worker can import this module."""

    def load_prior(spec, threads):
        return spec

    def recipe_named(name):
        return recipe

    def recipe(jobs, prior, out, *, fingerprints, lockstep, report_for, checkpoint_seconds, stop, unwrap_cache):
        import hashlib
        import json
        import shutil
        import sys
        import time

        if faults_folder not in sys.path:
            sys.path.insert(0, faults_folder)
        from harness import advance, glb, steps_of

        from pipeline.core.atomic import atomic_write, write_bytes
        from pipeline.core.errors import LatentkilnError
        from pipeline.core.outcome import TaskResult
        from pipeline.export.record import describe_outputs, write_record

        def build(job, fingerprint, report):
            folder = out / job.id
            for stray in folder.glob(".tmp-*"):
                stray.unlink()
            checkpoint = folder / ".work" / "checkpoint.json"
            state, first = hashlib.sha256(f"{job.prompt} {job.seed}".encode()).digest(), 0
            if checkpoint.exists():
                saved = json.loads(checkpoint.read_text())
                if saved["key"] == fingerprint:
                    state, first = bytes.fromhex(saved["state"]), saved["step"]
            steps = steps_of(job.prompt)
            for step in range(first, steps):
                if step % 10 == 0 or stop():
                    saved = {"key": fingerprint, "state": state.hex(), "step": step}
                    if steps >= 10:
                        write_bytes(checkpoint, json.dumps(saved).encode())
                    if stop():
                        return TaskResult(job.id, "interrupted", "distill")
                state = advance(state, step)
                if step_seconds:
                    time.sleep(step_seconds)
                report("distill", step + 1, steps)
            with atomic_write(folder / "asset.glb") as temporary:
                temporary.write_bytes(glb(state))
            shutil.rmtree(folder / ".work", ignore_errors=True)
            record = {"id": job.id, "fingerprint": fingerprint, "recipe": job.recipe, "recipe_version": "1"}
            record |= {"inputs": {}, "outputs": describe_outputs(folder, ["asset.glb"]), "resumed_from": first}
            write_record(folder, record)
            return TaskResult(job.id, "done", seconds=0.01)

        outcomes = []
        for index, (job, fingerprint) in enumerate(zip(jobs, fingerprints, strict=True)):
            try:
                outcomes.append(build(job, fingerprint, report_for(index)))
            except OSError as error:
                failure = LatentkilnError(f"{job.id}: {error.strerror}: {error.filename}", stage="export")
                outcomes.append(TaskResult(job.id, "failed", failure.stage, type(error).__name__, failure.message))
        return outcomes

    return Hooks(load_prior, recipe_named)


if __name__ == "__main__":
    manifest, out, *options = sys.argv[1:]
    seconds = float(os.environ.get("LATENTKILN_STEP_SECONDS", "0"))
    actor_pool.SPARE_SECONDS = float(os.environ.get("LATENTKILN_SPARE_SECONDS", actor_pool.SPARE_SECONDS))
    actor_pool.DEADLINE_SECONDS = float(os.environ.get("LATENTKILN_PATIENCE_SECONDS", actor_pool.DEADLINE_SECONDS))
    plain = run_module.run_manifest
    run_module.run_manifest = lambda chosen, **more: plain(chosen, **(more | {"hooks": toolbox(str(HERE), seconds)}))
    prior = str(Path(manifest).parent / "prior")
    sys.exit(cli.main(["run", manifest, "--out", out, "--prior", prior, *options]))
