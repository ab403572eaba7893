"""tiny-cuda-nn's fused network against our field: through a stand-in that reads the flat vector on its own.

In float32, as the library is for GPUs without half precision, the two agree to rounding: the layout is the library's.
In float16 they agree to its digits, and a gradient of any size passes.
"""

from __future__ import annotations

import fake_tinycudann
import pytest
import torch
from fake_cuda import CudaTensor

from pipeline.core import backends
from pipeline.core.errors import BackendError
from pipeline.core.rng import torch_generator
from pipeline.fields import mlp
from pipeline.fields.grid.layout import GridSettings
from pipeline.fields.mlp import tinycudann_backend
from pipeline.fields.radiance_field import FieldSettings, RadianceField

GRID = GridSettings(levels=5, features=2, base=4, finest=40, log2_table=9)
FIELDS = {
    "usual": FieldSettings(GRID, channels=4),
    # 48 is no width of the fused kernel; 40 is filled up to it.
    "odd width": FieldSettings(GRID, channels=4, hidden=40, layers=2),
    "one layer": FieldSettings(GRID, channels=2, layers=1),
    # Nothing to fill up, in or out: gradients go through as they come.
    "whole blocks": FieldSettings(GridSettings(levels=4, features=4, base=4, finest=40, log2_table=9), channels=15),
    "many channels": FieldSettings(GRID, channels=20, hidden=16, layers=4),
}
PRECISIONS = {"float32": (torch.float32, 2e-4), "float16": (torch.float16, 2e-2)}


def some_points(count=300):
    return torch.rand(count, 3, generator=torch_generator(71, "points")) * 1.6 - 0.8


def trained(settings, **backend):
    """A field that has left its start: entries, weights and offset are of the size that training gives them."""
    field = RadianceField(settings, 3, **backend)
    generator = torch_generator(72, "trained")
    with torch.no_grad():
        field.table.copy_(torch.randn(field.table.shape, generator=generator) * 0.5)
        field.offset.copy_(torch.randn(field.offset.shape, generator=generator))
        for layer in field.network:
            layer.weight.mul_(1.5)
    return field


def gradients(field, points, strength=1.0):
    """What the field says at ``points``, and the gradients of its own parameters, in host memory."""
    sigma, latent = field(points)
    weight = torch.randn(*latent.shape, generator=torch_generator(73, "weight")).to(points.device)
    field.zero_grad()
    (strength * ((latent * weight).sum() + sigma.clamp(min=1e-9).log().sum())).backward()
    names = [name for name, _ in field.named_parameters() if not name.startswith("background")]
    found = {name: field.get_parameter(name).grad.cpu() / strength for name in names}
    return sigma.detach().cpu(), latent.detach().cpu(), found


def assert_agree(found, expected, tolerance):
    for a, b in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))
    for name, gradient in expected[2].items():
        difference = (found[2][name] - gradient).norm() / gradient.norm()
        assert difference < 4 * tolerance, (name, float(difference))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FIELDS)
def test_values_and_gradients_are_those_of_the_field(name, precision, tinycudann, monkeypatch):
    dtype, tolerance = PRECISIONS[precision]
    monkeypatch.setattr(fake_tinycudann, "network_precision", dtype)
    points = some_points(512 if name == "whole blocks" else 300)
    expected = gradients(trained(FIELDS[name], network_backend="torch"), points)
    fused = trained(FIELDS[name], network_backend="tinycudann").to("cuda")
    found = gradients(fused, points.to("cuda"))
    assert {call for call, _ in tinycudann} == {"NetworkWithInputEncoding", "forward"}
    assert_agree(found, expected, tolerance)


@pytest.mark.parametrize("strength", [1e-9, 1e-3, 1e6])
def test_gradients_of_any_size_pass_half_precision(strength, tinycudann):
    points = some_points()
    expected = gradients(trained(FIELDS["usual"], network_backend="torch"), points)
    fused = trained(FIELDS["usual"], network_backend="tinycudann").to("cuda")
    assert_agree(gradients(fused, points.to("cuda"), strength), expected, 2e-2)


def test_the_offset_and_the_blob_keep_single_precision(tinycudann):
    """They are added outside: a half could not hold 1000.125 + 5 exp(-r^2 / 2)."""
    field = trained(FIELDS["usual"], network_backend="tinycudann").to("cuda")
    with torch.no_grad():
        field.network[-1].weight.zero_()
        field.offset.copy_(torch.tensor([1.0, 1000.125, 0.0, -3.0001, 2.0]))
    sigma, latent = field(torch.zeros(7, 3, device="cuda"))
    assert latent[0].cpu().tolist() == pytest.approx([1000.125, 0.0, -3.0001, 2.0], abs=1e-6)
    assert float(sigma[0].cpu().detach().log()) == pytest.approx(6.0, abs=1e-5)


