"""The field's network: maps grid features through a few linear layers, with ReLU between them and no biases.

N points, O outputs. The layers have no biases, like Instant-NGP's, so that one fused kernel of tiny-cuda-nn can
evaluate grid and network with the same parameters. The caller adds its own offset to the outputs.

``torch_backend`` uses the grid's own backend and torch, in the table's precision (on CUDA the factors of products are
rounded to TF32's 10 bits unless ``PriorOptions.tf32`` says otherwise; sums are float32). ``tinycudann_backend`` keeps
features, activations, sums and gradients in float16. It is used on request only (LATENTKILN_NETWORK=tinycudann), for
three reasons: float16 resolves an exponent of 10 to 1/128, which shows in finite differences; long sums of small
gradients stop growing; and it saves little time compared with a diffusion model's step (docs/cost.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.core import backends
from pipeline.fields.grid.layout import GridSettings

if TYPE_CHECKING:
    from jaxtyping import Float


def evaluate(
    points: Float[Tensor, "points 3"],
    table: Float[Tensor, " parameters"],
    weights: Sequence[Float[Tensor, "_ _"]],
    settings: GridSettings,
    *,
    backend: str = "auto",
    grid_backend: str = "auto",
) -> Float[Tensor, "points outputs"]:
    """Outputs (N, O) at ``points``; differentiable (once) with respect to ``table`` and ``weights`` only.

    Args:
        points: (N, 3) float32 in [0, 1].
        table: (settings.parameter_count,) the grid's, on the device of the points.
        weights: one (outputs, inputs) matrix per layer; the first takes settings.feature_count inputs, the last
            returns O outputs.
        backend: "torch", "tinycudann" (CUDA tensors; returns float32 with the precision of float16), or "auto".
        grid_backend: the grid's backend if torch evaluates the layers; see ``grid.encode``.

    Raises SettingError and BackendError as ``grid.encode`` does.
    """
    module = backends.load(__name__, backend_for(table.device.type, backend))
    outputs: Tensor = module.evaluate(points, table, weights, settings, grid_backend)
    return outputs


def backend_for(device: str, name: str = "auto") -> str:
    """Name of the backend that ``evaluate`` uses for tensors on ``device`` ("cpu", "cuda"), for the record.

    "auto" is torch, or the environment's choice if that takes tensors of this device.
    """
    return backends.select_for_device("network", device, name).name
