"""The house's rules that can be read off its source: who imports whom, and what no one may use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.backends import BACKENDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline"

# From the top down. A room imports only from rooms of the lines below: never upwards, never from its own line.
TIERS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("scheduler", "report", "gate"),
    ("plan",),
    ("manifest",),
    ("recipes",),
    ("optimize", "bake", "export"),
    ("fields", "painting"),
    ("prior", "document"),
    ("uv", "raster"),
    ("storage",),
    ("mesh",),
    ("core",),
)
HEIGHT = {room: -number for number, rooms in enumerate(TIERS) for room in rooms}

# Modules that only some rooms may import, and names that nothing may call: they run code out of data files.
CONFINED = {
    "click": ("cli",),
    "ray": ("scheduler",),
    "igl": ("mesh",),
    "fsspec": ("storage",),
    "numba": ("core",),
    "s3fs": (),
    "boto3": (),
    "botocore": (),
}
BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load"}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import in ``tree``, wherever it stands; names taken from a module included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def direction_faults(source: str, room: str) -> Iterator[str]:
    """What ``source``, a module of ``room``, imports from above."""
    for line, name in imports(ast.parse(source)):
        parts = name.split(".")
        if parts[0] != "pipeline" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        other = parts[1]
        if other not in HEIGHT:
            yield f"{line}: imports the room '{other}', which has no place in TIERS"
        elif HEIGHT[other] > HEIGHT[room]:
            yield f"{line}: {room} imports {name}, which is above it"
        elif HEIGHT[other] == HEIGHT[room] and other != room:
            yield f"{line}: {room} imports {name}, which is in its own tier"


def confinement_faults(source: str, room: str) -> Iterator[str]:
    """Modules that ``room`` may not import, and calls that nothing may make."""
    tree = ast.parse(source)
    for line, name in imports(tree):
        top = name.split(".")[0]
        if top in CONFINED and room not in CONFINED[top]:
            yield f"{line}: {room} imports {top}; only {', '.join(CONFINED[top])} may"
        if top in BANNED_MODULES:
            yield f"{line}: imports {top}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in BANNED_CALLS:
            yield f"{node.lineno}: calls {called}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield f"{node.value.lineno}: allow_pickle"


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_no_room_imports_from_above() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in sources("pipeline")
        if room_of(path) != "__init__"
        for fault in direction_faults(path.read_text(encoding="utf-8"), room_of(path))
    ]
    assert not faults, "\n".join(faults)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loads_backends(tree: ast.AST) -> bool:
    """Whether ``tree``, a package, imports its backends by name: ``backends.load(__name__, ...)``."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    return any(ast.unparse(call.func) == "backends.load" and ast.unparse(call.args[0]) == "__name__" for call in calls)


def module_graph(files: dict[str, str]) -> dict[str, set[str]]:
    """Which of the modules ``files`` (source by dotted name) imports which: late imports, imports for types and
    backends that are imported by name included."""
    graph: dict[str, set[str]] = {}
    for module, source in files.items():
        tree = ast.parse(source)
        for _, name in imports(tree):
            target = name if name in files else name.rpartition(".")[0]
            if target in files and target != module:
                graph.setdefault(module, set()).add(target)
        if loads_backends(tree):
            loaded = {name for name in files if name.rpartition(".")[0] == module and name.endswith("_backend")}
            graph.setdefault(module, set()).update(loaded)
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of ``graph`` as names, the first one repeated at the end; [] where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_no_files_and_no_rooms_import_each_other_in_a_circle() -> None:
    graph = module_graph({module_of(path): path.read_text(encoding="utf-8") for path in sources("pipeline")})
    assert not circle(graph)
    rooms: dict[str, set[str]] = {}
    for module, targets in graph.items():
        for target in targets:
            a, b = (name.split(".")[1] if "." in name else "" for name in (module, target))
            if a and b and a != b:
                rooms.setdefault(a, set()).add(b)
    assert not circle(rooms)


def test_a_circle_is_found() -> None:
    files = {
        "pipeline.a": "from pipeline import b",
        "pipeline.b": "def f():\n    from pipeline.c import x",
        "pipeline.c": "import pipeline.a",
        "pipeline": "",
    }
    assert circle(module_graph(files)) == ["pipeline.a", "pipeline.b", "pipeline.c", "pipeline.a"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}})


