"""Measures the error of pixel coverage in drawn views, with and without smoothed outlines, and its cost.

    python benchmarks/outlines.py

Draws views of a cube and of the demo's meshes. The error is the root mean square over pixels that an outline crosses,
relative to views with 16 times as many samples along a side.
"""

from __future__ import annotations

import time
from pathlib import Path

import pipeline  # noqa: F401  (before torch: it makes idle threads sleep)

# isort: split
import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from pipeline.core.rng import numpy_generator
from pipeline.mesh.load import load_mesh
from pipeline.mesh.normalise import normalise
from pipeline.mesh.primitives import combine
from pipeline.raster import antialias, camera
from pipeline.raster.rasterise import rasterise

MESHES = Path(__file__).parent.parent / "manifests" / "meshes"
FINE = 16
VIEWS = 2
# Views as in painting (latents) and in refinement (RGB): pixels along a side, samples along a side of a pixel.
KINDS = ((16, 4), (64, 4), (256, 2))


def measure(vertices: np.ndarray, faces: np.ndarray, side: int, samples: int) -> tuple[float, float, float, float]:
    """Errors without and with smoothing, and CPU milliseconds per view for drawing and for smoothing."""
    cameras = camera.sample_paint_cameras(numpy_generator(0, "bench"), VIEWS, camera.CameraSettings(close_up=0.0))
    across = antialias.adjacent_vertices(faces)
    truth = _pooled(rasterise(vertices, faces, cameras, side * FINE, side * FINE).mask, FINE)
    border = (truth > 0) & (truth < 1)
    start_time = time.process_time()
    fragments = rasterise(vertices, faces, cameras, side * samples, side * samples)
    drawn = time.process_time()
    outlines = antialias.find_outlines(fragments, vertices, faces, cameras, across, backend="numpy")
    done = time.process_time()
    smooth = avg_pool2d(antialias.blend_outlines(_image(fragments.mask), outlines), samples)
    errors = [
        float((coverage - truth)[border].square().mean().sqrt())
        for coverage in (_pooled(fragments.mask, samples), smooth)
    ]
    return errors[0], errors[1], (drawn - start_time) * 1e3 / VIEWS, (done - drawn) * 1e3 / VIEWS


def _image(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask[:, None].astype(np.float32))


def _pooled(mask: np.ndarray, factor: int) -> torch.Tensor:
    return avg_pool2d(_image(mask), factor)


def main() -> None:
    """Print the table."""
    cube = combine([{"shape": "box", "size": [0.7, 0.7, 0.7]}])
    meshes = {"cube": cube}
    for name in ("vase.obj", "teapot.obj", "knight.glb"):
        loaded = load_mesh(MESHES / name)
        meshes[name] = normalise(loaded.vertices, radius=0.6).apply(loaded.vertices), loaded.faces
    print(
        f"{'mesh':<12}{'faces':>7}{'view':>6}{'samples':>9}{'drawn':>8}{'smooth':>8}{'draw ms':>9}{'outlines ms':>13}"
    )
    for name, (vertices, faces) in meshes.items():
        measure(vertices, faces, 16, 1)  # compiles
        for side, samples in KINDS:
            drawn, smooth, draw, outline = measure(vertices, faces, side, samples)
            print(
                f"{name:<12}{len(faces):>7}{side:>6}{samples:>9}{drawn:>8.4f}{smooth:>8.4f}{draw:>9.1f}{outline:>11.1f}"
            )


if __name__ == "__main__":
    main()
