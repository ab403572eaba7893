"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import meshes
import pytest

import pipeline  # noqa: F401  (before torch: it makes idle threads sleep)

REAL_MESHES = ("blub.obj", "boot.obj", "spot.obj", "CesiumMan.glb")


@pytest.fixture(scope="session")
def shared_meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the meshes named in REAL_MESHES.

    It is $LATENTKILN_SHARED_MESHES or shared/meshes beside the repository, where one of them has all four; else
    a folder with meshes of our own under the same names, so that no test skips: a closed one with texture
    coordinates, a bumpy one of many faces without, a small one without, and a GLB of two nodes.
    """
    named = os.environ.get("LATENTKILN_SHARED_MESHES")
    candidates = [Path(named)] if named else []
    candidates.append(Path(__file__).resolve().parents[2] / "shared" / "meshes")
    for folder in candidates:
        if all((folder / name).is_file() for name in REAL_MESHES):
            return folder
    folder = tmp_path_factory.mktemp("meshes")
    meshes.write_obj(folder / "blub.obj", meshes.uv_sphere(48, 96))
    meshes.write_obj(folder / "boot.obj", meshes.blob(40_000, noise=0.3))
    meshes.write_obj(folder / "spot.obj", meshes.blob(1600))
    meshes.write_glb(folder / "CesiumMan.glb", meshes.uv_sphere(24, 48))
    return folder
