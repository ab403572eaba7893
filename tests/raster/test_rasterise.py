"""The rasteriser's rules, each against something that does not share its code: rays, counts, formulas."""

import math

import numpy as np
import pytest
from scipy.spatial import Delaunay

from pipeline.core.errors import BackendError, SettingError
from pipeline.core.rng import numpy_generator
from pipeline.raster import camera, rasterise

FRONT = camera.orbit(math.pi / 2, 0.0, 1.0, math.pi / 2)


def sphere(rings=12, sectors=20, radius=0.6):
    """A closed latitude-longitude sphere, counter-clockwise outside."""
    theta = np.linspace(0, math.pi, rings + 1)[1:-1]
    phi = np.arange(sectors) * 2 * math.pi / sectors
    grid = camera.directions(*np.meshgrid(theta, phi, indexing="ij")).reshape(-1, 3)
    vertices = radius * np.concatenate([grid, [[0, 1, 0], [0, -1, 0]]])
    faces = []
    for j in range(sectors):
        k = (j + 1) % sectors
        faces.append((len(grid), j, k))
        for i in range(rings - 2):
            a, b = i * sectors + j, i * sectors + k
            faces += [(a, a + sectors, b + sectors), (a, b + sectors, b)]
        last = (rings - 2) * sectors
        faces.append((len(grid) + 1, last + k, last + j))
    return vertices, np.array(faces)


def rays(cameras, height, width):
    """Directions (N, H, W, 3) through pixel centres, scaled so that depth along the view axis is 1."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    tangent = np.tan(cameras.fov / 2)[:, None, None]
    across = (2 * x - 1) / (cameras.projection[:, 0, 0] / cameras.projection[:, 1, 1])[:, None, None] * tangent
    local = np.stack([across, (1 - 2 * y) * tangent, -np.ones_like(across)], axis=-1)
    return np.einsum("nji,nhwj->nhwi", cameras.view[:, :3, :3], local)


def cast(vertices, faces, origins, directions):
    """Nearest hit of each ray (Moeller-Trumbore): face (-1 = none), distance in units of the direction."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    e1, e2 = b - a, c - a
    p = np.cross(directions[:, None], e2[None])
    det = np.einsum("fi,rfi->rf", e1, p)
    with np.errstate(divide="ignore", invalid="ignore"):
        s = origins[:, None] - a[None]
        u = np.einsum("rfi,rfi->rf", s, p) / det
        q = np.cross(s, e1[None])
        v = np.einsum("ri,rfi->rf", directions, q) / det
        t = np.einsum("fi,rfi->rf", e2, q) / det
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
    t = np.where(hit, t, np.inf)
    nearest = t.argmin(axis=1)
    distance = t[np.arange(len(t)), nearest]
    return np.where(np.isfinite(distance), nearest, -1), distance


def plane(points):
    """Points (P, 2) in image fractions as world points that FRONT sees there, on the plane z = 0."""
    return np.stack([2 * points[:, 0] - 1, 1 - 2 * points[:, 1], np.zeros(len(points))], axis=1)


def test_agrees_with_ray_casting():
    vertices, faces = sphere(8, 12)
    rng = numpy_generator(0, "rays")
    cameras = camera.sample_paint_cameras(rng, 4, camera.CameraSettings())
    seen = rasterise.rasterise(vertices, faces, cameras, 32, 32)
    directions = rays(cameras, 32, 32)
    origins = np.broadcast_to(cameras.eye[:, None, None], directions.shape)
    face, distance = cast(vertices, faces, origins.reshape(-1, 3), directions.reshape(-1, 3))
    same = face == seen.face.ravel()
    assert same.mean() > 0.998  # the rest are rays that graze an edge within the snapping
    np.testing.assert_allclose(seen.depth.ravel()[same], distance[same], rtol=1e-3)
    assert 0.2 < seen.mask.mean() < 0.9


