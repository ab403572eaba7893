"""Texture lookups: the compiled loop and nvdiffrast's (through its stand-in) against the plain twin, with gradients."""

import pytest
import torch
from compare import compare

from pipeline.core import backends
from pipeline.core.rng import torch_generator


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize(
    ("backend", "dtype"), [("numba", torch.float32), ("numba", torch.float64), ("nvdiffrast", torch.float32)]
)
def test_values_and_gradients_agree(backend, dtype, nearest, nvdiffrast):
    generator = torch_generator(45, "texture")
    texture = torch.randn(3, 9, 13, generator=generator, dtype=dtype)
    uv = torch.rand(500, 2, generator=generator, dtype=dtype) * 1.4 - 0.2  # beyond all borders
    expected = compare(
        "texture",
        lambda name, texture: backends.load("pipeline.raster.texture", name).sample(
            texture, uv.to(texture.device), nearest
        ),
        backend,
        "torch",
        {"texture": texture.requires_grad_()},
        dtype,
    )
    assert expected["value"].shape == (500, 3) and expected["grad texture"].shape == (3, 9, 13)
