"""Tangents by the MikkTSpace rules, against numbers that the reference program gave for the same arrays."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.mesh.normals import smooth_normals
from pipeline.mesh.tangents import corner_tangents


def sheet(columns: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bent sheet facing +Y: positions, faces, texture coordinates."""
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    positions = np.stack([u, 0.2 * np.sin(9 * u) * np.cos(7 * v), v], axis=-1).reshape(-1, 3)
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1)
    a, b, c, d = corner, corner + 1, corner + columns, corner + columns + 1
    faces = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    return positions, faces, np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32)


def tangents(positions: np.ndarray, faces: np.ndarray, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tangents (F, 3, 4) and normals (F, 3, 3)."""
    normals, normal_faces = smooth_normals(positions, faces)
    return corner_tangents(positions, faces, normals, normal_faces, uv, faces), normals[normal_faces]


# npm: mikktspace 1.1.1, which compiles mikktspace.c; a sheet of 5 x 3 points whose left half mirrors the right one,
# texture coordinates with v upwards.
# fmt: off
REFERENCE = [
    (-0.84897, -0.52845, 0, -1),
    (-0.84897, -0.52845, 0, -1),
    (-0.84897, -0.52845, 0, -1),
    (-0.67644, 0.73649, 0.00194, -1),
    (-0.99586, -0.09073, -0.00452, -1),
    (-0.58001, 0.81461, 0, -1),
    (0.64199, 0.76664, -0.01065, 1),
    (0.62285, 0.78211, -0.01903, 1),
    (0.65877, 0.75235, 0, 1),
    (0.96468, -0.26343, -0.00139, 1),
    (0.96529, -0.26113, 0.0042, 1),
    (0.99991, -0.01378, 3e-05, 1),
    (-0.86394, 0.5036, 0, -1),
    (-0.98794, -0.15432, -0.01239, -1),
    (-0.99586, -0.09073, -0.00452, -1),
    (-0.99586, -0.09073, -0.00452, -1),
    (-0.81796, -0.57526, 0.00231, -1),
    (-0.61522, -0.78834, -0.00514, -1),
    (0.68366, -0.7298, 0.00034, 1),
    (0.68493, -0.72861, 0.00121, 1),
    (0.96529, -0.26113, 0.0042, 1),
    (0.96529, -0.26113, 0.0042, 1),
    (0.94601, 0.32414, -0.00048, 1),
    (0.99978, 0.02108, 0, 1),
    (-0.67644, 0.73649, 0.00194, -1),
    (-0.86394, 0.5036, 0, -1),
    (-0.99586, -0.09073, -0.00452, -1),
    (-0.63186, -0.77491, -0.01643, -1),
    (-0.99586, -0.09073, -0.00452, -1),
    (-0.61522, -0.78834, -0.00514, -1),
    (0.96468, -0.26343, -0.00139, 1),
    (0.68366, -0.7298, 0.00034, 1),
    (0.96529, -0.26113, 0.0042, 1),
    (0.99991, -0.01378, 3e-05, 1),
    (0.96529, -0.26113, 0.0042, 1),
    (0.99978, 0.02108, 0, 1),
    (-0.99586, -0.09073, -0.00452, -1),
    (-0.98794, -0.15432, -0.01239, -1),
    (-0.81796, -0.57526, 0.00231, -1),
    (-0.68409, 0.7294, 0.00127, -1),
    (-0.68662, 0.72702, 0, -1),
    (-0.68555, 0.72803, 0.00067, -1),
    (0.96529, -0.26113, 0.0042, 1),
    (0.75781, 0.65248, 0, 1),
    (0.94601, 0.32414, -0.00048, 1),
    (0.99978, 0.02108, 0, 1),
    (0.94601, 0.32414, -0.00048, 1),
    (0.99974, -0.02287, 0, 1),
]
# fmt: on


def test_they_are_the_references() -> None:
    positions, faces, uv = sheet(5, 3)
    uv[:, 0] = np.abs(uv[:, 0] - 0.5)
    found, _ = tangents(positions, faces, uv)
    np.testing.assert_allclose(found.reshape(-1, 4), REFERENCE, atol=2e-5)


def test_they_follow_u_and_the_bitangent_goes_up_the_texture() -> None:
    positions, faces, uv = sheet(9, 7)
    positions[:, 1] = 0
    found, normals = tangents(positions, faces, uv)
    np.testing.assert_allclose(found, np.broadcast_to([1, 0, 0, 1], found.shape), atol=1e-6)
    # v runs down the texture, along +z here: up is -z.
    bitangent = np.cross(normals, found[..., :3]) * found[..., 3:]
    np.testing.assert_allclose(bitangent, np.broadcast_to([0, 0, -1], bitangent.shape), atol=1e-6)


def test_they_turn_and_move_with_the_mesh() -> None:
    positions, faces, uv = sheet(9, 7)
    found, normals = tangents(positions, faces, uv)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    moved, _ = tangents(70 * positions @ turn.T + 5, faces, uv)
    np.testing.assert_allclose(moved[..., :3], found[..., :3] @ turn.T, atol=1e-5)
    assert (moved[..., 3] == found[..., 3]).all()
    np.testing.assert_allclose((found[..., :3] * normals).sum(axis=-1), 0, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_faces_without_area_in_the_texture_still_have_a_frame(seed: int) -> None:
    positions, faces, uv = sheet(9, 7)
    rng = np.random.default_rng(seed)
    lost = rng.random(len(uv)) < 0.5
    uv[lost] = uv[np.flatnonzero(lost)[0]]
    found, normals = tangents(positions, faces, uv)
    np.testing.assert_allclose(np.linalg.norm(found[..., :3], axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose((found[..., :3] * normals).sum(axis=-1), 0, atol=1e-6)
    assert set(np.unique(found[..., 3])) <= {-1.0, 1.0}


def test_three_faces_on_one_edge() -> None:
    positions = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [-1, 0, 1], [-1, 0, -1]], float)
    faces = np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]])
    found, _ = tangents(positions, faces, np.random.default_rng(2).random((5, 2)).astype(np.float32))
    assert np.isfinite(found).all()
