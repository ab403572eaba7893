"""Marching and compositing: the compiled backend against its plain twin, values and gradients."""

import numpy as np
import pytest
import torch
from compare import compare

from pipeline.core.rng import numpy_generator
from pipeline.fields import volume
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.raster.camera import OrbitSettings, ray_directions, sample_orbit_cameras


def grid(share: float, resolution: int = 24, name: str = "cells") -> OccupancyGrid:
    occupancy = OccupancyGrid(resolution)
    occupancy.binary[:] = numpy_generator(3, name).uniform(size=occupancy.binary.shape) < share
    return occupancy


def rays(count: int, name: str = "rays"):
    """Camera rays, and rays from anywhere to anywhere: inside, outside, along axes, missing the cube."""
    rng = numpy_generator(4, name)
    cameras = sample_orbit_cameras(rng, 2, OrbitSettings())
    side = 12
    eyes = np.repeat(cameras.eye, side * side, axis=0)
    seen = ray_directions(cameras, side, side).reshape(-1, 3)
    origins = rng.uniform(-2, 2, size=(count, 3))
    directions = rng.normal(size=(count, 3))
    directions[:6] = np.concatenate([np.eye(3), -np.eye(3)])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    both = np.concatenate([eyes, origins]), np.concatenate([seen, directions])
    return tuple(torch.from_numpy(x.astype(np.float32)) for x in both)


def compare_marches(origins, directions, occupancy, **options):
    return compare(
        "march",
        lambda backend: volume.march(origins, directions, occupancy, backend=backend, **options),
        "numba",
        "torch",
        dtype=torch.float32,
    )


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("step", [0.011, 0.2])
def test_the_same_samples(share, step):
    origins, directions = rays(300)
    jitter = torch.rand(len(origins), generator=torch.Generator().manual_seed(1))
    expected = compare_marches(origins, directions, grid(share), step=step, jitter=jitter)
    assert bool(len(expected["t"])) == (share > 0)


def packed_rays(kind: torch.dtype):
    generator = torch.Generator().manual_seed(2)
    counts = torch.tensor([0, 7, 1, 0, 40, 23, 0])
    start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    total = int(start[-1])
    t = torch.rand(total, generator=generator, dtype=kind).cumsum(0)
    delta = torch.rand(total, generator=generator, dtype=kind) * 0.1
    sigma = (torch.randn(total, generator=generator, dtype=kind) * 4).clamp(min=0)
    sigma[20:24] = 2000.0  # opaque: what comes after has no weight
    values = torch.randn(total, 4, generator=generator, dtype=kind)
    return volume.PackedSamples(torch.zeros(total, 3), t, delta, start), sigma, values


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_same_pictures_and_gradients(kind):
    packed, sigma, values = packed_rays(kind)
    expected = compare(
        "composite",
        lambda backend, sigma, values: volume.composite(sigma, values, packed, backend=backend),
        "numba",
        "torch",
        {"sigma": sigma.requires_grad_(), "values": values.requires_grad_()},
        kind,
    )
    assert expected["grad sigma"].count_nonzero() > 20 and expected["grad values"].count_nonzero() > 20


@pytest.mark.parametrize("resolution", [20, 64])
@pytest.mark.parametrize("step", [0.011, 0.2])
def test_the_same_samples_over_empty_blocks(resolution, step):
    """Most blocks are empty and stepped over at once; some rays run along the faces of cells and blocks."""
    occupancy = OccupancyGrid(resolution)
    occupancy.binary[:] = 0
    third = resolution // 3
    occupancy.binary[third : 2 * third, third : 2 * third, third : 2 * third] = 1
    occupancy.binary[1, -2, 3] = occupancy.binary[-1, -1, -1] = 1
    origins, directions = rays(300)
    origins[-100:] = (origins[-100:] * 8).round() / 8
    directions[-60:] = torch.eye(3).repeat(20, 1)
    jitter = torch.rand(len(origins), generator=torch.Generator().manual_seed(1))
    for limit in (None, 2):
        expected = compare_marches(origins, directions, occupancy, step=step, jitter=jitter, max_samples=limit)
        assert len(expected["t"]) > 20
