"""The interface between the optimisation loop and the scenes it optimises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class View:
    """One rendered view. ``direction_word`` is front, side, back, overhead or bottom; ``close`` marks close-ups."""

    direction_word: str
    close: bool


@dataclass(frozen=True)
class Rendering:
    """V views of a scene at one step.

    Attributes:
        latents: (V, C, h, w) float32 scaled latents on the scene's device, with a graph to its parameters.
        views: V descriptions, which choose the prompts.
        extra_loss: scalar sum of the scene's own weighted losses; None where the scene has none.
        noise: (V, C, h, w) standard normal noise of the scene's own; None: the loop draws noise at each step.
        time: timestep of all views as a share of T, chosen by the scene; None: the loop draws one for each view.
        next_time: timestep, as a share of T, to which a ``FlowScene`` moves from ``time``; None: to no noise at all.
        guidance: factor of the guidance scale.
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
        """All tensors of a checkpoint, by name. Names, shapes, dtypes and memory layout are the same at every step."""
        ...

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore the values that ``state`` returned, in the memory layout of this scene's tensors.

        Raises ValueError where names or shapes differ or values are invalid; the scene is then unchanged.
        """
        ...


@runtime_checkable
class FlowScene(Scene, Protocol):
    """A scene that follows the model's flow instead of Adam. It chooses the timesteps of its renderings and takes its
    own steps."""

    def follow(self, rendering: Rendering, residual: torch.Tensor, share: torch.Tensor) -> None:
        """Take one step. ``residual`` (V, C, h, w) is the rendered latents minus the clean latents that the model
        predicts. Moving by ``share`` () of the residual is DDIM's step from ``time`` to ``next_time``."""
        ...
