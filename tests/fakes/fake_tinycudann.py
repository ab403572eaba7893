"""A stand-in for ``tinycudann`` that checks each argument against the library's contract and then answers by a
reading of its kernels of its own (one corner at a time, in 32-bit integers), independent of our backends.

Written from its sources: the Python module, the C++ entry points' checks, ``grid.h``, ``common_device.h``,
``network_with_input_encoding.h``, ``fully_fused_mlp.cu`` and ``cutlass_mlp.cu``.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, CudaTensor, marked, plain
from torch import Tensor

calls: list[tuple[str, dict[str, Any]]] = []
KEYS = {
    "otype", "type", "n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution",
    "per_level_scale", "interpolation", "stochastic_interpolation",
}  # fmt: skip
NETWORK_KEYS = {"otype", "activation", "output_activation", "n_neurons", "n_hidden_layers"}
GRANULARITY = 256
ALIGNMENT = 16  # of the widths of a network's input and output
HALF_SCALE = 128.0
MAX_BASE = 0x659  # of three dimensions: the largest resolution whose cube fits 32 bits


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-in where ``import tinycudann`` finds it, and forgets earlier calls."""
    calls.clear()
    module = types.ModuleType("tinycudann")
    module.__spec__ = importlib.machinery.ModuleSpec("tinycudann", None)
    module.Encoding = Encoding  # type: ignore[attr-defined]
    module.NetworkWithInputEncoding = NetworkWithInputEncoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinycudann", module)


def check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f"check failed: {message}")


