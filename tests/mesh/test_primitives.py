"""Solids: closed, wound outwards, as large as they say, at their place; the same bytes each time."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core.errors import SettingError
from pipeline.mesh.mesh import degenerate_faces
from pipeline.mesh.primitives import SHAPES, combine, rotation_matrix
from pipeline.recipes.generate_settings import Shape, ShapeName

# Size, and volume as the textbook has it, of each solid.
SOLIDS: dict[str, tuple[tuple[float, float, float], float]] = {
    "sphere": ((1.0, 0.5, 0.8), math.pi / 6 * 1.0 * 0.5 * 0.8),
    "box": ((1.0, 0.5, 0.8), 0.4),
    "cylinder": ((1.0, 0.5, 0.8), math.pi / 4 * 1.0 * 0.8 * 0.5),
    "cone": ((1.0, 0.5, 0.8), math.pi / 12 * 1.0 * 0.8 * 0.5),
    "capsule": ((0.4, 1.0, 0.4), math.pi / 4 * 0.4**2 * 0.6 + math.pi / 6 * 0.4**3),
    "torus": ((1.0, 0.2, 1.0), 2 * math.pi**2 * 0.4 * 0.1**2),
}


def volume(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> float:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def one(shape: str, **more: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return combine([{"shape": shape, "size": SOLIDS[shape][0], **more}])


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_solid_is_closed_outward_and_as_large_as_it_says(shape: str) -> None:
    vertices, faces = one(shape)
    size, expected = SOLIDS[shape]
    assert (vertices.dtype, faces.dtype) == (np.float64, np.int64)
    # Every directed edge has its opposite, once: closed, manifold, wound one way.
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward = {tuple(edge) for edge in edges.tolist()}
    assert len(forward) == len(edges) and {(b, a) for a, b in forward} == forward
    assert sorted(set(faces.reshape(-1).tolist())) == list(range(len(vertices)))
    assert not degenerate_faces(vertices, faces).any()
    # Inscribed: at most 1% of the volume is lost, none is gained.
    assert 0.99 * expected < volume(vertices, faces) <= expected * (1 + 1e-12)
    np.testing.assert_allclose(np.ptp(vertices, axis=0), size, rtol=1e-3)
    np.testing.assert_allclose(vertices.min(axis=0) + vertices.max(axis=0), 0, atol=1e-12)
    euler = len(vertices) - len(edges) // 2 + len(faces)
    assert euler == (0 if shape == "torus" else 2)


def test_a_cone_stands_on_its_base_and_a_torus_lies_flat() -> None:
    vertices, _ = one("cone")
    assert (vertices[:, 1] == vertices[:, 1].max()).sum() == 1
    ring, _ = one("torus")
    assert np.hypot(ring[:, 0], ring[:, 2]).min() == pytest.approx(0.3)


def test_manifests_know_the_same_solids() -> None:
    assert get_args(ShapeName) == tuple(SHAPES)
    for name, (size, _) in SOLIDS.items():
        shape = Shape(shape=name, size=list(size))  # type: ignore[arg-type]
        assert len(combine([shape.model_dump()])[1]) > 0


def test_position_and_rotation() -> None:
    # A quarter turn about x takes +Y to +Z; then one about y takes +Z to +X.
    np.testing.assert_allclose(rotation_matrix((90, 0, 0)) @ (0, 1, 0), (0, 0, 1), atol=1e-15)
    np.testing.assert_allclose(rotation_matrix((90, 90, 0)) @ (0, 1, 0), (1, 0, 0), atol=1e-15)
    np.testing.assert_allclose(rotation_matrix((0, 0, 90)) @ (1, 0, 0), (0, 1, 0), atol=1e-15)
    matrix = rotation_matrix((10, 20, 30))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-15)
    assert np.linalg.det(matrix) == pytest.approx(1)
    plain, faces = one("cone")
    moved, same = one("cone", position=[0.1, 0.2, 0.3], rotation=[90, 0, 0])
    tip = moved[np.argmax(plain[:, 1])]
    np.testing.assert_allclose(tip, (0.1, 0.2, 0.3 + 0.25), atol=1e-12)
    assert np.array_equal(faces, same) and volume(moved, same) == pytest.approx(volume(plain, faces))


def test_solids_are_combined_in_order_and_with_the_same_bytes() -> None:
    shapes = [{"shape": name, "size": size, "position": [0.1, 0, 0]} for name, (size, _) in SOLIDS.items()]
    vertices, faces = combine(shapes)
    again, same = combine(shapes)
    assert vertices.tobytes() == again.tobytes() and faces.tobytes() == same.tobytes()
    assert volume(vertices, faces) == pytest.approx(sum(volume(*one(name)) for name in SOLIDS))
    assert faces.max() == len(vertices) - 1


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"shape": "cube", "size": [1, 1, 1]}, "shape 1 is a 'cube'; allowed: sphere, box"),
        ({"shape": "box", "size": [1, 0, 1]}, "shape 1: its size is"),
        ({"shape": "box", "size": [1, 1]}, "shape 1: its size is"),
        ({"shape": "torus", "size": [1, 0.6, 1]}, "has no hole"),
        ({"shape": "capsule", "size": [1, 0.6, 1]}, "cannot be 0.6 high"),
    ],
)
def test_what_makes_no_solid_is_refused(shape: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        combine([shape])
    with pytest.raises(SettingError, match="at least one"):
        combine([])
