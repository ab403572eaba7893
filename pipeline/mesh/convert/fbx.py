"""Reads FBX by ufbx, in a child process; by assimp where ufbx cannot."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import MeshError
from pipeline.mesh.convert import assimp
from pipeline.mesh.convert.child import read_in_child
from pipeline.mesh.convert.scene import Scene


def read_fbx(data: bytes, name: str) -> Scene:
    """Reads an FBX from its bytes. Raises MeshError."""
    try:
        return read_in_child(Path(__file__).with_name("fbx_child.py"), "ufbx", data, name, extra="formats")
    except MeshError as error:
        try:
            scene = assimp.read_by_assimp(data, name)
        except MeshError:
            raise error from None
        reason = error.message.removeprefix(f"{name}: ")[:120]
        scene.losses.insert(0, f"what only ufbx reads ({reason})")
        return scene