class Layout:
    """Scales, resolutions and offsets as the constructor of the library's grid computes them, in float32."""

    def __init__(self, config: dict[str, Any]):
        check(config["otype"] == "Grid" and set(config) <= KEYS, f"configuration {config}")
        check(config["interpolation"] == "Linear", "interpolation")
        self.features = config["n_features_per_level"]
        check(self.features in (1, 2, 4, 8), "n_features_per_level is 1, 2, 4 or 8")
        self.levels = config["n_levels"]
        check(self.levels <= 128, "n_levels is at most 128")
        self.kind = config["type"]
        base = config["base_resolution"]
        log2_scale = np.log2(np.float32(config["per_level_scale"]))
        self.scales, self.resolutions, self.offsets = [], [], [0]
        for level in range(self.levels):
            scale = np.exp2(np.float32(level) * log2_scale) * np.float32(base) - np.float32(1)
            resolution = int(np.ceil(scale)) + 1
            entries = -(-(resolution**3) // 8) * 8
            if self.kind == "Hash":
                entries = min(entries, 1 << config.get("log2_hashmap_size", 19))
            elif self.kind == "Tiled":
                entries = min(entries, base**3)
            else:
                check(self.kind == "Dense", f"invalid grid type {self.kind}")
            self.scales.append(scale)
            self.resolutions.append(resolution)
            self.offsets.append(self.offsets[-1] + entries)
        self.count = self.offsets[-1] * self.features

    def entry(self, level: int, corner: np.ndarray) -> np.ndarray:
        """Entries (N,) of corners (N, 3) uint32 of a level."""
        size, resolution = self.offsets[level + 1] - self.offsets[level], self.resolutions[level]
        index, stride = np.zeros(len(corner), np.uint32), 1
        if resolution <= MAX_BASE:
            for axis in range(3):
                index += corner[:, axis] * np.uint32(stride)
                stride *= resolution
        else:
            stride = 0xFFFFFFFF
        if self.kind == "Hash" and size < stride:
            index = corner[:, 0] * np.uint32(1) ^ corner[:, 1] * np.uint32(2654435761)
            index ^= corner[:, 2] * np.uint32(805459861)
        return index % np.uint32(size)

    def corners(self, level: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entries (N, 8) of the whole table and weights (N, 8) float32 around points (N, 3) float32."""
        position = (points.astype(np.float64) * float(self.scales[level]) + 0.5).astype(np.float32)  # fmaf
        floor = np.floor(position)
        fraction, cell = position - floor, floor.astype(np.int32).astype(np.uint32)
        entries, weights = [], []
        for corner in range(8):
            weight, place = np.ones(len(points), np.float32), cell.copy()
            for axis in range(3):
                if corner >> axis & 1:
                    weight, place[:, axis] = weight * fraction[:, axis], place[:, axis] + np.uint32(1)
                else:
                    weight = weight * (1 - fraction[:, axis])
            entries.append(self.offsets[level] + self.entry(level, place).astype(np.int64))
            weights.append(weight)
        return np.stack(entries, axis=1), np.stack(weights, axis=1)


def aligned(width: int) -> int:
    return -(-width // ALIGNMENT) * ALIGNMENT


class Module(torch.nn.Module):
    """What ``tinycudann``'s modules share. ``native_width``: columns of what the kernel writes."""

    def __init__(self, config: dict[str, Any], count: int, width: int, native_width: int, dtype: Any, seed: int):
        super().__init__()
        self.dtype, self.count, self.n_output_dims, self.native_width = dtype, count, width, native_width
        self.loss_scale = HALF_SCALE if dtype == torch.float16 else 1.0
        start = torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 2e-4 - 1e-4
        self.params = torch.nn.Parameter(marked(start))
        calls.append((type(self).__name__, {"config": config, "dtype": dtype, "outputs": width}))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) -> (N, n_output_dims) of ``dtype``."""
        check(isinstance(x, CudaTensor), "input must be a CUDA tensor (the library would copy it, with a warning)")
        count = len(x)
        padded = torch.nn.functional.pad(x, [0, 0, 0, -count % GRANULARITY]).to(torch.float).contiguous()
        params = self.params.to(self.dtype).contiguous()
        calls.append(("forward", {"x": x, "params": self.params, "padded": len(padded)}))
        return self._native(padded, params)[:count, : self.n_output_dims]

    def _native(self, x: Tensor, params: Tensor) -> Tensor:
        """The checks of the C++ ``fwd``, then the kernel."""
        for tensor in (x, params):
            check(isinstance(tensor, CudaTensor) and tensor.device == CUDA, "is_cuda")
            check(plain(tensor).is_contiguous(), "is_contiguous")
        check(x.dtype == torch.float32 and params.dtype == self.dtype, "scalar_type")
        check(x.dim() == 2 and x.shape[1] == 3 and params.shape == (self.count,), "sizes")
        check(len(x) % GRANULARITY == 0 and len(x) > 0, "batch size")
        given = plain(x).detach()
        check(bool(((given >= 0) & (given <= 1)).all()), "points in [0, 1]: our own rule")
        found = self.kernel(given.numpy(), plain(params))
        check(found.shape == (len(x), self.native_width), "the stand-in's own output")
        return marked(found)

    def kernel(self, points: np.ndarray, params: Tensor) -> Tensor:
        raise NotImplementedError


def grid_of(n_input_dims: int, encoding_config: dict[str, Any]) -> Layout:
    check(type(n_input_dims) is int and n_input_dims == 3, "three dimensions are imitated")
    return Layout(encoding_config)


class Encoding(Module):
    """``tinycudann.Encoding`` of a grid over three dimensions."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: Any = None):
        if dtype not in (None, torch.float32, torch.float16):
            raise ValueError(f"Encoding only supports fp32 or fp16 precision, but got {dtype}")
        layout = grid_of(n_input_dims, encoding_config)
        width = layout.levels * layout.features
        super().__init__(encoding_config, layout.count, width, width, dtype or network_precision, seed)
        self.layout = layout

    def kernel(self, points: np.ndarray, params: Tensor) -> Tensor:
        levels = [self.layout.corners(level, points) for level in range(self.layout.levels)]
        return _Kernel.apply(params, levels, self.layout.features, self.loss_scale)


class NetworkWithInputEncoding(Module):
    """``tinycudann.NetworkWithInputEncoding``: that grid, then matrices without biases and ReLU between them."""

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        encoding_config: dict[str, Any],
        network_config: dict[str, Any],
        seed: int = 1337,
    ):
        check(set(network_config) <= NETWORK_KEYS, f"configuration {network_config}")
        check(type(n_output_dims) is int and n_output_dims > 0, "n_output_dims")
        hidden, layers = network_config["n_neurons"], network_config["n_hidden_layers"]
        check(type(hidden) is int and type(layers) is int and layers >= 0, "sizes")
        if network_config["otype"] == "FullyFusedMLP":
            check(hidden in (16, 32, 64, 128), f"FullyFusedMLP only supports 16, 32, 64, and 128 neurons, not {hidden}")
            check(layers > 0, "FullyFusedMLP requires at least 1 hidden layer")
        else:
            check(network_config["otype"] == "CutlassMLP", f"invalid network type {network_config['otype']}")
            check(hidden % 8 == 0, "CUTLASS takes rows of whole 16-byte words")
        check(network_config["activation"] == "ReLU" and network_config["output_activation"] == "None", "activation")
        layout = grid_of(n_input_dims, encoding_config)
        inside = [hidden] * layers
        widths = [aligned(layout.levels * layout.features), *inside, aligned(n_output_dims)]
        self.sizes = list(zip(widths[1:], widths[:-1], strict=True))
        count = sum(rows * columns for rows, columns in self.sizes) + layout.count
        super().__init__(network_config, count, n_output_dims, widths[-1], network_precision, seed)
        self.layout = layout

    def kernel(self, points: np.ndarray, params: Tensor) -> Tensor:
        levels = [self.layout.corners(level, points) for level in range(self.layout.levels)]
        return _Network.apply(params, self.sizes, levels, self.layout.features, self.loss_scale)


