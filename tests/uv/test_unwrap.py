"""Texture coordinates: which of a mesh's own are used, what is made instead, and that making always ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import meshes
import numpy as np
import pytest

from pipeline.core.errors import SettingError, UnwrapError
from pipeline.mesh.load import load_mesh
from pipeline.mesh.mesh import Mesh, UVMesh, face_areas, uv_areas
from pipeline.uv import unwrap as unwrap_module
from pipeline.uv import xatlas_child
from pipeline.uv.pack import pack
from pipeline.uv.unwrap import chart_ids, overlap_share, run_xatlas, unwrap, uv_problem


def check(result: UVMesh, *, texture_size: int = 1024, overlap: float = 1e-3, spread: float = 30.0) -> None:
    """What every layout must be, whoever made it."""
    mesh = result.mesh
    assert result.uv.dtype == np.float32 and result.uv_faces.shape == mesh.faces.shape
    assert result.uv_faces.min() == 0 and result.uv_faces.max() == len(result.uv) - 1
    assert result.uv.min() >= 0 and result.uv.max() <= 1
    assert overlap_share(result.uv, result.uv_faces) <= overlap
    assert result.charts.dtype == np.int32 and result.charts.shape == (len(mesh.faces),)
    assert np.array_equal(np.unique(result.charts), np.arange(result.charts.max() + 1))
    # A coordinate belongs to one position only, else textures of different places would be joined.
    owner = np.full(len(result.uv), -1)
    owner[result.uv_faces.reshape(-1)] = mesh.faces.reshape(-1)
    assert np.array_equal(owner[result.uv_faces], mesh.faces)
    # Texels are spread evenly: 90% of the surface lies within a factor around the mean.
    surface, area = face_areas(mesh.vertices, mesh.faces), np.abs(uv_areas(result.uv, result.uv_faces))
    density = area / surface / (area.sum() / surface.sum())
    order = np.argsort(density)
    cumulated = np.cumsum(surface[order]) / surface.sum()
    low, high = (density[order][np.searchsorted(cumulated, q)] for q in (0.05, 0.95))
    assert high / low < spread, (low, high)


def chart_distance(result: UVMesh, size: int) -> int:
    """Smallest number of texel steps (also diagonal ones) between texels of two charts, on a grid of ``size``."""
    from scipy import ndimage

    from pipeline.uv.kernels import coverage

    corners = result.uv.astype(np.float64)[result.uv_faces] * size
    label = np.full((size, size), -1)
    for chart in range(int(result.charts.max()) + 1):
        label[coverage(corners[result.charts == chart], size) > 0] = chart
    smallest = size
    for chart in range(int(result.charts.max()) + 1):
        others = (label != chart) & (label >= 0)
        if others.any() and (label == chart).any():
            away = ndimage.distance_transform_cdt(~others, metric="chessboard")
            smallest = min(smallest, int(away[label == chart].min()))
    return smallest


# -- a mesh's own coordinates -------------------------------------------------------------------------------------


def test_own_coordinates_are_used_as_they_are() -> None:
    mesh = meshes.cube()
    result = unwrap(mesh, texture_size=256)
    assert result.method == "input" and uv_problem(mesh) == "" and mesh.uv is not None
    assert np.allclose(result.uv[result.uv_faces], mesh.uv[mesh.uv_faces])
    assert result.charts.max() + 1 == 6
    check(result)


def test_a_seam_separates_charts_only_where_coordinates_differ() -> None:
    result = unwrap(meshes.uv_sphere(), texture_size=256)
    assert result.method == "input" and result.charts.max() == 0
    # The seam: more coordinates than positions.
    assert len(result.uv) > len(result.mesh.vertices)


def with_uv(mesh: Mesh, uv: np.ndarray, uv_faces: np.ndarray | None = None) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces, uv.astype(np.float32), mesh.uv_faces if uv_faces is None else uv_faces)


def partly() -> Mesh:
    mesh = meshes.cube()
    assert mesh.uv is not None and mesh.uv_faces is not None
    index = mesh.uv_faces.copy()
    index[3] = -1
    return with_uv(mesh, mesh.uv, index)


def bent(change: Callable[[np.ndarray], np.ndarray]) -> Mesh:
    mesh = meshes.cube()
    assert mesh.uv is not None
    return with_uv(mesh, change(mesh.uv.astype(np.float64).copy()))


def one_nan(uv: np.ndarray) -> np.ndarray:
    uv[0, 0] = np.nan
    return uv


def stacked() -> Mesh:
    """All six sides of the cube on one square: half of a mirrored texture looks like this."""
    mesh = meshes.cube()
    square = np.array([(0.1, 0.9), (0.9, 0.9), (0.9, 0.1), (0.1, 0.1)])
    index = np.array([[0, 1, 2], [0, 2, 3]] * 6)
    return with_uv(mesh, square, index)


def starved() -> Mesh:
    """One side of the cube shrunk to a point in the texture."""
    mesh = meshes.cube()
    assert mesh.uv is not None and mesh.uv_faces is not None
    uv = mesh.uv.copy()
    uv[mesh.uv_faces[:2].reshape(-1)] = uv[mesh.uv_faces[0, 0]]
    return with_uv(mesh, uv)


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        (meshes.torus(), "no texture coordinates"),
        (partly(), "1 of 12 faces have no texture coordinates"),
        (bent(one_nan), "not finite"),
        (bent(lambda uv: uv * 3.0), "tiled"),
        (bent(lambda uv: uv - 0.3), "tiled"),
        (stacked(), "overlap on 100.0%"),
        (starved(), "16.7% of the surface has no area"),
        (bent(lambda uv: uv * 0.0), "no area"),
        (bent(lambda uv: uv * 0.1), "cover only"),
    ],
)
def test_unusable_coordinates_are_named_and_replaced(mesh: Mesh, says: str) -> None:
    assert says in uv_problem(mesh)
    result = unwrap(mesh, texture_size=256)
    assert result.method == "xatlas" and says in result.reason
    check(result)
    with pytest.raises(UnwrapError, match="cannot be used"):
        unwrap(mesh, texture_size=256, mode="input")


def test_a_hair_outside_is_tolerated_and_clipped() -> None:
    mesh = meshes.plane()
    assert mesh.uv is not None
    result = unwrap(with_uv(mesh, mesh.uv * 1.0016 - 0.0008), texture_size=64)
    assert result.method == "input" and result.uv.min() == 0 and result.uv.max() == 1


def test_whole_tiles_are_moved_back() -> None:
    result = unwrap(bent(lambda uv: uv + np.array([0.0, -3.0])), texture_size=64)
    assert result.method == "input" and "whole tiles" in result.reason
    check(result)


def test_a_small_overlap_is_tolerated() -> None:
    # Two squares that share a strip 0.4% of their width.
    mesh = meshes.cube()
    assert mesh.uv is not None and mesh.uv_faces is not None
    uv = mesh.uv.astype(np.float64).copy()
    moved = np.unique(mesh.uv_faces[2:4])
    uv[moved, 0] -= 0.04 + 0.004 * 0.3
    assert 0 < overlap_share(uv, mesh.uv_faces) < 0.01
    assert uv_problem(with_uv(mesh, uv)) == ""


def test_faces_that_share_an_edge_do_not_overlap_at_any_angle() -> None:
    mesh = meshes.plane(37)
    assert mesh.uv is not None and mesh.uv_faces is not None
    for angle in (0.0, 0.1, np.pi / 4, 1.3):
        c, s = np.cos(angle), np.sin(angle)
        uv = (mesh.uv - 0.5) @ np.array([[c, s], [-s, c]]) * 0.7 + 0.5
        assert overlap_share(uv, mesh.uv_faces) == 0.0


# -- made coordinates ---------------------------------------------------------------------------------------------


def clustered(mesh: Mesh) -> UVMesh:
    """What is made of a mesh that is too large for xatlas and has no coordinates of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unwrap_module, "XATLAS_FACES", 0)
        return unwrap(Mesh(mesh.vertices, mesh.faces), texture_size=1024)


