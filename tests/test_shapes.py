"""Shapes that public operators state are checked in every test; here, that the check itself finds what is wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from shape_checks import ShapeError

from pipeline.fields import grid, volume
from pipeline.fields.grid.layout import GridSettings
from pipeline.painting import tiling
from pipeline.raster import rasterise, texture
from pipeline.raster.rasterise.layout import Fragments
from pipeline.uv import kernels

OPERATORS = (
    volume.march,
    volume.composite,
    volume.accumulate,
    grid.encode,
    rasterise.interpolate,
    rasterise.rasterise_uv,
    texture.sample_texture,
    texture.scatter_texture,
    tiling.shade_surface,
    kernels.coverage,
)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_public_operators_are_checked(operator) -> None:
    assert operator.__wrapped__.__annotations__ and operator.__code__.co_filename.endswith("shape_checks.py")


def wrong_dimension() -> object:
    face, bary = np.zeros((4, 5), np.int32), np.zeros((4, 5, 3), np.float32)
    return rasterise.interpolate(face, bary, np.zeros((3, 2)), np.zeros((1, 3, 1), np.int64))


def wrong_dtype() -> object:
    return Fragments(np.zeros((1, 2, 2)), np.zeros((1, 2, 2, 3), np.float32), np.zeros((1, 2, 2), np.float32))


def dimensions_that_differ() -> object:
    return Fragments(np.zeros((1, 2, 2), np.int32), np.zeros((1, 2, 3, 3), np.float32), np.zeros((1, 2, 3), np.float32))


@pytest.mark.parametrize("call", [wrong_dimension, wrong_dtype, dimensions_that_differ])
def test_a_wrong_shape_is_found(call) -> None:
    with pytest.raises(ShapeError):
        call()


def test_right_shapes_pass_and_results_are_kept() -> None:
    settings = GridSettings(levels=1, base=4, finest=4, log2_table=8)
    encoded = grid.encode(torch.rand(5, 3), torch.zeros(settings.parameter_count), settings, backend="torch")
    assert encoded.shape == (5, 2)


def test_the_package_itself_does_not_import_jaxtyping() -> None:
    program = (
        "import sys, pipeline.fields.mlp, pipeline.raster.antialias, pipeline.painting.tiling, pipeline.bake.inpainting"
        "; print('jaxtyping' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
