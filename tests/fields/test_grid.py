"""Grid encodings: the layout by numbers worked out by hand, interpolation, gradients, and what is refused."""

import math

import pytest
import torch

from pipeline.core import backends
from pipeline.core.errors import BackendError, SettingError
from pipeline.core.rng import torch_generator
from pipeline.fields import grid
from pipeline.fields.grid import encode
from pipeline.fields.grid.layout import GridSettings
from pipeline.fields.grid.torch_backend import corners

BOTH = pytest.mark.parametrize("backend", ["numba", "torch"])


# Worked out in 50-digit decimals, rounded to float32 where tiny-cuda-nn's formulas are float32.
PUBLISHED = [16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048]


def test_the_published_layout():
    settings = GridSettings()
    assert settings.feature_count == 32
    assert settings.per_level_scale == pytest.approx(1.381912879967776, rel=1e-14)
    assert settings.resolutions == tuple(PUBLISHED)
    # 16^3; 23^3 = 12167 -> 12168; 31^3 = 29791 -> 29792; 43^3 = 79507 -> 79512; 59^3 = 205379 -> 205384; then 2^19.
    sizes = [4096, 12168, 29792, 79512, 205384] + [524288] * 11
    assert settings.offsets == tuple(sum(sizes[:level]) for level in range(17))
    assert settings.offsets[5:7] == (330952, 855240)
    # The number that programs built on tiny-cuda-nn print for this grid.
    assert settings.parameter_count == 12196240
    assert settings.hashed == (False,) * 5 + (True,) * 11
    assert settings.scales[0] == 15.0
    assert settings.scales[1] == 21.110605239868164
    assert settings.scales[15] == 2046.9986572265625


def test_a_small_table_hashes_earlier():
    settings = GridSettings(log2_table=15)
    assert settings.resolutions == tuple(PUBLISHED)
    assert settings.offsets[:6] == (0, 4096, 16264, 46056, 78824, 111592)
    assert settings.parameter_count == 944080
    assert settings.hashed == (False,) * 3 + (True,) * 13


def test_doubling_levels():
    settings = GridSettings(levels=8, features=4, log2_table=15)
    assert settings.resolutions == (16, 32, 64, 128, 256, 512, 1024, 2048)
    # 32^3 is 2^15: the level just fits, and is not hashed.
    assert settings.offsets == (0, 4096, 36864, 69632, 102400, 135168, 167936, 200704, 233472)
    assert settings.hashed == (False, False) + (True,) * 6
    assert settings.parameter_count == 933888


def test_float32_decides_a_resolution():
    # 16 x 2^(6 x 5/15) = 64 cells and 65 corners, not 64, because the float32 scale is a little above 63.
    settings = GridSettings(finest=1024, log2_table=15)
    assert settings.scales[5] == 63.00000762939453
    assert settings.resolutions[5] == 65
    assert settings.resolutions[15] == 1025


def test_tiled_and_dense_layouts():
    tiled = GridSettings(levels=4, features=2, base=5, finest=40, kind="tiled")
    assert tiled.resolutions == (5, 10, 20, 40)
    assert tiled.offsets == (0, 125, 250, 375, 500)  # 5^3 each, rounded up before the bound and not after
    dense = GridSettings(levels=3, features=2, base=5, finest=11, kind="dense")
    assert dense.resolutions == (5, 8, 11)
    assert dense.offsets == (0, 128, 640, 1976)  # 125 -> 128, 512, 1331 -> 1336
    assert not any(tiled.hashed + dense.hashed)


def read(points, table, settings, backend="numba"):
    return encode(torch.tensor(points, dtype=torch.float32), table, settings, backend=backend)


@BOTH
def test_which_entry_a_corner_is(backend):
    # Level 0: 16 corners, scale 15, dense; position = 15 x + 0.5. Level 1: 2048 corners, scale 2047, hashed to 2^13.
    settings = GridSettings(levels=2, features=2, log2_table=13)
    assert settings.resolutions == (16, 2048)
    table = torch.arange(settings.parameter_count, dtype=torch.float32)
    # 15 x + 0.5 = 3, 5, 7 exactly: corner (3, 5, 7) alone, entry 3 + 16 * 5 + 256 * 7 = 1875.
    coarse = read([[2.5 / 15, 4.5 / 15, 6.5 / 15]], table, settings, backend)[0, :2]
    assert coarse.tolist() == pytest.approx([3750, 3751], abs=0.01)
    # At (0, 0, 0) each level lies midway between 8 corners; entries 0, 1, 16, 17, 256, 257, 272, 273.
    origin = read([[0, 0, 0]], table, settings, backend)[0]
    assert origin[:2].tolist() == [2 * 136.5, 2 * 136.5 + 1]
    # x y z in {0, 1}: 0, 1, p, 1 ^ p, q, 1 ^ q, p ^ q, 1 ^ p ^ q, of which the low 13 bits count:
    # 2654435761 = 324027 x 8192 + 6577 and 805459861 = 98322 x 8192 + 6037.
    p, q = 6577, 6037
    hashed = [0, 1, p, 1 ^ p, q, 1 ^ q, p ^ q, 1 ^ p ^ q]
    mean = 2 * (4096 + sum(hashed) / 8)
    assert origin[2:].tolist() == [mean, mean + 1]


