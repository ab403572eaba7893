"""Grid and network in one kernel of tiny-cuda-nn: a thin layer over ``tinycudann.NetworkWithInputEncoding``.

Written against its sources, at the commit that ``core.backends`` installs (``bindings/torch``, ``cpp_api.cu``,
``network_with_input_encoding.h``, ``fully_fused_mlp.cu``, ``cutlass_mlp.cu``, ``grid.h``). The relevant facts:

* The parameters are one flat vector: the network's, then the grid's. The network's are its matrices in order, each
  (outputs, inputs) row by row, without biases. We keep matrices and table and join them for a call.
* Widths are multiples of 16. Features beyond the grid's are 0, the library cuts surplus outputs, and surplus hidden
  units are never active. So we pad our matrices with zeros, which changes nothing.
* The fully fused kernel supports hidden widths of 16, 32, 64 and 128 and needs a hidden layer; CUTLASS does the others.
  For GPUs older than 7.5 the library itself selects CUTLASS. The vector is the same for both.
* Parameters, activations, sums and gradients are float16 (float32 if the library was built for GPUs without float16).
  The vector that it takes is float32. See ``_kept_in_range``.
* The library pads a batch to a multiple of 256 points and cuts the result again. Its backward pass takes contiguous
  gradients only. Points are not checked against [0, 1]. Gradients of the grid are added with atomics, in no order.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.fields.grid.tinycudann_backend import configuration, without_parameters

if TYPE_CHECKING:
    from pipeline.fields.grid.layout import GridSettings

_BLOCK = 16
_FUSED_WIDTHS = (16, 32, 64, 128)
# The scaled gradient's sum over all points and outputs. The library multiplies it by 128, and float16 ends at 65,504.
# So even if everything summed up in one parameter, activations and weights could multiply it by 8.
_GRADIENT = 64.0


def evaluate(
    points: Tensor, table: Tensor, weights: Sequence[Tensor], settings: GridSettings, grid_backend: str = "auto"
) -> Tensor:
    """As ``mlp.evaluate``: (N, 3) points, table and weights on CUDA -> (N, O) float32.

    ``grid_backend`` is not used, because the library computes the grid. Raises BackendError if the library has another
    number of parameters.
    """
    parameters = flat_parameters(table, weights)
    if not len(points):
        return parameters[:0].reshape(0, 1).expand(0, len(weights[-1]))
    described = json.dumps([configuration(settings), network_configuration(weights)], sort_keys=True)
    module = network_module(described, len(weights[-1]), len(parameters))
    outputs: Tensor = torch.func.functional_call(
        module, {"params": parameters}, (points.detach().float().contiguous(),)
    )
    if not outputs.requires_grad:
        return outputs.float()
    outputs.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]  # torch
    return _kept_in_range(outputs.float(), parameters)


def flat_parameters(table: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The library's float32 vector: ``weights`` padded to multiples of 16, then ``table``. Differentiable."""
    filled = [functional.pad(w, (0, -w.shape[1] % _BLOCK, 0, -w.shape[0] % _BLOCK)).flatten() for w in weights]
    return torch.cat([*filled, table]).float()


def network_configuration(weights: Sequence[Tensor]) -> dict[str, Any]:
    """The library's JSON for layers of these shapes."""
    hidden = len(weights[0]) + -len(weights[0]) % _BLOCK if len(weights) > 1 else _BLOCK
    fused = len(weights) > 1 and hidden in _FUSED_WIDTHS
    return {
        "otype": "FullyFusedMLP" if fused else "CutlassMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": hidden,
        "n_hidden_layers": len(weights) - 1,
    }


def _kept_in_range(outputs: Tensor, parameters: Tensor) -> Tensor:
    """Scales the gradient of ``outputs`` by a power of two inside the library; it reaches ``parameters`` unscaled.

    The library multiplies by a constant 128, which overflows float16 under strong guidance and underflows under weak
    guidance. The factor stays on the device, so nothing waits for it.
    """
    factor = torch.ones((), device=outputs.device)

    def scaled(gradient: Tensor) -> Tensor:
        total = gradient.abs().sum().clamp(min=1e-30)
        factor.copy_(torch.exp2(torch.floor(torch.log2(_GRADIENT / total))))
        return gradient * factor

    outputs.register_hook(scaled)  # type: ignore[no-untyped-call]  # torch
    parameters.register_hook(lambda gradient: gradient / factor)  # type: ignore[no-untyped-call]  # torch
    return outputs


@functools.lru_cache(maxsize=8)
def network_module(described: str, outputs: int, parameter_count: int) -> Any:
    """The library's module for a configuration, without the parameters that it creates."""
    import tinycudann

    encoding, network = json.loads(described)
    module = tinycudann.NetworkWithInputEncoding(3, outputs, encoding, network)
    return without_parameters(module, "network", parameter_count)