def test_barycentrics_are_perspective_correct():
    vertices, faces = sphere(5, 7)
    cameras = camera.orbit([0.7, 1.9], [0.3, 4.0], 1.1, 1.2, aspect=1.5)
    seen = rasterise.rasterise(vertices, faces, cameras, 60, 90)
    points = np.full((*seen.face.shape, 3), np.nan)
    points[seen.mask] = rasterise.interpolate(seen.face, seen.bary, vertices, faces)
    expected = cameras.eye[:, None, None] + seen.depth[..., None] * rays(cameras, 60, 90)
    np.testing.assert_allclose(points[seen.mask], expected[seen.mask], atol=2e-4)
    np.testing.assert_allclose(seen.bary[seen.mask].sum(axis=-1), 1, atol=1e-6)
    assert seen.bary.min() >= 0
    assert (seen.bary[~seen.mask] == 0).all()
    assert np.isinf(seen.depth[~seen.mask]).all()


def test_row_zero_is_the_top_and_column_zero_the_left():
    corner = plane(np.array([[0.0, 0.0], [0.0, 0.3], [0.3, 0.0]]))
    seen = rasterise.rasterise(corner, [[0, 1, 2]], FRONT, 10, 10)
    assert seen.face[0, 0, 0] == 0
    assert seen.mask.sum() in (3, 6)  # centres on the diagonal may fall to either side of it
    assert not seen.mask[0, 5:].any()
    assert not seen.mask[0, :, 5:].any()


def triangulations():
    rng = numpy_generator(1, "triangulations")
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1.0]])
    size = 32
    yield "random", np.concatenate([corners, rng.uniform(size=(60, 2))]), size
    yield "dense", np.concatenate([corners, rng.uniform(size=(6000, 2))]), size
    # Corners on pixel centres and borders: edges run exactly through centres.
    on_centres = (rng.integers(0, 2 * size, size=(300, 2))) / (2 * size)
    yield "on centres", np.unique(np.concatenate([corners, on_centres]), axis=0), size
    # Much larger than the image, with corners far outside.
    yield "huge", np.concatenate([corners, rng.uniform(size=(40, 2))]) * 4e5 - 2e5, size


@pytest.mark.parametrize("name", ["random", "dense", "on centres", "huge"])
def test_every_pixel_of_a_triangulation_is_covered_exactly_once(name):
    points, size = next((p, s) for n, p, s in triangulations() if n == name)
    faces = Delaunay(points).simplices
    world = plane(points)
    count = np.zeros((size, size), int)
    rng = numpy_generator(2, name)
    for face in faces:
        order = rng.permutation(3)  # either orientation
        count += rasterise.rasterise(world, face[order][None], FRONT, size, size).mask[0]
    assert (count == 1).all()


def test_texels_of_a_triangulation_are_covered_exactly_once():
    points = next(p for n, p, _ in triangulations() if n == "on centres")
    faces = Delaunay(points).simplices
    count = sum((rasterise.rasterise_uv(points, f[None], 32, 32)[0] >= 0).astype(int) for f in faces)
    assert (count == 1).all()


def test_equal_depth_goes_to_the_lowest_face_id():
    square = plane(np.array([[0.1, 0.1], [0.1, 0.9], [0.9, 0.9], [0.9, 0.1]]))
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    alone = rasterise.rasterise(square, faces, FRONT, 33, 33)
    # The same faces again, turned: their depths differ at most in the last bits of float64.
    doubled = np.concatenate([faces, np.roll(faces, 1, axis=1), np.roll(faces, 2, axis=1)[:, ::-1]])
    again = rasterise.rasterise(square, doubled, FRONT, 33, 33)
    assert (alone.face == again.face).all()
    assert (alone.bary == again.bary).all()