@pytest.mark.parametrize("mode", ["xatlas", "box", "clusters"])
@pytest.mark.parametrize("shape", ["torus", "blob", "plane", "spiral", "cube", "soup"])
def test_every_way_of_unwrapping_gives_a_good_layout(mode: str, shape: str) -> None:
    mesh = {
        "torus": meshes.torus, "blob": meshes.blob, "plane": meshes.plane, "spiral": meshes.spiral,
        "cube": meshes.cube, "soup": lambda: meshes.soup(300),
    }[shape]()  # fmt: skip
    result = clustered(mesh) if mode == "clusters" else unwrap(mesh, texture_size=1024, mode=mode)
    assert result.method == mode
    check(result)
    assert result.coverage > (0.3 if shape == "soup" else 0.45)
    assert result.padding >= 2
    covered = np.abs(uv_areas(result.uv, result.uv_faces)).sum()
    assert covered == pytest.approx(result.coverage, rel=0.02)


@pytest.mark.parametrize("size", [128, 512, 1024])
def test_charts_keep_the_distance_that_is_said(size: int) -> None:
    result = unwrap(meshes.blob(3000), texture_size=size, mode="box")
    assert result.padding >= max(2, size / 128 - 1e-9)
    assert chart_distance(result, size) >= result.padding - 1


