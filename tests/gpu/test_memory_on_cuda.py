"""Real lack of memory: the allocator is given a limit that four scenes keep and eight do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_prior import make_prior
from test_optimize import VIEWS, Canvas, subject

from pipeline.core.scene import Rendering
from pipeline.optimize.loop import Optimization, optimize
from pipeline.prior.load import Prior, load_prior
from pipeline.prior.options import PriorOptions

pytestmark = pytest.mark.gpu
NUMBERS = 16 << 20  # 64 MB that a scene keeps from its view to its step
LIMIT = 7  # such blocks that fit


class Large(Canvas):
    """A scene on the device whose further loss keeps a block until its gradient is taken."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.pixels = self.pixels.detach().cuda().requires_grad_(True)

    def render(self, step: int, steps: int) -> Rendering:
        block = self.pixels.new_zeros(NUMBERS)
        return Rendering(self.pixels * 1.0, VIEWS, extra_loss=(block * self.pixels.sum()).sum())


def group(prior: Prior, count: int) -> list[Optimization]:
    """``count`` large scenes of two steps."""
    made = [subject(prior, seed, steps=2) for seed in range(count)]
    for seed, one in enumerate(made):
        one.scene = Large(seed)
        one.__post_init__()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.mark.parametrize("graphs", [False, True])
def test_eight_that_do_not_fit_go_on_as_four(graphs: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prior.precision.can_compile", lambda: False)
    prior = load_prior(folder, "cuda", PriorOptions(compile=graphs))
    # Libraries take their workspaces before the limit is set.
    optimize(group(prior, 1), prior, lockstep=8)
    scenes = group(prior, 8)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(prior.device).total_memory
    limit = torch.cuda.memory_reserved(prior.device) + LIMIT * 4 * NUMBERS
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        assert optimize(scenes, prior, lockstep=8)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert {(s.error, s.step, s.batch_size) for s in scenes} == {(None, 2, 4)}
    assert scenes[0].notes == ["out of memory at a lockstep of 8: from step 0 on 4 at a time"]
