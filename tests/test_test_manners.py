"""How tests are written: they reach the code by its public names, and they claim no speed."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PRIVATE = re.compile(r"_[A-Za-z]\w*")
PRIVATE_PATH = re.compile(r"(?:\w+\.)*_[A-Za-z]\w*")
BY_NAME = {"setattr", "getattr", "delattr", "hasattr"}
# What libraries have under private names only: torch's hooks for stand-in devices, the time ids of diffusers'
# pipelines, numba's settings file, and the end of a forked child.
OF_LIBRARIES = {
    "_C",
    "_config_fname",
    "_disabled_torch_function_impl",
    "_exit",
    "_forward_hooks",
    "_get_add_time_ids",
    "_has_compatible_shallow_copy_type",
    "_pop_mode_temporarily",
    "_pytree",
}
CLOCKS = {"perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time", "time"}
SPEED = re.compile(r"quickly|(is|are)_quick|(take|cost|need)s?_.*(second|minute|hour)s?")


def _name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def private_uses(source: str) -> Iterator[str]:
    """Each private name of another object or module that ``source`` reads, sets, imports or names in a string."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [part for alias in node.names for part in (*(node.module or "").split("."), alias.name)]
        elif isinstance(node, ast.Call) and _name_of(node) in BY_NAME:
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            names = [text.rpartition(".")[2] for text in texts if PRIVATE_PATH.fullmatch(text)]
        for name in names:
            if PRIVATE.fullmatch(name) and name not in OF_LIBRARIES:
                yield f"{node.lineno}: {name}"


def clock_names(tree: ast.AST) -> set[str]:
    """Variables that hold a reading of a clock, or a difference of two."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _reads_clock(node.value, names):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _reads_clock(node: ast.AST, names: set[str]) -> bool:
    for child in ast.walk(node):
        if isinstance(child, ast.Call) and _name_of(child) in CLOCKS and isinstance(child.func, ast.Attribute):
            return True
        if isinstance(child, ast.Name) and child.id in names:
            return True
    return False


def speed_claims(source: str) -> Iterator[str]:
    """Assertions that compare times, and tests whose names speak of speed.

    A deadline inside a loop that waits (``assert time.monotonic() < end`` beside a ``sleep``) claims nothing.
    """
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        if function.name.startswith("test_") and SPEED.search(function.name):
            yield f"{function.lineno}: {function.name} speaks of speed"
        waits = {
            id(node)
            for loop in ast.walk(function)
            if isinstance(loop, ast.While)
            for node in ast.walk(loop)
            if isinstance(node, ast.Assert)
        }
        names = clock_names(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Assert) and id(node) not in waits and _reads_clock(node.test, names):
                yield f"{node.lineno}: asserts a time"


def faults(check: Callable[[str], Iterator[str]]) -> list[str]:
    """What ``check`` finds in all tests."""
    paths = [path for path in sorted(TESTS.rglob("*.py")) if "node_modules" not in path.parts]
    return [f"{path.relative_to(TESTS)}:{fault}" for path in paths for fault in check(path.read_text())]


def test_tests_touch_no_private_state() -> None:
    left = faults(private_uses)
    assert not left, "use a public name, or make one where it is a real seam:\n" + "\n".join(left)


def test_tests_claim_no_speed() -> None:
    left = faults(speed_claims)
    assert not left, "a program in benchmarks/ measures; a test counts:\n" + "\n".join(left)


@pytest.mark.parametrize(
    "source",
    [
        "x._y",
        "x._y = 1",
        "module._f(1)",
        "from pipeline.core import _hidden",
        "from pipeline._core import x",
        "monkeypatch.setattr('pipeline.core.home._PACKAGE', 1)",
        "monkeypatch.setattr(home, '_PACKAGE', 1)",
        "getattr(x, '_y')",
    ],
)
def test_a_private_name_is_found(source: str) -> None:
    assert list(private_uses(source))


@pytest.mark.parametrize("source", ["self._x", "x.__class__", "_x = 1", "os._exit(0)", "setattr(x, 'y', '_ z')"])
def test_what_is_no_private_name_of_ours_is_not_found(source: str) -> None:
    assert not list(private_uses(source))


@pytest.mark.parametrize(
    "body",
    [
        "def test_x():\n  a = time.monotonic()\n  f()\n  assert time.monotonic() - a < 5",
        "def test_x():\n  a = time.perf_counter()\n  f()\n  b = time.perf_counter() - a\n  assert b < 5",
        "def test_it_is_quick(): f()",
        "def test_many_faces_take_seconds(): f()",
    ],
)
def test_a_claim_of_speed_is_found(body: str) -> None:
    assert list(speed_claims(body))


@pytest.mark.parametrize(
    "body",
    [
        "def test_x():\n  end = time.monotonic() + 5\n  while g():\n    assert time.monotonic() < end",
        "def test_fail_fast(): f()",
        "def test_rate_follows_the_last_seconds(): f()",
        "def test_x():\n  now = time.time()\n  assert f()",
    ],
)
def test_a_deadline_of_a_wait_is_no_claim(body: str) -> None:
    assert not list(speed_claims(body))
