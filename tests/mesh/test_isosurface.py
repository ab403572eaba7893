"""From a density to a mesh: where the surface lies, that it is closed and faces outwards, what is kept of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core.errors import MeshError, SettingError
from pipeline.mesh.isosurface import (
    ComponentRule,
    components,
    decimate,
    extract,
    keep_components,
    open_edges,
    optical_depth_field,
    smooth,
)
from pipeline.mesh.mesh import Mesh, face_normals
from pipeline.mesh.normals import is_closed
from pipeline.uv.unwrap import overlap_share, unwrap

Floats = NDArray[np.float64]


def axes(side: int, bound: float = 1.0) -> tuple[Floats, Floats, Floats]:
    line = np.linspace(-bound, bound, side)
    x, y, z = np.meshgrid(line, line, line, indexing="ij")
    return x, y, z


def density_of(distance: Floats, steepness: float = 80.0, most: float = 400.0) -> Floats:
    """A field as training leaves it: ``most`` inside, falling off exponentially; 100 (at 400) on distance 0."""
    return most / (1 + 3 * np.exp(np.clip(steepness * distance, -60, 60)))


def ball(side: int, radius: float = 0.6, centre: tuple[float, float, float] = (0, 0, 0), bound: float = 1.0) -> Floats:
    x, y, z = axes(side, bound)
    return np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) - radius


def ring_distance(points: Floats) -> Floats:
    """Of points (..., 3) to a torus around the y axis: radius 0.55, thickness 0.22."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.hypot(np.hypot(x, z) - 0.55, y) - 0.22


def volume(mesh: Mesh) -> float:
    return float(components(mesh)[2].sum())


def test_a_sphere_comes_out_where_it_is() -> None:
    side = 64
    centre = (0.1, -0.2, 0.05)
    mesh = extract(density_of(ball(side, 0.6, centre)), 100)
    distance = np.linalg.norm(mesh.vertices - centre, axis=1) - 0.6
    cell = 2 / (side - 1)
    assert np.abs(distance).max() < 0.12 * cell
    assert np.abs(distance).mean() < 0.03 * cell
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.01)
    assert open_edges(mesh.faces) == 0
    assert is_closed(mesh)
    outward = np.einsum("fi,fi->f", face_normals(mesh.vertices, mesh.faces), mesh.vertices[mesh.faces[:, 0]] - centre)
    assert (outward > 0).all()
    assert len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices)
    assert mesh.warnings == []


def test_a_torus_has_its_hole_and_stands_around_the_right_axis() -> None:
    grid = np.stack(axes(72), axis=-1)
    mesh = extract(density_of(ring_distance(grid)), 100)
    assert np.abs(ring_distance(mesh.vertices)).max() < 0.1 * 2 / 71
    assert volume(mesh) == pytest.approx(2 * np.pi**2 * 0.55 * 0.22**2, rel=0.02)
    assert len(mesh.vertices) - len(mesh.faces) // 2 == 0  # Euler: V - E + F, with E = 3 F / 2
    assert is_closed(mesh)


def test_axes_and_bound_are_those_of_the_grid() -> None:
    x, y, z = axes(48, bound=2.0)
    box = np.maximum(np.maximum(np.abs(x - 1) - 0.3, np.abs(y) - 0.6), np.abs(z + 0.5) - 0.9)
    mesh = extract(density_of(box, 40), 100, bound=2.0)
    np.testing.assert_allclose(mesh.vertices.min(axis=0), (0.7, -0.6, -1.4), atol=0.03)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), (1.3, 0.6, 0.4), atol=0.03)


def test_a_density_that_jumps_leaves_the_surface_half_way() -> None:
    side = 64
    mesh = extract(np.where(ball(side) < 0, 300.0, 0.0), 10)
    off = np.linalg.norm(mesh.vertices, axis=1) - 0.6
    assert abs(off.mean()) < 0.25 * 2 / (side - 1)
    assert is_closed(mesh)


def test_what_reaches_the_cubes_faces_is_capped_there() -> None:
    x, _, _ = axes(32)
    half = extract(density_of(x - 0.25, 20), 100)
    assert is_closed(half)
    np.testing.assert_array_equal(half.vertices.min(axis=0), (-1, -1, -1))
    assert half.vertices[:, 0].max() == pytest.approx(0.25, abs=0.01)
    assert volume(half) == pytest.approx(1.25 * 2 * 2, rel=0.01)
    large = extract(density_of(ball(48, 1.2), 20), 100)
    assert is_closed(large)
    assert np.abs(large.vertices).max() == 1
    assert components(large)[1].size == 1


@pytest.mark.parametrize("seed", range(3))
def test_noise_gives_a_closed_surface_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = np.exp(2 * rng.normal(size=(24, 24, 24)))
    noise.flat[::7] = 3.0  # many samples lie exactly on the surface
    mesh = extract(noise, 3.0)
    assert open_edges(mesh.faces) == 0
    assert np.abs(mesh.vertices).max() <= 1


