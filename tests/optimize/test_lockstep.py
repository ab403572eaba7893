"""Memory: the width that fits is measured; where it does not suffice, half as many scenes go at once, with the same
numbers and a record that says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from fake_cuda import fake_cuda
from fake_prior import make_prior
from test_optimize import VIEWS, Canvas, subject

from pipeline.core.errors import LatentkilnError
from pipeline.core.scene import Rendering
from pipeline.optimize import adaptive_batch, loop
from pipeline.optimize.adaptive_batch import OutOfMemory, fitting_batch_size, is_out_of_memory
from pipeline.optimize.loop import Optimization, optimize
from pipeline.optimize.sds import GuidanceRequest
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
        optimize([one], prior, lockstep=4)
    memory = SmallMemory(prior, 4, monkeypatch)
    monkeypatch.setattr(prior, "batch_invariance", {})
    group = [subject(prior, seed, steps=3) for seed in range(8)]
    assert optimize(group, prior, lockstep=8)
    assert all(s.error is None and s.step == 3 and s.batch_size == 4 for s in group)
    assert group[0].notes == ["out of memory at a lockstep of 8: from step 0 on 4 at a time"]
    assert memory.sizes.count(8) == 1
    for made, alone in zip(group, expected, strict=True):
        assert torch.equal(made.scene.state()["pixels"], alone.scene.state()["pixels"])


def test_what_fits_is_remembered(prior: Prior, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallMemory(prior, 2, monkeypatch)
    optimize([subject(prior, seed, steps=1) for seed in range(4)], prior, lockstep=4)
    again = load_prior(folder)
    memory = SmallMemory(again, 2, monkeypatch)
    group = [subject(again, seed, steps=2) for seed in range(4)]
    assert optimize(group, again, lockstep=4) and max(memory.sizes) == 2
    assert group[0].batch_size == 2 and group[0].notes == [
        "a lockstep of 4 did not fit this device before: 2 at a time"
    ]
    other = [subject(again, seed, steps=1) for seed in range(4)]
    for one in other:
        one.batch_shape = ("other views",)
    optimize(other, again, lockstep=4)
    assert max(memory.sizes) == 4


def test_nothing_fits(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallMemory(prior, 0, monkeypatch)
    group = [subject(prior, seed) for seed in range(2)]
    assert optimize(group, prior, lockstep=2)
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
    optimize([alone], prior, lockstep=2)
    good, greedy = subject(prior, 1, steps=4), subject(prior, 2, steps=4)
    greedy.scene = Greedy(2)
    greedy.__post_init__()
    assert optimize([good, greedy], prior, lockstep=2)
    assert good.step == greedy.step == 4 and greedy.error is None
    assert torch.allclose(good.scene.state()["pixels"], alone.scene.state()["pixels"], atol=1e-4)


def test_lack_of_memory_is_no_scenes_own_error(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SmallMemory(prior, 1, monkeypatch)
    monkeypatch.setattr(prior, "batch_invariance", {})
    group = [subject(prior, 1, steps=2), subject(prior, 2, steps=2, fail_at=1)]
    assert optimize(group, prior, lockstep=2)
    assert group[0].error is None and group[0].step == 2
    assert isinstance(group[1].error, RuntimeError) and group[1].step == 1
    assert memory.sizes[0] == 2 and set(memory.sizes[1:]) == {1}


def test_after_a_while_more_go_at_once_again(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive_batch, "GROW_AFTER", 2)
    monkeypatch.setattr(prior, "batch_invariance", {})
    memory = SmallMemory(prior, 1, monkeypatch)
    group = [subject(prior, seed, steps=7) for seed in range(2)]
    group[0].report = lambda stage, done, total: setattr(memory, "scenes", 1 if done < 3 else 2)
    assert optimize(group, prior, lockstep=2)
    assert [(s.error, s.step, s.batch_size) for s in group] == [(None, 7, 1)] * 2
    # The patience of 2 calls was multiplied when memory did not suffice: 8 calls are the steps of 4 rounds.
    assert group[0].notes == [
        "out of memory at a lockstep of 2: from step 0 on 1 at a time",
        "from step 4 on 2 at a time again",
    ]
    assert memory.sizes == [2, *[1] * 8, *[2] * 3]


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cudaMalloc(&rawptr, n_bytes) failed: out of memory"), True),
        (RuntimeError("cuMemCreate(&m_handles.back(), n, &prop, 0) failed: CUDA_ERROR_OUT_OF_MEMORY"), True),
        (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("Cuda error: 2[cudaMalloc(&m_gpuPtr, bytes);]"), True),
        (RuntimeError("Cuda error: 700[cudaLaunchKernel(func, grid, block, args, 0, stream);]"), False),
        (RuntimeError("Failed to allocate 1234 bytes on device 'cuda:0'"), True),
        (RuntimeError("this scene is broken"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_in_the_words_of_each_library(error: Exception, lacks: bool) -> None:
    assert is_out_of_memory(error) is lacks


def test_answers_that_are_not_numbers_fail_the_row(
    prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = prior.predict_noise

    def overflowing(noisy: torch.Tensor, t: torch.Tensor, text: TextEmbedding) -> torch.Tensor:
        out = predict(noisy, t, text)
        out[0] = torch.inf
        return out

    monkeypatch.setattr(prior, "predict_noise", overflowing)
    group = [subject(prior, seed, steps=3, path=tmp_path / f"{seed}.safetensors") for seed in range(2)]
    assert optimize(group, prior, lockstep=2)
    # The first row of the batch is the first scene's; the second one does not suffer.
    assert group[0].error is not None and "--precision bfloat16" in str(group[0].error)
    assert group[1].error is None and group[1].step == 3
    with pytest.raises(LatentkilnError):
        group[0].save()
    assert not (tmp_path / "0.safetensors").exists()


# Measuring ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Device:
    """The memory of a make-believe GPU: ``base`` for the model, ``each`` for a scene; a step over ``total`` fails."""

    total: int
    base: int
    each: int
    held: int = 0
    tried: list[int] = dataclasses.field(default_factory=list)

    def step(self, count: int) -> None:
        self.tried.append(count)
        self.held = self.base + count * self.each
        if self.held > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "mem_get_info": lambda device=None: (self.total - self.base, self.total),
            "memory_reserved": lambda device=None: self.base,
            "max_memory_allocated": lambda device=None: self.held,
            "reset_peak_memory_stats": lambda device=None: None,
            "synchronize": lambda device=None: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.fixture
def there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prior]:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with fake_cuda():
        yield load_prior(folder, "cuda")


GB = 1 << 30


@pytest.mark.parametrize(
    ("device", "expected", "tried"),
    [
        (Device(24 * GB, 4 * GB, GB), 16, [1, 2, 16]),  # 16.4 fit
        (Device(24 * GB, 4 * GB, 3 * GB), 4, [1, 2, 4]),
        (Device(80 * GB, 4 * GB, GB), 32, [1, 2, 32]),  # as many as are asked for
        (Device(8 * GB, 4 * GB, 3 * GB), 1, [1, 2]),
    ],
)
def test_the_width_is_extrapolated_tried_and_remembered(
    device: Device, expected: int, tried: list[int], there: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.install(monkeypatch)
    assert fitting_batch_size(there, 1, 64, step=device.step) == expected
    assert device.tried == tried
    assert fitting_batch_size(there, 1, 64, step=device.step) == expected and device.tried == tried
    # Other views are measured anew.
    fitting_batch_size(there, 1, 96, step=device.step)
    assert len(device.tried) == 2 * len(tried)


def test_an_estimate_that_is_too_large_is_halved(there: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(24 * GB, 4 * GB, GB)
    device.install(monkeypatch)

    def step(count: int) -> None:
        device.step(count)
        if count > 4:
            raise RuntimeError("cuDNN: out of memory for a workspace")

    assert fitting_batch_size(there, 1, 64, step=step) == 4 and device.tried == [1, 2, 16, 8, 4]
    device.total = 1
    with pytest.raises(OutOfMemory, match="--low-memory"):
        fitting_batch_size(there, 4, 64, step=device.step)


@pytest.mark.parametrize("refine", [False, True])
def test_what_is_measured_is_the_priors_part_of_a_step(
    refine: bool, there: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(24 * GB, 4 * GB, GB)
    device.install(monkeypatch)
    sizes, views = [], []
    predict, encode = there.predict_noise, there.encode
    monkeypatch.setattr(there, "predict_noise", lambda *a: (sizes.append(tuple(a[0].shape)), predict(*a))[1])
    monkeypatch.setattr(there, "encode", lambda rgb: (views.append(tuple(rgb.shape)), encode(rgb))[1])
    fitting_batch_size(there, 3, 8, refine=refine, largest=2)
    assert sizes == [(6, 4, 8, 8), (12, 4, 8, 8)]
    assert views == [(3, 3, 32, 32)] * (3 if refine else 0)


class Heavy(Canvas):
    """A scene on the device that takes ``device.scene`` bytes from its view to its step, and counts its views."""

    def __init__(self, seed: int, device: WholeDevice):
        super().__init__(seed)
        self.pixels = self.pixels.detach().to("cuda").requires_grad_(True)
        self.device, self.rendered = device, 0

    def render(self, step: int, steps: int) -> Rendering:
        self.rendered += 1
        self.device.views += 1
        self.device.take(self.device.scene)
        return Rendering(self.pixels * 1.0, VIEWS)

    def state(self) -> dict[str, torch.Tensor]:
        return {"pixels": self.pixels, "rendered": torch.tensor(self.rendered)}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        super().load_state(state)
        self.rendered = int(state["rendered"])


@dataclasses.dataclass
class WholeDevice(Device):
    """A make-believe GPU: a scene holds ``scene`` bytes until the UNet's answer is used, the UNet ``each`` a slot, and
    libraries beside torch ``others``."""

    scene: int = 0
    others: int = 0
    peak: int = 0
    views: int = 0

    def take(self, count: int) -> None:
        self.held += count
        self.peak = max(self.peak, self.held)
        if self.held + self.others > self.total - self.base:
            self.note_step()
            self.held = 0
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    def note_step(self) -> None:
        """Notes how many scenes gave a view for the step, or tried to."""
        self.tried += [self.views] * (self.views > 0)
        self.views = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().install(monkeypatch)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (self.free, self.total))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: self.base + self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: setattr(self, "peak", 0))

    @property
    def free(self) -> int:
        return self.total - self.base - self.others

    def drive(self, prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
        """Counts what each step of ``prior``'s scenes takes."""
        predict, gradients = prior.predict_noise, loop.sds_gradients

        def predicted(noisy: torch.Tensor, *more: object) -> torch.Tensor:
            self.take(len(noisy) // 4 * self.each)
            return predict(noisy, *more)  # type: ignore[arg-type]

        def stepped(prior: Prior, requests: list[GuidanceRequest], lockstep: int) -> list[torch.Tensor]:
            self.note_step()
            found = gradients(prior, requests, lockstep)
            self.held = 0  # the next thing that takes memory is the first view of the next step
            return found

        monkeypatch.setattr(prior, "predict_noise", predicted)
        monkeypatch.setattr(loop, "sds_gradients", stepped)


def heavy(prior: Prior, device: WholeDevice, count: int) -> list[Optimization]:
    group = [subject(prior, seed, steps=3) for seed in range(count)]
    for number, one in enumerate(group):
        one.scene = Heavy(number, device)
        one.__post_init__()
    return group


@pytest.mark.parametrize(
    ("device", "width"),
    [
        (WholeDevice(80 * GB, 4 * GB, GB, scene=0), 8),
        (WholeDevice(24 * GB, 4 * GB, GB, scene=2 * GB), 4),  # 5.5 fit; by the prior's part alone 8 would
        (WholeDevice(24 * GB, 4 * GB, GB, scene=2 * GB, others=5 * GB), 2),  # 3.8 fit
        (WholeDevice(24 * GB, 4 * GB, GB, scene=12 * GB), 1),
    ],
    ids=["all", "half", "others", "one"],
)
def test_the_scenes_own_memory_is_measured_before_their_first_step(
    device: WholeDevice, width: int, there: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.install(monkeypatch)
    device.drive(there, monkeypatch)
    monkeypatch.setattr(there, "batch_invariance", {})
    group = heavy(there, device, 8)
    assert optimize(group, there, lockstep=8)
    assert all(s.error is None and s.step == 3 and s.batch_size == width for s in group)
    note = f"a lockstep of 8 does not fit this device, as measured: {width} at a time"
    assert group[7].notes == ([] if width == 8 else [note])
    # Two steps of one scene and two of two, then the real ones, and never a lack of memory.
    rehearsed = [1, 1, 2] if width == 1 else [1, 1, 2, 2]
    assert device.tried == rehearsed + [width] * (3 * 8 // width)
    # Nothing of the rehearsal is left.
    assert all(s.scene.rendered == 3 for s in group)  # type: ignore[attr-defined]
    device.tried.clear()
    again = heavy(there, device, 8)
    assert optimize(again, there, lockstep=8) and set(device.tried) == {width}
    for one, two in zip(group, again, strict=True):
        assert torch.equal(one.scene.state()["pixels"].cpu(), two.scene.state()["pixels"].cpu())


def test_what_fits_beyond_a_lockstep_is_known_to_a_wider_one(there: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    device = WholeDevice(24 * GB, 4 * GB, GB, scene=2 * GB)
    device.install(monkeypatch)
    device.drive(there, monkeypatch)
    for lockstep, tried in ((2, {1, 2}), (3, {3}), (8, {4})):
        device.tried.clear()
        assert optimize(heavy(there, device, lockstep), there, lockstep=lockstep)
        assert set(device.tried) == tried


@pytest.mark.parametrize(("grown", "width"), [(0, 16), (GB // 2, 8), (12 * GB, 8)])
def test_what_other_libraries_take_for_a_scene_is_counted_but_not_other_processes(
    grown: int, width: int, there: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(24 * GB, 4 * GB, GB)
    device.install(monkeypatch)
    taken = iter([0, grown])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (20 * GB - next(taken, 0), 24 * GB))
    assert fitting_batch_size(there, 1, 64, step=device.step) == width


def test_a_rehearsal_leaves_no_trace(prior: Prior) -> None:
    one, same = subject(prior, 1, steps=4), subject(prior, 1, steps=4)
    for each in (one, same):
        optimize([each], prior, lockstep=1, stop=iter([False, False, True]).__next__)
    heard: list[int] = []
    one.report = lambda stage, done, total: heard.append(done)
    seconds = dict(one.seconds)
    with pytest.raises(torch.OutOfMemoryError), one.dry_run():
        optimize([one], prior, lockstep=1, stop=iter([False, True]).__next__)
        assert one.step == 3
        raise torch.OutOfMemoryError("in the middle")
    assert (one.step, one.seconds, heard) == (2, seconds, [])
    for each in (one, same):
        optimize([each], prior, lockstep=1)
    assert heard == [3, 4] and torch.equal(one.scene.state()["pixels"], same.scene.state()["pixels"])


def test_what_adam_could_not_finish_is_begun_again(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    one, alone = subject(prior, 1, steps=2), subject(prior, 1, steps=2)
    step, failures = torch.optim.Adam.step, [1]

    def lacking(adam: torch.optim.Adam) -> None:
        if failures:
            failures.pop()
            adam.state[one.scene.state()["pixels"]] = {"step": torch.tensor(0.0)}
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        step(adam)

    monkeypatch.setattr(torch.optim.Adam, "step", lacking)
    assert optimize([one], prior, lockstep=2) and one.error is None
    optimize([alone], prior, lockstep=1)
    assert torch.allclose(one.scene.state()["pixels"], alone.scene.state()["pixels"], atol=1e-5)


def test_without_cuda_there_is_nothing_to_measure(prior: Prior) -> None:
    assert fitting_batch_size(prior, 1, 8) == 4 and fitting_batch_size(prior, 1, 8, largest=2) == 2
