"""Resumable checkpoints: one safetensors file holding weights, averages, optimiser state and a JSON header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save(
    path: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer | None = None, **state: Any
) -> None:
    """Write the checkpoint to a temporary file and rename it, so that it is never incomplete."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            tensors[f"{name}/{key}"] = value.detach().contiguous().clone()
    if optimiser is not None:
        for index, entry in optimiser.state_dict()["state"].items():
            for key, value in entry.items():
                tensors[f"optimiser/{index}/{key}"] = torch.as_tensor(value).detach().contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"state": json.dumps(state)})
    os.replace(partial, path)


def load(path: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Restore modules in place, and the optimiser if it is given and stored. Returns the JSON state."""
    with safe_open(path, "pt") as f:
        state = json.loads(f.metadata()["state"])
        keys = list(f.keys())
        for name, module in modules.items():
            part = {k[len(name) + 1 :]: f.get_tensor(k) for k in keys if k.startswith(name + "/")}
            module.load_state_dict(part)
        stored = [k for k in keys if k.startswith("optimiser/")]
        if optimiser is not None and stored:
            full = optimiser.state_dict()
            entries: dict[int, dict[str, Tensor]] = {}
            for k in stored:
                _, index, key = k.split("/")
                entries.setdefault(int(index), {})[key] = f.get_tensor(k)
            full["state"] = entries
            optimiser.load_state_dict(full)
            _in_layout_of_parameters(optimiser)
    return state


def _in_layout_of_parameters(optimiser: torch.optim.Optimizer) -> None:
    """Give the optimiser's moments the strides of their parameters, which may be channels-last.

    Checkpoints store moments contiguously. The fused step iterates over both in memory order, so with other strides it
    pairs weights with the moments of other weights: some weights then jump by many times the learning rate.
    """
    for parameter, entry in optimiser.state.items():
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Average(nn.Module):
    """Exponential moving average of a module's parameters and buffers, with a warm-up of the decay."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        import copy

        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights of ``model`` at ``step``."""
        d = min(self.decay, (1 + step) / (10 + step))
        averages, parameters = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        torch._foreach_mul_(averages, d)
        torch._foreach_add_(averages, parameters, alpha=1 - d)
