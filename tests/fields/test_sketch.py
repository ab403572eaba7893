"""Sketches: measured volumes against the exact query and against spheres, and the loss that follows them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meshes import make, write_obj
from numpy.typing import NDArray

from pipeline.core.errors import SettingError
from pipeline.core.process.child import run_child
from pipeline.fields.sketch import DELTA, LEAST, MARGIN, Sketch, cross_entropy
from pipeline.mesh import winding_grid as module
from pipeline.mesh import winding_grid_child
from pipeline.mesh.primitives import combine
from pipeline.mesh.winding_grid import WindingGrid, build_winding_grid, load_sketch, place_in_working_frame

Measure = Callable[[NDArray, NDArray, NDArray], tuple[NDArray, NDArray]]
RADIUS = 0.6

# Solids that overlap, one of them turned, in no symmetric place.
SHAPES: list[dict[str, Any]] = [
    {"shape": "box", "size": [0.9, 0.3, 0.5], "position": [0.1, -0.2, 0.05], "rotation": [10, 25, 5]},
    {"shape": "cone", "size": [0.5, 0.7, 0.5], "position": [0.2, 0.15, 0.0]},
]


@pytest.fixture(scope="module")
def exact() -> Measure:
    """The exact query: libigl at the points themselves."""
    return winding_grid_child.winding_and_distance


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures without a process of its own, which takes longer to start than to measure."""

    def run(program: Path, name: str, given: dict[str, NDArray], wanted: Sequence[str], **_: Any) -> Any:
        return dict(zip(wanted, winding_grid_child.winding_and_distance_grid(**given), strict=True)), ""

    monkeypatch.setattr(module, "run_child", run)


@pytest.fixture(scope="module")
def ball() -> WindingGrid:
    return build_winding_grid(*combine([{"shape": "sphere", "size": [2 * RADIUS] * 3}]), resolution=64)


@pytest.fixture(scope="module")
def solids() -> WindingGrid:
    return build_winding_grid(*combine(SHAPES), resolution=128)


def cloud(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-0.95, 0.95, (count, 3))


def looked_up(volume: WindingGrid, points: NDArray) -> tuple[NDArray, NDArray]:
    inside, distance = Sketch(volume).sample(torch.from_numpy(points).float())
    return inside.numpy(), distance.numpy()


# --- looking up


def test_lookups_agree_with_the_exact_query(solids: WindingGrid, exact: Measure) -> None:
    points = cloud(20_000)
    winding, distance = exact(*combine(SHAPES), points)
    inside, looked = looked_up(solids, points)
    wrong = inside != (winding > 0.5)
    assert wrong.mean() < 5e-4 and (distance[wrong] < 0.005).all()
    error = np.abs(looked - distance)
    # The largest are at kinks, half way between two sides.
    assert error.max() < 0.02 and error.mean() < 5e-4 and error[distance < 0.08].max() < 0.012
    # The points that matter most lie close to the surface.
    near = combine(SHAPES)[0][:, None] + np.random.default_rng(1).normal(0, 0.01, (1, 20, 3))
    winding, distance = exact(*combine(SHAPES), near.reshape(-1, 3))
    inside, _ = looked_up(solids, near.reshape(-1, 3))
    wrong = inside != (winding > 0.5)
    assert wrong.mean() < 0.05 and (distance[wrong] < 0.008).all()


def test_where_solids_overlap_there_is_no_surface(exact: Measure) -> None:
    pair = [{"shape": "box", "size": [0.6, 0.4, 0.4], "position": [x, 0, 0]} for x in (-0.2, 0.2)]
    winding, distance = exact(*combine(pair), np.array([[0.08, 0.0, 0.0], [0.0, 0.0, 0.0], [0.45, 0.0, 0.0]]))
    np.testing.assert_allclose(winding, (2, 2, 1), atol=0.02)
    # The boxes' ends at x = 0.1 and -0.1 are inside the other box.
    np.testing.assert_allclose(distance, (0.2, 0.2, 0.05), atol=1e-6)


