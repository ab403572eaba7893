"""A row that was interrupted, in any phase of any recipe, ends in the bytes of one that was not.

With the embedded prior and the default settings, since tiny priors on cubes miss what rounds differently; only painting
by patches has all its steps, and the other rows have no preview. ``faults/real_kills.py --defaults 1`` does it with
SIGKILL and all steps.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.job import Job, RowLocation, no_report
from pipeline.core.location import InputFile
from pipeline.export.record import read_record
from pipeline.optimize.loop import Optimization, optimize
from pipeline.prior.load import Prior, load_prior
from pipeline.recipes import build
from pipeline.recipes.asset_build import RowContext
from pipeline.recipes.generate import Generate
from pipeline.recipes.generate_settings import GenerateOptions
from pipeline.recipes.paint import Paint
from pipeline.recipes.paint_settings import PaintOptions

VASE = Path(__file__).parents[2] / "manifests" / "meshes" / "vase.obj"
Moment = tuple[str, int]


@dataclass(frozen=True)
class Case:
    """A row, and after which steps of which stages it is interrupted, in the order in which they come."""

    recipe: str
    moments: list[Moment]
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    # Groups of eight steps.
    "patches": Case("paint", [("distill", n) for n in (3, 8, 13, 16)], {"distillation": "patches"}),
    "score": Case("paint", [("distill", 3), ("distill", 8)], {"distillation": "score", "steps": 12, "preview": False}),
    "variants, refined": Case(
        "paint",
        [("distill 2/2", 4), ("refine 2/2", 2)],
        {"seeds": 2, "steps": 5, "refine": True, "refine_steps": 3, "preview": False},
    ),
    # The occupancy is looked at before steps 0 and 16. Two groups of texture, the second from step 12 on.
    "generate": Case(
        "generate",
        [*(("distill", n) for n in (16, 18)), *(("texture", n) for n in (5, 12))],
        {"steps": 18, "texture_steps": 24, "preview": False},
    ),
    "generate, refined": Case(
        "generate",
        [("distill", 18), ("refine", 2)],
        {"steps": 18, "refine": True, "refine_steps": 4, "preview": False},
    ),
}


def run(case: Case, folder: Path, moments: list[Moment]) -> dict[str, str]:
    """Builds the case in ``folder``, interrupted at ``moments``; every start has a prior and scenes of its own. The
    hashes of all that was written."""
    mesh = Path(shutil.copy(VASE, folder.with_suffix(".obj"))) if case.recipe == "paint" else None
    kind = PaintOptions if case.recipe == "paint" else GenerateOptions
    values = kind(**case.settings).model_dump(mode="json", exclude_unset=True)
    file = InputFile(mesh) if mesh else None
    made = Job("one", case.recipe, "a red brick vase", "", 3, file, values, RowLocation("m.csv", 2))
    steps = {"paint": Paint, "generate": Generate}[case.recipe]()
    left, starts = list(moments), 0
    while True:
        if mesh:
            # What this process remembers of the mesh is of another file: its layout is read from the disk.
            os.utime(mesh, (starts, starts))
        interruption = _Interruption(left)
        (outcome,) = build.build(
            steps, [made], load_prior("embedded"), folder, fingerprints=["print"], lockstep=4,
            report_for=lambda _, seen=interruption: seen.report, stop=interruption.stop,
        )  # fmt: skip
        starts += 1
        if outcome.state != "interrupted":
            break
    record = read_record(folder / "one")
    assert outcome.state == "done" and record is not None, outcome.message
    assert left == [] and starts == len(moments) + 1
    assert not [text for text in record["warnings"] if "checkpoint" in text]
    return {name: output["sha256"] for name, output in record["outputs"].items()}


class _Interruption:
    """Asks for an end once the first of the moments has come."""

    def __init__(self, left: list[Moment]):
        self._left, self._asked, self._now = left, False, ("", 0)

    def report(self, stage: str, done: int, total: int) -> None:
        self._now = (stage, done)

    def stop(self) -> bool:
        if not self._asked and self._left and self._left[0] == self._now:
            self._left.pop(0)
            self._asked = True
        return self._asked


@pytest.mark.parametrize("name", CASES)
def test_interrupted_rows_end_in_the_bytes_of_undisturbed_ones(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    assert run(case, tmp_path / "parts", case.moments) == run(case, tmp_path / "whole", [])


SCENES: dict[str, tuple[str, dict[str, Any]]] = {
    "painted": ("paint", {}),
    "painted, learned background": ("paint", {"background": "learned"}),
    "patches": ("paint", {"distillation": "patches", "steps": 40}),
    "one patch at a time": ("paint", {"distillation": "patches", "steps": 40, "patch_views": 1}),
    "refined": ("paint", {"refine": True, "refine_steps": 6}),
    "field": ("generate", {}),
    "field, learned background": ("generate", {"background": "learned"}),
    "refined field": ("generate", {"refine": True, "refine_steps": 6}),
    "refined field, learned background": ("generate", {"refine": True, "refine_steps": 6, "background": "learned"}),
    "textured field": ("generate", {"texturing": "patches", "texture_steps": 20}),
}
SMALL_FIELD = {
    "views": 2, "view_size": 8, "texture_size": 64, "samples_step": 0.05, "grid_levels": 4, "grid_finest": 32,
    "grid_log2_table": 12, "occupancy_resolution": 16, "mesh_resolution": 32, "radius_min": 2.2, "radius_max": 2.5,
    "texturing": "views", "scene_radius": 0.8,
}  # fmt: skip


def last_phase(
    prior: Prior, mesh: Path, out: Path, recipe: str, settings: dict[str, Any], steps_made: int
) -> Optimization:
    """The row's last phase, at its beginning or where its checkpoint says; phases before it are gone through."""
    own = SMALL_FIELD if recipe == "generate" else {}
    kind = PaintOptions if recipe == "paint" else GenerateOptions
    values = kind(**{"steps": 6, **own, **settings}).model_dump(mode="json")
    steps = {"paint": Paint, "generate": Generate}[recipe]()
    file = InputFile(mesh) if recipe == "paint" else None
    made = Job("one", recipe, "a red brick cube", "", 0, file, values, RowLocation("m.csv", 2))
    work = build.start(steps, RowContext(made, "print", out / "one", no_report), prior, out, 2)
    (variant,) = work.variants
    while True:
        subject = variant.optimizations[-1]
        last = len(variant.optimizations) == len(work.phases)
        optimize([subject], prior, lockstep=2, stop=lambda s=subject, at_end=last: at_end and s.step >= steps_made)
        assert subject.error is None
        if last:
            return subject
        build.begin_next_phase(work, prior, 2)


