"""The one optimisation loop: K scenes in lockstep on one prior.

Painting a mesh, growing a radiance field and refining either are this loop over a ``Scene``. Each scene has its own
seed, step counter, optimiser and checkpoint. The scenes share one UNet call of a fixed batch per step.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.core.errors import LatentkilnError
from pipeline.core.job import Reporter, no_report
from pipeline.core.scene import FlowScene, Rendering, Scene
from pipeline.optimize import checkpoint
from pipeline.optimize.adaptive_batch import AdaptiveBatchSize, is_out_of_memory
from pipeline.optimize.checkpoint import CheckpointError, TensorSpec
from pipeline.optimize.prompts import PromptTable
from pipeline.optimize.sds import GuidanceRequest, SdsSettings, sample_noise, sds_gradients, sds_loss, timestep
from pipeline.prior.load import Prior

_T = TypeVar("_T")
_BETAS = (0.9, 0.99)
_EPS = 1e-15
# Adam's state of a parameter: the number of steps and two means.
_ADAM_ENTRIES = 3
# Steps between two checks that the prior's gradients are finite.
_CHECK_INTERVAL = 64


@dataclass
class Optimization:
    """One scene in the loop, with its guidance and the path of its checkpoint.

    ``key`` identifies job, prior, recipe version and lockstep: a checkpoint with another key is not resumed. ``error``
    is set when the scene fails; the loop continues without the scene.
    """

    scene: Scene
    prompts: PromptTable
    sds: SdsSettings
    seed: int
    steps: int
    checkpoint: Path | None = None
    key: str = ""
    report: Reporter = no_report
    # RNG stream of timesteps and noise: two phases of one job must not draw the same numbers.
    stream: str = "sds"
    step: int = 0
    resumed_from: int = 0
    error: Exception | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"prior": 0.0, "scene": 0.0})
    # Decides, with the prior, how much memory a step takes; equal for all scenes of a batch.
    batch_shape: tuple[object, ...] = ()
    # The smallest batch of a step; 0 before the first step. ``notes`` explain a batch smaller than the lockstep.
    batch_size: int = 0
    # Warnings for the record.
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Read every ``_CHECK_INTERVAL`` steps only: reading it waits for the device.
        self._finite: torch.Tensor | None = None
        # The fused step updates all texels in one pass, several times faster on the CPU.
        self._adam = torch.optim.Adam(self.scene.parameters(), betas=_BETAS, eps=_EPS, fused=True)
        self._lr = [float(group["lr"]) for group in self._adam.param_groups]

    @property
    def parameter_bytes(self) -> int:
        """Size of the optimised parameters."""
        return sum(p.numel() * p.element_size() for p in self._parameters)

    @property
    def _parameters(self) -> list[torch.Tensor]:
        """The parameters in the order in which the optimiser numbers them."""
        return [parameter for group in self._adam.param_groups for parameter in group["params"]]

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or the scene failed."""
        return self.error is not None or self.step >= self.steps

    def anneal_rate(self) -> None:
        """Lower the learning rates linearly to a tenth over the run: SDS does not converge by itself."""
        progress = self.step / max(self.steps, 1)
        for group, rate in zip(self._adam.param_groups, self._lr, strict=True):
            group["lr"] = rate * (1 - 0.9 * progress)

    def update(self, rendering: Rendering, gradient: torch.Tensor, t: torch.Tensor, alphas: torch.Tensor) -> None:
        """One Adam step along the SDS gradient (and the scene's own losses), or a step of the flow.

        t: (V,) timesteps of the gradient; alphas: (T,) the prior's abar.
        """
        finite = gradient.isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        if isinstance(self.scene, FlowScene):
            self._follow_flow(self.scene, rendering, gradient, t, alphas)
        else:
            self._descend(rendering, gradient)
        self.step += 1
        if self.step % _CHECK_INTERVAL == 0 or self.step >= self.steps:
            self._check_finite()

    def _descend(self, rendering: Rendering, gradient: torch.Tensor) -> None:
        loss = sds_loss(rendering.latents, gradient)
        if rendering.extra_loss is not None:
            loss = loss + rendering.extra_loss
        self._adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.anneal_rate()
        try:
            self._adam.step()
        except RuntimeError:
            # Adam creates its state tensors one by one at the first step. A state that lack of memory left incomplete
            # must not be used at the next try.
            for parameter in [p for p, state in self._adam.state.items() if len(state) < _ADAM_ENTRIES]:
                del self._adam.state[parameter]
            raise

    def _check_finite(self) -> None:
        """Raises LatentkilnError where one of the prior's gradients was not finite."""
        if self._finite is not None and not bool(self._finite):
            raise LatentkilnError(
                f"the prior's output is not finite (before step {self.step}); float16 overflows with some "
                "models: try --precision bfloat16 or float32",
                stage="distill",
            )

    def _follow_flow(
        self, scene: FlowScene, rendering: Rendering, gradient: torch.Tensor, t: torch.Tensor, alphas: torch.Tensor
    ) -> None:
        abar = alphas[t]
        # grad = sqrt(abar) (1 - abar) (eps_hat - eps), and z - z_hat = sqrt((1 - abar) / abar) (eps_hat - eps).
        residual = gradient / (abar * (1 - abar).sqrt()).view(-1, 1, 1, 1)
        # With level = sqrt((1 - abar) / abar), DDIM changes x / sqrt(abar) by eps_hat times the change of level, and
        # the noise in it by eps times that. So z changes by (eps_hat - eps) times the change of level, which is the
        # share 1 - level' / level of z - z_hat.
        share = torch.ones((), device=abar.device)
        if rendering.next_time is not None:
            after = alphas[timestep(rendering.next_time, len(alphas))]
            share = 1 - ((1 - after) / after * abar[0] / (1 - abar[0])).sqrt()
        scene.follow(rendering, residual.to(rendering.latents.device), share.to(rendering.latents.device))

    def save(self) -> None:
        """Write the checkpoint, where ``checkpoint`` is set. Raises LatentkilnError for values that are not finite."""
        self._check_finite()
        if self.checkpoint is None:
            return
        checkpoint.save(self.checkpoint, self._tensors(), key=self.key, step=self.step)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one. ``notes`` give the reason why an unusable one was dropped."""
        if self.checkpoint is None:
            return
        required, optional = self._specs()
        try:
            stored = checkpoint.load(
                self.checkpoint, key=self.key, steps=self.steps, required=required, optional=optional
            )
            if stored is None:
                return
            try:
                self._load_tensors(*stored)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
        except CheckpointError as error:
            name = "/".join(self.checkpoint.parts[-3:])
            self.notes.append(f"the checkpoint {name} was dropped: {error.message}; its steps start again")
            if error.damaged:
                checkpoint.discard(self.checkpoint)
            return
        self.resumed_from = self.step

    def _specs(self) -> tuple[dict[str, TensorSpec], list[dict[str, TensorSpec]]]:
        """Required tensors of a checkpoint, and optional ones: Adam's state of each parameter that had a gradient."""
        required = {f"scene.{name}": TensorSpec.of(value) for name, value in self.scene.state().items()}
        number = TensorSpec((), torch.float32)
        optional = [
            {f"adam.{index}.step": number}
            | {f"adam.{index}.{name}": TensorSpec.of(parameter) for name in ("exp_avg", "exp_avg_sq")}
            for index, parameter in enumerate(self._parameters)
        ]
        return required, optional

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All tensors that change from step to step, by name."""
        tensors = {f"scene.{name}": value for name, value in self.scene.state().items()}
        for index, state in self._adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        return tensors

    def _load_tensors(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Restore what ``_tensors`` returned at ``step``. Raises ValueError, before any change, for unfit tensors."""
        prefix = "scene."
        self.scene.load_state({n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)})
        optimiser = self._adam.state_dict() | {"state": {}}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, entry = name.split(".")
                if entry != "step":
                    # In the parameter's memory layout, as Adam creates it.
                    tensor = torch.empty_like(self._parameters[int(index)]).copy_(tensor)
                optimiser["state"].setdefault(int(index), {})[entry] = tensor
        self._adam.load_state_dict(optimiser)
        self.step = step

    @contextlib.contextmanager
    def dry_run(self) -> Iterator[None]:
        """Undo all steps of this block at its end, errors included; nothing is reported."""
        tensors = {name: value.detach().cpu().clone() for name, value in self._tensors().items()}
        step, report, finite, seconds = self.step, self.report, self._finite, dict(self.seconds)
        self.report = no_report
        try:
            yield
        finally:
            self._load_tensors(tensors, step)
            self.report, self._finite, self.seconds, self.error = report, finite, seconds, None


