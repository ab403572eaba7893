"""Which computing backends exist, what they are licensed under, and which of them work on this machine.

A backend is named here once; the rooms that use it (``geometry.rasterise``, later the grids) ask ``choose``.
Native code is imported lazily, and the reason why one cannot be loaded is kept and told.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass

from pipeline.core.errors import BackendError


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation. ``module`` is imported to see whether it works."""

    operation: str
    name: str
    module: str
    licence: str
    needs_cuda: bool = False
    install: str = ""


# In order of preference within an operation.
BACKENDS: tuple[Backend, ...] = (
    Backend("rasterise", "numba", "numba", "BSD-2-Clause", install="pip install numba"),
    Backend("rasterise", "torch", "torch", "BSD-3-Clause", install="pip install torch"),
)


@functools.cache
def why_not(backend: Backend) -> str:
    """Empty when ``backend`` can be used here, else one line why not."""
    if importlib.util.find_spec(backend.module.split(".")[0]) is None:
        return f"{backend.module} is not installed ({backend.install})"
    if backend.needs_cuda:
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device"
    try:
        importlib.import_module(backend.module)
    except Exception as error:
        return f"importing {backend.module} failed: {type(error).__name__}: {error}"
    return ""


def choose(operation: str, name: str = "auto") -> Backend:
    """The backend for ``operation``: the first that works, or the one asked for by ``name``.

    ``LATENTKILN_<OPERATION>`` in the environment overrides ``auto``. Raises BackendError when the one asked
    for does not exist or cannot be loaded, with the reason.
    """
    wanted = os.environ.get(f"LATENTKILN_{operation.upper()}", "auto") if name == "auto" else name
    candidates = [b for b in BACKENDS if b.operation == operation]
    if wanted != "auto":
        candidates = [b for b in candidates if b.name == wanted]
        if not candidates:
            known = ", ".join(b.name for b in BACKENDS if b.operation == operation)
            raise BackendError(f"{operation}: no backend is called {wanted!r}; there are: {known}")
    reasons = []
    for backend in candidates:
        reason = why_not(backend)
        if not reason:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise BackendError(f"{operation}: no backend works here ({'; '.join(reasons)})")
