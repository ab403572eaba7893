"""What is told of a mesh is told once, and is true: no two warnings of a row say the same or contradict each other."""

from __future__ import annotations

import struct
from pathlib import Path

import meshes
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.core.errors import MeshError
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import Mesh
from pipeline.mesh.normalise import normalise
from pipeline.mesh.outliers import outlier_warning
from pipeline.recipes.paintable_mesh import MESH_RADIUS, PaintableMesh
from pipeline.uv.unwrap import unwrap

DATA = Path(__file__).parents[1] / "data" / "meshes"
CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 3)]
TRIANGLES = [(0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
             (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)]  # fmt: skip


def checked(path: Path, tmp_path: Path) -> list[str]:
    manifest = tmp_path / "m.csv"
    (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest.write_text(f"id,prompt,mesh\na,a red brick object,{path.name}\n")
    result = CliRunner().invoke(cli, ["check", str(manifest)])
    assert result.exit_code == 0, result.output
    return [line for line in result.output.splitlines() if ": warning: " in line]


def test_transparency_is_told_once(tmp_path: Path) -> None:
    lines = checked(DATA / "tree_alpha_mask.glb", tmp_path)
    messages = [line.split(": warning: ")[1] for line in lines]
    assert sum("transparen" in message or "see-through" in message for message in messages) == 1


def test_lines_of_an_obj_are_told_once(tmp_path: Path) -> None:
    path = tmp_path / "from.obj"
    path.write_text(meshes.CUBE + "\nl 1 2 3\np 1\n")
    lines = checked(path, tmp_path)
    assert len(lines) == 1 and "lines, points were left out" in lines[0]


def test_a_stray_part_is_told_once() -> None:
    ball = meshes.uv_sphere(24, 48)
    corner = np.array([(30.0, 0, 0), (30.05, 0, 0), (30, 0.05, 0)])
    faces = np.concatenate([ball.faces, [np.arange(3) + len(ball.vertices)]])
    mesh = Mesh(np.concatenate([ball.vertices, corner]), faces, warnings=[])

    def told() -> list[str]:
        frame = normalise(mesh.vertices, radius=MESH_RADIUS)
        return PaintableMesh(unwrap(mesh, texture_size=64), frame).warnings

    assert ["parts lie far apart: they were painted side by side" in line for line in told()] == [True]
    mesh.warnings.append(outlier_warning(mesh.vertices, faces))
    assert "lies far from the rest" in mesh.warnings[0] and told() == []


def test_an_off_with_too_few_vertices_is_no_stream() -> None:
    """Read as one, the number of a face's corners would become a coordinate, and all behind it shift by one."""
    from pipeline.mesh.readers.off import read_off

    lines = [" ".join(map(str, corner)) for corner in CORNERS]
    faces = [f"3 {a} {b} {c}" for a, b, c in TRIANGLES]
    with pytest.raises(MeshError, match="it claims 9 vertices and 12 faces, but has only 20 lines for them"):
        read_off("\n".join(["OFF", "9 12 0", *lines, *faces]).encode(), "a.off", 1000)
    stream = " ".join(["OFF 8 12 0", *lines, *faces]).encode()
    assert read_off(stream, "a.off", 1000).faces.tolist() == [list(face) for face in TRIANGLES]


def test_an_stl_that_holds_more_than_it_counts_says_how_many(tmp_path: Path) -> None:
    facets = [struct.pack("<12f", 0, 0, 0, *(x for i in face for x in CORNERS[i])) + b"\0\0" for face in TRIANGLES]
    (tmp_path / "a.stl").write_bytes(b"\0" * 80 + struct.pack("<I", 5) + b"".join(facets))
    mesh = load_mesh(tmp_path / "a.stl")
    assert len(mesh.faces) == 5
    assert mesh.warnings == ["its header claims 5 facets, but the file has 12: bytes after the last facet were ignored"]