@pytest.mark.parametrize("most", [30.0, 400.0, 20_000.0])
@pytest.mark.parametrize("steepness", [40.0, 150.0])
def test_half_light_finds_the_surface_at_any_scale(most: float, steepness: float) -> None:
    field = density_of(ball(64, 0.5), steepness, most)
    mesh = extract(*optical_depth_field(field))
    # Where the field's light is lost: around the radius, a little outside where the rim is thick and opaque.
    radius = np.linalg.norm(mesh.vertices, axis=1).mean()
    reference = rendered_radius(field)
    assert abs(radius - reference) < 2 * 2 / 63


def rendered_radius(field: Floats) -> float:
    """Of the disk that a picture along z shows, by its area: pixels that lose half their light."""
    cell = 2 / (len(field) - 1)
    opaque = 1 - np.exp(-field.sum(axis=2) * cell) > 0.5
    return float(np.sqrt(opaque.sum() * cell**2 / np.pi))


def test_half_light_of_a_large_grid_is_that_of_a_small_one() -> None:
    small, large = (extract(*optical_depth_field(density_of(ball(side, 0.5), 60))) for side in (64, 144))
    assert volume(large) == pytest.approx(volume(small), rel=0.02)


def test_a_grainy_translucent_body_has_a_smooth_surface() -> None:
    """A level density has no smooth surface at any threshold inside it: its grain would be cut to splinters."""
    grain = np.random.default_rng(0).uniform(6, 12, (64, 64, 64))
    field = np.where(ball(64, 0.6) < 0, grain, 0)
    mesh = extract(*optical_depth_field(field))
    assert components(mesh)[1].size == 1
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert abs(radius.mean() - 0.6) < 2 * 2 / 63
    assert radius.std() < 2 / 63
    splinters = extract(field, 9.0)
    assert components(splinters)[1].size > 100


def test_half_light_keeps_thin_parts_that_show_and_reaches_into_hollows() -> None:
    x, y, z = axes(64)
    plate = 30.0 * ((np.abs(z) < 0.05) & (np.abs(x) < 0.6) & (np.abs(y) < 0.6))  # loses 95% of the light
    mesh = extract(*optical_depth_field(plate))
    assert volume(mesh) == pytest.approx(1.2 * 1.2 * 0.1, rel=0.3)
    cup = 200.0 * ((np.hypot(x, z) < 0.6) & (np.abs(y) < 0.6) & ~((np.hypot(x, z) < 0.45) & (y > -0.45)))
    solid = np.pi * (0.6**2 * 1.2 - 0.45**2 * 1.05)
    assert volume(extract(*optical_depth_field(cup))) == pytest.approx(solid, rel=0.1)


@pytest.mark.parametrize(
    ("density", "threshold", "what", "advice"),
    [
        (np.zeros((8, 8, 8)), 10.0, "the density is empty: it reaches 0", "lower density_threshold or train longer"),
        (np.full((8, 8, 8), 50.0), 10.0, "fills the whole cube", "raise density_threshold"),
        (np.full((8, 8, 8), np.nan), 10.0, "not finite", "lower learning_rate"),
    ],
)
def test_what_has_no_surface_says_what_to_do(density: Floats, threshold: float, what: str, advice: str) -> None:
    with pytest.raises(MeshError) as caught:
        extract(density, threshold)
    assert what in caught.value.message
    assert advice in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.stage == "surface"


def test_an_empty_density_takes_no_light() -> None:
    with pytest.raises(MeshError, match=r"the density is empty: no ray .* train longer \(steps\)"):
        optical_depth_field(np.full((16, 16, 16), 0.01))


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(SettingError, match="cube"):
        extract(np.ones((4, 4, 5)), 1.0)
    with pytest.raises(SettingError, match="density_threshold"):
        extract(np.ones((4, 4, 4)), 0.0)
    with pytest.raises(SettingError, match="face_budget"):
        decimate(extract(density_of(ball(16)), 100), 3)


def several() -> Mesh:
    """A hollow ball of radius 0.5, a ball of 0.25 beside it, and a speck."""
    inside = np.maximum(ball(80, 0.5, (-0.3, 0, 0)), -ball(80, 0.3, (-0.3, 0, 0)))
    distance = np.minimum(inside, ball(80, 0.25, (0.6, 0, 0)))
    return extract(density_of(np.minimum(distance, ball(80, 0.06, (0, 0.8, 0.8))), 150), 100)


def test_the_components_rule_keeps_parts_and_drops_specks_and_hollows() -> None:
    mesh = several()
    assert len(components(mesh)[1]) == 4
    kept = keep_components(mesh)
    _, areas, volumes = components(kept)
    np.testing.assert_allclose(sorted(areas), [4 * np.pi * 0.25**2, 4 * np.pi * 0.5**2], rtol=0.02)
    assert (volumes > 0).all()
    assert is_closed(kept)
    assert kept.warnings == ["2 loose pieces of the surface were dropped (23.2% of its area); 2 kept"]
    assert len(components(keep_components(mesh, ComponentRule(most=1)))[1]) == 1
    assert len(components(keep_components(mesh, ComponentRule(share=0.0)))[1]) == 3
    assert len(components(keep_components(mesh, ComponentRule(share=0.5)))[1]) == 1
    sphere = extract(density_of(ball(24)), 100)
    assert keep_components(sphere) is sphere


