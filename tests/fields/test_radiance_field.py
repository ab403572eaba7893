"""The radiance field: its activation, blob, background, normals, and that a seed decides every byte."""

import math

import pytest
import torch

from pipeline.core.errors import SettingError
from pipeline.core.rng import torch_generator
from pipeline.fields.grid.layout import GridSettings
from pipeline.fields.radiance_field import FieldSettings, RadianceField, encode_directions, trunc_exp

SMALL = FieldSettings(GridSettings(levels=4, features=2, base=4, finest=32, log2_table=9), channels=4)


def some_points(count, seed=1):
    return torch.rand(count, 3, generator=torch_generator(seed, "points")) * 2 - 1


def blank(settings=SMALL, **arguments):
    """A field whose MLP says 0 everywhere: what is left is the blob."""
    field = RadianceField(settings, 0, **arguments)
    with torch.no_grad():
        field.network[-1].weight.zero_()
    return field


def test_shapes_and_sizes():
    field = RadianceField(SMALL, 7)
    sigma, features = field(some_points(50))
    assert sigma.shape == (50,)
    assert features.shape == (50, 4)
    assert (sigma >= 0).all()
    assert sigma.dtype == features.dtype == torch.float32
    assert [tuple(layer.weight.shape) for layer in field.network] == [(64, 8), (64, 64), (5, 64)]
    assert all(layer.bias is None for layer in field.network) and field.offset.shape == (5,)
    assert [tuple(layer.weight.shape) for layer in field.background_network] == [(64, 39), (4, 64)]
    assert field.background(torch.eye(3)).shape == (3, 4)
    assert field.density(torch.zeros(0, 3)).shape == (0,)
    assert field(torch.zeros(0, 3))[1].shape == (0, 4)


def test_the_published_field_has_the_published_sizes():
    settings = FieldSettings(GridSettings(), channels=4)
    assert (settings.hidden, settings.layers, settings.bound) == (64, 3, 1.0)
    assert (settings.blob_density, settings.blob_radius) == (5.0, 0.2)
    assert (settings.background_hidden, settings.background_frequencies) == (64, 6)
    assert settings.grid.feature_count == 32


def test_density_is_forwards_density():
    field = RadianceField(SMALL, 7)
    points = some_points(100)
    torch.testing.assert_close(field.density(points), field(points)[0], rtol=1e-5, atol=0)


def test_nothing_grows_beyond_the_radius():
    bounded = FieldSettings(SMALL.grid, channels=4, radius=0.5)
    field, free = RadianceField(bounded, 7), RadianceField(SMALL, 7)
    points = some_points(500)
    outside = points.norm(dim=1) > 0.52
    with torch.no_grad():
        for each in (field, free):
            each.offset[0] = 8.0  # fog everywhere
        assert (field.density(points)[outside] < 1e-8).all() and (free.density(points) > 1e3).all()
        inside = points.norm(dim=1) < 0.5
        assert torch.equal(field.density(points)[inside], free.density(points)[inside])
    with pytest.raises(SettingError):
        FieldSettings(SMALL.grid, channels=4, radius=0.0)


def test_pieces_without_gradient_give_the_same():
    field = RadianceField(SMALL, 7)
    points = some_points(40_000)
    with torch.no_grad():
        pieces = (*field(points), field.density(points))
    whole = (*field(points), field.density(points))
    for a, b in zip(pieces, whole, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


def test_the_blob():
    field = blank()
    points = torch.tensor([[0.0, 0, 0], [0.2, 0, 0], [0, -0.4, 0], [1, 1, 1]])
    # 5 exp(0), 5 exp(-1/2), 5 exp(-2), 5 exp(-37.5)
    expected = [math.exp(5), math.exp(5 * math.exp(-0.5)), math.exp(5 * math.exp(-2)), 1.0]
    assert field.density(points).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("exponent", "value", "slope"),
    [
        (0.0, 1.0, 1.0),
        (2.0, math.exp(2), math.exp(2)),
        (-14.0, math.exp(-14), math.exp(-14)),
        (15.0, math.exp(15), math.exp(15)),
        (40.0, math.exp(15), math.exp(15)),
        (1e30, math.exp(15), math.exp(15)),
        (-40.0, math.exp(-40), math.exp(-15)),
    ],
)
def test_truncated_exponential(exponent, value, slope):
    x = torch.tensor([exponent], dtype=torch.float64, requires_grad=True)
    y = trunc_exp(x)
    y.backward(torch.tensor([3.0], dtype=torch.float64))
    assert y.item() == pytest.approx(value, rel=1e-12)
    assert x.grad.item() == pytest.approx(3 * slope, rel=1e-12)


