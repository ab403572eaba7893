"""The comparison itself finds what differs: a value, a gradient, a dtype, a shape, too many outliers."""

import pytest
import torch
from compare import compare

X = torch.linspace(1, 2, 2000, dtype=torch.float32).requires_grad_()


class _ScaledGradient(torch.autograd.Function):
    """The square, with a gradient that is wrong by one part in a hundred."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return 2.02 * ctx.saved_tensors[0] * grad


FAULTS = {
    "value": lambda x: x**2 + 1e-3,
    "grad x": _ScaledGradient.apply,
    "float64": lambda x: x.double() ** 2,
    r"2000, 1\]": lambda x: (x**2)[:, None],
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_difference_is_found(message):
    with pytest.raises(AssertionError, match=message):
        compare(
            "grid",
            lambda name, x: FAULTS[message](x) if name == "numba" else x**2,
            "numba",
            "torch",
            {"x": X},
            torch.float32,
        )


def test_gradients_are_those_of_all_outputs():
    expected = compare("grid", lambda name, x: (x**2, x.exp()), "numba", "torch", {"x": X}, torch.float32)
    assert expected.keys() == {"0", "1", "grad x"}


@pytest.mark.parametrize(("outliers", "good"), [(2, True), (4, False)])
def test_a_share_of_outliers_is_allowed_where_the_operation_has_them(outliers, good):
    def run(name):
        value = torch.zeros(2000)
        value[:outliers] = float(name == "nvdiffrast")
        return value

    if good:
        compare("antialias", run, "nvdiffrast", "numpy", dtype=torch.float32)
    else:
        with pytest.raises(AssertionError, match=r"0\.20%"):
            compare("antialias", run, "nvdiffrast", "numpy", dtype=torch.float32)
