"""The compiled rasteriser against its plain twin: the same ids, barycentrics and depths, to the bit."""

import math

import numpy as np
import pytest
from scipy.spatial import ConvexHull, Delaunay

from pipeline.core.rng import numpy_generator
from pipeline.raster import camera, rasterise


def blob(rng, n=250):
    """A closed, bumpy surface of about 2n faces."""
    directions = camera.directions(np.arccos(rng.uniform(-1, 1, n)), rng.uniform(0, 2 * math.pi, n))
    faces = ConvexHull(directions).simplices
    return directions * rng.uniform(0.35, 0.6, size=(n, 1)), faces


def soup(rng, n=200):
    """Triangles anywhere, also through and behind the eye."""
    return rng.uniform(-1.5, 1.5, size=(3 * n, 3)), np.arange(3 * n).reshape(n, 3)


def plane_on_centres(rng):
    points = rng.integers(-32, 33, size=(200, 2)) / 32
    points = np.unique(points, axis=0)
    return np.concatenate([points, np.zeros((len(points), 1))], axis=1), Delaunay(points).simplices


SCENES = {"blob": blob, "soup": soup, "plane": plane_on_centres}


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_views_agree(scene, cull):
    rng = numpy_generator(11, scene)
    vertices, faces = SCENES[scene](rng)
    cameras = camera.sample_paint_cameras(rng, 3, camera.CameraSettings(), vertices)
    level = camera.orbit(math.pi / 2, 0.0, 1.0, math.pi / 2)
    for views in (cameras, level):
        fast, plain = (
            rasterise.rasterise(vertices, faces, views, 24, 36, cull_backfaces=cull, backend=name)
            for name in ("numba", "torch")
        )
        assert (fast.face == plain.face).all()
        assert (fast.depth == plain.depth).all()
        assert (fast.bary == plain.bary).all()
        for a, b in ((fast.face, plain.face), (fast.bary, plain.bary), (fast.depth, plain.depth)):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
        assert fast.mask.any() or (cull and scene == "plane")


@pytest.mark.parametrize("conservative", [0.0, 0.75, 2.0])
def test_texels_agree(conservative):
    rng = numpy_generator(12, "texels")
    points = np.unique(rng.integers(0, 65, size=(40, 2)) / 64, axis=0)
    faces = Delaunay(points).simplices[::2]  # holes, so that there are rims
    fast, plain = (
        rasterise.rasterise_uv(points, faces, 32, 48, conservative=conservative, backend=name)
        for name in ("numba", "torch")
    )
    assert (fast[0] == plain[0]).all()
    np.testing.assert_allclose(fast[1], plain[1], atol=1e-6)
    assert fast[0].dtype == plain[0].dtype == np.int32
    assert fast[1].dtype == plain[1].dtype == np.float32


def test_no_cameras_no_layers():
    cameras = camera.orbit(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 3)))
    for name in ("numba", "torch"):
        assert rasterise.rasterise(np.eye(3), [[0, 1, 2]], cameras, 4, 5, backend=name).face.shape == (
            0,
            4,
            5,
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_interpolation_agrees(dtype):
    rng = numpy_generator(13, "interpolate")
    vertices, faces = blob(rng)
    seen = rasterise.rasterise(vertices, faces, camera.orbit([1.0, 2.0], [0.0, 3.0], 1.2, 1.0), 40, 40)
    values = rng.normal(size=(len(vertices), 5)).astype(dtype)
    fast, plain = (
        rasterise.interpolate(seen.face, seen.bary, values, faces, backend=name) for name in ("numba", "torch")
    )
    assert fast.dtype == plain.dtype == dtype
    assert fast.shape == (seen.mask.sum(), 5)
    np.testing.assert_allclose(fast, plain, rtol=1e-6, atol=1e-6)
    expected = (values[faces[seen.face[seen.mask]]] * seen.bary[seen.mask][..., None]).sum(axis=1)
    np.testing.assert_allclose(fast, expected, rtol=1e-5, atol=1e-6)