def test_truncated_exponential_against_finite_differences():
    x = torch.linspace(-14, 3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(trunc_exp, x)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_field_gradients_against_finite_differences(backend):
    grid = GridSettings(levels=2, features=2, base=2, finest=3, log2_table=4)
    field = RadianceField(FieldSettings(grid, channels=2, hidden=5, layers=2), 3, backend=backend).double()
    with torch.no_grad():
        field.table.mul_(1e4)  # away from 0, where ReLU has its kink
    points = some_points(4)
    names = [name for name, _ in field.named_parameters() if not name.startswith("background")]

    def outputs(*values):
        sigma, features = torch.func.functional_call(field, dict(zip(names, values, strict=True)), (points,))
        return sigma, features

    values = [field.get_parameter(name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(outputs, values, atol=1e-6)


def test_backends_agree_through_the_field():
    points = some_points(500)
    grads = []
    for backend in ("numba", "torch"):
        field = RadianceField(SMALL, 7, backend=backend)
        sigma, features = field(points)
        (sigma.sum() + (features**2).sum()).backward()
        grads.append([sigma.detach(), features.detach(), field.table.grad, field.network[0].weight.grad])
    for fast, plain in zip(*grads, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_same_seed_same_bytes_whatever_was_drawn_before():
    fields = []
    for noise in (0, 5):
        torch.manual_seed(noise)
        torch.rand(noise + 1)
        state = torch.random.get_rng_state()
        field = RadianceField(SMALL, 11)
        assert torch.equal(torch.random.get_rng_state(), state)
        adam = torch.optim.Adam(field.parameter_groups(1e-3), fused=True)
        for step in range(3):
            sigma, features = field(some_points(3000, step))
            loss = (sigma.mean() - 1) ** 2 + features.mean() + field.background(torch.eye(3)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        fields.append(field.state_dict())
    assert all(torch.equal(fields[0][name], fields[1][name]) for name in fields[0])
    other = RadianceField(SMALL, 12).state_dict()
    assert not any(torch.equal(fields[0][name], other[name]) for name in other)


def test_the_start_is_the_blob_in_the_base_colour():
    base = torch.tensor([1.0, -2.0, 0.5, 3.0])
    field = RadianceField(SMALL, 7, base_latent=base)
    assert 0.9e-4 < field.table.abs().max() <= 1e-4
    assert abs(field.table.mean()) < 1e-5
    assert field.network[1].weight.abs().max() <= 64**-0.5
    points = some_points(2000)
    sigma, latent = field(points)
    torch.testing.assert_close(latent, base.expand(2000, -1), rtol=0, atol=1e-3)
    blob = torch.exp(5 * torch.exp(-points.square().sum(1) / (2 * 0.2**2)))
    torch.testing.assert_close(sigma, blob, rtol=1e-3, atol=0)
    assert RadianceField(SMALL, 7).offset.tolist() == [0.0] * 5


def test_the_offset_learns():
    field = RadianceField(SMALL, 7)
    sigma, latent = field(some_points(100))
    (sigma.log().sum() + 2 * latent.sum()).backward()
    torch.testing.assert_close(field.offset.grad, torch.tensor([100.0, 200, 200, 200, 200]))


def test_background_sees_directions_in_octaves():
    direction = torch.tensor([[0.6, 0.0, -0.8]])
    encoded = encode_directions(direction, 6)
    assert encoded.shape == (1, 39)
    assert encoded[0, :3].tolist() == direction[0].tolist()
    for k in range(6):
        for axis, value in enumerate((0.6, 0.0, -0.8)):
            assert encoded[0, 3 + 6 * k + axis].item() == pytest.approx(math.sin(2**k * value), abs=1e-5)
            assert encoded[0, 6 + 6 * k + axis].item() == pytest.approx(math.cos(2**k * value), abs=1e-5)
    assert encode_directions(direction, 0).shape == (1, 3)


def test_background_gets_gradient_and_the_field_none():
    field = RadianceField(SMALL, 7)
    field.background(torch.eye(3)).sum().backward()
    assert all(p.grad is not None for p in field.background_network.parameters())
    assert field.table.grad is None


def test_normals_point_out_of_the_blob():
    points = torch.tensor([[0.3, 0, 0], [0, 0, -0.2], [0.2, -0.2, 0.1], [0, 0.999, 0]])
    field = blank()
    normals = field.normals(points)
    torch.testing.assert_close(normals[:3], points[:3] / points[:3].norm(dim=1, keepdim=True), rtol=0, atol=1e-3)
    # Beside the cube's face the difference is one-sided, and far from the blob nothing falls: up.
    assert normals[3].tolist() == pytest.approx([0, 1, 0], abs=1e-3)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(4))


def test_normals_on_a_face_of_the_cube_keep_their_direction():
    # A wide blob: its fall along x, at the face x = 1, counts as much as that along y.
    field = blank(FieldSettings(SMALL.grid, channels=4, blob_radius=2.0))
    point = torch.tensor([[1.0, 0.999, 0.2]])
    torch.testing.assert_close(field.normals(point), point / point.norm(), rtol=0, atol=0.01)


def test_normals_carry_gradient_and_a_flat_field_is_no_nan():
    field = RadianceField(SMALL, 7)
    (field.normals(some_points(20)) ** 3).sum().backward()
    assert field.table.grad.abs().sum() > 0
    flat = blank(FieldSettings(SMALL.grid, channels=4, blob_density=0.0))
    normals = flat.normals(some_points(5))
    assert normals.tolist() == [[0.0, 1.0, 0.0]] * 5
    normals.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flat.parameters())


def test_the_grid_learns_ten_times_faster():
    field = RadianceField(SMALL, 7)
    grid, networks = field.parameter_groups(2e-3)
    assert grid["lr"] == pytest.approx(2e-2)
    assert networks["lr"] == 2e-3
    assert [p is field.table for p in grid["params"]] == [True]
    together = {id(p) for p in grid["params"] + networks["params"]}
    assert together == {id(p) for p in field.parameters()}


def test_it_learns_a_sphere():
    field = RadianceField(SMALL, 7)
    adam = torch.optim.Adam(field.parameter_groups(5e-3), betas=(0.9, 0.99), eps=1e-15, fused=True)
    colour = torch.tensor([1.0, -1.0, 0.5, 0.0])
    for step in range(150):
        points = some_points(1024, step)
        inside = (points.norm(dim=1) < 0.6).float()
        sigma, features = field(points)
        alpha = (1 - torch.exp(-0.2 * sigma)).clamp(0.01, 0.99)
        loss = torch.nn.functional.binary_cross_entropy(alpha, inside) + (features - colour).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    points = some_points(2000, 999)
    sigma, features = field(points)
    right = ((1 - torch.exp(-0.2 * sigma)) > 0.5) == (points.norm(dim=1) < 0.6)
    assert right.float().mean() > 0.95
    assert (features - colour).abs().mean() < 0.1


@pytest.mark.parametrize(
    "wrong", [{"channels": 0}, {"hidden": 0}, {"bound": 0.0}, {"blob_radius": 0.0}, {"background_frequencies": -1}]
)
def test_settings_that_make_no_field_are_refused(wrong):
    with pytest.raises(SettingError):
        FieldSettings(**({"grid": SMALL.grid, "channels": 4} | wrong))