def test_nearer_faces_hide_farther_ones_in_any_order():
    near = plane(np.array([[0.3, 0.3], [0.3, 0.7], [0.7, 0.7]])) + np.array([0, 0, 0.2])
    far = plane(np.array([[-1, -1], [-1, 3], [3, 1.0]])) - np.array([0, 0, 0.5])
    vertices = np.concatenate([near, far])
    one = rasterise.rasterise(vertices, [[0, 1, 2], [3, 4, 5]], FRONT, 40, 40).face[0]
    two = rasterise.rasterise(vertices, [[3, 4, 5], [0, 1, 2]], FRONT, 40, 40).face[0]
    assert (np.where(one < 0, -1, 1 - one) == two).all()
    assert {0, 1} <= set(np.unique(one))


def test_back_faces_are_culled_only_when_asked():
    vertices, faces = sphere()
    cameras = camera.orbit(1.2, 0.4, 1.5, 1.0)
    both = rasterise.rasterise(vertices, faces, cameras, 64, 64)
    culled = rasterise.rasterise(vertices, faces, cameras, 64, 64, cull_backfaces=True)
    assert (both.face == culled.face).all()  # a closed surface hides its back faces anyway
    inside_out = rasterise.rasterise(vertices, faces[:, ::-1], cameras, 64, 64, cull_backfaces=True)
    assert inside_out.mask.any()
    assert (inside_out.depth[inside_out.mask] > both.depth[inside_out.mask]).all()


@pytest.mark.parametrize("slope", [0.0, 0.37])
def test_faces_are_cut_at_the_near_plane(slope):
    """A floor that runs from far ahead to far behind the eye."""
    floor = np.array([[-9, -0.3, -9], [9, -0.3 + slope, -9], [9, -0.3, 9], [-9, -0.3 - slope, 9.0]])
    faces = np.array([[0, 2, 1], [0, 3, 2]])
    cameras = camera.orbit(math.pi / 2, 0.0, 1.0, math.pi / 2, near=0.1)
    seen = rasterise.rasterise(floor, faces, cameras, 50, 50)
    directions = rays(cameras, 50, 50)
    origins = np.broadcast_to(cameras.eye[:, None, None], directions.shape)
    face, distance = cast(floor, faces, origins.reshape(-1, 3), directions.reshape(-1, 3))
    expected = (np.where(distance >= 0.1, face, -1) >= 0).reshape(seen.mask.shape)
    assert (seen.mask == expected).mean() > 0.995
    assert expected.any()
    assert seen.depth[seen.mask].min() >= 0.1 - 1e-6
    points = rasterise.interpolate(seen.face, seen.bary, floor, faces)
    truth = (cameras.eye[:, None, None] + seen.depth[..., None].astype(float).clip(0, 99) * directions)[seen.mask]
    np.testing.assert_allclose(points, truth, atol=5e-3)


def test_an_edge_cut_by_the_near_plane_is_still_covered_once():
    rng = numpy_generator(7, "cut")
    points = rng.uniform(-2, 2, size=(60, 2))
    floor = np.stack([points[:, 0], 0.2 * points[:, 0] - 0.4, points[:, 1]], axis=1)
    faces = Delaunay(points).simplices
    cameras = camera.orbit(math.pi / 2, 0.3, 0.6, 1.5, near=0.1)
    whole = rasterise.rasterise(floor, faces, cameras, 40, 40)
    count = sum(rasterise.rasterise(floor, f[None], cameras, 40, 40).mask.astype(int) for f in faces)
    assert whole.mask.mean() > 0.2
    assert (count == whole.mask).all()


def test_faces_behind_the_eye_are_not_seen():
    behind = np.array([[-1, -1, 3], [1, -1, 3], [0, 1, 3.0]])
    assert not rasterise.rasterise(behind, [[0, 1, 2]], FRONT, 8, 8).mask.any()


def test_degenerate_faces_and_empty_input_draw_nothing():
    vertices = np.array([[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0.0]])
    assert not rasterise.rasterise(vertices, [[0, 1, 2], [0, 0, 1], [2, 2, 2]], FRONT, 16, 16).mask.any()
    assert not rasterise.rasterise(vertices, np.zeros((0, 3), int), FRONT, 16, 16).mask.any()
    face, bary = rasterise.rasterise_uv(vertices[:, :2], [[0, 1, 2]], 16, 16)
    assert (face == -1).all()
    assert (bary == 0).all()


