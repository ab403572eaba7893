"""The one optimisation loop: K scenes in lockstep on one prior.

Painting a mesh, growing a radiance field and refining either are this loop over a ``Scene``. Each scene has its
own seed, step counter, optimiser and checkpoint; what they share is one UNet call of a fixed batch per step.
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
from pipeline.distill import checkpoint
from pipeline.distill.checkpoint import CheckpointError, TensorSpec
from pipeline.distill.prompts import PromptTable
from pipeline.distill.sds import Query, SdsSettings, draw, sds_gradients, sds_loss, timestep
from pipeline.distill.width import Width, lacks_memory
from pipeline.prior.load import Prior

_T = TypeVar("_T")
_BETAS = (0.9, 0.99)
_EPS = 1e-15
# What Adam keeps for a parameter: the number of steps and two means.
_ADAM_ENTRIES = 3
# Steps between two looks at whether the prior's answers are numbers.
_LOOK = 64


@dataclass
class Subject:
    """One scene in the loop, with its guidance and its place for checkpoints.

    ``key`` names job, prior, recipe version and lockstep width: a checkpoint with another key is not resumed.
    ``error`` is set when the scene failed; the loop goes on without it.
    """

    scene: Scene
    prompts: PromptTable
    sds: SdsSettings
    seed: int
    steps: int
    checkpoint: Path | None = None
    key: str = ""
    report: Reporter = no_report
    # Names the stream of timesteps and noise: two phases of one job must not draw the same.
    stream: str = "sds"
    step: int = 0
    resumed_from: int = 0
    error: Exception | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"prior": 0.0, "scene": 0.0})
    # What, beside the prior, decides how much memory a step takes; equal for all scenes of a batch.
    batch: tuple[object, ...] = ()
    # The fewest scenes that shared a call with this one; 0 before the first step. Less than asked for: see ``notes``.
    width: int = 0
    # What the record has to say about how it went.
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Stays on the device and is read now and then: reading it at each step would wait for the device.
        self._finite: torch.Tensor | None = None
        groups = self.scene.parameters()
        self._lr = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
        # The fused step updates all texels in one pass, several times faster on the CPU.
        self._adam = torch.optim.Adam(groups, betas=_BETAS, eps=_EPS, fused=True)

    @property
    def parameter_bytes(self) -> int:
        """Of what is optimised."""
        return sum(p.numel() * p.element_size() for p in self._parameters)

    @property
    def _parameters(self) -> list[torch.Tensor]:
        """In the order in which the optimiser numbers them."""
        return [parameter for group in self._adam.param_groups for parameter in group["params"]]

    @property
    def finished(self) -> bool:
        return self.error is not None or self.step >= self.steps

    def anneal_rate(self) -> None:
        """Learning rates fall linearly to a tenth: SDS never comes to rest by itself."""
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
            self._flow(self.scene, rendering, gradient, t, alphas)
        else:
            self._descend(rendering, gradient)
        self.step += 1
        if self.step % _LOOK == 0 or self.step >= self.steps:
            self._check_finite()

    def _descend(self, rendering: Rendering, gradient: torch.Tensor) -> None:
        loss = sds_loss(rendering.latents, gradient)
        if rendering.extra_loss is not None:
            loss = loss + rendering.extra_loss
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        self.anneal_rate()
        try:
            self._adam.step()
        except RuntimeError:
            # It makes its tensors at its first step, one after the other: what lack of memory left unfinished would be
            # taken for all of a parameter's at the next try.
            for parameter in [p for p, state in self._adam.state.items() if len(state) < _ADAM_ENTRIES]:
                del self._adam.state[parameter]
            raise

    def _check_finite(self) -> None:
        """Raises LatentkilnError where the prior has answered with something that is not a number."""
        if self._finite is not None and not bool(self._finite):
            raise LatentkilnError(
                f"the prior's answers are not finite numbers (before step {self.step}); float16 overflows with some "
                "models: try --precision bfloat16 or float32",
                stage="distill",
            )

    def _flow(
        self, scene: FlowScene, rendering: Rendering, gradient: torch.Tensor, t: torch.Tensor, alphas: torch.Tensor
    ) -> None:
        abar = alphas[t]
        # grad = sqrt(abar) (1 - abar) (eps_hat - eps), and z - z_hat = sqrt((1 - abar) / abar) (eps_hat - eps).
        residual = gradient / (abar * (1 - abar).sqrt()).view(-1, 1, 1, 1)
        # DDIM changes x / sqrt(abar) by eps_hat times the change of level = sqrt((1 - abar) / abar), and its noise by
        # eps times that; so z goes by (eps_hat - eps) times it, which is the share 1 - level' / level of z - z_hat.
        share = torch.ones((), device=abar.device)
        if rendering.next_time is not None:
            after = alphas[timestep(rendering.next_time, len(alphas))]
            share = 1 - ((1 - after) / after * abar[0] / (1 - abar[0])).sqrt()
        scene.follow(rendering, residual.to(rendering.latents.device), share.to(rendering.latents.device))

    def save(self) -> None:
        """Writes the checkpoint, if this subject has a place for one. Raises LatentkilnError for one without sense."""
        self._check_finite()
        if self.checkpoint is None:
            return
        checkpoint.save(self.checkpoint, self._tensors(), key=self.key, step=self.step)

    def resume(self) -> None:
        """Goes on from the checkpoint, where there is one that can be used; else ``notes`` say why it was dropped."""
        if self.checkpoint is None:
            return
        required, optional = self._specs()
        try:
            found = checkpoint.load(
                self.checkpoint, key=self.key, steps=self.steps, required=required, optional=optional
            )
            if found is None:
                return
            try:
                self._take(*found)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
        except CheckpointError as error:
            name = "/".join(self.checkpoint.parts[-3:])
            self.notes.append(f"the checkpoint {name} was dropped: {error.message}; its steps begin anew")
            if error.damaged:
                checkpoint.discard(self.checkpoint)
            return
        self.resumed_from = self.step

    def _specs(self) -> tuple[dict[str, TensorSpec], list[dict[str, TensorSpec]]]:
        """What a checkpoint must hold, and the optimiser's entries for each parameter that had a gradient."""
        required = {f"scene.{name}": TensorSpec.of(value) for name, value in self.scene.state().items()}
        number = TensorSpec((), torch.float32)
        optional = [
            {f"adam.{index}.step": number}
            | {f"adam.{index}.{name}": TensorSpec.of(parameter) for name in ("exp_avg", "exp_avg_sq")}
            for index, parameter in enumerate(self._parameters)
        ]
        return required, optional

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All that changes from step to step."""
        tensors = {f"scene.{name}": value for name, value in self.scene.state().items()}
        for index, state in self._adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        return tensors

    def _take(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Puts back what ``_tensors`` gave before step ``step``. Raises ValueError before anything is changed."""
        prefix = "scene."
        self.scene.load_state({n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)})
        optimiser = self._adam.state_dict() | {"state": {}}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, entry = name.split(".")
                if entry != "step":
                    # Laid out in memory as Adam itself makes it, which is as its parameter.
                    tensor = torch.empty_like(self._parameters[int(index)]).copy_(tensor)
                optimiser["state"].setdefault(int(index), {})[entry] = tensor
        self._adam.load_state_dict(optimiser)
        self.step = step

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """What is done in this block is forgotten at its end, errors included, and nobody hears of it."""
        tensors = {name: value.detach().cpu().clone() for name, value in self._tensors().items()}
        step, report, finite, seconds = self.step, self.report, self._finite, dict(self.seconds)
        self.report = no_report
        try:
            yield
        finally:
            self._take(tensors, step)
            self.report, self._finite, self.seconds, self.error = report, finite, seconds, None


