"""The compiled rasteriser against its plain twin: the same ids, barycentrics and depths, to the bit."""

import math

import numpy as np
import pytest
import torch
from compare import compare
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
        expected = compare(
            "rasterise",
            lambda backend, views=views: rasterise.rasterise(
                vertices, faces, views, 24, 36, cull_backfaces=cull, backend=backend
            ),
            "numba",
            "torch",
        )
        assert (expected["face"] >= 0).any() or (cull and scene == "plane")


@pytest.mark.parametrize("conservative", [0.0, 0.75, 2.0])
def test_texels_agree(conservative):
    rng = numpy_generator(12, "texels")
    points = np.unique(rng.integers(0, 65, size=(40, 2)) / 64, axis=0)
    faces = Delaunay(points).simplices[::2]  # holes, so that there are rims
    expected = compare(
        "rasterise_uv",
        lambda backend: rasterise.rasterise_uv(points, faces, 32, 48, conservative=conservative, backend=backend),
        "numba",
        "torch",
    )
    assert expected["0"].dtype == torch.int32 and expected["1"].dtype == torch.float32


def test_no_cameras_no_layers():
    cameras = camera.orbit(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 3)))
    for name in ("numba", "torch"):
        assert rasterise.rasterise(np.eye(3), [[0, 1, 2]], cameras, 4, 5, backend=name).face.shape == (
            0,
            4,
            5,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interpolation_agrees(dtype):
    rng = numpy_generator(13, "interpolate")
    vertices, faces = blob(rng)
    seen = rasterise.rasterise(vertices, faces, camera.orbit([1.0, 2.0], [0.0, 3.0], 1.2, 1.0), 40, 40)
    values = torch.from_numpy(rng.normal(size=(len(vertices), 5))).to(dtype).numpy()
    plain = compare(
        "interpolate",
        lambda backend: rasterise.interpolate(seen.face, seen.bary, values, faces, backend=backend),
        "numba",
        "torch",
        dtype=dtype,
    )["value"]
    assert plain.dtype == dtype and plain.shape == (seen.mask.sum(), 5)
    expected = (values[faces[seen.face[seen.mask]]] * seen.bary[seen.mask][..., None]).sum(axis=1)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-6)