def test_a_ball_is_measured_as_the_formula_has_it(ball: WindingGrid) -> None:
    points = cloud(200_000)
    radius = np.linalg.norm(points, axis=1)
    inside, distance = looked_up(ball, points)
    assert (np.abs(radius - RADIUS)[inside != (radius < RADIUS)] < 0.005).all()
    # At the centre the distance has a kink that a grid rounds off.
    away = radius > 0.1
    error = np.abs(distance - np.abs(radius - RADIUS))
    assert error[away].max() < 0.015 and error[np.abs(radius - RADIUS) < 0.15].max() < 0.004
    share = 4 / 3 * math.pi * RADIUS**3 / 1.9**3
    assert inside.mean() == pytest.approx(share, abs=4 * math.sqrt(share / len(points)) + 0.001)
    np.testing.assert_allclose(ball.box, [[-RADIUS] * 3, [RADIUS] * 3], atol=1e-6)


@pytest.mark.usefixtures("in_process")
def test_axes_are_not_mixed_up() -> None:
    place_of = np.array([0.5, -0.3, 0.1])
    volume = build_winding_grid(
        *combine([{"shape": "box", "size": [0.2, 0.4, 0.6], "position": place_of}]), resolution=32
    )
    points = cloud(20_000)
    offset = np.abs(points - place_of) - (0.1, 0.2, 0.3)
    inside, _ = looked_up(volume, points)
    clear = np.abs(offset).min(axis=1) > 0.03
    assert np.array_equal(inside[clear], (offset < 0).all(axis=1)[clear])
    ix, iy, iz = (np.abs(np.linspace(-1, 1, 32) - c).argmin() for c in place_of)
    assert volume.winding[ix, iy, iz] > 0.9 and volume.winding[iz, iy, ix] < 0.1


def test_points_outside_the_grid_are_outside(ball: WindingGrid) -> None:
    sketch = Sketch(ball)
    assert not sketch.inside(torch.tensor([[3.0, 0, 0], [0, -9, 0]])).any()
    assert sketch.distance(torch.tensor([[3.0, 0, 0]])).item() == pytest.approx(1 - RADIUS, abs=0.01)


# --- meshes as strangers make them


def test_open_and_turned_meshes_are_filled(exact: Measure) -> None:
    vertices, faces = combine([{"shape": "sphere", "size": [1.2, 1.2, 1.2]}])
    points = cloud(5_000)
    radius = np.linalg.norm(points, axis=1)
    deep, far = radius < 0.4, radius > 0.8
    open_faces = faces[vertices[faces][:, :, 1].min(axis=1) < 0.45]
    doubled = np.concatenate([faces, faces[:50]])
    for given in (open_faces, faces[:, ::-1].copy(), doubled):
        winding, _ = exact(vertices, given, points)
        assert (winding[deep] > 0.5).all() and (winding[far] < 0.5).all()


@pytest.mark.usefixtures("in_process")
def test_a_sheet_encloses_nothing() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    with pytest.raises(SettingError, match="encloses nothing: it is too thin, too open, or outside the scene"):
        build_winding_grid(vertices, np.array([[0, 1, 2]]), resolution=16)
    away = combine([{"shape": "box", "size": [1, 1, 1], "position": [5, 0, 0]}])
    with pytest.raises(SettingError, match="encloses nothing"):
        build_winding_grid(*away, resolution=16)


# --- where the sketch stands


