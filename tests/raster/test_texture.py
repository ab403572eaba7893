"""Texture lookups: values at known places, gradients, the plain twin, and the texels a lookup reaches."""

import numpy as np
import pytest
import torch

from pipeline.painting.texel_coverage import TexelCoverage, accumulate_coverage
from pipeline.raster.texture import sample_texture
from pipeline.raster.texture.torch_backend import gather_texture, texel_weights


def texture(channels=3, height=5, width=7, dtype=torch.float64):
    return torch.randn(channels, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


def lookups(count=200, low=-0.3, high=1.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 2, dtype=dtype, generator=generator) * (high - low) + low


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_texel_centres_give_texel_values(mode):
    image = texture()
    y, x = torch.meshgrid(torch.arange(5).double(), torch.arange(7).double(), indexing="ij")
    uv = torch.stack([(x + 0.5) / 7, (y + 0.5) / 5], dim=-1)
    torch.testing.assert_close(sample_texture(image, uv, mode), image.permute(1, 2, 0))


def test_origin_is_the_top_left():
    image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    for mode, middle in (("bilinear", 2.5), ("nearest", 4.0)):
        assert sample_texture(image, corners, mode).flatten().tolist() == [1, 2, 3, 4, middle]


def test_values_are_those_of_grid_sample():
    image, uv = texture(), lookups()
    for mode in ("bilinear", "nearest"):
        expected = torch.nn.functional.grid_sample(
            image[None], (uv * 2 - 1)[None, :, None], mode=mode, padding_mode="border", align_corners=False
        )[0, :, :, 0].T
        torch.testing.assert_close(sample_texture(image, uv, mode), expected)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("sample", [sample_texture, gather_texture])
def test_gradients(sample, mode):
    image = texture(2, 4, 3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda t: sample(t, lookups(30), mode), (image,))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_loop_agrees_with_its_plain_twin(mode, dtype):
    uv = lookups(5000)
    grad = torch.randn(5000, 4, dtype=dtype, generator=torch.Generator().manual_seed(3))
    results = []
    for sample in (sample_texture, gather_texture):
        image = texture(4, 32, 24, dtype).requires_grad_(True)
        values = sample(image, uv, mode)
        values.backward(grad)
        assert values.dtype == image.grad.dtype == dtype
        results.append((values.detach(), image.grad))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("sample", [sample_texture, gather_texture])
def test_the_backward_gives_the_same_bytes_with_any_number_of_threads(sample):
    uv = lookups(20_000, 0.4, 0.6, torch.float32)  # many lookups share each texel
    grad = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 4):
            torch.set_num_threads(threads)
            image = texture(4, 64, 64, torch.float32).requires_grad_(True)
            sample(image, uv).backward(grad)
            results.append(image.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(set(results)) == 1


def test_the_gradient_is_the_transpose_of_the_lookup():
    image, uv = texture().requires_grad_(True), lookups(50)
    values = sample_texture(image, uv)
    values.sum().backward()
    index, weight = texel_weights(uv, 5, 7)
    total = torch.zeros(35, dtype=torch.float64).index_add_(0, index.flatten(), weight.flatten())
    torch.testing.assert_close(image.grad, total.reshape(1, 5, 7).expand(3, 5, 7))


def test_shapes_are_kept_and_a_strided_texture_is_fine():
    image = texture(3, 6, 8).flip(0)[:, :, ::2]
    assert sample_texture(image, lookups(24).reshape(2, 3, 4, 2)).shape == (2, 3, 4, 3)
    flat = sample_texture(image, lookups(24))
    torch.testing.assert_close(flat, sample_texture(image.contiguous(), lookups(24)))


def test_no_lookups_give_no_values_and_no_gradient():
    image = texture().requires_grad_(True)
    values = sample_texture(image, torch.zeros(0, 2))
    assert values.shape == (0, 3)
    values.sum().backward()
    assert (image.grad == 0).all()


def test_coordinates_that_are_no_numbers_stay_in_range():
    bad = torch.tensor([[float("nan"), 0.5], [float("inf"), 0.5], [-float("inf"), 2.0], [1e30, -1e30]])
    for mode in ("bilinear", "nearest"):
        assert torch.isfinite(sample_texture(texture(dtype=torch.float32), bad, mode)).all()


def test_mistakes_of_the_caller_are_named():
    with pytest.raises(ValueError, match="bicubic"):
        sample_texture(texture(), lookups(), "bicubic")
    with pytest.raises(ValueError, match="needs"):
        sample_texture(texture()[0], lookups())


def test_reached_texels_are_those_with_weight():
    uv = lookups(40, 0, 1)
    index, weight = texel_weights(uv, 16, 16)
    expected = np.zeros(256, bool)
    expected[index[weight >= 0.05].numpy()] = True
    visibility = TexelCoverage(16)
    for part in np.array_split(uv.numpy(), 3):
        visibility.add(part)
    assert (visibility.coverage.ravel() == expected).all()
    assert 0 < expected.sum() < 256


def test_a_lookup_at_a_centre_reaches_one_texel():
    reached = np.zeros((4, 8), bool)
    accumulate_coverage(reached, np.array([[[2.5 / 8, 1.5 / 4]]], np.float32))
    assert np.argwhere(reached).tolist() == [[1, 2]]
