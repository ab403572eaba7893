"""Fixtures of the tests of manifests."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_files import Write
from thirty_bad_rows import write_tetrahedron


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a manifest beside meshes/a.obj and meshes/b.obj, and gives its path."""
    write_tetrahedron(tmp_path / "home/meshes/a.obj")
    write_tetrahedron(tmp_path / "home/meshes/b.obj", 2)
    write_tetrahedron(tmp_path / "outside.obj")

    def _write(name: str, content: str | bytes) -> Path:
        path = tmp_path / "home" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write
