"""The GPU rasterisers as far as a CPU can prove them: Warp for real on its CPU device; nvdiffrast's layer against a
stand-in that checks its contract and answers with the plain twin. Each beside the compiled rasteriser.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import warp
from test_rasterise_agreement import SCENES, blob

from pipeline.core.rng import numpy_generator
from pipeline.raster import camera, rasterise
from pipeline.raster.backface_culling import front_faces

HEIGHT, WIDTH = 40, 56


def views(rng, vertices):
    return camera.sample_paint_cameras(rng, 3, camera.CameraSettings(), vertices)


# How near to an edge (a weight) pixels may be of another face, and how many: nvdiffrast snaps corners to 1/16 pixel.
EDGES = {"warp": (5e-3, 2e-3), "nvdiffrast": (0.1, 1e-2)}


def assert_same_view(found, expected, edge, share):
    """The same fragments, but where a pixel's centre lies within ``edge`` (a weight) of an edge of either's face."""
    for a, b in ((found.face, expected.face), (found.bary, expected.bary), (found.depth, expected.depth)):
        assert a.dtype == b.dtype and a.shape == b.shape
    same = found.face == expected.face
    near_edge = np.zeros_like(same)
    for fragments in (found, expected):
        near_edge |= fragments.mask & (fragments.bary.min(axis=-1) < edge)
    assert (same | near_edge).all()
    assert (~same).mean() < share
    seen = same & expected.mask
    assert seen.any()
    np.testing.assert_allclose(found.bary[seen], expected.bary[seen], atol=2e-3)
    np.testing.assert_allclose(found.depth[seen], expected.depth[seen], rtol=1e-4)
    assert (found.bary[~found.mask] == 0).all() and np.isposinf(found.depth[~found.mask]).all()


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("scene", ["blob", "soup"])
@pytest.mark.parametrize("backend", ["warp", "nvdiffrast"])
def test_views_agree_but_for_edges(backend, scene, cull, nvdiffrast):
    rng = numpy_generator(21, scene)
    vertices, faces = SCENES[scene](rng)
    cameras = views(rng, vertices)
    found, expected = (
        rasterise.rasterise(vertices, faces, cameras, HEIGHT, WIDTH, cull_backfaces=cull, backend=name)
        for name in (backend, "numba")
    )
    assert_same_view(found, expected, *EDGES[backend])
    if backend == "nvdiffrast" and scene == "blob":
        assert (found.face != expected.face).any()  # the stand-in does snap


@pytest.mark.parametrize("backend", ["warp", "nvdiffrast"])
def test_the_image_is_the_right_way_up_and_round(backend, nvdiffrast):
    # One face in the upper right corner, its corners in a known order.
    vertices = [[0.2, 0.2, 0.0], [0.5, 0.2, 0.0], [0.2, 0.5, 0.0]]
    front = camera.orbit(math.pi / 2, 0.0, 1.0, math.pi / 2)
    seen = rasterise.rasterise(vertices, [[0, 1, 2]], front, 16, 16, backend=backend)
    rows, columns = np.nonzero(seen.mask[0])
    assert rows.max() < 8 <= columns.min()
    right = seen.bary[0, rows[columns.argmax()], columns.max()]
    assert right.argmax() == 1
    np.testing.assert_allclose(seen.depth[0][seen.mask[0]], 1.0, atol=1e-6)


@pytest.mark.parametrize("backend", ["warp", "nvdiffrast"])
def test_near_cuts_and_far_does_not(backend, nvdiffrast):
    cameras = camera.orbit(math.pi / 2, 0.0, 1.0, math.pi / 2, near=0.5, far=2.0)
    wall = np.array([[-9.0, -9, 0], [9, -9, 0], [0, 9, 0]])
    places = {"before the near plane": 0.7, "in sight": 0.3, "beyond the far plane": -3.0}
    sees = {
        name: rasterise.rasterise(wall + np.array([0, 0, z]), [[0, 1, 2]], cameras, 8, 8, backend=backend)
        for name, z in places.items()
    }
    assert not sees["before the near plane"].mask.any()
    assert sees["in sight"].mask.any()
    np.testing.assert_allclose(sees["beyond the far plane"].depth[0, 4, 4], 4.0, rtol=1e-5)


@pytest.mark.parametrize("backend", ["warp", "nvdiffrast"])
def test_nothing_to_see(backend, nvdiffrast):
    away = np.array([[0.2, 0.2, 0.0], [0.2, 0.5, 0.0], [0.5, 0.2, 0.0]])  # turns clockwise
    front = camera.orbit(math.pi / 2, 0.0, 1.0, math.pi / 2)
    none = camera.orbit(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 3)))
    culled = rasterise.rasterise(away, [[0, 1, 2]], front, 16, 16, cull_backfaces=True, backend=backend)
    empty = rasterise.rasterise(away, np.zeros((0, 3), int), front, 16, 16, backend=backend)
    assert not culled.mask.any() and not empty.mask.any()
    assert rasterise.rasterise(away, [[0, 1, 2]], none, 4, 4, backend=backend).face.shape == (0, 4, 4)


def test_one_view_of_two_sees_no_front(nvdiffrast):
    vertices = [[-0.4, -0.4, 0.0], [0.4, -0.4, 0.0], [0.0, 0.4, 0.0]]
    both = camera.orbit(math.pi / 2, [0.0, math.pi], 1.0, math.pi / 2)
    for backend in ("warp", "nvdiffrast"):
        seen = rasterise.rasterise(vertices, [[0, 1, 2]], both, 16, 16, cull_backfaces=True, backend=backend)
        assert seen.mask[0].any() and not seen.mask[1].any()


def test_nvdiffrast_is_called_as_documented(nvdiffrast):
    rng = numpy_generator(23, "nvdiffrast")
    vertices, faces = blob(rng, 60)
    cameras = views(rng, vertices)
    rasterise.rasterise(vertices, faces, cameras, 20, 12, backend="nvdiffrast")
    rasterise.rasterise(vertices, faces, cameras, 20, 12, cull_backfaces=True, backend="nvdiffrast")
    instanced, ranged = (arguments for name, arguments in nvdiffrast if name == "rasterize")
    assert instanced["pos"].shape == (3, len(vertices), 4) and instanced["ranges"] is None
    assert ranged["pos"].shape == (3 * len(vertices), 4)
    fronts = [len(front_faces(vertices, faces, matrix)) for matrix in cameras.clip_from_world]
    assert ranged["ranges"].tolist() == [[0, fronts[0]], [fronts[0], fronts[1]], [sum(fronts[:2]), fronts[2]]]
    assert instanced["resolution"] == (20, 12)
    # Depths are w, taken through each call's own positions and indices.
    depths = [arguments for name, arguments in nvdiffrast if name == "interpolate"]
    for drawn, depth in zip((instanced, ranged), depths, strict=True):
        assert depth["attr"].shape == (*drawn["pos"].shape[:-1], 1) and depth["tri"] is drawn["tri"]
        assert (depth["attr"] == drawn["pos"][..., 3:]).all()


def test_large_ids_survive_their_float():
    import torch

    from pipeline.raster.rasterise.nvdiffrast_backend import face_ids, stored_ids

    ids = torch.tensor([0, 1, 2**24, 2**24 + 1, 30_000_001, 889_192_447], dtype=torch.int32)
    # As its triidx_to_float stores id + 1 (here the numbers are id + 1 already).
    stored = torch.where(ids <= 2**24, ids.float(), (ids + 0x4A800000).view(torch.float32))
    assert (face_ids(stored) == ids - 1).all()
    assert torch.equal(stored_ids(ids - 1), stored)


def test_warp_keeps_its_tree_until_the_mesh_changes(monkeypatch):
    builds = []
    build = warp.Mesh
    monkeypatch.setattr(warp, "Mesh", lambda **arguments: builds.append(1) or build(**arguments))
    rng = numpy_generator(24, "tree")
    vertices, faces = blob(rng, 60)
    vertices, faces = np.ascontiguousarray(vertices), np.ascontiguousarray(faces)
    cameras = views(rng, vertices)
    first = rasterise.rasterise(vertices, faces, cameras, 24, 24, backend="warp")
    again = rasterise.rasterise(vertices, faces, cameras, 24, 24, backend="warp")
    assert len(builds) == 1
    assert (first.face == again.face).all() and (first.bary == again.bary).all()
    vertices *= 0.5  # the same array with other content
    smaller = rasterise.rasterise(vertices, faces, cameras, 24, 24, backend="warp")
    assert len(builds) == 2 and smaller.mask.sum() < first.mask.sum()