def test_each_camera_draws_its_own_layer():
    vertices, faces = sphere()
    cameras = camera.orbit([0.4, 1.3, 2.9], [0, 2, 4], 1.4, 1.0)
    together = rasterise.rasterise(vertices, faces, cameras, 32, 40)
    assert together.face.shape == (3, 32, 40)
    for i in range(3):
        alone = rasterise.rasterise(vertices, faces, cameras[i : i + 1], 32, 40)
        assert (alone.face[0] == together.face[i]).all()
        assert (alone.bary[0] == together.bary[i]).all()


def test_texel_centres_map_to_their_uv():
    rng = numpy_generator(5, "uv")
    uv = np.concatenate([[[0, 0], [0, 1], [1, 0], [1, 1]], rng.uniform(size=(50, 2))])
    faces = Delaunay(uv).simplices
    face, bary = rasterise.rasterise_uv(uv, faces, 24, 48)
    found = rasterise.interpolate(face, bary, uv, faces).reshape(24, 48, 2)
    y, x = np.meshgrid((np.arange(24) + 0.5) / 24, (np.arange(48) + 0.5) / 48, indexing="ij")
    np.testing.assert_allclose(found, np.stack([x, y], axis=-1), atol=1e-4)


def test_thin_charts_keep_texels_when_conservative():
    sliver = np.array([[0.1, 0.101], [0.9, 0.101], [0.9, 0.1012]])
    strict, _ = rasterise.rasterise_uv(sliver, [[0, 1, 2]], 64, 64)
    assert (strict == -1).all()
    face, bary = rasterise.rasterise_uv(sliver, [[0, 1, 2]], 64, 64, conservative=0.75)
    assert (face[6, 7:57] == 0).all()
    np.testing.assert_allclose(bary[face >= 0].sum(axis=-1), 1, atol=1e-6)


def test_the_rim_takes_the_nearest_point_of_the_nearest_face():
    uv = np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.75], [0.75, 0.25]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    inner, inner_bary = rasterise.rasterise_uv(uv, faces, 32, 32)
    face, bary = rasterise.rasterise_uv(uv, faces, 32, 32, conservative=1.0)
    assert (face[inner >= 0] == inner[inner >= 0]).all()
    assert (bary[inner >= 0] == inner_bary[inner >= 0]).all()
    rim = (face >= 0) & (inner < 0)
    y, x = np.nonzero(rim)
    centres = np.stack([(x + 0.5) / 32, (y + 0.5) / 32], axis=1)
    nearest = np.clip(centres, 0.25, 0.75)
    expected = np.zeros((32, 32), bool)
    everywhere = np.stack(np.meshgrid((np.arange(32) + 0.5) / 32, (np.arange(32) + 0.5) / 32), axis=-1)
    gap = np.linalg.norm(everywhere - np.clip(everywhere, 0.25, 0.75), axis=-1) * 32
    expected[(gap > 0) & (gap <= 1)] = True
    assert (rim == expected).all()
    found = (uv[faces[face[rim]]] * bary[rim][..., None]).sum(axis=1)
    np.testing.assert_allclose(found, nearest, atol=1e-6)


@pytest.mark.parametrize("size", [0, 40_000])
def test_an_image_of_impossible_size_is_refused(size):
    with pytest.raises(SettingError, match="pixels a side"):
        rasterise.rasterise(np.eye(3), [[0, 1, 2]], FRONT, size, 8)


def test_an_unknown_backend_is_named():
    with pytest.raises(BackendError, match="unknown backend 'embree'"):
        rasterise.rasterise(np.eye(3), [[0, 1, 2]], FRONT, 4, 4, backend="embree")