def test_centre_brings_any_sketch_to_one_place_and_keep_leaves_it() -> None:
    vertices, _ = combine([{"shape": "box", "size": [2, 4, 6], "position": [7, 8, 9]}])
    centred = place_in_working_frame(vertices, "centre")
    assert np.linalg.norm(centred, axis=1).max() == pytest.approx(0.7)
    np.testing.assert_allclose(centred.min(axis=0) + centred.max(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(place_in_working_frame(vertices, "keep"), vertices, atol=1e-12)
    # Z up, facing -Y: (x, y, z) of the mesh becomes (x, z, -y).
    turned = place_in_working_frame(vertices, "keep", up_axis="z")
    np.testing.assert_allclose(turned, np.stack([vertices[:, 0], vertices[:, 2], -vertices[:, 1]], 1), atol=1e-12)
    with pytest.raises(SettingError, match="sketch_fit 'left' is unknown"):
        place_in_working_frame(vertices, "left")


@pytest.mark.usefixtures("in_process")
def test_a_moved_or_stretched_sketch_moves_or_stretches_what_is_inside() -> None:
    def extents(**changes: Any) -> tuple[NDArray, NDArray]:
        shape = {"shape": "sphere", "size": [0.6, 0.6, 0.6], **changes}
        volume = load_sketch(None, [shape], None, resolution=32)
        points = cloud(30_000)
        found = points[looked_up(volume, points)[0]]
        return found.mean(axis=0), np.ptp(found, axis=0)

    centre, size = extents()
    np.testing.assert_allclose(centre, 0, atol=0.02)
    moved, same = extents(position=[0.3, -0.2, 0.1])
    np.testing.assert_allclose(moved, (0.3, -0.2, 0.1), atol=0.03)
    np.testing.assert_allclose(same, size, atol=0.06)
    _, wide = extents(size=[1.2, 0.6, 0.6])
    np.testing.assert_allclose(wide, size * (2, 1, 1), atol=0.06)


@pytest.mark.usefixtures("in_process")
def test_a_sketch_may_be_a_file(tmp_path: Path) -> None:
    vertices, faces = combine([{"shape": "cylinder", "size": [2, 8, 2], "position": [0, 20, 0]}])
    path = write_obj(tmp_path / "post.obj", make(vertices, faces))
    centred = load_sketch(path, None, None, resolution=32)
    assert np.linalg.norm(centred.box, axis=1).max() < 0.75
    assert centred.box[1, 1] == pytest.approx(0.7 * 4 / math.hypot(4, 1), abs=1e-3)
    assert load_sketch(path, None, None, resolution=32, up_axis="z").box[1, 2] == pytest.approx(centred.box[1, 1])


# --- measured once, and never for ever


@pytest.mark.usefixtures("in_process")
def test_a_sketch_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [{"shape": "box", "size": [1, 1, 1]}]
    first = load_sketch(None, shapes, tmp_path, resolution=16)
    (entry,) = tmp_path.iterdir()
    bytes_before = entry.read_bytes()
    entry.write_bytes(bytes_before[:1000])
    load_sketch(None, shapes, tmp_path, resolution=16)
    assert entry.read_bytes() == bytes_before
    monkeypatch.setattr(module, "run_child", lambda *a, **k: pytest.fail("it was measured again"))
    again = load_sketch(None, shapes, tmp_path, resolution=16)
    assert np.array_equal(again.winding, first.winding) and np.array_equal(again.distance, first.distance)
    assert np.array_equal(again.box, first.box)


@pytest.mark.usefixtures("in_process")
def test_another_sketch_or_grid_is_measured_anew(tmp_path: Path) -> None:
    for shapes, resolution in (([1, 1, 1], 8), ([1, 1, 1.5], 8), ([1, 1, 1], 12)):
        load_sketch(None, [{"shape": "box", "size": shapes}], tmp_path, resolution=resolution)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_sketch_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "slow.py"
    child.write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        f"time.sleep(60)\nopen({str(tmp_path / 'finished')!r}, 'w')\n"
    )
    monkeypatch.setattr(module, "run_child", lambda program, *arguments, **more: run_child(child, *arguments, **more))
    with pytest.raises(
        SettingError, match=r"the sketch \(768 faces\) could not be measured: libigl did not finish within"
    ):
        load_sketch(None, [{"shape": "box", "size": [1, 1, 1]}], tmp_path / "cache", time_limit=1.0)
    assert not (tmp_path / "finished").exists() and not (tmp_path / "cache").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_only_the_child_loads_libigl() -> None:
    sources = Path(module.__file__).parents[1].rglob("*.py")
    found = [path.name for path in sources if "import igl" in path.read_text(encoding="utf-8")]
    assert found == ["winding_grid_child.py"]


# --- the loss


def test_the_loss_of_one_density_is_the_integral(ball: WindingGrid) -> None:
    """Over the cube, with sigma the same everywhere, the mean is an integral over spheres around the centre."""
    sigma, spread = 2.0, 0.3
    alpha = 1 - math.exp(-DELTA * sigma)
    points = torch.from_numpy(cloud(400_000)).float()
    points = points[points.norm(dim=1) < 0.95]
    radius = np.linspace(0, 0.95, 20_001)
    entropy = np.where(radius < RADIUS, -math.log(alpha), -math.log(1 - alpha))
    weight = 1 - np.exp(-((radius - RADIUS) ** 2) / (2 * spread**2))
    expected = np.trapezoid(entropy * weight * radius**2, radius) / np.trapezoid(radius**2, radius)
    loss = Sketch(ball, spread).loss(points, torch.full((len(points),), sigma))
    assert loss.item() == pytest.approx(expected, rel=0.01)


def test_the_value_is_the_papers() -> None:
    sigma = torch.tensor([0.0, 0.001, 0.5, 3.0, 30.0, 1e6], dtype=torch.float64)
    alpha = (1 - torch.exp(-DELTA * sigma)).clamp(LEAST, 1 - LEAST)
    torch.testing.assert_close(cross_entropy(sigma, torch.ones(6, dtype=torch.bool)), -torch.log(alpha))
    torch.testing.assert_close(cross_entropy(sigma, torch.zeros(6, dtype=torch.bool)), -torch.log(1 - alpha))


def test_gradients_where_nothing_is_clamped(ball: WindingGrid) -> None:
    sigma = torch.linspace(0.2, 20, 40, dtype=torch.float64, requires_grad=True)
    for inside in (torch.ones(40, dtype=torch.bool), torch.zeros(40, dtype=torch.bool)):
        assert torch.autograd.gradcheck(lambda s, inside=inside: cross_entropy(s, inside), sigma)
    points = torch.from_numpy(cloud(40))
    assert torch.autograd.gradcheck(lambda s: Sketch(ball).loss(points, s), sigma)


def test_a_wrong_answer_has_a_gradient_however_wrong_it_is() -> None:
    def slopes(values: list[float], inside: bool) -> list[float]:
        sigma = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        cross_entropy(sigma, torch.full((len(values),), inside)).sum().backward()
        assert sigma.grad is not None and torch.isfinite(sigma.grad).all()
        return sigma.grad.tolist()

    empty, thin, full = slopes([0.0, 0.04, 1e4], inside=True)
    assert empty == pytest.approx(-DELTA / LEAST) and thin < -10 and full == 0
    # Outside, the optical depth itself is the loss: a constant pull, and none where it is empty already.
    assert slopes([0.0, 0.04, 5.0, 1e4], inside=False) == pytest.approx([0, 0, DELTA, DELTA])


def test_following_the_loss_fills_the_sketch_and_empties_the_rest(ball: WindingGrid) -> None:
    points = torch.from_numpy(cloud(1000)).float()
    sketch = Sketch(ball, 0.1)
    for start in (1e-3, 30.0):
        log_sigma = torch.full((len(points),), math.log(start), requires_grad=True)
        optimiser = torch.optim.Adam([log_sigma], lr=0.5)
        for _ in range(40):
            optimiser.zero_grad()
            sketch.loss(points, log_sigma.exp()).backward()
            optimiser.step()
        alpha = 1 - torch.exp(-DELTA * log_sigma.detach().exp())
        clear = sketch.distance(points) > 0.1
        inside = sketch.inside(points)
        assert alpha[clear & inside].min() > 0.6 and alpha[clear & ~inside].max() < 0.2


def test_a_smaller_sigma_is_stricter_and_the_surface_is_free(ball: WindingGrid) -> None:
    points = torch.from_numpy(cloud(20_000)).float()
    sigma = torch.full((len(points),), 5.0)
    loose, middle, strict = (Sketch(ball, s).loss(points, sigma).item() for s in (0.6, 0.3, 0.1))
    assert 0 < loose < middle < strict
    at_surface = torch.nn.functional.normalize(points, dim=1) * RADIUS
    assert Sketch(ball, 0.3).loss(at_surface, sigma).item() < 1e-3


def test_the_loss_is_a_mean(ball: WindingGrid) -> None:
    points = torch.from_numpy(cloud(100)).float()
    sigma = torch.rand(100)
    once = Sketch(ball).loss(points, sigma)
    torch.testing.assert_close(Sketch(ball).loss(points.repeat(3, 1), sigma.repeat(3)), once)
    none = torch.zeros(0, requires_grad=True)
    loss = Sketch(ball).loss(torch.zeros(0, 3), none)
    loss.backward()
    assert loss.item() == 0


def test_points_are_drawn_in_the_box_and_its_margin(ball: WindingGrid) -> None:
    sketch = Sketch(ball)
    points = sketch.box_points(3, 7, 5000)
    assert points.dtype == torch.float32 and points.shape == (5000, 3)
    np.testing.assert_allclose(points.max(dim=0).values, RADIUS + MARGIN, atol=0.01)
    np.testing.assert_allclose(points.min(dim=0).values, -RADIUS - MARGIN, atol=0.01)
    assert torch.equal(points, sketch.box_points(3, 7, 5000))
    assert not torch.equal(points, sketch.box_points(3, 8, 5000))
    wide = Sketch(WindingGrid(ball.winding, ball.distance, 1.0, np.array([[-5.0] * 3, [5.0] * 3])))
    assert wide.box_points(0, 0, 1000).abs().max() <= 1
