"""Each CUDA backend against the compiled or plain twin, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu.libraries import need

from pipeline.core import backends
from pipeline.core.rng import numpy_generator, torch_generator
from pipeline.fields import grid
from pipeline.fields.grid import tinycudann_backend
from pipeline.fields.grid.layout import GridSettings
from pipeline.fields.radiance_field import FieldSettings, RadianceField
from pipeline.raster import antialias, camera, rasterise
from pipeline.raster.texture import sample_texture
from pipeline.raster.texture.torch_backend import gather_texture

pytestmark = pytest.mark.gpu


def blob(n=3000):
    from scipy.spatial import ConvexHull

    rng = numpy_generator(41, "blob")
    directions = camera.directions(np.arccos(rng.uniform(-1, 1, n)), rng.uniform(0, 2 * np.pi, n))
    faces = ConvexHull(directions).simplices
    return np.ascontiguousarray(directions * rng.uniform(0.4, 0.6, (n, 1))), faces


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (250, 333)])
@pytest.mark.parametrize("backend", ["warp", "nvdiffrast"])
def test_rasterise(backend, size, cull):
    need("rasterise", backend)
    vertices, faces = blob()
    cameras = camera.sample_paint_cameras(numpy_generator(42, backend), 6, camera.CameraSettings(), vertices)
    found, expected = (
        rasterise.rasterise(vertices, faces, cameras, *size, cull_backfaces=cull, backend=name)
        for name in (backend, "numba")
    )
    same = found.face == expected.face
    # Differences only at edges: by each backend's own weights, or by a pixel of another face beside it.
    near_edge = (found.bary.min(-1) < 0.2) | (expected.bary.min(-1) < 0.2)
    assert (same | near_edge).all()
    # nvdiffrast snaps corners to 1/16 pixel: its stand-in's differ in 1.4 % of the pixels of the small view.
    assert (~same).mean() < 0.03
    both = same & expected.mask
    inside = both & (expected.bary.min(-1) > 0.01)
    assert np.median(np.abs(found.bary - expected.bary)[inside]) < 1e-4
    np.testing.assert_allclose(found.depth[both], expected.depth[both], rtol=1e-3)


def test_auto_is_a_cuda_rasteriser(monkeypatch):
    monkeypatch.delenv("LATENTKILN_RASTERISE", raising=False)
    assert backends.select_backend("rasterise").name in ("warp", "nvdiffrast")


def test_warp_gives_the_same_bits_twice():
    need("rasterise", "warp")
    vertices, faces = blob()
    cameras = camera.sample_paint_cameras(numpy_generator(43, "twice"), 4, camera.CameraSettings(), vertices)
    one, two = (rasterise.rasterise(vertices, faces, cameras, 96, 96, backend="warp") for _ in range(2))
    assert (one.face == two.face).all() and (one.bary == two.bary).all() and (one.depth == two.depth).all()


def test_outlines():
    """Shares of the library's kernels beside our own reading of them; twice, as it adds in no fixed order."""
    need("antialias", "nvdiffrast")
    vertices, faces = blob()
    cameras = camera.sample_paint_cameras(numpy_generator(49, "outlines"), 3, camera.CameraSettings(), vertices)
    seen = rasterise.rasterise(vertices, faces, cameras, 60, 80, backend="numba")
    across = antialias.adjacent_vertices(faces)
    here, there, again = (
        antialias.find_outlines(seen, vertices, faces, cameras, across, backend=name)
        for name in ("numpy", "nvdiffrast", "nvdiffrast")
    )
    for expected, found, twice in ((here.right, there.right, again.right), (here.below, there.below, again.below)):
        assert expected.count_nonzero() > 20
        assert ((found.cpu() - expected).abs() > 1e-3).float().mean() < 1e-3
        assert torch.equal(found, twice)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("backend", ["torch", "nvdiffrast"])
