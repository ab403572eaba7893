"""Volume rendering, the occupancy grid and the losses: against naive loops, closed forms and finite differences."""

import math

import numpy as np
import pytest
import torch

from pipeline.core.errors import BackendError, SettingError
from pipeline.core.rng import numpy_generator
from pipeline.scene import losses, volume
from pipeline.scene.occupancy import OccupancyGrid
from pipeline.scene.volume import Packed

BACKENDS = ("numba", "torch")


def through(origin, direction, occupancy=None, step=0.01, **more):
    origins, directions = torch.tensor([origin], dtype=torch.float32), torch.tensor([direction], dtype=torch.float32)
    return volume.march(origins, directions, occupancy or OccupancyGrid(16), step=step, **more)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_stand_in_the_cube_a_step_apart(backend):
    packed = through((0.1, 0.2, 3.0), (0, 0, -1), step=0.25, jitter=torch.tensor([0.5]), backend=backend)
    assert packed.t.tolist() == pytest.approx([2 + 0.25 * (i + 0.5) for i in range(8)])
    assert packed.points[:, 2].tolist() == pytest.approx([1 - 0.25 * (i + 0.5) for i in range(8)])
    assert packed.start.tolist() == [0, 8]
    assert packed.rays.tolist() == [0] * 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_rays_that_miss_or_begin_inside(backend):
    assert len(through((0, 3, 3), (0, 0, -1), backend=backend).t) == 0
    assert len(through((0, 0, 3), (0, 0, 1), backend=backend).t) == 0
    inside = through((0, 0, 0), (0, 0, -1), step=0.1, backend=backend)
    assert len(inside.t) == 10
    assert inside.t[0] == pytest.approx(0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_slab_absorbs_as_the_law_says(backend):
    """Constant density over a length L: weight = 1 - exp(-sigma L), depth by its own integral."""
    occupancy = OccupancyGrid(16)
    occupancy.binary[:] = 0
    occupancy.binary[:, :, 4:12] = 1  # z in [-0.5, 0.5): L = 1
    packed = through((0.1, 0.1, 2), (0, 0, -1), occupancy, step=1 / 512, backend=backend)
    for sigma in (0.5, 3.0):
        made = volume.composite(torch.full_like(packed.t, sigma), torch.ones(len(packed.t), 2), packed, backend=backend)
        assert made.weight.item() == pytest.approx(1 - math.exp(-sigma), rel=2e-4)
        assert made.values[0].tolist() == pytest.approx([made.weight.item()] * 2)
        # Mean distance into the slab of where light is absorbed.
        mean = 1 / sigma - math.exp(-sigma) / (1 - math.exp(-sigma))
        assert made.depth.item() == pytest.approx(1.5 + mean, abs=3e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compositing_is_what_a_loop_gives(backend):
    generator = torch.Generator().manual_seed(0)
    counts = [5, 0, 12]
    start = torch.tensor([0, 5, 5, 17])
    t, delta = torch.rand(17, generator=generator).cumsum(0), torch.rand(17, generator=generator) * 0.2
    sigma, values = torch.rand(17, generator=generator) * 9, torch.randn(17, 3, generator=generator)
    made = volume.composite(sigma, values, Packed(torch.zeros(17, 3), t, delta, start), backend=backend)
    at = 0
    for ray, count in enumerate(counts):
        left, total, weight, distance = 1.0, np.zeros(3), 0.0, 0.0
        for i in range(at, at + count):
            alpha = 1 - math.exp(-float(sigma[i] * delta[i]))
            w = left * alpha
            total, weight, distance = total + w * values[i].numpy(), weight + w, distance + w * float(t[i])
            left *= 1 - alpha
        at += count
        assert made.values[ray].tolist() == pytest.approx(total.tolist(), abs=1e-5)
        assert made.weight[ray].item() == pytest.approx(weight, abs=1e-5)
        assert made.depth[ray].item() == pytest.approx(distance / max(weight, 1e-6), abs=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_shows_behind_what_is_opaque(backend):
    """Transmittance after sample k is exp(-k): below 1e-4 from the tenth sample on (exp(-9.2))."""
    n = 14
    packed = Packed(torch.zeros(n, 3), torch.arange(n).float(), torch.ones(n), torch.tensor([0, n]))
    sigma, values = torch.ones(n, requires_grad=True), torch.ones(n, 1, requires_grad=True)
    made = volume.composite(sigma, values, packed, backend=backend)
    assert (made.weights > 0).sum() == 10
    made.values.sum().backward()
    assert (values.grad[:10] > 0).all() and (values.grad[10:] == 0).all()
    assert (sigma.grad[10:] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backward_by_finite_differences(backend):
    generator = torch.Generator().manual_seed(5)
    start = torch.tensor([0, 4, 4, 9])
    t, delta = torch.rand(9, generator=generator).double().cumsum(0), torch.rand(9, generator=generator).double() * 0.3
    packed = Packed(torch.zeros(9, 3), t, delta, start)
    sigma = (torch.rand(9, generator=generator).double() * 4 + 0.1).requires_grad_()
    values = torch.randn(9, 2, generator=generator).double().requires_grad_()

    def every_output(s, v):
        made = volume.composite(s, v, packed, backend=backend)
        return made.values, made.weight, made.depth, made.weights

    assert torch.autograd.gradcheck(every_output, (sigma, values), eps=1e-6, atol=1e-8)


def test_wrong_shapes_and_unknown_backends_are_told():
    packed = through((0, 0, 2), (0, 0, -1), step=0.5)
    with pytest.raises(SettingError, match="samples, but densities"):
        volume.composite(torch.ones(3), torch.ones(3, 4), packed)
    with pytest.raises(SettingError, match="step must be above 0"):
        through((0, 0, 2), (0, 0, -1), step=0.0)
    with pytest.raises(BackendError, match="no backend is called 'cuda'"):
        through((0, 0, 2), (0, 0, -1), backend="cuda")


def ball(centre, radius, inside=50.0):
    middle = torch.tensor(centre)
    return lambda points: torch.where((points - middle).norm(dim=1) < radius, inside, 0.0)


def test_the_grid_finds_what_is_there_and_forgets_what_is_gone():
    occupancy = OccupancyGrid(32)
    assert occupancy.share == 1
    for step in range(20):
        occupancy.update(ball((0.4, 0.0, 0.0), 0.3), 1, 16 * step)
    assert 0.5 < occupancy.share / (4 / 3 * math.pi * 0.3**3 / 8) < 1.6
    assert occupancy.binary[22, 16, 16] == 1 and occupancy.binary[9, 16, 16] == 0
    # The ball moves into space that was culled: it is found again, and the old place is given up.
    for step in range(20, 120):
        occupancy.update(ball((-0.4, 0.0, 0.0), 0.3), 1, 16 * step)
    assert occupancy.binary[9, 16, 16] == 1 and occupancy.binary[22, 16, 16] == 0
    inner = occupancy.binary[8:11, 15:18, 15:18]
    assert inner.all()


def test_the_grid_is_the_same_for_the_same_seed_and_from_a_checkpoint():
    grids = [OccupancyGrid(16) for _ in range(3)]
    for step in range(30):
        for grid in grids[:2]:
            grid.update(ball((0.2, 0.1, 0.0), 0.5), 7, step)
        if step == 17:
            grids[2].load_state({k: v.clone() for k, v in grids[0].state().items()})
        if step > 17:
            grids[2].update(ball((0.2, 0.1, 0.0), 0.5), 7, step)
    for other in grids[1:]:
        assert np.array_equal(grids[0].density, other.density)
        assert np.array_equal(grids[0].binary, other.binary)
    with pytest.raises(ValueError, match="another resolution"):
        OccupancyGrid(8).load_state(grids[0].state())


def test_the_threshold_is_capped():
    """Where most of the cube is very dense the mean is no threshold: all of it must stay."""
    occupancy = OccupancyGrid(8)
    values = torch.from_numpy(numpy_generator(1, "dense").uniform(20, 1000, 512).astype(np.float32))
    occupancy.update(lambda points: values, 0, 0)
    assert occupancy.share == 1


def test_sparsity_is_the_mean_entropy():
    assert losses.sparsity(torch.tensor([0.5, 0.5])).item() == pytest.approx(1)
    assert losses.sparsity(torch.tensor([0.0, 1.0])).item() < 2e-4
    half = losses.sparsity(torch.tensor([0.5, 0.0])).item()
    assert half == pytest.approx(0.5, abs=1e-3)
    weight = torch.tensor([0.3, 0.8], requires_grad=True)
    losses.sparsity(weight).backward()
    assert weight.grad[0] > 0 > weight.grad[1]  # down to 0, up to 1


def test_orientation_punishes_what_faces_away_only():
    packed = Packed(torch.zeros(2, 3), torch.ones(2), torch.ones(2), torch.tensor([0, 1, 2]))
    directions = torch.tensor([[0.0, 0, -1], [0.0, 0, -1]])
    facing = torch.tensor([[0.0, 0, 1], [0.0, 0, 1]])
    assert losses.orientation(torch.ones(2), facing, directions, packed).item() == 0
    assert losses.orientation(torch.tensor([0.5, 0.0]), -facing, directions, packed).item() == pytest.approx(0.25)


def test_total_variation_is_the_mean_step():
    image = torch.zeros(1, 1, 4, 4)
    image[..., 2:] = 1.0  # one step in three, across only
    assert losses.total_variation(image).item() == pytest.approx(1 / 3)
