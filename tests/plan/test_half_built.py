"""``plan`` says of a row that was interrupted from which step it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from thirty_bad_rows import write_tetrahedron

from pipeline.core.asset_layout import WORK_DIR
from pipeline.core.job import Job
from pipeline.core.location import InputFile
from pipeline.optimize import checkpoint
from pipeline.plan import PlanItem, plan
from pipeline.scheduler.task_log import TaskLog
from pipeline.scheduler.tasks import Task


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("a", "paint", "red brick", "", 1, InputFile(write_tetrahedron(tmp_path / "box.obj")))


def planned(job: Job, out: Path) -> PlanItem:
    (item,) = plan([job], out, prior_identity="p")
    return item


def begin(job: Job, out: Path, fingerprint: str) -> Path:
    (out / job.id / WORK_DIR).mkdir(parents=True, exist_ok=True)
    TaskLog(out / job.id, Task(job, fingerprint), "run")
    return out / job.id / WORK_DIR


def save(work: Path, variant: int, phase: str, step: int) -> None:
    (work / str(variant)).mkdir(exist_ok=True)
    checkpoint.save(work / str(variant) / f"{phase}.safetensors", {"x": torch.zeros(2)}, key="k", step=step)


def test_the_step_of_the_last_phase_of_the_slowest_variant(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fingerprint = planned(job, out).fingerprint
    work = begin(job, out, fingerprint)
    assert planned(job, out).reason == "new"
    save(work, 0, "latent", 40)
    assert planned(job, out).reason == "new; continues from step 40 (distill)"
    save(work, 1, "latent", 20)
    assert planned(job, out).reason == "new; continues from step 20 (distill)"
    save(work, 0, "texture", 5)
    assert planned(job, out).reason == "new; continues from step 5 (texture)"
    (work / "0/texture.safetensors").write_bytes(b"\xff" * 20)
    assert planned(job, out).reason == "new; continues from step 20 (distill)"


def test_what_was_begun_otherwise_is_not_gone_on_with(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = begin(job, out, "another")
    save(work, 0, "latent", 40)
    assert planned(job, out).reason == "new"
    begin(job, out, planned(job, out).fingerprint)
    assert planned(job, out).reason == "new; continues from step 40 (distill)"
    work.rename(tmp_path / "elsewhere")
    work.symlink_to(tmp_path / "elsewhere")
    assert planned(job, out).reason == "new"
