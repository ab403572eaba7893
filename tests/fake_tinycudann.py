"""A stand-in for ``tinycudann`` that checks each argument against the library's contract and then answers by a
reading of its kernels of its own (one corner at a time, in 32-bit integers), independent of our backends.

Written from its sources: the Python module, the C++ entry points' checks, ``grid.h`` and ``common_device.h``.
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
GRANULARITY = 256
HALF_SCALE = 128.0
MAX_BASE = 0x659  # of three dimensions: the largest resolution whose cube fits 32 bits


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-in where ``import tinycudann`` finds it, and forgets earlier calls."""
    calls.clear()
    module = types.ModuleType("tinycudann")
    module.__spec__ = importlib.machinery.ModuleSpec("tinycudann", None)
    module.Encoding = Encoding  # type: ignore[attr-defined]
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


class Encoding(torch.nn.Module):
    """``tinycudann.Encoding`` of a grid over three dimensions."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: Any = None):
        super().__init__()
        check(type(n_input_dims) is int and n_input_dims == 3, "three dimensions are imitated")
        if dtype not in (None, torch.float32, torch.float16):
            raise ValueError(f"Encoding only supports fp32 or fp16 precision, but got {dtype}")
        self.layout = Layout(encoding_config)
        self.dtype = torch.float16 if dtype is None else dtype
        self.loss_scale = HALF_SCALE if self.dtype == torch.float16 else 1.0
        self.n_output_dims = self.layout.levels * self.layout.features
        start = torch.rand(self.layout.count, generator=torch.Generator().manual_seed(seed)) * 2e-4 - 1e-4
        self.params = torch.nn.Parameter(marked(start))
        calls.append(("Encoding", {"config": encoding_config, "dtype": self.dtype}))

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
        check(x.dim() == 2 and x.shape[1] == 3 and params.shape == (self.layout.count,), "sizes")
        check(len(x) % GRANULARITY == 0 and len(x) > 0, "batch size")
        given = plain(x).detach()
        check(bool(((given >= 0) & (given <= 1)).all()), "points in [0, 1]: our own rule")
        levels = [self.layout.corners(level, given.numpy()) for level in range(self.layout.levels)]
        return marked(_Kernel.apply(plain(params), levels, self.layout.features, self.loss_scale))


class _Kernel(torch.autograd.Function):
    """The sum over corners; half precision rounds where the library's does: operands, sums and gradients."""

    @staticmethod
    def forward(ctx: Any, params: Tensor, levels: Any, features: int, loss_scale: float) -> Tensor:
        ctx.levels, ctx.features, ctx.loss_scale, ctx.like = levels, features, loss_scale, params
        table = params.reshape(-1, features)
        columns = []
        for entries, weights in levels:
            total = torch.zeros(len(entries), features, dtype=params.dtype)
            for corner in range(8):
                weight = torch.from_numpy(weights[:, corner]).to(params.dtype)
                total = total + weight[:, None] * table[torch.from_numpy(entries[:, corner])]
            columns.append(total)
        return torch.cat(columns, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        check(grad.dtype == ctx.like.dtype, "dL_doutput.scalar_type")
        check(grad.is_contiguous(), "dL_doutput.is_contiguous")
        scaled = grad * ctx.loss_scale
        total = torch.zeros(len(ctx.like) // ctx.features, ctx.features, dtype=torch.float64)
        for level, (entries, weights) in enumerate(ctx.levels):
            part = scaled[:, level * ctx.features : (level + 1) * ctx.features].double()
            for corner in range(8):
                weight = torch.from_numpy(weights[:, corner]).double()[:, None]
                total.index_add_(0, torch.from_numpy(entries[:, corner]), part * weight)
        return (total.reshape(-1).to(ctx.like.dtype) / ctx.loss_scale), None, None, None
