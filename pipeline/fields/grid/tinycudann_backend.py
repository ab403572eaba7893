"""The grid encoding by tiny-cuda-nn (CUDA, BSD-3-Clause): a thin layer over ``tinycudann.Encoding``.

Written against its sources (``bindings/torch/tinycudann/modules.py``, ``grid.h``, version 2). The relevant facts:

* We keep the table, in the library's order, and lend it to the library's module for a call. So the optimiser, the
  checkpoint and the other backends see one float32 tensor. The module casts the table to its own precision, and the
  gradient passes back through that cast.
* Precision is float32 by default. The library's own default, float16, moves half the bytes. But it sums the gradient of
  an entry in float16, scaled by 128, so sums beyond 512 are infinite. Thousands of rays reach that at an entry of the
  coarsest level under a guidance of 100. Use float16 only if your gradients are small.
* The library pads a batch to a multiple of 256 points and cuts the result again. An ``Encoding`` alone pads no columns
  (a network would need multiples of 16); columns beyond ours would be padding and are dropped.
* Its backward pass accepts contiguous gradients only.
* Points are not checked against [0, 1]; points outside wrap around.
* Its backward pass adds with atomics, so two runs differ in the last digits.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.core.errors import BackendError

if TYPE_CHECKING:
    from pipeline.fields.grid.layout import GridSettings

_TYPES = {"hash": "Hash", "tiled": "Tiled", "dense": "Dense"}


def encode(points: Tensor, table: Tensor, settings: GridSettings, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """As ``grid.encode``: (N, 3) float32 points, (parameter_count,) table, both on CUDA -> (N, L F) float32.

    ``dtype``: the precision in which the library computes, float16 or float32. Differentiable with respect to
    ``table``. Raises BackendError if the library's table has another length.
    """
    if not len(points):
        return table[:0].reshape(0, 1).expand(0, settings.feature_count)
    module = encoding_module(json.dumps(configuration(settings), sort_keys=True), dtype, settings.parameter_count)
    features: Tensor = torch.func.functional_call(module, {"params": table.float()}, (points.contiguous(),))
    if features.requires_grad:
        features.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]  # torch
    return features[:, : settings.feature_count].float()


def configuration(settings: GridSettings) -> dict[str, Any]:
    """The library's JSON for ``settings``. ``per_level_scale`` is the growth factor b of the paper's equation 3."""
    described: dict[str, Any] = {
        "otype": "Grid",
        "type": _TYPES[settings.kind],
        "n_levels": settings.levels,
        "n_features_per_level": settings.features,
        "base_resolution": settings.base,
        "per_level_scale": settings.per_level_scale,
        "interpolation": "Linear",
    }
    if settings.kind == "hash":
        described["log2_hashmap_size"] = settings.log2_table
    return described


@functools.lru_cache(maxsize=8)
def encoding_module(configured: str, dtype: torch.dtype, parameter_count: int) -> Any:
    """The library's module for a configuration, without the table that it creates (50 MB for the usual grid)."""
    import tinycudann

    return without_parameters(tinycudann.Encoding(3, json.loads(configured), dtype=dtype), "grid", parameter_count)


def without_parameters(module: Any, operation: str, expected: int) -> Any:
    """The library's ``module`` without the parameters that it creates, of which there must be ``expected``.

    Raises BackendError for another number, because then the library would interpret our parameters differently.
    """
    actual = module.params.numel()
    if actual != expected:
        raise BackendError(
            f"{operation}: tinycudann lays this {operation} out in {actual} parameters, "
            f"the other backends in {expected}; use LATENTKILN_{operation.upper()}=torch, and report both numbers "
            "with the settings"
        )
    module.params = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    return module
