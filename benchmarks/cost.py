"""Lower bounds of the cost of score distillation with Stable Diffusion 1.x, computed from the architecture.

    python -m benchmarks.cost [--config pipeline/prior/configs/sd1]

Runs the UNet and the autoencoder on torch's ``meta`` device (shapes without numbers) and counts the operations of
their matrix products and convolutions, and the least number of bytes that cross the memory bus: each weight once per
call, each product's operands and result once. Prints the tables of docs/cost.md.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

SD1 = Path(__file__).parent.parent / "pipeline" / "prior" / "configs" / "sd1"
HALF = 2  # bytes of a float16
TOKENS = 77


@dataclass(frozen=True)
class Gpu:
    """Published peak rates (NVIDIA data sheets, SXM boards; dense tensor-core float16, without sparsity)."""

    name: str
    flops: float  # per second
    bandwidth: float  # bytes per second


GPUS = (
    Gpu("V100 SXM2", 125e12, 900e9),
    Gpu("A100 SXM 80 GB", 312e12, 2039e9),
    Gpu("H100 SXM", 989e12, 3350e9),
)


@dataclass(frozen=True)
class Cost:
    """Cost of one call: operations (a multiply-add is two), least number of bytes moved, number of parameters."""

    flops: float
    moved: float
    parameters: int

    def seconds(self, gpu: Gpu) -> float:
        """Lower bound of the time: the larger of operations and memory traffic, each at its peak rate."""
        return max(self.flops / gpu.flops, self.moved / gpu.bandwidth)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.moved + other.moved, self.parameters + other.parameters)


class _Traffic(TorchDispatchMode):
    """Counts the elements that products and convolutions read and write. Other operations can be fused into them."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.fused = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry and not self.fused:
            self.count(args, kwargs, result)
        return result

    def count(self, *values: Any) -> None:
        """Add the elements of every tensor in ``values``."""
        self.elements += sum(x.numel() for x in tree_leaves(values) if isinstance(x, torch.Tensor))


class _FusedAttention(TorchFunctionMode):
    """Fused attention: queries, keys, values and result are moved, the matrix of weights is not."""

    def __init__(self, traffic: _Traffic):
        super().__init__()
        self._traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._traffic.fused = True
        result = func(*args, **(kwargs or {}))
        self._traffic.fused = False
        self._traffic.count(args, result)
        return result


def _counted(model: torch.nn.Module, call: Any) -> Cost:
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _Traffic() as traffic, _FusedAttention(traffic):
        call()
    return Cost(counter.get_total_flops(), traffic.elements * HALF, sum(p.numel() for p in model.parameters()))


def unet_cost(config: Path, batch: int, size: int = 64) -> Cost:
    """Cost of a UNet call on ``batch`` latents of ``size`` x ``size``."""
    unet = _network("UNet2DConditionModel", config / "unet")
    settings = unet.config
    latents = torch.zeros(batch, settings.in_channels, size, size, device="meta")
    text = torch.zeros(batch, TOKENS, settings.cross_attention_dim, device="meta")
    t = torch.zeros(batch, dtype=torch.long, device="meta")
    return _counted(unet, lambda: unet(latents, t, encoder_hidden_states=text))


def decode_cost(config: Path, size: int = 128) -> Cost:
    """Cost of decoding a latent texture of ``size`` x ``size``, once per asset."""
    vae = _network("AutoencoderKL", config / "vae")
    latents = torch.zeros(1, vae.config.latent_channels, size, size, device="meta")
    return _counted(vae, lambda: vae.decode(latents))


def encode_cost(config: Path, size: int = 512) -> Cost:
    """Cost of encoding a view of ``size`` x ``size`` pixels with its gradient (twice the work), per refinement step."""
    vae = _network("AutoencoderKL", config / "vae")
    image = torch.zeros(1, 3, size, size, device="meta")
    once = _counted(vae, lambda: vae.encode(image))
    return Cost(3 * once.flops, 3 * once.moved, once.parameters)


@functools.cache
def _network(kind: str, folder: Path) -> Any:
    import diffusers

    described = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        return getattr(diffusers, kind).from_config(described).eval()


def floor(cost: Cost, lockstep: int, steps: int, gpu: Gpu) -> float:
    """Lower bound in seconds per asset: ``steps`` calls, each shared by ``lockstep`` assets."""
    return steps * cost.seconds(gpu) / lockstep


def tables(config: Path = SD1) -> str:
    """The tables of docs/cost.md, in Markdown."""
    lines = ["| K | batch | operations a step | bytes moved at least | " + " | ".join(g.name for g in GPUS) + " |"]
    lines.append("|---|---|---|---|" + "---|" * len(GPUS))
    costs = {lockstep: unet_cost(config, 2 * lockstep) for lockstep in (1, 2, 4, 8)}
    for lockstep, cost in costs.items():
        times = " | ".join(f"{cost.seconds(g) * 1e3:.1f} ms" for g in GPUS)
        size = f"{cost.flops / 1e12:.2f} T | {cost.moved / 1e9:.1f} GB"
        lines.append(f"| {lockstep} | {2 * lockstep} | {size} | {times} |")
    lines += ["", "| steps | K | " + " | ".join(g.name for g in GPUS) + " |", "|---|---|" + "---|" * len(GPUS)]
    for steps in (300, 5000):
        for lockstep, cost in costs.items():
            times = " | ".join(f"{floor(cost, lockstep, steps, g):.1f} s" for g in GPUS)
            lines.append(f"| {steps} | {lockstep} | {times} |")
    lines += ["", "| once or in refinement | operations | " + " | ".join(g.name for g in GPUS) + " |"]
    lines.append("|---|---|" + "---|" * len(GPUS))
    others = {
        "decode a 128 x 128 latent texture": decode_cost(config),
        "encode a 512 x 512 view, with gradient": encode_cost(config),
    }
    for name, cost in others.items():
        times = " | ".join(f"{cost.seconds(g) * 1e3:.1f} ms" for g in GPUS)
        lines.append(f"| {name} | {cost.flops / 1e12:.2f} T | {times} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=SD1)
    print(tables(parser.parse_args().config))


if __name__ == "__main__":
    main()
