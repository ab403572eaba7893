"""The radiance field of Latent-NeRF: density and latent channels at a point, without view dependence.

A multiresolution grid feeds a small MLP without biases (Metzer et al., 2022; Instant-NGP's sizes). A learned offset is
added to its outputs. It starts as the base colour, while the MLP's outputs are almost 0. The first output, plus a blob
of density around the origin, goes through a truncated exponential and is the density. The other C outputs are the
latent. The background is a second MLP of the ray's direction.

Working frame: right-handed, +Y up, +Z front; the scene fills the cube [-bound, bound]^3. Density is per unit length
of that frame. N points, M directions, C latent channels.

Everything except the grid, and on request the MLP, is plain torch and runs on any device. It has not been run on CUDA
yet.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import SettingError
from pipeline.core.rng import torch_generator
from pipeline.fields import mlp
from pipeline.fields.grid.layout import GridSettings

# The largest exponent of the density: exp(15) = 3.3 million is opaque over any relevant distance.
LARGEST_EXPONENT = 15.0
# Decrease of the exponent per unit length outside the radius.
_FALL = 2000.0
# tiny-cuda-nn's initial range. It is small, so the first renders show only the offset and the blob.
_GRID_START = 1e-4
_GRID_RATE = 10.0
# Without gradients, points are evaluated in pieces of this size: a piece's hidden layers stay in cache, and memory is
# bounded. On CUDA a piece must keep the device busy for longer than its launch takes.
_PIECE = {"cpu": 1 << 14, "cuda": 1 << 18}


@dataclass(frozen=True)
class FieldSettings:
    """Sizes and constants of the radiance field (docs/method.md, section 3).

    Attributes:
        grid: the encoding.
        channels: C, the prior's latent channels.
        hidden, layers: width and number of linear layers of the field's MLP, with ReLU between them.
        bound: half the side of the scene's cube.
        radius: there is no density farther than this from the origin.
        blob_density, blob_radius: blob_density exp(-|x|^2 / (2 blob_radius^2)) is added to the exponent.
        background_hidden: width of the background's hidden layer.
        background_frequencies: octaves in which a direction is encoded for it.
    """

    grid: GridSettings
    channels: int
    hidden: int = 64
    layers: int = 3
    bound: float = 1.0
    radius: float = math.inf
    blob_density: float = 5.0
    blob_radius: float = 0.2
    background_hidden: int = 64
    background_frequencies: int = 6

    def __post_init__(self) -> None:
        if min(self.channels, self.hidden, self.layers, self.background_hidden) < 1:
            raise SettingError("field: channels, hidden, layers and background_hidden must be 1 or more")
        if self.background_frequencies < 0:
            raise SettingError(f"field: background_frequencies must be 0 or more, not {self.background_frequencies}")
        if not self.radius > 0:
            raise SettingError(f"field: radius must be above 0, not {self.radius}")
        if not (0 < self.bound < math.inf and 0 < self.blob_radius < math.inf):
            raise SettingError(f"field: bound and blob_radius must be above 0, not {self.bound} and {self.blob_radius}")


class RadianceField(nn.Module):
    """The field's parameters, and its values at points.

    Args:
        settings: sizes and constants.
        seed: seed of the initial values, which are the same on every machine.
        base_latent: (C,) initial latent everywhere, e.g. the latent of a base colour; None for 0.
        backend: backend of the grid encoding; see ``grid.encode``.
        mlp_backend: backend of the grid and the MLP together; see ``mlp.evaluate``. The parameters are the same for
            all backends.
    """

    def __init__(
        self,
        settings: FieldSettings,
        seed: int,
        *,
        base_latent: Tensor | None = None,
        backend: str = "auto",
        network_backend: str = "auto",
    ):
        super().__init__()
        self.settings, self.backend, self.mlp_backend = settings, backend, network_backend
        # All draws come from one stream, in this order. Changing the order changes every asset.
        generator = torch_generator(seed, "field")
        table = torch.empty(settings.grid.parameter_count)
        self.table = nn.Parameter(table.uniform_(-_GRID_START, _GRID_START, generator=generator))
        sizes = [settings.grid.feature_count, *[settings.hidden] * (settings.layers - 1), 1 + settings.channels]
        self.network = _linear_layers(sizes, generator, bias=False)
        offset = torch.zeros(1 + settings.channels)
        if base_latent is not None:
            offset[1:] = base_latent
        self.offset = nn.Parameter(offset)
        direction_features = 3 + 6 * settings.background_frequencies
        sizes = [direction_features, settings.background_hidden, settings.channels]
        self.background_network = _linear_layers(sizes, generator, bias=True)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,) >= 0 and latent (N, C) at ``points`` (N, 3) in the working frame; parameters get gradients."""
        outputs = self._in_pieces(points, None)
        return trunc_exp(outputs[:, 0]), outputs[:, 1:]

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) alone. It is cheaper than ``forward`` and equal up to rounding."""
        return trunc_exp(self.exponent(points))

    def exponent(self, points: Tensor) -> Tensor:
        """(N,) whose truncated exponential is the density."""
        return self._in_pieces(points, 1)[:, 0]

    def background(self, directions: Tensor) -> Tensor:
        """Latent (M, C) of the background along unit ``directions`` (M, 3)."""
        values = encode_directions(directions.to(self.table.dtype), self.settings.background_frequencies)
        *before, last = self.background_network
        for layer in before:
            values = layer(values).relu_()
        latent: Tensor = last(values)
        return latent

    def normals(self, points: Tensor, step: float = 0.01) -> Tensor:
        """Outward unit normals (N, 3): the direction in which density falls fastest, by central differences.

        Uses differences of the exponent over ``step``: its gradient has the density's direction, and neither vanishes
        in empty space nor overflows inside. At the cube's faces they are one-sided. Where the field is flat, the
        normal is +Y. Parameters get gradients. Costs six times ``density``.
        """
        bound = self.settings.bound
        shifts = step * torch.eye(3, dtype=points.dtype, device=points.device)
        ahead = (points[:, None] + shifts).clamp(-bound, bound)  # (N, 3 axes, 3)
        behind = (points[:, None] - shifts).clamp(-bound, bound)
        values = self.exponent(torch.cat([ahead, behind]).reshape(-1, 3)).reshape(2, -1, 3)
        spacing = (ahead - behind).diagonal(dim1=1, dim2=2).clamp(min=step / 2)
        downhill = (values[1] - values[0]) / spacing
        length = downhill.norm(dim=1, keepdim=True)
        up = downhill.new_tensor([0.0, 1.0, 0.0])
        return torch.where(length > 1e-12, downhill / length.clamp(min=1e-12), up)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for Adam. The grid's rate is ten times the MLPs', because a step reaches few of its entries."""
        networks = [*self.network.parameters(), self.offset, *self.background_network.parameters()]
        return [{"params": [self.table], "lr": lr * _GRID_RATE}, {"params": networks, "lr": lr}]

    def _in_pieces(self, points: Tensor, columns: int | None) -> Tensor:
        piece = _PIECE.get(points.device.type, 1 << 18)
        if torch.is_grad_enabled() or len(points) <= piece:
            return self._outputs(points, columns)
        return torch.cat([self._outputs(chunk, columns) for chunk in points.split(piece)])  # type: ignore[no-untyped-call]  # torch

    def _outputs(self, points: Tensor, columns: int | None) -> Tensor:
        """The MLP's outputs (N, 1 + C), or only the first ``columns``; with the offset, and the blob in column 0."""
        settings = self.settings
        unit = (points / (2 * settings.bound) + 0.5).clamp(0, 1)
        weights: list[Any] = [layer.weight for layer in self.network]
        weights[-1] = weights[-1][:columns]
        outputs = mlp.evaluate(
            unit, self.table, weights, settings.grid, backend=self.mlp_backend, grid_backend=self.backend
        )
        outputs = outputs + self.offset[:columns]
        # In place, because the gradient of a sum does not need the sum's value.
        outputs[:, 0] += self._shape(points)
        return outputs

    def _shape(self, points: Tensor) -> Tensor:
        """(N,) addition to the exponent: the blob, and beyond the radius a decrease that no density can overcome."""
        settings = self.settings
        squared = points.to(self.table.dtype).square().sum(dim=1)
        blob = settings.blob_density * torch.exp(squared * (-0.5 / settings.blob_radius**2))
        if settings.radius >= math.sqrt(3) * settings.bound:
            return blob
        return blob - _FALL * (squared.sqrt() - settings.radius).clamp(min=0)


