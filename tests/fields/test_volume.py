"""Volume rendering, the occupancy grid and the losses: against naive loops, closed forms and finite differences."""

import math

import numpy as np
import pytest
import torch

from pipeline.core.errors import BackendError, LatentkilnError, SettingError
from pipeline.core.rng import numpy_generator
from pipeline.fields import losses, volume
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.fields.volume.layout import PackedSamples

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
    made = volume.composite(sigma, values, PackedSamples(torch.zeros(17, 3), t, delta, start), backend=backend)
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
    packed = PackedSamples(torch.zeros(n, 3), torch.arange(n).float(), torch.ones(n), torch.tensor([0, n]))
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
    packed = PackedSamples(torch.zeros(9, 3), t, delta, start)
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
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
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
    packed = PackedSamples(torch.zeros(2, 3), torch.ones(2), torch.ones(2), torch.tensor([0, 1, 2]))
    directions = torch.tensor([[0.0, 0, -1], [0.0, 0, -1]])
    facing = torch.tensor([[0.0, 0, 1], [0.0, 0, 1]])
    assert losses.orientation(torch.ones(2), facing, directions, packed).item() == 0
    assert losses.orientation(torch.tensor([0.5, 0.0]), -facing, directions, packed).item() == pytest.approx(0.25)


def test_total_variation_is_the_mean_step():
    image = torch.zeros(1, 1, 4, 4)
    image[..., 2:] = 1.0  # one step in three, across only
    assert losses.total_variation(image).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_intervals_fill_a_ray_from_face_to_face(backend):
    """The last interval is cut at the face, so a full cube absorbs exactly as the law says, whatever the step."""
    jitter = torch.tensor([0.9])
    packed = through((0.1, 0.1, 3), (0, 0, -1), step=0.13, jitter=jitter, backend=backend)
    assert packed.delta.sum().item() == pytest.approx(2, rel=1e-6)
    assert packed.delta[-1].item() == pytest.approx(2 % 0.13, rel=1e-4)
    assert packed.t.min() > 2 and packed.t.max() < 4
    made = volume.composite(torch.full_like(packed.t, 1.7), torch.ones(len(packed.t), 1), packed, backend=backend)
    assert made.weight.item() == pytest.approx(1 - math.exp(-3.4), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rays_along_the_faces(backend):
    """Directions with zeros: on a face the ray is inside, beyond it never."""
    assert len(through((1.0, 0, 3), (0, 0, -1), step=0.1, backend=backend).t) == 20
    assert len(through((1.001, 0, 3), (0, 0, -1), step=0.1, backend=backend).t) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ray_keeps_its_first_samples_beyond_the_nearest(backend):
    whole = through((0, 0, 0), (0, 0, -1), step=0.1, backend=backend)
    assert torch.equal(through((0, 0, 0), (0, 0, -1), step=0.1, max_samples=3, backend=backend).t, whole.t[:3])
    later = through((0, 0, 0), (0, 0, -1), step=0.1, nearest=0.5, backend=backend)
    assert later.t.tolist() == pytest.approx([0.55, 0.65, 0.75, 0.85, 0.95])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rays_and_no_samples(backend):
    nothing = volume.march(torch.zeros(0, 3), torch.zeros(0, 3), OccupancyGrid(16), step=0.1, backend=backend)
    assert nothing.start.tolist() == [0] and nothing.points.shape == (0, 3)
    packed = through((0, 3, 3), (0, 0, -1), backend=backend)
    sigma, values = torch.zeros(0, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    made = volume.composite(sigma, values, packed, backend=backend)
    assert made.values.tolist() == [[0.0] * 4]
    assert made.weight.tolist() == made.depth.tolist() == [0.0]
    (made.values.sum() + made.depth.sum()).backward()
    assert sigma.grad.shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_faint_ray_has_no_wild_depth_gradient(backend):
    """A mean distance divides by the weight; where that is next to nothing the gradient must stay finite."""
    packed = PackedSamples(torch.zeros(2, 3), torch.tensor([1.0, 2.0]), torch.full((2,), 0.01), torch.tensor([0, 2]))
    sigma = torch.full((2,), 1e-20, requires_grad=True)
    made = volume.composite(sigma, torch.zeros(2, 1), packed, backend=backend)
    made.depth.sum().backward()
    assert made.depth.item() < 1e-12
    assert sigma.grad.abs().max() < 1e3


def test_compositing_takes_a_view_of_wider_rows_and_any_threads():
    packed = through((0.1, 0.2, 3.0), (0, 0, -1), step=0.01)
    rows = torch.rand(len(packed.t), 5, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            whole = rows.clone().requires_grad_()
            made = volume.composite(whole[:, 0], whole[:, 1:], packed)
            made.values.sum().backward()
            found.append(made.values.detach().numpy().tobytes() + whole.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("broken", [(0.0, 0.0, -2.0), (0.0, 0.0, 0.0), (math.nan, 0.0, 1.0)])
def test_directions_that_are_none_are_refused(broken):
    with pytest.raises(SettingError, match="length 1"):
        through((0, 0, 2), broken)


@pytest.mark.parametrize("step", [1e-9, -1.0, math.nan])
def test_a_step_that_would_never_end_is_refused(step):
    with pytest.raises(SettingError, match="samples_step"):
        through((0, 0, 2), (0, 0, -1), step=step)


def test_density_in_a_culled_cell_is_found_within_four_looks():
    occupancy = OccupancyGrid(16)
    for step in range(20):
        occupancy.update(ball((0.4, 0.0, 0.0), 0.3), 1, step)
    culled = occupancy.binary == 0
    assert culled.mean() > 0.8
    for step in range(20, 24):
        occupancy.update(lambda points: torch.full((len(points),), 100.0), 1, step)
    assert occupancy.binary[culled].all()


def test_an_even_density_keeps_every_cell_and_none_keeps_no_cell():
    occupancy = OccupancyGrid(8)
    occupancy.update(lambda points: torch.full((len(points),), 0.3), 0, 0)
    assert occupancy.share == 1
    empty = OccupancyGrid(8)
    empty.update(lambda points: torch.zeros(len(points)), 0, 0)
    assert empty.share == 0


def test_points_of_a_look_lie_in_their_cells():
    occupancy, seen = OccupancyGrid(6, bound=2.0), []
    occupancy.update(lambda points: (seen.append(points), torch.ones(len(points)))[1], 3, 5)
    cells = ((seen[0].numpy() + 2.0) * 1.5).astype(int)
    assert np.array_equal(cells, np.stack(np.unravel_index(np.arange(216), (6, 6, 6)), axis=1))


def test_a_density_that_is_not_a_number_is_told():
    with pytest.raises(LatentkilnError, match="diverged"):
        OccupancyGrid(4).update(lambda points: torch.full((len(points),), math.nan), 0, 0)


def test_losses_do_not_depend_on_how_many_rays_there_are():
    weight = torch.tensor([0.3, 0.8])
    assert losses.sparsity(weight.repeat(5)).item() == pytest.approx(losses.sparsity(weight).item())
    assert losses.sparsity(torch.zeros(0)).item() == 0
    images = torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(2))
    assert losses.total_variation(images.repeat(3, 1, 1, 1)).item() == pytest.approx(
        losses.total_variation(images).item()
    )


def test_total_variation_leaves_out_what_does_not_count():
    image = torch.zeros(1, 1, 4, 4)
    image[..., 2:] = 1.0
    assert losses.total_variation(image, (image == 0).float()).item() == 0
    assert losses.total_variation(image, torch.ones(1, 1, 4, 4)).item() == pytest.approx(1 / 3)
    assert losses.total_variation(torch.ones(1, 1, 1, 1)).item() == 0
