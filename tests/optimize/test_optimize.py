"""The loop: the SDS gradient, lockstep, checkpoints, and prompts per view."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fake_prior import make_prior

from pipeline.core.rng import torch_generator
from pipeline.core.scene import Rendering, View
from pipeline.optimize.loop import Optimization, optimize
from pipeline.optimize.prompts import PromptTable, view_prompt
from pipeline.optimize.sds import GuidanceRequest, SdsSettings, sample_noise, sds_gradients, sds_loss, timestep
from pipeline.prior.load import Prior, TextEmbedding, load_prior

VIEWS = [View("front", False), View("side", True)]


class Canvas:
    """The simplest scene: the latents of two views are its parameters."""

    def __init__(self, seed: int, fail_at: int = -1):
        self.pixels = torch.randn(2, 4, 8, 8, generator=torch_generator(seed, "canvas")).requires_grad_(True)
        self.fail_at = fail_at

    def parameters(self) -> list[dict[str, object]]:
        return [{"params": [self.pixels], "lr": 0.05}]

    def render(self, step: int, steps: int) -> Rendering:
        if step == self.fail_at:
            raise RuntimeError("this scene is broken")
        shift = torch.randn(1, generator=torch_generator(0, "shift", step))
        return Rendering(self.pixels + 0.1 * shift, VIEWS)

    def state(self) -> Mapping[str, torch.Tensor]:
        return {"pixels": self.pixels}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.pixels.copy_(state["pixels"])


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(make_prior(tmp_path_factory.mktemp("priors") / "tiny"))


def subject(prior: Prior, seed: int, *, steps: int = 6, path: Path | None = None, fail_at: int = -1) -> Optimization:
    prompts = PromptTable(prior, "a red brick cube", "", view_words=True, close_up=True)
    return Optimization(
        Canvas(seed, fail_at), prompts, SdsSettings(5.0), seed, steps, checkpoint=path, key=f"job {seed}"
    )


def query(prior: Prior, seed: int, scale: float = 5.0, negative: str = "") -> GuidanceRequest:
    latents = torch.randn(2, 4, 8, 8, generator=torch_generator(seed, "z"))
    t, eps = sample_noise(SdsSettings(scale), prior, seed, 0, 10, tuple(latents.shape))
    return GuidanceRequest(
        latents, prior.embed(["a red cube", "a blue cube"]), prior.embed([negative] * 2), t, eps, scale
    )


@pytest.mark.parametrize("negative", ["", "blue"])
def test_gradient_is_the_papers(prior: Prior, negative: str) -> None:
    q = query(prior, 3, 7.5, negative)
    (mine,) = sds_gradients(prior, [q], 1)
    for i in range(2):
        abar = prior.alphas_cumprod[q.t[i]]
        x = abar.sqrt() * q.latents[i] + (1 - abar).sqrt() * q.eps[i]
        with torch.no_grad():
            states = torch.stack([q.negative.states[i], q.text.states[i]])
            out = prior.unet(x.expand(2, -1, -1, -1), q.t[i].expand(2), encoder_hidden_states=states).sample
        guided = out[0] + 7.5 * (out[1] - out[0])
        assert torch.allclose(mine[i], abar.sqrt() * (1 - abar) * (guided - q.eps[i]), atol=1e-5)


def test_loss_has_exactly_that_gradient() -> None:
    z = torch.randn(3, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(z)
    sds_loss(z, g).backward()
    assert z.grad is not None and torch.allclose(z.grad, g / 3)


def test_neighbours_and_slots_change_no_byte(prior: Prior) -> None:
    mine, other, third = query(prior, 1), query(prior, 2, 50.0), query(prior, 3, 1.0)
    alone = sds_gradients(prior, [mine], 3)[0]
    crowded = sds_gradients(prior, [mine, other, third], 3)[0]
    moved = sds_gradients(prior, [third, other, mine], 3)[2]
    assert torch.equal(alone, crowded) and torch.equal(alone, moved)


def test_views_of_other_size_and_number_have_a_call_of_their_own(prior: Prior) -> None:
    """Scenes that were resumed at another step may be in a phase of larger views than their neighbours."""
    small, large = query(prior, 1), query(prior, 2)
    large.latents, large.eps = (torch.cat([x, x], dim=3) for x in (large.latents, large.eps))
    both = sds_gradients(prior, [large, small], 2)
    assert torch.equal(both[1], sds_gradients(prior, [small], 2)[0])
    assert torch.equal(both[0], sds_gradients(prior, [large], 2)[0]) and both[0].shape[3] == 2 * both[1].shape[3]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_lockstep_width_changes_no_number(prior: Prior, width: int) -> None:
    q = query(prior, 1)
    assert torch.allclose(sds_gradients(prior, [q], 1)[0], sds_gradients(prior, [q], width)[0], atol=1e-5)


def test_the_batch_shrinks_only_where_that_changes_no_bit(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def steady(x: torch.Tensor, t: torch.Tensor, text: TextEmbedding) -> torch.Tensor:
        sizes.append(len(x))
        return x * text.states.mean(dim=(1, 2)).view(-1, 1, 1, 1)

    def drifting(x: torch.Tensor, t: torch.Tensor, text: TextEmbedding) -> torch.Tensor:
        return steady(x, t, text) * (1 + 1e-3 * len(x))

    for predict, slots in ((steady, 1), (drifting, 8)):
        monkeypatch.setattr(prior, "predict_noise", predict)
        monkeypatch.setattr(prior, "batch_invariance", {})
        sds_gradients(prior, [query(prior, 1)], 8)
        sizes.clear()
        sds_gradients(prior, [query(prior, 1)], 8)
        assert sizes == [2 * 2 * slots]


def test_draws_are_keyed_and_in_range(prior: Prior) -> None:
    settings = SdsSettings(1.0, t_min=0.1, t_max=0.9)
    shape = (512, 4, 2, 2)
    early, noise = sample_noise(settings, prior, 7, 0, 100, shape)
    again, same = sample_noise(settings, prior, 7, 0, 100, shape)
    late, _ = sample_noise(settings, prior, 7, 99, 100, shape)
    assert torch.equal(early, again) and torch.equal(noise, same)
    assert early.min() >= 100 and 850 < early.max() < 900
    assert late.min() >= 100 and 470 < late.max() <= 500
    assert not torch.equal(sample_noise(settings, prior, 8, 0, 100, shape)[1], noise)
    flat, _ = sample_noise(SdsSettings(1.0, 0.1, 0.9, timesteps="uniform"), prior, 7, 99, 100, shape)
    assert flat.max() > 850


def test_scenes_in_lockstep_end_as_they_do_alone(prior: Prior) -> None:
    together = [subject(prior, 1), subject(prior, 2, steps=3), subject(prior, 3)]
    assert optimize(together, prior, lockstep=4)
    for made, steps in zip(together, (6, 3, 6), strict=True):
        alone = subject(prior, made.seed, steps=steps)
        optimize([alone], prior, lockstep=4)
        assert torch.equal(made.scene.state()["pixels"], alone.scene.state()["pixels"])


def test_a_broken_scene_stops_no_other(prior: Prior) -> None:
    good, broken = subject(prior, 1), subject(prior, 2, fail_at=3)
    assert optimize([broken, good], prior, lockstep=2)
    assert isinstance(broken.error, RuntimeError) and broken.step == 3
    assert good.error is None and good.step == 6


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_resuming_gives_the_same_bytes(prior: Prior, tmp_path: Path, stop_at: int) -> None:
    whole = subject(prior, 1)
    optimize([whole], prior, lockstep=1)
    path = tmp_path / "checkpoint.safetensors"
    first = subject(prior, 1, path=path)
    assert not optimize([first], prior, lockstep=1, stop=lambda: first.step >= stop_at)
    second = subject(prior, 1, path=path)
    assert optimize([second], prior, lockstep=1)
    assert second.resumed_from == stop_at
    assert torch.equal(second.scene.state()["pixels"], whole.scene.state()["pixels"])


def test_checkpoints_come_by_the_clock_and_leave_no_litter(prior: Prior, tmp_path: Path) -> None:
    path = tmp_path / "work" / "checkpoint.safetensors"
    one = subject(prior, 1, path=path)
    optimize([one], prior, lockstep=1, checkpoint_seconds=0)
    again = subject(prior, 1, path=path)
    again.resume()
    assert again.step == again.resumed_from == 6 and torch.equal(again.scene.pixels, one.scene.pixels)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_too_many_scenes_are_refused(prior: Prior) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        optimize([subject(prior, 1), subject(prior, 2)], prior, lockstep=1)
    with pytest.raises(ValueError, match="do not fit"):
        sds_gradients(prior, [query(prior, 1)] * 2, 1)


@pytest.mark.parametrize(
    ("view", "words", "close", "expected"),
    [
        (View("front", False), True, True, "a cube, front view"),
        (View("overhead", False), True, True, "a cube, overhead view"),
        (View("front", False), False, True, "a cube"),
        (View("side", True), True, True, "a cube, close up"),
        (View("side", True), True, False, "a cube"),
    ],
)
def test_prompts_name_the_view(view: View, words: bool, close: bool, expected: str) -> None:
    assert view_prompt("a cube", view, view_words=words, close_up=close) == expected


def test_prompt_table_gives_one_row_per_view(prior: Prior) -> None:
    table = PromptTable(prior, "a red cube", "blue", view_words=True, close_up=True)
    text = table.text(VIEWS)
    assert torch.equal(text.states[0], prior.embed(["a red cube, front view"]).states[0])
    assert torch.equal(text.states[1], prior.embed(["a red cube, close up"]).states[0])
    negative = table.negative(2)
    assert isinstance(negative, TextEmbedding) and torch.equal(negative.states[1], prior.embed(["blue"]).states[0])


def test_close_ups_ask_a_prior_for_its_word_for_surfaces(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior, "surface_prompt", lambda prompt: prompt.replace("cube", "surface"))
    table = PromptTable(prior, "a red cube", "", view_words=True, close_up=True)
    whole, close = table.text([View("side", False), View("side", True)]).states
    assert torch.equal(whole, prior.embed(["a red cube, side view"]).states[0])
    assert torch.equal(close, prior.embed(["a red surface, close up"]).states[0])
    plain = PromptTable(prior, "a red cube", "", view_words=True, close_up=False)
    assert torch.equal(plain.text([View("side", True)]).states[0], prior.embed(["a red cube"]).states[0])


def test_descending_timesteps_go_down_in_a_band(prior: Prior) -> None:
    settings = SdsSettings(1.0, 0.1, 0.9, timesteps="descending")
    for step, low, high in ((0, 740, 900), (50, 420, 580), (99, 100, 260)):
        t, _ = sample_noise(settings, prior, 7, step, 100, (512, 4, 2, 2))
        assert low - 5 <= t.min() < low + 20 and high - 20 < t.max() <= high + 5


class Sampled(Canvas):
    """A flow scene that is nothing but its latents: what the loop makes of it is DDIM sampling."""

    TIMES = (0.9, 0.6, 0.3)

    def render(self, step: int, steps: int) -> Rendering:
        after = self.TIMES[step + 1] if step + 1 < len(self.TIMES) else None
        noise = torch.full((2, 4, 8, 8), 0.5)
        return Rendering(self.pixels.detach(), VIEWS, noise=noise, time=self.TIMES[step], next_time=after, guidance=0.5)

    def follow(self, rendering: Rendering, residual: torch.Tensor, share: torch.Tensor) -> None:
        with torch.no_grad():
            self.pixels -= share * residual


def test_following_the_flow_is_ddim_sampling(prior: Prior) -> None:
    made = subject(prior, 3, steps=3)
    made.scene = Sampled(3)
    start = made.scene.pixels.detach().clone()
    assert optimize([made], prior, lockstep=1)
    assert made.error is None
    times = [int(share * prior.train_steps) for share in Sampled.TIMES]
    abar = prior.alphas_cumprod[times[0]]
    x = abar.sqrt() * start + (1 - abar).sqrt() * 0.5
    text, negative = made.prompts.text(VIEWS), made.prompts.negative(len(VIEWS))
    for i, t in enumerate(times):
        both = [prior.predict_noise(x, torch.full((2,), t), part) for part in (negative, text)]
        guided = both[0] + 2.5 * (both[1] - both[0])
        after = prior.alphas_cumprod[times[i + 1]] if i + 1 < len(times) else torch.ones(())
        now = prior.alphas_cumprod[t]
        clean = (x - (1 - now).sqrt() * guided) / now.sqrt()
        x = after.sqrt() * clean + (1 - after).sqrt() * guided
    torch.testing.assert_close(made.scene.pixels.detach(), x, atol=1e-4, rtol=1e-4)


def test_a_scene_may_decide_the_timestep(prior: Prior) -> None:
    settings = SdsSettings(1.0, 0.1, 0.9)
    t, eps = sample_noise(settings, prior, 7, 0, 10, (4, 4, 2, 2), time=0.5)
    free, same = sample_noise(settings, prior, 7, 0, 10, (4, 4, 2, 2))
    assert t.unique().tolist() == [timestep(0.5, prior.train_steps)] and len(free.unique()) > 1
    assert torch.equal(eps, same)
    assert (timestep(0.0, 1000), timestep(0.5, 1000), timestep(1.0, 1000)) == (0, 500, 999)