@pytest.mark.parametrize("budget", [4000, 800, 200])
def test_decimation_keeps_the_shape_within_the_budget(budget: int) -> None:
    mesh = extract(density_of(ring_distance(np.stack(axes(72), axis=-1))), 100)
    small = decimate(mesh, budget)
    assert 0.9 * budget <= len(small.faces) <= budget
    assert is_closed(small)
    assert len(small.vertices) - len(small.faces) // 2 == 0  # still a torus
    assert np.abs(ring_distance(small.vertices)).max() < 0.004 * (4000 / budget)
    assert volume(small) == pytest.approx(volume(mesh), rel=0.002 * 4000 / budget)
    assert small.warnings == []


def test_decimation_of_a_small_mesh_changes_nothing_and_of_a_rough_one_stays_closed() -> None:
    sphere = extract(density_of(ball(16)), 100)
    assert decimate(sphere, 10_000) is sphere
    rng = np.random.default_rng(0)
    rough = extract(density_of(ball(48) + 0.03 * rng.normal(size=(48, 48, 48))), 100)
    small = decimate(keep_components(rough), 1500)
    assert len(small.faces) <= 1500
    assert open_edges(small.faces) == 0


def test_a_decimated_surface_can_be_unwrapped() -> None:
    mesh = decimate(extract(density_of(ring_distance(np.stack(axes(56), axis=-1))), 100), 1500)
    uvmesh = unwrap(mesh, texture_size=512)
    assert overlap_share(uvmesh.uv, uvmesh.uv_faces) < 0.01
    assert uvmesh.coverage > 0.4
    assert len(uvmesh.uv_faces) == len(mesh.faces)


def test_smoothing_takes_roughness_and_leaves_volume() -> None:
    rng = np.random.default_rng(1)
    rough = keep_components(extract(density_of(ball(48) + 0.02 * rng.normal(size=(48, 48, 48)), 40), 100))
    smoothed = smooth(rough, 10)
    assert smooth(rough, 0) is rough
    before, after = (np.linalg.norm(m.vertices, axis=1).std() for m in (rough, smoothed))
    assert after < 0.8 * before
    assert volume(smoothed) == pytest.approx(volume(rough), rel=0.01)
    assert is_closed(smoothed)


def test_blur_takes_bumps_and_leaves_size_and_flat_sides() -> None:
    x, y, z = axes(64)
    bumps = 0.03 * np.sin(50 * x) * np.sin(50 * y) * np.sin(50 * z)
    rough, blurred = (extract(density_of(ball(64) + bumps, 40), 20, blur=blur) for blur in (0.0, 0.05))
    before, after = (np.linalg.norm(m.vertices, axis=1) for m in (rough, blurred))
    assert after.std() < 0.4 * before.std() and after.mean() == pytest.approx(before.mean(), rel=0.03)
    assert is_closed(blurred)
    box = density_of(np.maximum(np.maximum(abs(x), abs(y)), abs(z)) - 0.5, 40)
    flat = extract(box, 20, blur=0.05).vertices
    middle = flat[(abs(flat[:, 1]) < 0.2) & (abs(flat[:, 2]) < 0.2) & (flat[:, 0] > 0)]
    assert np.ptp(middle[:, 0]) < 0.01
    assert middle[:, 0].mean() == pytest.approx(extract(box, 20).vertices[:, 0].max(), abs=0.02)


def test_blur_leaves_thin_parts() -> None:
    """A ball on a stalk: the blur that would take the stalk away is reduced, and that is told."""
    x, y, z = axes(64)
    stalk = np.maximum(np.hypot(x, z) - 0.05, abs(y + 0.5) - 0.45)
    field = density_of(np.minimum(ball(64, 0.4), stalk), 80)
    plain, thick, thin = (extract(field, 20, blur=blur) for blur in (0.0, 0.01, 0.1))
    assert thick.warnings == [] and len(thin.warnings) == 1 and "surface_blur was reduced" in thin.warnings[0]
    for mesh in (thick, thin):
        assert mesh.vertices[:, 1].min() == pytest.approx(plain.vertices[:, 1].min(), abs=0.06)
    specks = field.copy()
    specks[2:60:4, 2:60:4, 2] = specks[2, 2:60:4, 2:60:4] = 400  # are no parts
    assert extract(specks, 20, blur=0.02).warnings == []
    lost = extract(density_of(ball(48, 0.06)), 20, blur=0.4)
    assert volume(lost) == pytest.approx(volume(extract(density_of(ball(48, 0.06)), 20)), rel=0.5)


def test_the_same_density_gives_the_same_mesh() -> None:
    field = density_of(ring_distance(np.stack(axes(40), axis=-1)))
    one, two = (decimate(smooth(extract(*optical_depth_field(field))), 600) for _ in range(2))
    np.testing.assert_array_equal(one.vertices, two.vertices)
    np.testing.assert_array_equal(one.faces, two.faces)
