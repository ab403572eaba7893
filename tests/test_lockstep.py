"""Memory that does not suffice: half as many scenes at once, the same numbers, and a record that says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_prior import make_prior
from test_distill import Canvas, subject

from pipeline.distill.loop import distill
from pipeline.distill.width import OutOfMemory
from pipeline.prior.cache import CACHE_VARIABLE
from pipeline.prior.load import Prior, TextEmbedding, load_prior


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def prior(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prior]:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    yield load_prior(folder)


class SmallMemory:
    """A UNet that takes at most ``scenes`` scenes of two views (each with its two prompts)."""

    def __init__(self, prior: Prior, scenes: int, monkeypatch: pytest.MonkeyPatch):
        self.scenes, self.sizes = scenes, []  # type: ignore[var-annotated]
        self._predict = prior.predict_noise
        monkeypatch.setattr(prior, "predict_noise", self)

    def __call__(self, noisy: torch.Tensor, t: torch.Tensor, text: TextEmbedding) -> torch.Tensor:
        self.sizes.append(len(noisy) // 4)
        if self.sizes[-1] > self.scenes:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return self._predict(noisy, t, text)


def test_eight_that_do_not_fit_go_on_as_four(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [subject(prior, seed, steps=3) for seed in range(8)]
    for one in expected:
        distill([one], prior, lockstep=4)
    memory = SmallMemory(prior, 4, monkeypatch)
    monkeypatch.setattr(prior, "batch_invariance", {})
    group = [subject(prior, seed, steps=3) for seed in range(8)]
    assert distill(group, prior, lockstep=8)
    assert all(s.error is None and s.step == 3 and s.width == 4 for s in group)
    assert group[0].notes == ["out of memory at a lockstep of 8: from step 0 on 4 went at once"]
    assert memory.sizes.count(8) == 1
    for made, alone in zip(group, expected, strict=True):
        assert torch.equal(made.scene.state()["pixels"], alone.scene.state()["pixels"])


def test_what_fits_is_remembered(prior: Prior, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallMemory(prior, 2, monkeypatch)
    distill([subject(prior, seed, steps=1) for seed in range(4)], prior, lockstep=4)
    again = load_prior(folder)
    memory = SmallMemory(again, 2, monkeypatch)
    group = [subject(again, seed, steps=2) for seed in range(4)]
    assert distill(group, again, lockstep=4) and max(memory.sizes) == 2
    assert group[0].width == 2 and group[0].notes == ["a lockstep of 4 did not fit this device before: 2 go at once"]
    other = [subject(again, seed, steps=1) for seed in range(4)]
    for one in other:
        one.batch = ("other views",)
    distill(other, again, lockstep=4)
    assert max(memory.sizes) == 4


def test_nothing_fits(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallMemory(prior, 0, monkeypatch)
    group = [subject(prior, seed) for seed in range(2)]
    assert distill(group, prior, lockstep=2)
    assert all(isinstance(s.error, OutOfMemory) and "--low-memory" in s.error.message for s in group)


class Greedy(Canvas):
    """A scene that runs out of memory once, half way through a round."""

    def render(self, step: int, steps: int):  # type: ignore[no-untyped-def]
        if step == 1 and self.fail_at == -1:
            self.fail_at = -2
            raise torch.OutOfMemoryError("while rendering")
        return super().render(step, steps)


def test_scenes_that_had_their_step_are_not_stepped_twice(prior: Prior) -> None:
    alone = subject(prior, 1, steps=4)
    distill([alone], prior, lockstep=2)
    good, greedy = subject(prior, 1, steps=4), subject(prior, 2, steps=4)
    greedy.scene = Greedy(2)
    greedy.__post_init__()
    assert distill([good, greedy], prior, lockstep=2)
    assert good.step == greedy.step == 4 and greedy.error is None
    assert torch.allclose(good.scene.state()["pixels"], alone.scene.state()["pixels"], atol=1e-4)


def test_lack_of_memory_is_no_scenes_own_error(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SmallMemory(prior, 1, monkeypatch)
    monkeypatch.setattr(prior, "batch_invariance", {})
    group = [subject(prior, 1, steps=2), subject(prior, 2, steps=2, fail_at=1)]
    assert distill(group, prior, lockstep=2)
    assert group[0].error is None and group[0].step == 2
    assert isinstance(group[1].error, RuntimeError) and group[1].step == 1
    assert memory.sizes[0] == 2 and set(memory.sizes[1:]) == {1}
