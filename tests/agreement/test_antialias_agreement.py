"""Outlines of the CPU beside nvdiffrast's, through a stand-in that follows its kernels pair by pair.

The layer never gives it the colours. That what it says mixes colours as it would have done itself, gradient included,
is shown here.
"""

from __future__ import annotations

import fake_nvdiffrast
import meshes
import numpy as np
import pytest
import torch
from compare import compare
from fake_cuda import CudaTensor, marked, plain
from test_rasterise_agreement import blob

from pipeline.core import backends
from pipeline.core.rng import numpy_generator, torch_generator
from pipeline.raster import antialias, camera
from pipeline.raster.rasterise import rasterise

HEIGHT, WIDTH = 20, 26


def cube():
    made = meshes.cube(0.8)
    corners, index = np.unique(made.vertices, axis=0, return_inverse=True)
    return corners, index.reshape(-1)[made.faces]


def open_sheet():
    """Folded twice, seen from both sides, with borders."""
    made = meshes.plane(3, 0.9)
    return made.vertices + [[0, 0, 0.4 * np.cos(7 * x)] for x in made.vertices[:, 0]], made.faces


SCENES = {"cube": cube, "blob": lambda: blob(numpy_generator(81, "blob"), 30), "open": open_sheet}


def problem(name):
    vertices, faces = SCENES[name]()
    cameras = camera.sample_paint_cameras(numpy_generator(82, name), 3, camera.CameraSettings(close_up=0.0))
    return vertices, faces, cameras, rasterise(vertices, faces, cameras, HEIGHT, WIDTH, backend="numba")


def both(name):
    vertices, faces, cameras, seen = problem(name)
    across = antialias.adjacent_vertices(faces)
    return [
        antialias.find_outlines(seen, vertices, faces, cameras, across, backend=backend)
        for backend in ("numpy", "nvdiffrast")
    ]


@pytest.mark.parametrize("name", SCENES)
def test_outlines_agree(name, nvdiffrast):
    vertices, faces, cameras, seen = problem(name)
    across = antialias.adjacent_vertices(faces)
    expected = compare(
        "antialias",
        lambda backend: antialias.find_outlines(seen, vertices, faces, cameras, across, backend=backend),
        "nvdiffrast",
        "numpy",
        dtype=torch.float32,
    )
    assert expected["right"].count_nonzero() > 20 and expected["below"].count_nonzero() > 20
    assert isinstance(both(name)[1].right, CudaTensor)


@pytest.mark.parametrize("name", SCENES)
def test_colours_mix_and_gradients_flow_as_in_the_library(name, nvdiffrast):
    vertices, faces, cameras, seen = problem(name)
    generator = torch_generator(83, name)
    colours, weight = (torch.randn(3, 4, HEIGHT, WIDTH, generator=generator) for _ in range(2))
    here = colours.clone().requires_grad_(True)
    across = antialias.adjacent_vertices(faces)
    mixed = antialias.blend_outlines(
        here, antialias.find_outlines(seen, vertices, faces, cameras, across, backend="numpy")
    )
    (mixed * weight).sum().backward()
    antialias.find_outlines(seen, vertices, faces, cameras, across, backend="nvdiffrast")
    arguments = nvdiffrast[-1][1]
    there = colours.clone().requires_grad_(True)
    rows_up = marked(there.permute(0, 2, 3, 1).flip(1).contiguous())
    given = {key: arguments[key] for key in ("rast", "pos", "tri")}
    shown = plain(fake_nvdiffrast.antialias(rows_up, **given)).flip(1).permute(0, 3, 1, 2)
    (shown * weight).sum().backward()
    for a, b in ((mixed, shown), (here.grad, there.grad)):
        assert ((a - b).abs() > 1e-3).float().mean() < 1e-3


def test_the_same_bits_whatever_order_the_library_adds_in(nvdiffrast):
    one, two = both("blob")[1], both("blob")[1]
    assert torch.equal(plain(one.right), plain(two.right)) and torch.equal(plain(one.below), plain(two.below))


def test_it_is_called_as_documented(nvdiffrast):
    both("cube")
    (name, arguments) = nvdiffrast[-1]
    assert name == "antialias" and arguments["color"].shape == (3, HEIGHT, WIDTH, 6)
    assert arguments["pos"].shape == (3, 8, 4) and arguments["tri"].shape == (12, 3)
    raster = plain(arguments["rast"])
    seen = problem("cube")[3]
    assert (raster[..., 3].flip(1).numpy() == seen.face + 1).all()
    assert (raster[..., 2].flip(1).numpy()[seen.mask] == seen.depth[seen.mask]).all()


def test_mixing_brings_shares_to_the_colours(nvdiffrast):
    image = torch.randn(3, 2, HEIGHT, WIDTH, generator=torch_generator(84, "image"))
    here, there = both("cube")
    expected = antialias.blend_outlines(image, here)
    found = antialias.blend_outlines(image.to("cuda"), there)
    assert isinstance(found, CudaTensor)
    for mixed in (
        found.cpu(),
        antialias.blend_outlines(image, there),
        antialias.blend_outlines(image.to("cuda"), here).cpu(),
    ):
        torch.testing.assert_close(mixed, expected, atol=1e-4, rtol=1e-4)


def test_a_mesh_without_faces_is_no_call(nvdiffrast):
    none = np.zeros((0, 3), int)
    cameras = camera.orbit(1.0, 0.0, 1.0, 1.0)
    seen = rasterise(np.eye(3), none, cameras, 4, 5, backend="numba")
    found = antialias.find_outlines(seen, np.eye(3), none, cameras, none, backend="nvdiffrast")
    assert found.right.shape == (1, 4, 4) and found.below.shape == (1, 3, 5) and not nvdiffrast


def test_auto_is_the_library_where_it_works(nvdiffrast):
    assert backends.select_backend("antialias").name == "nvdiffrast"
