"""Compares two backends of an operation: dtypes, shapes, values and gradients, within tolerances kept here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fake_cuda import plain
from torch import Tensor

from pipeline.core.rng import torch_generator

Named = dict[str, Tensor]
# Backends that take tensors on the make-believe CUDA device of ``fake_cuda``.
_ON_CUDA = ("tinycudann", "nvdiffrast")


@dataclass(frozen=True)
class Tolerance:
    """|found - expected| <= atol + rtol |expected|, element by element, for values and for gradients.

    ``outliers`` is the largest share of the values that may differ by more, e.g. of pixels on an edge.
    """

    rtol: float = 0.0
    atol: float = 0.0
    grad_rtol: float = 0.0
    grad_atol: float = 0.0
    outliers: float = 0.0


EXACT = Tolerance()
# By operation, backend and the dtype of the inputs; every backend is compared with the plain twin of its operation.
TOLERANCES: Mapping[tuple[str, str, torch.dtype], Tolerance] = {
    # To the bit: the plain twin does the same operations in the same order.
    ("rasterise", "numba", torch.float64): EXACT,
    ("march", "numba", torch.float32): EXACT,
    ("uv", "numba", torch.float64): EXACT,
    ("gutter", "numba", torch.float32): EXACT,
    # Ids to the bit; the barycentrics of a margin are quotients.
    ("rasterise_uv", "numba", torch.float64): Tolerance(1e-7, 1e-6),
    ("interpolate", "numba", torch.float32): Tolerance(1e-6, 1e-6),
    ("interpolate", "numba", torch.float64): Tolerance(1e-6, 1e-6),
    # What is left is the order of additions.
    ("grid", "numba", torch.float32): Tolerance(0, 1e-5, 1e-5, 1e-4),
    ("grid", "numba", torch.float64): Tolerance(0, 1e-13, 1e-13, 1e-12),
    # The last bit of a level's scale may differ: at 64 corners it moves a weight by 1e-5.
    ("grid", "tinycudann", torch.float32): Tolerance(1e-4, 1e-4, 1e-4, 2e-4),
    ("composite", "numba", torch.float32): Tolerance(2e-5, 2e-5, 2e-5, 2e-5),
    ("composite", "numba", torch.float64): Tolerance(1e-12, 1e-12, 1e-12, 1e-12),
    ("texture", "numba", torch.float32): Tolerance(1e-5, 1e-6, 1e-5, 1e-5),
    ("texture", "numba", torch.float64): Tolerance(1e-12, 1e-13, 1e-12, 1e-12),
    ("texture", "nvdiffrast", torch.float32): Tolerance(1e-5, 1e-6, 1e-5, 1e-5),
    # Single precision may tip an edge that runs exactly aslant, or at the limit of what counts.
    ("antialias", "nvdiffrast", torch.float32): Tolerance(0, 1e-4, outliers=1e-3),
    # The twin's coordinates are float32 where the compiled loop's are float64.
    ("tiling", "numba", torch.float32): Tolerance(0, 2e-5),
}


def compare(
    operation: str,
    run: Callable[..., Any],
    one: str,
    other: str,
    inputs: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Named:
    """Asserts that backend ``one`` of ``operation`` gives what ``other``, its plain twin, gives.

    Args:
        operation: and ``one`` and ``dtype`` name the tolerance.
        run: called as ``run(backend, **inputs)``; returns a tensor, an array, or a tuple, dataclass or dict of them.
        inputs: tensors for ``run``; gradients flow to those that require one. Each backend gets copies, on the
            device whose tensors it takes.

    Gradients are those of the sum of all floating outputs that have one, by fixed random weights. Returns the outputs
    of ``other`` by name, for claims of the test's own about them; gradients are named ``grad <input>``.
    """
    tolerance = TOLERANCES[operation, one, dtype]
    found, expected = (_evaluate(run, backend, inputs or {}) for backend in (one, other))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        is_gradient = name.startswith("grad ")
        rtol, atol = (tolerance.grad_rtol, tolerance.grad_atol) if is_gradient else (tolerance.rtol, tolerance.atol)
        _assert_close(f"{operation}, {one} against {other}: {name}", found[name], value, rtol, atol, tolerance.outliers)
    return expected


def _assert_close(label: str, found: Tensor, expected: Tensor, rtol: float, atol: float, outliers: float) -> None:
    assert found.dtype == expected.dtype, (label, found.dtype, expected.dtype)
    assert found.shape == expected.shape, (label, found.shape, expected.shape)
    if not expected.is_floating_point():
        rtol = atol = 0.0
    close = torch.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    share = float((~close).double().mean()) if close.numel() else 0.0
    if share > outliers:
        difference = float((found.double() - expected.double()).abs().nan_to_num().max())
        raise AssertionError(f"{label}: {share:.2%} differ by more than the tolerance, by up to {difference:.3g}")


def _evaluate(run: Callable[..., Any], backend: str, inputs: Mapping[str, Tensor]) -> Named:
    """Outputs and gradients in host memory."""
    device = "cuda" if backend in _ON_CUDA else "cpu"
    leaves = {
        name: tensor.detach().clone().to(device).requires_grad_(tensor.requires_grad) for name, tensor in inputs.items()
    }
    outputs = _named(run(backend, **leaves))
    results = {name: plain(value).detach() for name, value in outputs.items()}
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if wanted:
        total = torch.zeros((), device=device, dtype=torch.float64)
        for name, value in outputs.items():
            if value.requires_grad:
                weight = torch.randn(value.shape, generator=torch_generator(11, name), dtype=torch.float64)
                total = total + (value.double() * weight.to(device)).sum()
        gradients = torch.autograd.grad(total, list(wanted.values()))
        results |= {f"grad {name}": plain(gradient) for name, gradient in zip(wanted, gradients, strict=True)}
    return results


def _named(outputs: Any) -> Named:
    """The tensors of what an operation returned, by name or number."""
    if isinstance(outputs, (Tensor, np.ndarray, np.generic, bool)):
        outputs = {"value": outputs}
    elif isinstance(outputs, tuple):
        outputs = {str(number): value for number, value in enumerate(outputs)}
    elif not isinstance(outputs, dict):
        outputs = vars(outputs)
    return {name: value if isinstance(value, Tensor) else torch.tensor(value) for name, value in outputs.items()}