# What the library computes networks in: float32 where it was built for GPUs without quick half precision.
network_precision = torch.float16


class _Kernel(torch.autograd.Function):
    """The grid alone."""

    @staticmethod
    def forward(ctx: Any, params: Tensor, levels: Any, features: int, loss_scale: float) -> Tensor:
        ctx.levels, ctx.features, ctx.loss_scale, ctx.like = levels, features, loss_scale, params
        return _features(params, levels, features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        scaled = _checked(grad, ctx.like) * ctx.loss_scale
        total = _spread(scaled, ctx.levels, ctx.features, len(ctx.like))
        return total / ctx.loss_scale, None, None, None


class _Network(torch.autograd.Function):
    """The grid and the matrices: parameters are matrices row by row, one after the other, then the grid's table."""

    @staticmethod
    def forward(ctx: Any, params: Tensor, sizes: Any, levels: Any, features: int, loss_scale: float) -> Tensor:
        matrices, place = [], 0
        for rows, columns in sizes:
            matrices.append(params[place : place + rows * columns].view(rows, columns))
            place += rows * columns
        values = _features(params[place:], levels, features)
        values = torch.nn.functional.pad(values, (0, sizes[0][1] - values.shape[1]))
        inputs = []
        for number, matrix in enumerate(matrices):
            inputs.append(values)
            values = (values.float() @ matrix.float().T).to(params.dtype)
            if number < len(matrices) - 1:
                values = values * (values > 0)
        ctx.save_for_backward(params, *matrices, *inputs)
        ctx.levels, ctx.features, ctx.loss_scale, ctx.table = levels, features, loss_scale, len(params) - place
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        params, *saved = ctx.saved_tensors
        matrices, inputs = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        back = _checked(grad, params) * ctx.loss_scale
        found: list[Tensor] = []
        for number in reversed(range(len(matrices))):
            found.insert(0, (back.float().T @ inputs[number].float()).to(params.dtype).flatten())
            back = (back.float() @ matrices[number].float()).to(params.dtype)
            if number:
                back = back * (inputs[number] > 0)
        table = _spread(back, ctx.levels, ctx.features, ctx.table)
        return torch.cat([*found, table]) / ctx.loss_scale, None, None, None, None


def _features(table: Tensor, levels: Any, features: int) -> Tensor:
    """The sum over corners; half precision rounds where the library's does: operands and sums."""
    entries_of = table.reshape(-1, features)
    columns = []
    for entries, weights in levels:
        total = torch.zeros(len(entries), features, dtype=table.dtype)
        for corner in range(8):
            weight = torch.from_numpy(weights[:, corner]).to(table.dtype)
            total = total + weight[:, None] * entries_of[torch.from_numpy(entries[:, corner])]
        columns.append(total)
    return torch.cat(columns, dim=1)


def _spread(grad: Tensor, levels: Any, features: int, count: int) -> Tensor:
    """The table's gradient (count,), from that of the features; columns beyond theirs are padding."""
    total = torch.zeros(count // features, features, dtype=torch.float64)
    for level, (entries, weights) in enumerate(levels):
        part = grad[:, level * features : (level + 1) * features].double()
        for corner in range(8):
            weight = torch.from_numpy(weights[:, corner]).double()[:, None]
            total.index_add_(0, torch.from_numpy(entries[:, corner]), part * weight)
    return total.reshape(-1).to(grad.dtype)


def _checked(grad: Tensor, like: Tensor) -> Tensor:
    check(grad.dtype == like.dtype, "dL_doutput.scalar_type")
    check(grad.is_contiguous(), "dL_doutput.is_contiguous")
    return grad