def optimize(
    optimizations: list[Optimization],
    prior: Prior,
    *,
    lockstep: int,
    checkpoint_seconds: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Optimise up to ``lockstep`` scenes to their last step. Returns False if ``stop`` ended it early, else True.

    A scene that raises keeps its ``error``; the other scenes continue. After a stop every scene has a checkpoint. All
    scenes must render the same number of views at the same size. If they do not fit into the device's memory together,
    they take turns in batches of half the size.
    """
    if len(optimizations) > lockstep:
        raise ValueError(f"{len(optimizations)} scenes do not fit a lockstep of {lockstep}")
    for optimization in optimizations:
        _guard(optimization, optimization.resume)
    batch_size = AdaptiveBatchSize(prior, lockstep, _memory_key(optimizations))
    waiting = [optimization for optimization in optimizations if not optimization.finished]
    if batch_size.probe(lambda count: _dry_run(waiting[:count], prior), len(waiting)):
        for optimization in optimizations:
            optimization.notes.append(
                f"a lockstep of {lockstep} does not fit this device, as measured: {batch_size.current} at a time"
            )
    elif batch_size.current < lockstep:
        for optimization in optimizations:
            optimization.notes.append(
                f"a lockstep of {lockstep} did not fit this device before: {batch_size.current} at a time"
            )
    saved = time.monotonic()
    while not all(optimization.finished for optimization in optimizations):
        if stop():
            _save_all(optimizations)
            return False
        _step_all(optimizations, prior, batch_size, lockstep)
        if time.monotonic() - saved >= checkpoint_seconds:
            _save_all(optimizations)
            saved = time.monotonic()
    return True


def _memory_key(optimizations: list[Optimization]) -> tuple[object, ...]:
    """What determines the memory of ``optimizations``: the shape of their batch, and the size of the largest one,
    rounded to a power of two."""
    if not optimizations:
        return ()
    return *optimizations[0].batch_shape, max(
        optimization.parameter_bytes for optimization in optimizations
    ).bit_length()


def _dry_run(optimizations: list[Optimization], prior: Prior) -> None:
    """Do two steps of ``optimizations`` together and undo them, to measure their memory. Adam allocates its state in
    the first step, so the second one shows the peak."""
    with contextlib.ExitStack() as stack:
        for optimization in optimizations:
            stack.enter_context(optimization.dry_run())
        for _ in range(min(2, *(optimization.steps - optimization.step for optimization in optimizations))):
            _step(
                [optimization for optimization in optimizations if optimization.error is None],
                prior,
                len(optimizations),
            )


def _step_all(optimizations: list[Optimization], prior: Prior, batch_size: AdaptiveBatchSize, lockstep: int) -> None:
    """One step of every unfinished scene, in batches that fit the memory."""
    waiting = [(optimization, optimization.step) for optimization in optimizations if not optimization.finished]
    while waiting:
        together = [optimization for optimization, _ in waiting[: batch_size.current]]
        fits = _step_fits(together, prior, batch_size.current)
        for optimization in together:
            optimization.batch_size = min(optimization.batch_size or batch_size.current, batch_size.current)
        # Scenes whose step was done before memory ran out for another one must not be stepped twice.
        waiting = [(s, step) for s, step in waiting if s.error is None and s.step == step]
        if fits:
            if batch_size.grow():
                for optimization in optimizations:
                    optimization.notes.append(f"from step {optimization.step} on {batch_size.current} at a time again")
            continue
        try:
            batch_size.halve()
        except LatentkilnError as error:
            waiting[0][0].error = error
            waiting.pop(0)
            continue
        for optimization in optimizations:
            optimization.notes.append(
                f"out of memory at a lockstep of {lockstep}: from step {optimization.step} on {batch_size.current} "
                "at a time"
            )


def _step_fits(optimizations: list[Optimization], prior: Prior, slots: int) -> bool:
    """Do one step of ``optimizations`` together. Returns False if memory ran out; some may have been stepped."""
    try:
        _step(optimizations, prior, slots)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # Returning drops the traceback, which holds the tensors of the failed step.
        return False
    return True


def _step(optimizations: list[Optimization], prior: Prior, lockstep: int) -> None:
    start = time.perf_counter()
    requests: list[tuple[Optimization, Rendering, GuidanceRequest]] = []
    for optimization in optimizations:
        rendered_request = _guard(optimization, lambda s=optimization: _render_and_request(s, prior))  # type: ignore[misc]
        if rendered_request is not None:
            requests.append((optimization, *rendered_request))
    if not requests:
        return
    rendered = time.perf_counter()
    gradients = sds_gradients(prior, [request for _, _, request in requests], lockstep)
    guided = time.perf_counter()
    for (optimization, rendering, request), gradient in zip(requests, gradients, strict=True):
        start_time = time.perf_counter()
        _guard(
            optimization, functools.partial(optimization.update, rendering, gradient, request.t, prior.alphas_cumprod)
        )
        optimization.seconds["scene"] += time.perf_counter() - start_time + (rendered - start) / len(requests)
        optimization.seconds["prior"] += (guided - rendered) / len(requests)
        optimization.report("distill", optimization.step, optimization.steps)


def _render_and_request(optimization: Optimization, prior: Prior) -> tuple[Rendering, GuidanceRequest]:
    rendering = optimization.scene.render(optimization.step, optimization.steps)
    latents = rendering.latents
    shape = tuple(latents.shape)
    t, eps = sample_noise(
        optimization.sds,
        prior,
        optimization.seed,
        optimization.step,
        optimization.steps,
        shape,
        optimization.stream,
        rendering.time,
    )
    request = GuidanceRequest(
        latents.detach().to(prior.device),
        optimization.prompts.text(rendering.views),
        optimization.prompts.negative(len(rendering.views)),
        t,
        eps if rendering.noise is None else rendering.noise.to(prior.device),
        optimization.sds.guidance_scale * rendering.guidance,
    )
    return rendering, request


def _save_all(optimizations: list[Optimization]) -> None:
    for optimization in optimizations:
        if optimization.error is None and optimization.step > optimization.resumed_from:
            _guard(optimization, optimization.save)


def _guard(optimization: Optimization, action: Callable[[], _T]) -> _T | None:
    """Run ``action`` and store its error in ``optimization``. Raises only lack of memory, which concerns all."""
    try:
        return action()
    except (LatentkilnError, ArithmeticError, ValueError, RuntimeError, IndexError, OSError) as error:
        if is_out_of_memory(error):
            raise  # a smaller batch may fit
        optimization.error = error
        return None