def looks(subject: Optimization) -> dict[str, tuple[Any, ...]]:
    """What else than its values matters of each tensor of the state."""
    return {name: (t.dtype, t.device, tuple(t.shape), t.stride()) for name, t in subject.scene.state().items()}


@pytest.mark.parametrize("name", SCENES)
def test_a_checkpoint_restores_values_dtypes_and_layout(
    prior: Prior, cube: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.painting.multiview_sampling.CANDIDATES", 8)
    recipe, settings = SCENES[name]
    one = last_phase(prior, cube, tmp_path, recipe, settings, 0)
    at_first = looks(one)
    # While the colour is looked for, and when a group of views has begun, where there are some.
    for at in (1, 5):
        one = last_phase(prior, cube, tmp_path, recipe, settings, at)
        other = last_phase(prior, cube, tmp_path, recipe, settings, at)
        assert one.step == other.step == other.resumed_from == at and other.notes == []
        assert looks(one) == looks(other) == at_first
        for key, value in one.scene.state().items():
            assert torch.equal(value, other.scene.state()[key]), key
    through = last_phase(prior, cube, tmp_path / "whole", recipe, settings, 6)
    resumed = last_phase(prior, cube, tmp_path, recipe, settings, 6)
    assert resumed.resumed_from == 5 and through.resumed_from == 0 and looks(through) == at_first
    for key, value in through.scene.state().items():
        assert torch.equal(value, resumed.scene.state()[key]), key
