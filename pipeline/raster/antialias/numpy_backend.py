"""Outlines in numpy, on the CPU; the rules are in ``antialias``."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.raster.antialias.layout import Outlines
from pipeline.raster.camera import Cameras
from pipeline.raster.rasterise.layout import Fragments

# How far beyond the two centres an edge may cross, in pixels, because rasterisers snap corners by up to 1/16 pixel.
_DEPTH_TOLERANCE = 1 / 16


def find_outlines(
    fragments: Fragments,
    vertices: NDArray[np.float64],
    faces: NDArray[np.integer],
    cameras: Cameras,
    across: NDArray[np.int64],
) -> Outlines:
    """``antialias.find_outlines``; the result is in host memory."""
    n, height, width = fragments.face.shape
    right, below = np.zeros((n, height, width - 1), np.float32), np.zeros((n, height - 1, width), np.float32)
    for i, matrix in enumerate(cameras.clip_from_world):
        screen = _screen(vertices, matrix, height, width)
        face, depth = fragments.face[i], fragments.depth[i]
        right[i] = _shares(face, depth, screen, faces, across)
        # Columns are rows of the transposed image.
        below[i] = _shares(face.T, depth.T, screen[:, ::-1], faces, across).T
    return Outlines(torch.from_numpy(right), torch.from_numpy(below))


def _screen(vertices: NDArray[np.float64], matrix: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """(V, 2) positions in pixels, x to the right and y down."""
    x, y, _, w = matrix[:, :3] @ vertices.T + matrix[:, 3:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([(0.5 + 0.5 * x / w) * width, (0.5 - 0.5 * y / w) * height], axis=1)


def _shares(
    face: NDArray[np.int32],
    depth: NDArray[np.float32],
    screen: NDArray[np.float64],
    faces: NDArray[np.integer],
    across: NDArray[np.int64],
) -> NDArray[np.float32]:
    """``Outlines.right`` of one view: face and depth (H, W), screen (V, 2) -> (H, W - 1)."""
    row, column = np.nonzero(face[:, :-1] != face[:, 1:])
    face_a, face_b = face[row, column], face[row, column + 1]
    near_one = (face_b < 0) | ((face_a >= 0) & (depth[row, column] < depth[row, column + 1]))
    owner = np.where(near_one, face_a, face_b)
    # From the centre of the nearer face's pixel: x runs towards the other pixel's centre, which is at 1.
    ahead = np.where(near_one, 1.0, -1.0)
    centre = np.stack([column + np.where(near_one, 0.5, 1.5), row + 0.5], axis=1)
    towards = np.stack([ahead, np.ones(len(ahead))], axis=1)

    def screen_of(vertex: NDArray[np.int64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = (screen[vertex] - centre) * towards
        return result

    every = np.arange(len(owner))
    corners = np.asarray(faces[owner], np.int64)
    x, y = np.stack([screen_of(corners[:, k]) for k in range(3)], axis=1).transpose(2, 0, 1)  # (M, 3) each
    with np.errstate(divide="ignore", invalid="ignore"):
        start, end = [1, 2, 0], [2, 0, 1]  # of the edge opposite each corner
        crossing = (x[:, start] * y[:, end] - x[:, end] * y[:, start]) / (y[:, end] - y[:, start])
        leaves = np.where((y[:, start] < 0) != (y[:, end] < 0), crossing, -np.inf)
        edge = leaves.argmax(axis=1)
        distance = leaves[every, edge]
        p, q = screen_of(corners[every, np.take(start, edge)]), screen_of(corners[every, np.take(end, edge)])
        apex, beyond = screen_of(corners[every, edge]), screen_of(np.maximum(across[owner, edge], 0))
        folds = _side(p, q, apex) * _side(p, q, beyond) >= 0
        outline = (across[owner, edge] < 0) | folds
        upright = np.abs(q - p)[:, 1] >= np.abs(q - p)[:, 0]
        good = outline & upright & (distance > -_DEPTH_TOLERANCE) & (distance < 1 + _DEPTH_TOLERANCE)
    shares = np.zeros((face.shape[0], face.shape[1] - 1), np.float32)
    shares[row[good], column[good]] = ahead[good] * (0.5 - distance[good].clip(0, 1))
    return shares


def _side(p: NDArray[np.float64], q: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M,) positive for points r on one side of the lines from p to q, negative on the other; (M, 2) each."""
    return np.asarray((q - p)[:, 0] * (r - p)[:, 1] - (q - p)[:, 1] * (r - p)[:, 0])