def test_a_spiral_that_covers_itself_is_cut() -> None:
    result = unwrap(meshes.spiral(3.0), texture_size=512, mode="box")
    assert 3 <= result.charts.max() + 1 <= 6
    assert overlap_share(result.uv, result.uv_faces) == 0.0


def test_the_same_mesh_gives_the_same_bytes() -> None:
    mesh = meshes.blob(2500)
    for mode in ("xatlas", "box"):
        first, second = (unwrap(mesh, texture_size=512, mode=mode) for _ in range(2))
        assert first.uv.tobytes() == second.uv.tobytes()
        assert first.uv_faces.tobytes() == second.uv_faces.tobytes() and first.reason == second.reason


def test_far_away_and_tiny_meshes_unwrap_as_well() -> None:
    for scale, offset in ((1e-6, 0.0), (1e5, 0.0), (1.0, 1e5)):
        blob = meshes.blob(1000)
        mesh = meshes.make(blob.vertices * scale + offset, blob.faces)
        for mode in ("xatlas", "box"):
            result = unwrap(mesh, texture_size=256, mode=mode)
            assert result.method == mode
            check(result)


def test_large_meshes_go_straight_to_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwrap_module, "XATLAS_FACES", 1000)
    monkeypatch.setattr(unwrap_module, "run_xatlas", lambda *a, **k: pytest.fail("xatlas was started"))
    result = unwrap(meshes.torus(), texture_size=512)
    assert result.method == "clusters" and "too many for xatlas" in result.reason


def test_slivers_of_xatlas_give_way_to_better_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = meshes.blob(700)
    # Stands for what xatlas does to a scan: every face a chart.
    alone = np.arange(3 * len(mesh.faces)).reshape(-1, 3)
    flat = clustered(mesh)
    points = flat.uv.astype(np.float64)[flat.uv_faces].reshape(-1, 2)
    monkeypatch.setattr(unwrap_module, "run_xatlas", lambda *a, **k: ((points, alone), ""))
    result = unwrap(mesh, texture_size=1024)
    assert result.method == "clusters" and f"xatlas made {len(mesh.faces)} charts" in result.reason
    assert unwrap(mesh, texture_size=1024, mode="xatlas").method == "xatlas"


