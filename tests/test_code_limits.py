"""Limits that the source keeps: the length of functions, and how often a type is given up with ``Any``."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST_FUNCTION = 100
# Per 1,000 lines of code. JSON objects (``dict[str, Any]``) do not count: their values have no type to state.
MOST_ANY = 6.0
NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)
JSON = ("dict[str, Any]", "Mapping[str, Any]")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def long_functions(source: str) -> Iterator[str]:
    """Each function of ``source`` that is too long."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield f"{node.lineno}: {node.name} has {lines} lines"


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def code_lines(source: str) -> int:
    """The number of lines with code on them: no blank lines, no comments, no docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and _is_docstring(node):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def uses_of_any(source: str) -> Iterator[str]:
    """Each ``Any`` of ``source`` that types no JSON object."""
    tree = ast.parse(source)
    objects = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and ast.unparse(node) in JSON]
    json = {id(name) for node in objects for name in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "Any" and id(node) not in json:
            yield f"{node.lineno}: Any"


def untyped_arrays(source: str) -> Iterator[str]:
    """Each array type of ``source`` that leaves out the dtype."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and ast.unparse(node) in ("NDArray[Any]", "np.ndarray[Any, Any]"):
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_no_function_is_too_long() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in sources("pipeline", "training")
        for fault in long_functions(path.read_text(encoding="utf-8"))
    ]
    assert not faults, "\n".join(faults)


def test_any_is_rare() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in sources("pipeline")}
    faults = [f"{path.relative_to(ROOT)}:{fault}" for path, text in texts.items() for fault in uses_of_any(text)]
    rate = 1000 * len(faults) / sum(code_lines(text) for text in texts.values())
    assert rate <= MOST_ANY, "\n".join([f"{rate:.1f} per 1,000 lines, {MOST_ANY:g} allowed", *faults])


def test_every_array_has_a_dtype() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in sources("pipeline")
        for fault in untyped_arrays(path.read_text(encoding="utf-8"))
    ]
    assert not faults, "name the dtype, or a kind of it such as np.floating:\n" + "\n".join(faults)


def test_a_long_function_is_found() -> None:
    body = "\n".join(["    pass"] * 99)
    assert not list(long_functions(f"def f():\n{body}"))
    assert list(long_functions(f"class C:\n  def f(self):\n{body}\n    pass"))


def test_lines_of_code_are_counted() -> None:
    assert code_lines('"""Text\n\nof a module."""\n\n# comment\nx = 1  # and code\n\ny = f(\n    x,\n)\n') == 4


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from typing import Any\nx = 1", 0),
        ("def f(x: Any) -> Any: ...", 2),
        ("x: dict[str, Any]\ny: list[Mapping[str, Any]]", 0),
        ("x: dict[int, Any]\ny: tuple[Any, dict[str, Any]]", 2),
    ],
)
def test_an_any_is_found_unless_it_is_json(source: str, count: int) -> None:
    assert len(list(uses_of_any(source))) == count


def test_an_array_without_dtype_is_found() -> None:
    assert len(list(untyped_arrays('x: NDArray[Any]\ny: Int[NDArray[Any], "faces 3"]'))) == 2
    assert not list(untyped_arrays("x: NDArray[np.float32]"))
