"""Checks the array shapes in annotations (jaxtyping) whenever a test calls what carries them.

``install`` adds an import hook: in each module of the package that imports from jaxtyping, functions, methods and the
constructors of dataclasses compare their arguments and results with annotations like ``Float[Tensor, "rays 3"]``. The
package itself imports jaxtyping for type checkers only, so none of this costs anything outside of the tests.

Arguments are compared after the call: a function that refuses a wrong shape with an error of its own still does.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

import jaxtyping
import numpy as np


class ShapeError(Exception):
    """An argument or result has another shape or dtype than its annotation says."""


def install() -> None:
    """From here on modules are imported with their shapes checked."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith("pipeline."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            names = _shape_names(spec.loader.get_source(name) or "")
            if names:
                spec.loader = _Loader(spec.loader.name, spec.loader.path, names)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, names: Sequence[str]):
        super().__init__(name, path)
        self.names = names

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check_module(module, self.names)


def _shape_names(source: str) -> list[str]:
    """What ``source`` imports from jaxtyping."""
    if "jaxtyping" not in source:
        return []
    imports = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    return [alias.name for node in imports if node.module == "jaxtyping" for alias in node.names]


class _AnyArray:
    """In place of ``NDArray``: jaxtyping takes a class, and knows the dtype by itself."""

    def __class_getitem__(cls, dtype: Any) -> type[np.ndarray]:
        return np.ndarray


def check_module(module: ModuleType, names: Sequence[str]) -> None:
    """Wraps what ``module`` defines and annotates by one of ``names``, in place."""
    shapes = {name: getattr(jaxtyping, name) for name in names}
    aliases = {name: np.ndarray for name, value in vars(module).items() if typing.get_origin(value) is np.ndarray}
    namespace = vars(module) | shapes | aliases | {"NDArray": _AnyArray}
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, FunctionType):
            setattr(module, name, checked(value, names, namespace))
        elif isinstance(value, type):
            for attribute, method in list(vars(value).items()):
                if isinstance(method, FunctionType) and (attribute != "__init__" or dataclasses.is_dataclass(value)):
                    setattr(value, attribute, checked(method, names, namespace))


def checked(function: Callable[..., Any], names: Sequence[str], namespace: dict[str, Any]) -> Callable[..., Any]:
    """``function`` with the shapes of arguments and result checked; itself where it states none."""
    with_shapes = {
        argument: annotation
        for argument, annotation in function.__annotations__.items()
        if any(f"{name}[" in str(annotation) for name in names)
    }
    if not with_shapes:
        return function

    def holder() -> None: ...

    holder.__annotations__ = with_shapes
    hints = typing.get_type_hints(holder, namespace)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        with jaxtyping.jaxtyped("context"):
            for name, hint in hints.items():
                value = result if name == "return" else bound.arguments[name]
                if not _matches(value, hint):
                    raise ShapeError(f"{function.__qualname__}: {name} is {_described(value)}, not {with_shapes[name]}")
        return result

    return call


def _matches(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_matches, value, parts))
    if origin is Sequence:
        return all(_matches(item, parts[0]) for item in value)
    return hint is Any or isinstance(value, hint)


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_described, value))})"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{value.dtype} {tuple(shape)}"