def test_texture(backend, mode, monkeypatch):
    need("texture", backend)
    monkeypatch.setenv("LATENTKILN_TEXTURE", backend)
    generator = torch_generator(44, "texture")
    # Sides are powers of two: times those, places are exact in float32, and no lookup is on the border of two texels.
    texture = torch.randn(4, 64, 128, generator=generator)
    uv = torch.rand(5000, 2, generator=generator) * 1.2 - 0.1
    weight = torch.randn(5000, 4, generator=generator)
    answers = []
    for where, sample in (("cpu", gather_texture), ("cuda", sample_texture)):
        image = texture.clone().to(where).requires_grad_(True)
        values = sample(image, uv.to(where), mode)
        (values * weight.to(where)).sum().backward()
        answers.append((values.detach().cpu(), image.grad.cpu()))
    torch.testing.assert_close(answers[1][0], answers[0][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answers[1][1], answers[0][1], atol=1e-3, rtol=1e-4)


def test_texture_gradients_have_the_same_bits_twice(monkeypatch):
    monkeypatch.setenv("LATENTKILN_TEXTURE", "torch")
    generator = torch_generator(45, "bits")
    uv = torch.rand(20_000, 2, generator=generator).cuda()
    weight = torch.randn(20_000, 4, generator=generator).cuda()
    gradients = []
    for _ in range(2):
        image = torch.zeros(4, 32, 32, device="cuda", requires_grad=True)
        (sample_texture(image, uv) * weight).sum().backward()
        gradients.append(image.grad)
    assert torch.equal(*gradients)


GRIDS = {
    "usual": GridSettings(),
    "small": GridSettings(levels=6, base=4, finest=64, log2_table=10),
    "tiled": GridSettings(levels=4, base=6, finest=40, kind="tiled"),
    "dense": GridSettings(levels=3, base=4, finest=17, kind="dense"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", GRIDS)
def test_grid(name, dtype):
    """The layout: the same length, the same entries (or values would be unrelated), the same gradients."""
    need("grid", "tinycudann")
    settings = GRIDS[name]
    generator = torch_generator(46, name)
    points = torch.rand(4000, 3, generator=generator)
    points[0], points[1] = 0.0, 1.0
    table = torch.randn(settings.parameter_count, generator=generator)
    weight = torch.randn(4000, settings.feature_count, generator=generator)
    plain_table = table.clone().requires_grad_(True)
    plain = grid.encode(points, plain_table, settings, backend="torch")
    (plain * weight).sum().backward()
    there = table.cuda().requires_grad_(True)
    found = tinycudann_backend.encode(points.cuda(), there, settings, dtype=dtype)
    (found * weight.cuda()).sum().backward()
    assert found.dtype == torch.float32 and there.grad.dtype == torch.float32
    # A scale's last bit moves a weight of the finest levels by 2048 / 2^23; half precision rounds operands, and each of
    # the 500 sums that a gradient of the coarsest level is made of.
    value, gradient = (5e-3, 1e-2) if dtype == torch.float32 else (3e-2, 2.5e-1)
    torch.testing.assert_close(found.detach().cpu(), plain.detach(), atol=value, rtol=1e-2)
    torch.testing.assert_close(there.grad.cpu(), plain_table.grad, atol=gradient, rtol=1e-2)


@pytest.mark.parametrize("hidden", [64, 40])
@pytest.mark.parametrize("name", GRIDS)
def test_network(name, hidden):
    """The fused network: the vector's order and filling (or values would be unrelated), half precision's digits, and
    gradients a thousand times larger than float16 holds once the library has multiplied them."""
    need("network", "tinycudann")
    points = torch.rand(4000, 3, generator=torch_generator(48, "points")) * 2 - 1
    weight = torch.randn(4000, 4, generator=torch_generator(48, "weight"))
    answers = []
    for where, backend in (("cpu", "torch"), ("cuda", "tinycudann")):
        field = RadianceField(FieldSettings(GRIDS[name], channels=4, hidden=hidden), 5, network_backend=backend)
        with torch.no_grad():
            field.table.mul_(5e3)  # 0.5, as of a field that has learned
        field.to(where)
        sigma, latent = field(points.to(where))
        (1e6 * ((latent * weight.to(where)).sum() + sigma.log().sum())).backward()
        assert latent.dtype == torch.float32
        layers = [layer.weight.grad.cpu() / 1e6 for layer in field.network]
        answers.append(([sigma.detach().cpu(), latent.detach().cpu()], [field.table.grad.cpu() / 1e6, *layers]))
    (plain, expected), (found, gradients) = answers
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, atol=3e-2, rtol=3e-2)
    for a, b in zip(gradients, expected, strict=True):
        assert (a - b).norm() < 0.1 * b.norm()


def test_the_plain_grid_runs_on_cuda():
    settings = GRIDS["small"]
    points = torch.rand(500, 3, generator=torch_generator(47, "points"))
    table = torch.randn(settings.parameter_count, generator=torch_generator(47, "table"))
    here = grid.encode(points, table, settings, backend="torch")
    there = grid.encode(points.cuda(), table.cuda(), settings, backend="torch")
    torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=1e-5)
