"""The compiled lookups of an exemplar on a surface against their plain twin."""

import numpy as np
import pytest
import torch
from compare import compare
from scipy.ndimage import gaussian_filter

from pipeline.core.rng import numpy_generator
from pipeline.painting import tiling


@pytest.mark.parametrize("layout", ["periodic", "hexagonal"])
@pytest.mark.parametrize("seed", [0, 3, 2**40 + 7])
def test_colours_agree(layout, seed):
    rng = numpy_generator(44, layout)
    image = gaussian_filter(rng.uniform(size=(48, 64, 3)), (1.5, 1.5, 0), mode="wrap")
    image = (image - image.min()) / np.ptp(image)
    exemplar = tiling.prepare_exemplar(image.astype(np.float32), layout)
    position = rng.uniform(-0.6, 0.6, (5000, 3))
    normal = rng.normal(size=(5000, 3))
    normal[:6] = np.concatenate([np.eye(3), -np.eye(3)])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    expected = compare(
        "tiling",
        lambda backend: tiling.shade_surface(exemplar, position, normal, 0.3, seed, backend=backend),
        "numba",
        "numpy",
        dtype=torch.float32,
    )
    assert expected["value"].std() > 0.1


def test_no_points():
    exemplar = tiling.prepare_exemplar(np.zeros((4, 4, 3), np.float32), "periodic")
    nothing = np.zeros((0, 3))
    compare(
        "tiling",
        lambda backend: tiling.shade_surface(exemplar, nothing, nothing, 0.3, 1, backend=backend),
        "numba",
        "numpy",
        dtype=torch.float32,
    )


@pytest.mark.parametrize("layout", ["periodic", "hexagonal"])
def test_maps_agree(layout):
    rng = numpy_generator(45, layout)
    smooth = gaussian_filter(rng.uniform(-1, 1, (48, 64, 6)), (1.5, 1.5, 0), mode="wrap")
    values, slopes = np.split(smooth / np.abs(smooth).max(), [4], axis=2)
    position = rng.uniform(-0.6, 0.6, (5000, 3))
    normal = rng.normal(size=(5000, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    for part in (0, 1):
        expected = compare(
            "tiling",
            lambda backend, part=part: tiling.tile_maps(
                values, slopes, layout, position, normal, 0.3, 7, backend=backend
            )[part],
            "numba",
            "numpy",
            dtype=torch.float32,
        )
        assert expected["value"].std() > 0.1