def distill(
    subjects: list[Subject],
    prior: Prior,
    *,
    lockstep: int,
    checkpoint_seconds: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Optimises up to ``lockstep`` scenes to their last step. True when done, False when ``stop`` said so.

    A scene that raises is left with its ``error`` set; the others go on. When stopped, every scene has a
    checkpoint. All scenes must render the same number of views at the same size. When they do not fit the device's
    memory together, half as many go at once, by turns.
    """
    if len(subjects) > lockstep:
        raise ValueError(f"{len(subjects)} scenes do not fit a lockstep of {lockstep}")
    for subject in subjects:
        _guard(subject, subject.resume)
    width = Width(prior, lockstep, _kind(subjects))
    waiting = [subject for subject in subjects if not subject.finished]
    if width.measure(lambda count: _rehearse(waiting[:count], prior), len(waiting)):
        for subject in subjects:
            subject.notes.append(
                f"a lockstep of {lockstep} does not fit this device by measurement: {width.now} go at once"
            )
    elif width.now < lockstep:
        for subject in subjects:
            subject.notes.append(f"a lockstep of {lockstep} did not fit this device before: {width.now} go at once")
    saved = time.monotonic()
    while not all(subject.finished for subject in subjects):
        if stop():
            _save_all(subjects)
            return False
        _round(subjects, prior, width, lockstep)
        if time.monotonic() - saved >= checkpoint_seconds:
            _save_all(subjects)
            saved = time.monotonic()
    return True


def _kind(subjects: list[Subject]) -> tuple[object, ...]:
    """What decides how much memory ``subjects`` take: the batch they make, and the order of the largest one's size."""
    if not subjects:
        return ()
    return *subjects[0].batch, max(subject.parameter_bytes for subject in subjects).bit_length()


def _rehearse(subjects: list[Subject], prior: Prior) -> None:
    """Two steps of ``subjects`` together that leave no trace, to see what they take: Adam's own comes with the first
    one, and stands beside all else in the second."""
    with contextlib.ExitStack() as stack:
        for subject in subjects:
            stack.enter_context(subject.rehearsal())
        for _ in range(min(2, *(subject.steps - subject.step for subject in subjects))):
            _step([subject for subject in subjects if subject.error is None], prior, len(subjects))


def _round(subjects: list[Subject], prior: Prior, width: Width, lockstep: int) -> None:
    """One step of every unfinished scene, as many of them at once as fit."""
    waiting = [(subject, subject.step) for subject in subjects if not subject.finished]
    while waiting:
        together = [subject for subject, _ in waiting[: width.now]]
        fits = _fits(together, prior, width.now)
        for subject in together:
            subject.width = min(subject.width or width.now, width.now)
        # A scene whose step was done before memory ran out for another one is not stepped twice.
        waiting = [(s, step) for s, step in waiting if s.error is None and s.step == step]
        if fits:
            if width.passed():
                for subject in subjects:
                    subject.notes.append(f"from step {subject.step} on {width.now} went at once again")
            continue
        try:
            width.halve()
        except LatentkilnError as error:
            waiting[0][0].error = error
            waiting.pop(0)
            continue
        for subject in subjects:
            subject.notes.append(
                f"out of memory at a lockstep of {lockstep}: from step {subject.step} on {width.now} went at once"
            )


def _fits(subjects: list[Subject], prior: Prior, slots: int) -> bool:
    """One step of ``subjects`` together. False when memory did not suffice; some may have been stepped, then."""
    try:
        _step(subjects, prior, slots)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        # Left at once: the traceback holds on to the tensors of the step that failed.
        return False
    return True


def _step(subjects: list[Subject], prior: Prior, lockstep: int) -> None:
    start = time.perf_counter()
    asked: list[tuple[Subject, Rendering, Query]] = []
    for subject in subjects:
        made = _guard(subject, lambda s=subject: _ask(s, prior))  # type: ignore[misc]
        if made is not None:
            asked.append((subject, *made))
    if not asked:
        return
    rendered = time.perf_counter()
    gradients = sds_gradients(prior, [query for _, _, query in asked], lockstep)
    guided = time.perf_counter()
    for (subject, rendering, query), gradient in zip(asked, gradients, strict=True):
        begun = time.perf_counter()
        _guard(subject, functools.partial(subject.update, rendering, gradient, query.t, prior.alphas_cumprod))
        subject.seconds["scene"] += time.perf_counter() - begun + (rendered - start) / len(asked)
        subject.seconds["prior"] += (guided - rendered) / len(asked)
        subject.report("distill", subject.step, subject.steps)


def _ask(subject: Subject, prior: Prior) -> tuple[Rendering, Query]:
    rendering = subject.scene.render(subject.step, subject.steps)
    latents = rendering.latents
    shape = tuple(latents.shape)
    t, eps = draw(subject.sds, prior, subject.seed, subject.step, subject.steps, shape, subject.stream, rendering.time)
    query = Query(
        latents.detach().to(prior.device),
        subject.prompts.text(rendering.views),
        subject.prompts.negative(len(rendering.views)),
        t,
        eps if rendering.noise is None else rendering.noise.to(prior.device),
        subject.sds.guidance_scale * rendering.guidance,
    )
    return rendering, query


def _save_all(subjects: list[Subject]) -> None:
    for subject in subjects:
        if subject.error is None and subject.step > subject.resumed_from:
            _guard(subject, subject.save)


def _guard(subject: Subject, action: Callable[[], _T]) -> _T | None:
    """Runs ``action``; an error becomes the subject's own and stops nobody else. Lack of memory is everybody's."""
    try:
        return action()
    except (LatentkilnError, ArithmeticError, ValueError, RuntimeError, IndexError, OSError) as error:
        if lacks_memory(error):
            raise  # fewer scenes at once may fit
        subject.error = error
        return None
