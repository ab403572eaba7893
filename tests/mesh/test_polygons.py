"""Polygons of any shape: covered once, without folds, and the same way each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import degenerate_faces, face_areas
from pipeline.mesh.readers import polygons
from pipeline.mesh.readers.polygons import least_area, triangulate

FRAME = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
# A square of 0.5 with corners given twice, and a spike out and back.
REPEATED = [(0, 0), (0, 0), (0.5, 0), (0.5, 0), (3, 0), (0.5, 0), (0.5, 0.5), (0.5, 0.5), (0, 0.5)]
COMB = [(0, 0), *[(x + dx, y) for x in range(6) for dx, y in ((0.4, 0), (0.4, 3), (0.6, 3), (0.6, 0))], (6, 0),
        (6, -1), (0, -1)]  # fmt: skip


def solid(flat: list[tuple[float, float]] | NDArray) -> NDArray[np.float64]:
    """The polygon in a plane that is parallel to none of the axes."""
    turn = np.linalg.qr(np.array([[1.0, 2, 3], [0, 1, 4], [5, 6, 0]]))[0]
    return np.pad(np.asarray(flat, float), ((0, 0), (0, 1))) @ turn.T


def shoelace(flat: list[tuple[float, float]] | NDArray) -> float:
    x, y = np.asarray(flat, float).T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2)


def cut(points: NDArray, max_faces: int = 10**6) -> tuple[NDArray[np.int64], list[str]]:
    return triangulate(points, np.arange(len(points)), np.array([len(points)]), name="a.obj", max_faces=max_faces)


def star(corners: int, seed: int = 1) -> NDArray[np.float64]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    angle, radius = np.sort(generator.uniform(0, 2 * np.pi, corners)), generator.uniform(0.1, 1, corners)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def ring(corners: int) -> NDArray[np.float64]:
    """A disc with a round hole that a bridge reaches."""
    angle = np.arange(corners) * 2 * np.pi / corners
    outer = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    inner = np.roll(outer[::-1] / 2, 1, axis=0)
    return np.concatenate([outer, outer[:1], inner, inner[:1]])


SHAPES = {
    "frame": FRAME, "repeated": REPEATED, "comb": COMB, "star": star(11), "star of 64": star(64),
    "star of 300": star(300), "star of 5000": star(5000), "ring": ring(12), "ring of 200": ring(200),
    "two squares that touch": [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (1, 2), (1, 1), (0, 1)],
    "clockwise": FRAME[::-1],
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_polygon_is_covered_once(shape: str) -> None:
    points = solid(SHAPES[shape])
    triangles, notes = cut(points)
    normals = np.cross(
        points[triangles[:, 1]] - points[triangles[:, 0]], points[triangles[:, 2]] - points[triangles[:, 0]]
    )
    whole = normals.sum(axis=0)
    # The areas add up and all triangles face one way: then none lies over another or outside.
    assert 0.5 * np.linalg.norm(whole) == pytest.approx(shoelace(SHAPES[shape]), rel=1e-9)
    assert face_areas(points, triangles).sum() == pytest.approx(shoelace(SHAPES[shape]), rel=1e-9)
    assert len(triangles) == len(points) - 2 and notes == []
    again, _ = cut(points)
    assert np.array_equal(triangles, again)


@pytest.mark.parametrize("corners", [5, 30, 200])
def test_corners_on_straight_edges_keep_their_triangles(corners: int) -> None:
    flat = star(corners)
    flat = np.stack([flat, (flat + np.roll(flat, -1, axis=0)) / 2], axis=1).reshape(-1, 2)
    triangles, _ = cut(solid(flat))
    assert not degenerate_faces(solid(flat), triangles).any()
    # Each side of the outline belongs to one triangle: the neighbour across it fits.
    sides = {(i, (i + 1) % len(flat)) for i in range(len(flat))}
    edges = [tuple(map(int, triangle[[i, (i + 1) % 3]])) for triangle in triangles for i in range(3)]
    assert sides <= set(edges) and len(set(edges)) == len(edges)


@pytest.mark.parametrize("shape", ["frame", "comb", "star of 64", "ring", "repeated"])
def test_ear_clipping_covers_what_the_least_area_does(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = solid(SHAPES[shape])
    exact = least_area(points[None])[0]
    monkeypatch.setattr(polygons, "LARGEST_LEAST_AREA", 4)
    clipped, notes = cut(points)
    assert face_areas(points, exact).sum() == pytest.approx(shoelace(SHAPES[shape]), rel=1e-9)
    assert face_areas(points, clipped).sum() == pytest.approx(shoelace(SHAPES[shape]), rel=1e-9) and notes == []


def test_triangles_quads_and_convex_polygons_are_cut_as_before() -> None:
    angle = np.arange(9) * 2 * np.pi / 9
    points = np.concatenate([solid([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (1, 0), (0, 1)]),
                             solid(np.stack([np.cos(angle), np.sin(angle)], axis=1))])  # fmt: skip
    faces, notes = triangulate(points, np.arange(16), np.array([4, 3, 9]), name="a", max_faces=100)
    assert faces[:3].tolist() == [[0, 1, 2], [0, 2, 3], [4, 5, 6]]
    assert faces[3:].tolist() == [[7, 8 + i, 9 + i] for i in range(7)] and notes == []


def test_a_bow_tie_and_points_in_one_place_end_well() -> None:
    for shape in ([(0, 0), (2, 2), (2, 0), (0, 2), (0, 1)], [(1, 1)] * 7, [(0, 0), (1, 1), (2, 2), (3, 3), (1, 1)]):
        triangles, _ = cut(solid(shape))
        assert len(triangles) == len(shape) - 2
    points = solid(star(6))
    points[2, 0] = np.nan
    assert len(cut(points)[0]) == 4


def test_polygons_beyond_the_budget_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "LARGEST_WORK", 10)
    monkeypatch.setattr(polygons, "LARGEST_CLIPPED_WORK", 10)
    assert "1 polygons have too many corners" in cut(solid(FRAME))[1][0]


FORMATS = {
    "a.obj": "".join(f"v {x} {y} 0\n" for x, y in FRAME) + "f " + " ".join(map(str, range(1, 11))) + "\n",
    "a.off": "OFF\n10 1 0\n" + "".join(f"{x} {y} 0\n" for x, y in FRAME) + "10 " + " ".join(map(str, range(10))),
    "a.ply": "ply\nformat ascii 1.0\nelement vertex 10\nproperty float x\nproperty float y\nproperty float z\n"
    "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    + "".join(f"{x} {y} 0\n" for x, y in FRAME) + "10 " + " ".join(map(str, range(10))) + "\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_frame_has_its_hole_in_every_format(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMATS[name])
    mesh = load_mesh(tmp_path / name)
    assert face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(12)
    assert len(mesh.vertices) == 8 and len(mesh.faces) == 8
