"""A recipe that paints nothing: what a row does is written in its prompt. For tests of the fleet and of ``run``.

Prompts: ``fine``; ``fail`` (a failed Outcome); ``raise`` (breaks the recipe's promise); ``die`` (SIGKILL to itself);
``die once``; ``wait`` (reports steps until asked to stop, then is interrupted); ``wait once``;
``sleep once``; ``stuck`` (hears nothing);
``stuck in C`` (not even a signal: a call into compiled code that takes a minute); ``hog`` (takes 300 MB).
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.plan import PlanItem
from pipeline.scheduler.tasks import Hooks


def make_toolbox(prior_error: str = "") -> Hooks:
    """Nested functions, so that Ray sends them by value: no worker can import this module."""

    def load_prior(spec, threads):
        import os

        from pipeline.core.errors import PriorError

        if prior_error == "die":
            os.kill(os.getpid(), 9)
        if prior_error:
            raise PriorError(prior_error)
        return f"prior {spec} on {threads} threads"

    def recipe_named(name):
        return recipe

    def recipe(jobs, prior, out, *, fingerprints, lockstep, report_for, checkpoint_seconds, stop, unwrap_cache):
        import os
        import time

        from pipeline.core.outcome import TaskResult
        from pipeline.export.record import describe_outputs, write_record

        assert 0 < len(jobs) <= lockstep
        outcomes = []
        for index, (job, fingerprint) in enumerate(zip(jobs, fingerprints, strict=True)):
            folder, report = out / job.id, report_for(index)
            report("distill", 1, 10)
            if job.prompt == "raise":
                raise KeyError("a bug in the recipe")
            if job.prompt == "fail":
                outcomes.append(TaskResult(job.id, "failed", "unwrap", "UnwrapError", f"{job.id}: no way"))
                continue
            if job.prompt == "die" or (job.prompt == "die once" and not (folder / "tried").exists()):
                (folder / "tried").touch()
                time.sleep(0.3)
                os.kill(os.getpid(), 9)
            if job.prompt == "sleep once" and not (folder / "waiting").exists():
                (folder / "waiting").write_text(str(os.getpid()))
                time.sleep(300)
            if job.prompt == "stuck":
                for _ in range(1200):
                    time.sleep(0.05)
            if job.prompt == "stuck in C":
                import ctypes

                ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock, too
            if job.prompt == "hog":
                hoard = bytearray(os.urandom(1 << 20)) * 300
                time.sleep(5)
                del hoard
            waited_before = (folder / "checkpoint").exists()
            if job.prompt == "wait" or (job.prompt == "wait once" and not waited_before):
                (folder / "waiting").write_text(str(os.getpid()))
                for step in range(600):
                    report("distill", step, 600)
                    if stop():
                        break
                    time.sleep(0.05)
                (folder / "checkpoint").touch()
                outcomes.append(TaskResult(job.id, "interrupted", "distill"))
                continue
            (folder / "asset.glb").write_text(f"{job.prompt} {job.seed}")
            write_record(
                folder,
                {
                    "id": job.id,
                    "fingerprint": fingerprint,
                    "recipe": job.recipe,
                    "recipe_version": "1",
                    "inputs": {},
                    "outputs": describe_outputs(folder, ["asset.glb"]),
                    "pid": os.getpid(),
                    "prior": prior,
                    "neighbours": [other.id for other in jobs],
                },
            )
            report("distill", 10, 10)
            outcomes.append(TaskResult(job.id, "done", seconds=0.01))
        return outcomes

    return Hooks(load_prior, recipe_named)


def item(job_id: str, prompt: str = "fine", action: str = "build", reason: str = "new", **settings) -> PlanItem:
    """A planned row."""
    job = Job(job_id, "paint", prompt, "", 1, InputFile(Path("mesh.obj")), settings, RowLocation("m.csv", 2))
    return PlanItem(job, action, reason, f"fingerprint-{job_id}-{prompt}")  # type: ignore[arg-type]
