"""Hostile files end as one line each, within limits of time and memory, and never harm the process that reads them."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from converted import FOREIGN
from fbx_text import FbxText, flag

from pipeline.core.errors import MeshError
from pipeline.mesh.convert import child
from pipeline.mesh.convert.to_gltf import to_gltf
from pipeline.mesh.load import load_mesh

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from fuzz_formats import attempt, damaged


@pytest.mark.parametrize("name", ["flag.fbx", "rig.fbx", "text.fbx", "flag.usdc", "tree.usda", "flag.usdz", "flag.obj"])
def test_damaged_files_end_as_a_document_or_one_line(name: str, tmp_path: Path) -> None:
    data = flag().text() if name == "text.fbx" else (FOREIGN / name).read_bytes()
    path = tmp_path / name
    for number in range(8 if "usd" in name else 15):
        path.write_bytes(damaged(data, random.Random(f"{name}/{number}")))
        attempt(path)


def program(tmp_path: Path, body: str) -> Path:
    """A child beside the real ones' helper, whose ``main`` is ``body``."""
    path = tmp_path / "child.py"
    helper = Path(child.__file__).with_name("child_scene.py")
    path.write_text(
        f"import os, runpy, time\nshared = runpy.run_path({str(helper)!r})\n"
        f"def main(folder, source, options):\n    {body}\nshared['run'](main)\n"
    )
    return path


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.kill(os.getpid(), 11)", "numpy crashed on it: it is damaged, or asks for too much memory"),
        ("bytearray(1 << 30)", "numpy cannot read it .it needs more than 512 MiB of memory"),
        ("time.sleep(60)", "numpy did not finish within 1 s"),
        ("raise RuntimeError('bad \\x1b[31m header\\nsecond')", r"numpy cannot read it .bad \\x1b\[31m header second"),
        ("print('no scene')", "numpy cannot read it .no scene"),
        ("(folder / 'data.npy').write_bytes(bytes(3 << 30))", "numpy c"),
    ],
)
def test_whatever_a_child_does_the_parent_says_one_line(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=message) as raised:
        child.read_in_child(
            program(tmp_path, body), "numpy", b"data", "a.fbx", extra="formats", seconds=1.0, memory=512 << 20
        )
    assert raised.value.message.startswith("a.fbx: ")
    assert raised.value.message.isprintable()


@pytest.mark.parametrize(
    "scene",
    [
        "{}",
        '{"nodes": 1}',
        '{"nodes": [{"name": "a", "parent": 5}], "meshes": [], "materials": [], "images": [], "animations": [],'
        ' "losses": [], "source": ""}',
        '{"nodes": [{"name": "a", "mesh": 0}], "meshes": [], "materials": [], "images": [], "animations": [],'
        ' "losses": [], "source": ""}',
        '{"nodes": [], "meshes": [{"name": "m", "positions": {"array": [0, "<f8", [9999999, 3]]}}], "materials": [],'
        ' "images": [], "animations": [], "losses": [], "source": ""}',
        "[" * 5000,
    ],
)
def test_a_scene_that_contradicts_itself_is_one_line(scene: str) -> None:
    from pipeline.mesh.convert.scene import scene_from_child

    with pytest.raises(MeshError, match=r"^a.fbx: its contents contradict each other: damaged; export the file again$"):
        scene_from_child(scene.encode(), b"", "a.fbx")


def test_too_many_faces_are_refused_before_they_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "many.fbx"
    path.write_bytes(flag().text())
    with pytest.raises(MeshError, match=r"^many.fbx: 5 faces are more than max_faces = 4"):
        load_mesh(path, max_faces=4)


def test_a_tree_of_nodes_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    fbx = FbxText(unit=100.0)
    node = 0
    for depth in range(3000):
        node = fbx.model(f"N{depth}", node, "Null")
    fbx.geometry(node)
    path = tmp_path / "deep.fbx"
    path.write_bytes(fbx.text())
    with pytest.raises(MeshError, match=r"^deep.fbx: .*deep") as raised:
        load_mesh(path)
    assert raised.value.message.isprintable()


def test_nodes_in_a_circle_do_not_hang(tmp_path: Path) -> None:
    fbx = FbxText(unit=100.0)
    first = fbx.model("First", kind="Null")
    second = fbx.model("Second", first, "Null")
    fbx.connect(first, second)
    fbx.geometry(second)
    path = tmp_path / "circle.fbx"
    path.write_bytes(fbx.text())
    try:
        load_mesh(path)
    except MeshError as error:
        assert error.message.startswith("circle.fbx: ")


def test_vertices_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "nan.fbx"
    path.write_bytes(flag().text().replace(b"a: 0,0,0,2,0,0", b"a: 0,0,0,1e400,0,0"))
    with pytest.raises(MeshError, match=r"^nan.fbx: "):
        load_mesh(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.fbx"
    path.write_bytes(flag().text())
    with pytest.raises(MeshError, match=r"^large.fbx: \d+ bytes are more than is allowed \(100\)$"):
        to_gltf(path, max_bytes=100)