class _TruncatedExp(torch.autograd.Function):
    """See ``trunc_exp``."""

    @staticmethod
    def forward(ctx: Any, exponent: Tensor) -> Tensor:
        ctx.save_for_backward(exponent)
        return exponent.clamp(max=LARGEST_EXPONENT).exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (exponent,) = ctx.saved_tensors
        result: Tensor = grad * exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp()
        return result


def trunc_exp(exponent: Tensor) -> Tensor:
    """exp(exponent), at most exp(15), with a gradient that neither overflows nor vanishes.

    Beyond +-15 the gradient is that at +-15 (Instant-NGP's rule), so that an excessive density can come down and empty
    space can fill. Unlike in Instant-NGP the value is clamped above as well, so it stays finite.
    """
    apply: Any = _TruncatedExp.apply
    density: Tensor = apply(exponent)
    return density


def encode_directions(directions: Tensor, frequencies: int) -> Tensor:
    """Directions (M, 3) and their sines and cosines in octaves: (M, 3 + 6 frequencies).

    Columns: the direction; then for k = 0, 1, ...: sin(2^k d), cos(2^k d), three columns each (Mildenhall et al.,
    NeRF, 2020, section 5.1, without its factor pi, as a unit vector spans two units and not a whole period).
    """
    encoded = [directions]
    for k in range(frequencies):
        encoded += [torch.sin(directions * 2.0**k), torch.cos(directions * 2.0**k)]
    return torch.cat(encoded, dim=1)


def _linear_layers(sizes: list[int], generator: torch.Generator, *, bias: bool) -> nn.ModuleList:
    """Linear layers between ``sizes``, initialised as by torch, but from ``generator``."""
    layers = nn.ModuleList()
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]  # torch
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        layers.append(layer)
    return layers
