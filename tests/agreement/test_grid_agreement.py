"""The compiled grid encoding against its plain twin: values, gradients, and the same bytes on any number of threads."""

import pytest
import torch
from compare import compare

from pipeline.core.rng import torch_generator
from pipeline.fields.grid import encode
from pipeline.fields.grid.layout import GridSettings

# Dense and hashed levels, tiled ones that wrap, sizes that are no multiple of 8, one to eight features, one level.
LAYOUTS = {
    "hash": GridSettings(levels=16, features=2, base=16, finest=2048, log2_table=12),
    "odd": GridSettings(levels=5, features=1, base=3, finest=50, log2_table=9),
    "tiled": GridSettings(levels=4, features=4, base=5, finest=40, kind="tiled"),
    "dense": GridSettings(levels=3, features=8, base=5, finest=11, kind="dense"),
    "single": GridSettings(levels=1, features=2, base=7, finest=7, log2_table=19),
}


def some_points(count):
    """Points in the unit cube, on its corners and faces, on grid lines, and some outside."""
    generator = torch_generator(3, "points")
    points = torch.rand(count, 3, generator=generator)
    points[: count // 8] = (points[: count // 8] * 16).round() / 16
    points[count // 8 : count // 4] = points[count // 8 : count // 4].round()
    points[-count // 8 :] = points[-count // 8 :] * 3 - 1
    return points


def run(name, points, settings, dtype, backend):
    generator = torch_generator(4, name)
    table = torch.randn(settings.parameter_count, generator=generator, dtype=dtype).requires_grad_()
    encoded = encode(points, table, settings, backend=backend)
    encoded.backward(torch.randn(encoded.shape, generator=generator, dtype=dtype))
    return encoded.detach(), table.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYOUTS)
def test_values_and_gradients_agree(name, dtype):
    settings = LAYOUTS[name]
    points = some_points(400)
    table = torch.randn(settings.parameter_count, generator=torch_generator(4, name), dtype=dtype).requires_grad_()
    expected = compare(
        "grid",
        lambda backend, table: encode(points, table, settings, backend=backend),
        "numba",
        "torch",
        {"table": table},
        dtype,
    )
    assert expected["value"].shape == (400, settings.feature_count) and expected["value"].dtype == dtype
    assert expected["grad table"].count_nonzero() > 100


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_same_bytes_on_any_number_of_threads(backend):
    settings = LAYOUTS["hash"]
    points = some_points(5000)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(run("threads", points, settings, torch.float32, backend))
    finally:
        torch.set_num_threads(before)
    for again in results[1:]:
        assert torch.equal(results[0][0], again[0])
        assert torch.equal(results[0][1], again[1])


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_no_points(backend):
    settings = LAYOUTS["odd"]
    encoded, grad = run("none", torch.zeros(0, 3), settings, torch.float32, backend)
    assert encoded.shape == (0, 5)
    assert grad.count_nonzero() == 0