def test_the_configuration_is_written_out(tinycudann):
    field = RadianceField(FIELDS["usual"], 3, network_backend="tinycudann").to("cuda")
    field.density(torch.zeros(3, 3, device="cuda"))
    field(torch.zeros(3, 3, device="cuda"))
    field(torch.zeros(3, 3, device="cuda"))
    made = [arguments for name, arguments in tinycudann if name == "NetworkWithInputEncoding"]
    assert [arguments["outputs"] for arguments in made] == [1, 5]  # kept from the second call on
    assert made[0]["config"] == {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": 64,
        "n_hidden_layers": 2,
    }
    assert all(isinstance(a["params"], CudaTensor) for name, a in tinycudann if name == "forward")


def test_the_vector_is_the_librarys():
    """Matrices row by row, filled up with zeros to 16 inputs and outputs, then the table."""
    first, last = torch.arange(20.0).view(2, 10) + 1, torch.tensor([[7.0, 8.0]])
    table = torch.full((GRID.parameter_count,), -1.0)
    vector = tinycudann_backend.flat_parameters(table, [first, last])
    assert len(vector) == 16 * 16 + 16 * 16 + GRID.parameter_count
    matrices = vector[:512].view(2, 16, 16)
    assert torch.equal(matrices[0, :2, :10], first) and torch.equal(matrices[1, :1, :2], last)
    assert matrices.count_nonzero() == 22 and (vector[512:] == -1).all()


def test_no_points_give_no_rows_but_a_gradient(tinycudann):
    field = RadianceField(FIELDS["usual"], 3, network_backend="tinycudann").to("cuda")
    sigma, latent = field(torch.zeros(0, 3, device="cuda"))
    assert sigma.shape == (0,) and latent.shape == (0, 4)
    (sigma.sum() + latent.sum()).backward()
    assert not field.table.grad.any()


def test_one_is_trained_on_by_the_other(tinycudann, tmp_path):
    """State, names and shapes are the same: a checkpoint of one goes on with the other, and comes out near."""
    points = some_points()

    def steps(field, where, count):
        adam = torch.optim.Adam(field.parameter_groups(2e-3), betas=(0.9, 0.99), eps=1e-15)
        for _ in range(count):
            sigma, latent = field(points.to(where))
            loss = (latent - 1).square().mean() + (sigma.clamp(min=1e-6).log() - 2).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return field

    ours = steps(RadianceField(FIELDS["usual"], 3, network_backend="torch"), "cpu", 10)
    fused = RadianceField(FIELDS["usual"], 4, network_backend="tinycudann").to("cuda")
    fused.load_state_dict({name: value.to("cuda") for name, value in ours.state_dict().items()})
    steps(fused, "cuda", 10)
    back = RadianceField(FIELDS["usual"], 5, network_backend="torch")
    back.load_state_dict({name: value.cpu() for name, value in fused.state_dict().items()})
    steps(ours, "cpu", 10)
    with torch.no_grad():
        for a, b in zip(back(points), ours(points), strict=True):
            assert (a - b).abs().mean() < 0.05 * b.abs().mean()


def test_another_layout_is_refused(tinycudann, monkeypatch):
    monkeypatch.setattr(fake_tinycudann, "ALIGNMENT", 8)
    field = RadianceField(FIELDS["usual"], 3, network_backend="tinycudann").to("cuda")
    with pytest.raises(BackendError, match="lays this network out in"):
        field.density(torch.zeros(3, 3, device="cuda"))


def test_half_precision_has_to_be_asked_for(tinycudann, monkeypatch):
    monkeypatch.delenv("LATENTKILN_NETWORK", raising=False)
    assert backends.select_backend("grid").name == "tinycudann"  # it is there, and the grid is float32
    assert mlp.backend_for("cuda") == mlp.backend_for("cpu") == "torch"
    monkeypatch.setenv("LATENTKILN_NETWORK", "tinycudann")
    assert mlp.backend_for("cuda") == "tinycudann"
    assert mlp.backend_for("cpu") == "torch"  # a device that it does not know
    with pytest.raises(BackendError, match="use torch"):
        mlp.backend_for("cpu", "tinycudann")
