"""A manifest from a stranger, in a folder full of files that are called like modules: none of them is ever imported."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import meshes
import pytest
import ray
from fake_prior import make_prior

from pipeline.core import jit
from pipeline.core.safe_path import leave_out_current_folder, without_current_folder

ROOT = Path(__file__).parent.parent
LATENTKILN = Path(sys.executable).with_name("latentkiln")
PAINT = {"steps": 2, "texture_size": 64, "preview": False}
GENERATE = {
    "steps": 2, "views": 2, "view_size": 8, "supersample": 1, "samples_step": 0.08, "grid_levels": 3,
    "grid_finest": 32, "grid_log2_table": 10, "occupancy_resolution": 16, "mesh_resolution": 24, "face_budget": 300,
    "texture_size": 64, "preview": False, "refine_steps": 2,
}  # fmt: skip


def module_names() -> set[str]:
    """Every name that an import may look for: all of the standard library, all that is installed, all that is loaded
    here, and what Ray's servers have in folders of their own."""
    names = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    names |= {name.partition(".")[0] for name in sys.modules}
    package = Path(ray.__file__).parent
    for folder in ("thirdparty_files", "_private/runtime_env/agent", "_private/runtime_env/agent/thirdparty_files"):
        names |= {path.name.partition(".")[0] for path in (package / folder).iterdir()}
    names |= {"pipeline", "sitecustomize", "usercustomize", "apport_python_hook", "setup", "conftest"}
    return {name for name in names if name.isidentifier() and name != "__main__"}


def plant(folder: Path, names: set[str]) -> None:
    """A file for each of ``names`` that writes ``ran`` where it lies and raises, in a package and as a module; and the
    settings file that numba looks for."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        marker = str(folder / f"ran-{name}")
        code = f"open({marker!r}, 'w').close()\nraise RuntimeError('the code of a stranger')\n"
        (folder / f"{name}.py").write_text(code)
    (folder / ".numba_config.yaml").write_text(f"cache_dir: {folder / 'ran-numba-cache'}\nopt: 0\n")


def ran(*folders: Path) -> list[str]:
    """What strangers' files left behind."""
    return sorted(str(path) for folder in folders for path in folder.glob("ran-*"))


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path, Path, Path]]:
    """Current folder, the manifest's, the meshes' and the output's, all full of strangers' files."""
    places = (tmp_path / "here", tmp_path / "m", tmp_path / "m" / "mesh", tmp_path / "out")
    _, manifest, mesh, _ = places
    for place in places:
        plant(place, module_names())
    (mesh / "cube.obj").write_text(meshes.CUBE)
    rows = [
        {"id": "painted", "recipe": "paint", "prompt": "a red cube", "mesh": "mesh/cube.obj"} | PAINT,
        {"id": "made", "recipe": "generate", "prompt": "a red cube", "sketch": "mesh/cube.obj"} | GENERATE,
    ]
    (manifest / "m.json").write_text(json.dumps(rows))
    yield places
    assert not ran(*places)


def start(command: list[str | Path], here: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_", "NUMBA_"))}
    return subprocess.run(
        [str(word) for word in command], cwd=here, env=clean | environment, capture_output=True, text=True, check=False
    )


def test_a_planted_file_is_run_by_a_plain_interpreter(tmp_path: Path) -> None:
    plant(tmp_path, {"numpy"})
    assert start([sys.executable, "-c", "import numpy"], tmp_path).returncode
    assert ran(tmp_path) == [str(tmp_path / "ran-numpy")]


@pytest.mark.parametrize(
    "spread",
    [
        pytest.param(("--workers", "2"), id="workers", marks=pytest.mark.xdist_group("cluster")),
        pytest.param(("--serial",), id="serial"),
    ],
)
def test_no_file_of_a_strange_folder_is_imported(folders, prior_folder: Path, spread: tuple[str, ...]) -> None:
    here, manifest, _, out = folders
    run = [LATENTKILN, "run", manifest / "m.json", "--out", out, "--prior", prior_folder, "--json", *spread]
    done = start(run, here)
    assert done.returncode == 0, done.stdout + done.stderr
    # Both children were at work: the one that unwraps, and the one that measures sketches.
    for job_id in ("painted", "made"):
        assert json.loads((out / job_id / "record.json").read_text())["status"] == "done"
    assert list((out / ".cache" / "sketch").iterdir()) and list((out / ".cache" / "unwrap").iterdir())


def test_as_a_module_only_what_python_itself_needs_first_is_at_risk(tmp_path: Path, prior_folder: Path) -> None:
    # "python -m" puts the current folder first before any code of ours runs; what it imports by then is its own affair.
    (tmp_path / "bare.py").write_text("import sys; print(*{name.partition('.')[0] for name in sys.modules})")
    first = set(start([sys.executable, "-m", "bare"], tmp_path).stdout.split()) | {"pipeline"}
    here = tmp_path / "here"
    plant(here, module_names() - first)
    manifest = here / "m.csv"
    manifest.write_text("id,recipe,prompt\na,generate,a red cube\n")
    module = [sys.executable, "-m", "pipeline", "plan", manifest, "--out", here, "--prior", prior_folder]
    done = start(module, here)
    assert done.returncode == 0 and "build" in done.stdout, done.stdout + done.stderr
    # With -P, Python's own way out, nothing at all is.
    plant(here, module_names())
    done = start([module[0], "-P", *module[1:]], here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not ran(here)


def test_entries_that_mean_the_current_folder_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    library = str(Path(os.__file__).parent)
    path = ["", ".", "sub", str(tmp_path), str(tmp_path / "link"), "/elsewhere", library, "", str(tmp_path), "/more"]
    assert without_current_folder(path) == ["/elsewhere", library, str(tmp_path), "/more"]
    monkeypatch.setattr(sys, "path", path)
    monkeypatch.setenv("PYTHONPATH", f":/elsewhere:.:{tmp_path}")
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    leave_out_current_folder()
    assert sys.path == ["/elsewhere", library, str(tmp_path), "/more"]
    assert os.environ["PYTHONPATH"] == "/elsewhere" and os.environ["PYTHONSAFEPATH"] == "1"


def test_numba_reads_no_settings_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / ".numba_config.yaml").write_text("cache_dir: evil\nopt: 1\n")
    code = (
        "import sys; from pipeline.core.jit import numba, njit\n"
        "njit(lambda x: x + 1)(1)\n"
        "import yaml; yaml.safe_load('a: 1')\n"
        "print(repr(numba.config.CACHE_DIR), numba.config.OPT)\n"
    )
    done = start([sys.executable, "-P", "-c", code], tmp_path)
    assert done.stdout.split() == ["''", "_OptLevel(3)"] and not done.stderr, done.stderr
    assert jit.numba.core.config._config_fname == ""
