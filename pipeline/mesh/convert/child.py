"""Runs a native reader in a child process with limits of time and memory, and takes over the scene that it wrote."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np

from pipeline.core.errors import MeshError
from pipeline.core.process.child import run_child
from pipeline.core.terminal import excerpt, printable
from pipeline.mesh.convert.scene import Scene, scene_from_child

_LIBRARIES = {"pxr": "OpenUSD", "assimp_py": "assimp"}
SECONDS = 120.0
MEMORY = 6 << 30
_OUTPUT = 2 << 30


def installed(module: str) -> bool:
    """Tells whether ``module`` can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def missing(name: str, module: str, extra: str) -> MeshError:
    """The error for a reader that is not installed."""
    library = _LIBRARIES.get(module, module)
    return MeshError(f"{name}: reading it needs {library}; install it with: pip install 'latentkiln[{extra}]'")


def read_in_child(
    program: Path,
    module: str,
    data: bytes,
    name: str,
    *,
    extra: str,
    options: dict[str, object] | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
) -> Scene:
    """The scene that ``program`` reads by the library ``module`` from ``data``. Raises MeshError."""
    text, binary = run_reader(program, module, data, name, extra=extra, options=options, seconds=seconds, memory=memory)
    return scene_from_child(text, binary, name)


def run_reader(
    program: Path,
    module: str,
    data: bytes,
    name: str,
    *,
    extra: str,
    options: dict[str, object] | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    task: str = "read it",
    advice: str = "export the file again, or as glTF",
) -> tuple[bytes, memoryview]:
    """As ``read_in_child``, but returns the JSON and the data as the child wrote them.

    ``task`` and ``advice`` word a failure: "OpenUSD cannot <task> (...); <advice>". Raises MeshError.
    """
    if not installed(module):
        raise missing(name, module, extra)
    settings = json.dumps({"memory": memory, "output": _OUTPUT, "name": name, **(options or {})}).encode()
    inputs = {"source": np.frombuffer(data, np.uint8), "options": np.frombuffer(settings, np.uint8)}
    module = _LIBRARIES.get(module, module)
    arrays, failure = run_child(program, module, inputs, ["scene", "data"], time_limit=seconds, stage="load")
    if arrays is None:
        # Libraries name the file by its whole path.
        if root := (options or {}).get("root"):
            failure = failure.replace(f"{root}/", "")
        raise MeshError(f"{name}: {_reason(failure, module, task)}; {advice}")
    return arrays["scene"].tobytes(), arrays["data"].data


def _reason(failure: str, module: str, task: str) -> str:
    """What a child's failure means for the file: ``failure`` as ``run_child`` words it."""
    head, _, said = failure.partition("): ")
    if "exit code -" in head:
        return f"{module} crashed on it: it is damaged, or asks for too much memory"
    if said:
        return f"{module} cannot {task} ({printable(said)[:120]})"
    return excerpt(failure) if not failure.startswith(f"{module} failed") else f"{module} cannot {task}"
