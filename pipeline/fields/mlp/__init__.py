"""The field's network: grid features through a few linear layers, with ReLU between them and no biases.

N points, O outputs. Without biases, as Instant-NGP's, so that on CUDA one fused kernel of tiny-cuda-nn can do it all
with the same parameters; what the outputs are moved by is up to the caller.

The plain way is the grid's own backend and torch, in the table's precision (on CUDA the factors of products are rounded
to TF32's 10 bits unless ``PriorOptions.tf32`` says otherwise; sums are float32). ``tinycudann_backend`` keeps features,
activations, sums and gradients in float16 as well, and is there for who asks for it (LATENTKILN_NETWORK=tinycudann): an
exponent of 10 is known to 1/128 then, which finite differences show, long sums of small gradients stand still, and
what it saves is small beside a diffusion model's step (docs/cost.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.core import backends
from pipeline.fields.grid.layout import GridSettings


def evaluate(
    points: Tensor,
    table: Tensor,
    weights: Sequence[Tensor],
    settings: GridSettings,
    *,
    backend: str = "auto",
    grid_backend: str = "auto",
) -> Tensor:
    """Outputs (N, O) at ``points``, differentiable in ``table`` and ``weights`` (once) and in nothing else.

    Args:
        points: (N, 3) float32 in [0, 1].
        table: (settings.parameter_count,) the grid's, on the device of the points.
        weights: of the layers, each (outputs, inputs); the first takes settings.width inputs, the last gives O.
        backend: "torch", "tinycudann" (CUDA tensors; float32 comes back, with the digits of float16), or "auto".
        grid_backend: of the grid, where torch does the layers; see ``grid.encode``.

    Raises SettingError and BackendError as ``grid.encode`` does.
    """
    module = backends.load(__name__, backend_for(table.device.type, backend))
    outputs: Tensor = module.evaluate(points, table, weights, settings, grid_backend)
    return outputs


def backend_for(device: str, name: str = "auto") -> str:
    """Name of the backend that ``evaluate`` uses for tensors on ``device`` ("cpu", "cuda"): what a record states.

    "auto" is torch, or what the environment requests where that takes tensors of this device.
    """
    return backends.select_for_device("network", device, name).name