def test_a_circle_through_a_backend_that_is_imported_by_name_is_found() -> None:
    files = {
        "pipeline.a": "backends.load(__name__, name)",
        "pipeline.a.fast_backend": "from pipeline.b import x",
        "pipeline.b": "from pipeline import a",
        "pipeline": "",
    }
    assert "pipeline.a.fast_backend" in circle(module_graph(files))


def test_every_backend_has_one_module_that_its_operation_loads() -> None:
    """The table of backends and the modules ``<name>_backend`` of packages that load them are the same."""
    packages = [path.parent for path in sources("pipeline") if loads_backends(ast.parse(path.read_text("utf-8")))]
    modules: dict[str, set[str]] = {}
    for package in packages:
        tree = ast.parse((package / "__init__.py").read_text("utf-8"))
        (operation,) = {
            str(call.args[0].value)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
            and ast.unparse(call.func) in ("backends.select_backend", "backends.select_for_device")
            and isinstance(call.args[0], ast.Constant)
        }
        modules[operation] = {path.stem.removesuffix("_backend") for path in package.glob("*_backend.py")}
    table: dict[str, set[str]] = {}
    for backend in BACKENDS:
        table.setdefault(backend.operation, set()).add(backend.name)
    # Lookups of textures on the CPU are compiled whatever is selected.
    table["texture"].add("numba")
    assert modules == table


def test_click_and_ray_stay_in_their_rooms_and_nothing_runs_code_from_data() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in sources("pipeline")
        for fault in confinement_faults(path.read_text(encoding="utf-8"), room_of(path))
    ]
    assert not faults, "\n".join(faults)


def test_training_and_benchmarks_run_no_code_from_data_either() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in sources("training", "benchmarks")
        for fault in confinement_faults(path.read_text(encoding="utf-8"), "scheduler")
        if "click" not in fault
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("core", "from pipeline.mesh import mesh"),
        ("mesh", "def f():\n    from pipeline.prior.load import load_prior"),
        ("export", "import pipeline.recipes.paint"),
        ("plan", "from pipeline.scheduler.runner import run"),
        ("recipes", "from pipeline.manifest import load_manifest"),
        ("core", "from pipeline import uv"),
        ("core", "from pipeline.attic import anything"),
    ],
)
def test_an_upward_import_is_found(room: str, source: str) -> None:
    assert list(direction_faults(source, room))


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("manifest", "import click"),
        ("recipes", "from ray import remote"),
        ("scheduler", "import pickle"),
        ("prior", "import torch\nx = torch.load('a')"),
        ("prior", "x = eval('1')"),
        ("bake", "import numpy\nnumpy.load('a', allow_pickle=True)"),
    ],
)
def test_a_banned_use_is_found(room: str, source: str) -> None:
    assert list(confinement_faults(source, room))


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("cli", "import click\nfrom pipeline import __version__\nfrom pipeline.core.errors import UsageError"),
        ("scheduler", "import ray\nfrom pipeline.recipes.registry import get_recipe"),
        ("prior", "model.eval()\nfrom pipeline.core.job import Job"),
    ],
)
def test_what_is_allowed_is_not_found(room: str, source: str) -> None:
    assert not list(direction_faults(source, room)) + list(confinement_faults(source, room))


HEAVY = ("torch", "ray", "diffusers", "transformers", "numba", "pydantic", "numpy", "scipy", "trimesh", "PIL", "rich")
COUNT = "import sys; print(','.join(m for m in {heavy!r} if m in sys.modules), len(sys.modules))"


@pytest.mark.parametrize(
    "load",
    [
        "import pipeline",
        "import pipeline.cli",
        "from pipeline.cli import main; assert main(['--help']) == 0",
        "from pipeline.cli import main; assert main(['run', '--help']) == 0",
        "from pipeline.cli import main; assert main(['--version']) == 0",
        "from pipeline.cli import main; assert main(['nonsense']) == 2",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(load: str) -> None:
    program = f"{load}\n{COUNT.format(heavy=HEAVY)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy, _, count = done.stdout.splitlines()[-1].rpartition(" ")
    assert heavy == ""
    # Python, Click and ours: far below what any of the heavy ones brings along.
    assert int(count) < 400


@pytest.mark.parametrize(
    "module", ["pipeline.manifest", "pipeline.plan", "pipeline.commands.check", "pipeline.commands.plan"]
)
def test_planning_needs_no_learning_library(module: str) -> None:
    program = f"import {module}\n{COUNT.format(heavy=('torch', 'ray', 'diffusers', 'transformers', 'numba'))}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.rpartition(" ")[0] == ""