def test_330_000_faces_need_little_memory() -> None:
    program = (
        "import resource, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1] / 'fakes')!r})\n"
        "import meshes\n"
        "from pipeline.uv.unwrap import unwrap, overlap_share\n"
        "unwrap(meshes.spiral(), texture_size=64, mode='box')\n"
        "mesh = meshes.large()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "result = unwrap(mesh, texture_size=1024)\n"
        "added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert result.method == 'clusters' and len(mesh.faces) > 320_000\n"
        "assert result.coverage > 0.5 and result.charts.max() < 200, (result.coverage, result.charts.max())\n"
        "assert overlap_share(result.uv, result.uv_faces) < 1e-3\n"
        "print(added / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1000  # MiB


@pytest.mark.parametrize("name", ["blub.obj", "boot.obj", "spot.obj", "CesiumMan.glb"])
def test_real_meshes_unwrap(name: str, shared_meshes: Path) -> None:
    mesh = load_mesh(shared_meshes / name)
    quick = unwrap(mesh, texture_size=1024, mode="box")
    check(quick)
    assert quick.coverage > 0.45
    if name != "boot.obj":  # xatlas takes ten seconds on it
        result = unwrap(mesh, texture_size=1024)
        # Spot's own coordinates overlap; 5% of blub's surface (its fins) has 7% of the usual texels per length.
        assert result.method == ("input" if name == "CesiumMan.glb" else "xatlas")
        # What an artist made may be as uneven as it likes.
        check(result, overlap=0.01, spread=1e9)


# -- xatlas as a process ------------------------------------------------------------------------------------------


def test_a_child_that_hangs_is_killed_and_the_fallback_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import os, sys, time\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + ' ' + sys.argv[1])\n"
        f"time.sleep(60)\nopen({str(tmp_path / 'finished')!r}, 'w')\n"
    )
    monkeypatch.setattr(unwrap_module, "run_xatlas", partial(run_xatlas, command=(sys.executable, str(child))))
    beats: list[tuple[str, int, int]] = []
    result = unwrap(meshes.torus(), texture_size=256, time_limit=1.5, report=lambda *beat: beats.append(beat))
    assert not (tmp_path / "finished").exists()
    assert result.method == "clusters" and "xatlas did not finish within 1.5 s" in result.reason
    check(result)
    assert len(beats) >= 3 and beats[-1] == ("unwrap", 1, 2)
    pid, folder = (tmp_path / "pid").read_text().split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import sys; sys.exit('no xatlas here')", "xatlas failed (exit code 1): no xatlas here"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
        ("pass", "exit code 0"),
        (
            "import sys, numpy as np; np.save(sys.argv[1] + '/uv.npy', np.zeros((2, 2)));"
            "np.save(sys.argv[1] + '/uv_faces.npy', np.zeros((1, 3), np.uint32))",
            "does not fit",
        ),
    ],
)
def test_a_child_that_fails_is_told(program: str, says: str) -> None:
    charts, failure = run_xatlas(meshes.torus(), time_limit=30, command=(sys.executable, "-c", program))
    assert charts is None and says in failure


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal exists on Linux only")
def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    sleeper = (
        "import importlib.util, os, sys, time\n"
        f"spec = importlib.util.spec_from_file_location('child', {xatlas_child.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "module.exit_with_parent(int(sys.argv[1]), 60)\n"
        "print(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", "import os, subprocess, sys\n"
         f"subprocess.run([sys.executable, '-c', {sleeper!r}, str(os.getpid())])"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child outlived its parent by 5 seconds")
    parent.stdout.close()


def test_the_child_ends_at_its_alarm_without_anyone_watching() -> None:
    program = (
        f"import runpy, os; module = runpy.run_path({xatlas_child.__file__!r}); import time\n"
        "module['exit_with_parent'](os.getppid(), 1); time.sleep(30)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGALRM


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(SettingError, match="unknown"):
        unwrap(meshes.cube(), texture_size=64, mode="lscm")


# -- the packer alone ---------------------------------------------------------------------------------------------


def squares(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = (np.array([(0, 0), (1, 0), (1, 1), (0, 1)])[None] * sizes[:, None, :]).reshape(-1, 2)
    start = 4 * np.arange(len(sizes))[:, None]
    faces = np.stack([start + np.array([0, 1, 2]), start + np.array([0, 2, 3])], axis=1).reshape(-1, 3)
    return points, faces, np.repeat(np.arange(len(sizes)), 2)


def test_equal_squares_are_packed_tightly() -> None:
    packed = pack(*squares(np.ones((16, 2))), padding=1 / 128)
    assert packed.coverage > 0.85 and packed.padding == 1 / 128


def test_a_long_strip_does_not_lose_its_padding() -> None:
    packed = pack(*squares(np.array([[100.0, 1.0], [100.0, 1.0], [3.0, 3.0]])), padding=1 / 128)
    assert packed.padding == 1 / 128


def test_more_charts_than_cells_still_end() -> None:
    points, faces, charts = squares(np.full((60_000, 2), 0.01))
    packed = pack(points, faces, charts, padding=1 / 128)
    assert packed.padding < 1 / 512 and np.isfinite(packed.uv).all()
    assert overlap_share(packed.uv, faces, 4096) == 0.0


def test_chart_ids_are_numbered_by_their_first_face() -> None:
    assert chart_ids(np.array([[7, 8, 9], [0, 1, 2], [9, 8, 3], [2, 1, 4], [5, 6, 10]])).tolist() == [0, 1, 0, 1, 2]