@BOTH
def test_the_far_corner_wraps_around(backend):
    settings = GridSettings(levels=1, features=1, base=16, finest=16)
    index, weight = corners(torch.ones(1, 3), settings, 0)
    # 15 + 0.5: corners 15 and 16, and 16 is one past the last: 15 + 16 * 15 + 256 * 15 = 4095, then 4096 -> 0, ...
    assert index[0].tolist() == [4095, 0, 15, 16, 255, 256, 271, 272]
    assert weight[0].tolist() == [0.125] * 8
    table = torch.zeros(4096)
    table[[4095, 0, 272]] = torch.tensor([8.0, 16.0, 64.0])
    assert read([[1, 1, 1]], table, settings, backend).item() == 11.0


@BOTH
def test_a_linear_function_is_reproduced_inside(backend):
    settings = GridSettings(levels=2, features=1, base=8, finest=16, kind="dense")
    ramps = []
    for resolution, scale in zip(settings.resolutions, settings.scales, strict=True):
        axis = (torch.arange(resolution) - 0.5) / scale
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        ramps.append((1 * x + 2 * y - 3 * z).flatten())
    table = torch.cat(ramps)
    points = torch.rand(300, 3, generator=torch_generator(1, "ramp")) * 0.9
    expected = (points @ torch.tensor([1.0, 2.0, -3.0]))[:, None].expand(-1, 2)
    torch.testing.assert_close(encode(points, table, settings, backend=backend), expected, rtol=0, atol=1e-5)


@BOTH
def test_gradient_against_finite_differences(backend):
    settings = GridSettings(levels=3, features=2, base=2, finest=5, log2_table=5)
    points = torch.rand(6, 3, generator=torch_generator(2, "points"))
    table = torch.randn(settings.parameter_count, dtype=torch.float64, generator=torch_generator(2, "table"))
    assert torch.autograd.gradcheck(lambda t: encode(points, t, settings, backend=backend), table.requires_grad_())


@BOTH
def test_backward_is_the_transpose_of_forward(backend):
    settings = GridSettings(log2_table=12)
    generator = torch_generator(5, "transpose")
    points = torch.rand(200, 3, generator=generator)
    table = torch.randn(settings.parameter_count, dtype=torch.float64, generator=generator).requires_grad_()
    encoded = encode(points, table, settings, backend=backend)
    grad = torch.randn(encoded.shape, dtype=torch.float64, generator=generator)
    (spread,) = torch.autograd.grad(encoded, table, grad)
    assert (encoded * grad).sum().item() == pytest.approx((table * spread).sum().item(), rel=1e-10)


@BOTH
def test_points_get_no_gradient_and_nan_reads_inside(backend):
    settings = GridSettings(levels=4, log2_table=8)
    points = torch.tensor([[math.nan, 0.5, 0.5], [1e30, -1e30, 0.0], [0.5, 0.5, math.inf]], requires_grad=True)
    table = torch.zeros(settings.parameter_count, requires_grad=True)
    encode(points, table, settings, backend=backend).sum().backward()
    assert points.grad is None
    assert table.grad.shape == table.shape


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"features": 3}, "features"),
        ({"levels": 0}, "levels"),
        ({"levels": 33}, "levels"),
        ({"log2_table": 40}, "log2_table"),
        ({"base": 64, "finest": 32}, "finest"),
        ({"base": 1}, "base"),
        ({"kind": "sparse"}, "kind"),
        ({"kind": "tiled"}, "lower finest"),
        ({"kind": "dense", "finest": 1024}, "parameters"),
    ],
)
def test_settings_without_a_layout_are_refused_in_one_line(settings, word):
    with pytest.raises(SettingError, match=word) as caught:
        GridSettings(**settings)
    assert "\n" not in str(caught.value)


def test_wrong_shapes_are_refused():
    settings = GridSettings(levels=2, log2_table=8)
    table = torch.zeros(settings.parameter_count)
    with pytest.raises(SettingError, match="points"):
        encode(torch.zeros(4, 2), table, settings)
    with pytest.raises(SettingError, match="table"):
        encode(torch.zeros(4, 3), table[:-1], settings)


def test_which_backend_serves_which_device(monkeypatch):
    assert grid.backend_for("cpu") == "numba"
    assert grid.backend_for("cpu", "torch") == "torch"
    assert grid.backend_for("cuda") != "numba"
    assert grid.backend_for("cuda", "torch") == "torch"
    with pytest.raises(BackendError, match="numba takes cpu tensors only"):
        grid.backend_for("cuda", "numba")
    with pytest.raises(BackendError, match="sparse"):
        grid.backend_for("cpu", "sparse")
    # On a machine with CUDA and tiny-cuda-nn, tensors on the CPU still get the CPU's fast backend.
    tcnn = next(b for b in backends.BACKENDS if b.name == "tinycudann")
    monkeypatch.setattr(backends, "select_backend", lambda operation, name="auto": tcnn)
    monkeypatch.setattr(backends, "unavailable_reason", lambda backend: "")
    assert grid.backend_for("cuda") == "tinycudann"
    assert grid.backend_for("cpu") == "numba"


def test_settings_compare_and_hash_by_value():
    assert GridSettings() == GridSettings(levels=16)
    assert len({GridSettings(), GridSettings(), GridSettings(levels=8)}) == 2
