"""What the distillation loop asks of anything it optimises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class View:
    """One rendered view, as the guidance sees it. ``direction_word`` is front, side, back, overhead or bottom."""

    direction_word: str
    close: bool


@dataclass(frozen=True)
class Rendering:
    """V views of a scene at one step.

    Attributes:
        latents: (V, C, h, w) float32 scaled latents on the scene's device, with a graph to its parameters.
        views: V descriptions, from which prompts are chosen.
        extra_loss: further differentiable terms, already weighted and summed; None for none.
        noise: (V, C, h, w) standard normal noise to guide with, where it belongs to the scene; None: fresh noise.
        time: the timestep to guide at, as a share of T, where the scene decides it; None: one is drawn for each view.
        next_time: the timestep that a ``FlowScene`` goes on to from ``time``; None: to no noise at all.
        guidance: what the guidance scale is multiplied with.
    """

    latents: torch.Tensor
    views: list[View]
    extra_loss: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    time: float | None = None
    next_time: float | None = None
    guidance: float = 1.0


class Scene(Protocol):
    """A differentiable scene. ``render`` depends on the parameters, the seed and ``step`` alone."""

    def parameters(self) -> list[dict[str, object]]:
        """Parameter groups for Adam: ``params`` (list of tensors) and ``lr``."""
        ...

    def render(self, step: int, steps: int) -> Rendering:
        """Random views for step ``step`` of ``steps`` (0-based)."""
        ...

    def state(self) -> Mapping[str, torch.Tensor]:
        """Everything a checkpoint must hold, by name. Names, shapes, dtypes and memory layout are the same at any
        step."""
        ...

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back the values that ``state`` gave; memory layout stays the scene's own.

        Raises ValueError, before anything is changed, when names or shapes differ or values mean nothing.
        """
        ...


@runtime_checkable
class FlowScene(Scene, Protocol):
    """A scene that is moved along the model's flow instead of by Adam: it decides the timesteps of its renderings and
    takes its own steps."""

    def follow(self, rendering: Rendering, residual: torch.Tensor, share: torch.Tensor) -> None:
        """One step: ``residual`` (V, C, h, w) is the rendered latents less the clean ones that the model sees in
        them; to go the ``share`` () of the way to those is DDIM's step from ``time`` to ``next_time``."""
        ...
