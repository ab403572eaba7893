"""tiny-cuda-nn's layer against a stand-in that checks its contract and reads its layout independently of ours."""

from __future__ import annotations

import fake_tinycudann
import pytest
import torch
from compare import compare
from fake_cuda import CudaTensor

from pipeline.core.errors import BackendError
from pipeline.core.rng import torch_generator
from pipeline.fields import grid
from pipeline.fields.grid import tinycudann_backend
from pipeline.fields.grid.layout import GridSettings

SETTINGS = {
    "hash": GridSettings(levels=6, base=4, finest=64, log2_table=10),
    "four features": GridSettings(levels=3, features=4, base=8, finest=40, log2_table=11),
    "tiled": GridSettings(levels=4, base=6, finest=40, kind="tiled"),
    "dense": GridSettings(levels=3, base=4, finest=17, kind="dense"),
    "one level": GridSettings(levels=1, base=9, finest=9, log2_table=12),
    # Beyond 1625 corners an index without hashing would overflow.
    "fine": GridSettings(levels=2, base=16, finest=4096, log2_table=8),
}


def problem(settings, count=300):
    """Points (with the cube's own corners among them), a table and a gradient, on the CPU."""
    generator = torch_generator(31, "grid")
    points = torch.rand(count, 3, generator=generator)
    points[0], points[1], points[2] = 0.0, 1.0, torch.tensor([1.0, 0.0, 0.5])
    table = torch.randn(settings.parameter_count, generator=generator)
    return points, table, torch.randn(count, settings.feature_count, generator=generator)


def answers(settings, dtype=None):
    """(values, gradient) of the plain twin and of the layer."""
    points, table, weight = problem(settings)
    table.requires_grad_(True)
    plain = grid.encode(points, table, settings, backend="torch")
    (expected,) = torch.autograd.grad((plain * weight).sum(), table)
    there = table.detach().to("cuda").requires_grad_(True)
    if dtype is None:
        found = grid.encode(points.to("cuda"), there, settings, backend="tinycudann")
    else:
        found = tinycudann_backend.encode(points.to("cuda"), there, settings, dtype=dtype)
    assert isinstance(found, CudaTensor) and found.dtype == torch.float32
    (gradient,) = torch.autograd.grad((found * weight.to("cuda")).sum(), there)
    return (plain.detach(), expected), (found.detach().cpu(), torch.as_tensor(gradient).as_subclass(torch.Tensor))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_layout_is_the_librarys(name, tinycudann):
    settings = SETTINGS[name]
    points, table, _ = problem(settings)
    compare(
        "grid",
        lambda backend, table: grid.encode(points.to(table.device), table, settings, backend=backend),
        "tinycudann",
        "torch",
        {"table": table.requires_grad_()},
        torch.float32,
    )


def test_half_precision_is_close_and_not_the_default(tinycudann):
    answers(SETTINGS["hash"])
    assert tinycudann[0][1]["dtype"] == torch.float32
    (plain, expected), (found, gradient) = answers(SETTINGS["hash"], torch.float16)
    assert gradient.dtype == torch.float32
    assert 0 < (found - plain).abs().max() < 2e-2
    torch.testing.assert_close(gradient, expected, atol=2e-2, rtol=5e-3)


def test_the_usual_grid_has_the_librarys_length():
    layout = fake_tinycudann.Layout(tinycudann_backend.configuration(GridSettings()))
    assert layout.count == GridSettings().parameter_count
    assert tuple(layout.resolutions) == GridSettings().resolutions
    assert tuple(layout.offsets) == GridSettings().offsets


def test_the_configuration_is_written_out():
    assert tinycudann_backend.configuration(GridSettings(levels=2, base=16, finest=64)) == {
        "otype": "Grid",
        "type": "Hash",
        "n_levels": 2,
        "n_features_per_level": 2,
        "log2_hashmap_size": 19,
        "base_resolution": 16,
        "per_level_scale": pytest.approx(4.0),
        "interpolation": "Linear",
    }


def test_the_table_is_ours_and_the_batch_is_padded(tinycudann):
    settings = SETTINGS["hash"]
    points, table, _ = problem(settings)
    there = table.to("cuda")
    for _ in range(2):
        tinycudann_backend.encode(points.to("cuda"), there, settings)
    made = [arguments for name, arguments in tinycudann if name == "Encoding"]
    used = [arguments for name, arguments in tinycudann if name == "forward"]
    assert len(made) == 1 and len(used) == 2  # the module is kept, without a table of its own
    assert used[0]["padded"] == 512 and used[0]["params"].data_ptr() == there.data_ptr()


@pytest.mark.parametrize("layout", ["columns", "one value"])
def test_a_gradient_of_any_layout_reaches_the_library_contiguous(layout, tinycudann):
    settings = SETTINGS["hash"]
    points, table, weight = problem(settings, 512)  # nothing to pad, so the gradient goes through as it is
    there = table.to("cuda").requires_grad_(True)
    found = tinycudann_backend.encode(points.to("cuda"), there, settings)
    given = torch.ones(()).expand_as(weight) if layout == "one value" else weight.T.contiguous().T
    (gradient,) = torch.autograd.grad(found, there, given.to("cuda"))
    plain = table.requires_grad_(True)
    (expected,) = torch.autograd.grad(grid.encode(points, plain, settings, backend="torch"), plain, given.contiguous())
    torch.testing.assert_close(gradient.cpu(), expected, atol=2e-4, rtol=1e-4)


def test_no_points_give_no_rows_but_a_gradient(tinycudann):
    settings = SETTINGS["hash"]
    table = problem(settings)[1].to("cuda").requires_grad_(True)
    found = tinycudann_backend.encode(torch.zeros(0, 3, device="cuda"), table, settings)
    assert found.shape == (0, settings.feature_count)
    found.sum().backward()
    assert not table.grad.any()


def test_another_layout_is_refused(tinycudann, monkeypatch):
    settings = SETTINGS["hash"]
    points, table, _ = problem(settings)
    other = {**tinycudann_backend.configuration(settings), "log2_hashmap_size": 9}
    monkeypatch.setattr(tinycudann_backend, "configuration", lambda given: other)
    with pytest.raises(BackendError, match="lays this grid out in"):
        tinycudann_backend.encode(points.to("cuda"), table.to("cuda"), settings)


def test_a_table_in_host_memory_is_found_out(tinycudann):
    """What the stand-in is for: a call that would fail on a GPU fails here."""
    settings = SETTINGS["hash"]
    points, table, _ = problem(settings)
    with pytest.raises(RuntimeError, match="is_cuda"):
        tinycudann_backend.encode(points.to("cuda"), table, settings)
