"""Which computing backends exist, what they are licensed under, and which of them work on this machine.

A backend is named here once; the rooms that use it (``uv.rasterise``, ``scene.grid``) ask ``select_backend``.
Native code is imported lazily. Why one cannot be used is kept and told once, with every cause (the library is
missing; there is no CUDA device) and the command that installs it.

This is also the one place that asks whether there is a CUDA device: ``cuda_problem``.
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
    """One implementation of an operation. ``module`` is imported to see whether it works.

    ``needs_cuda``: works nowhere else. ``cuda_only_auto``: works everywhere, but ``auto`` takes it only where a
    CUDA device is, because another one is faster on the CPU.
    """

    operation: str
    name: str
    module: str
    licence: str
    needs_cuda: bool = False
    install: str = ""
    cuda_only_auto: bool = False


_NON_COMMERCIAL = "NVIDIA Source Code License: research and evaluation only, no commercial use"
_NVDIFFRAST = "pip install --no-build-isolation git+https://github.com/NVlabs/nvdiffrast@v0.4.0"
# Its setup needs pkg_resources, which newer releases of setuptools lack.
_TINYCUDANN = (
    "pip install 'setuptools<81' wheel ninja && pip install --no-build-isolation"
    " 'git+https://github.com/NVlabs/tiny-cuda-nn@6ee3546bda615f51abe684ce9edefeb414689135#subdirectory=bindings/torch'"
)

# In order of preference within an operation.
BACKENDS: tuple[Backend, ...] = (
    Backend("rasterise", "nvdiffrast", "nvdiffrast.torch", _NON_COMMERCIAL, True, _NVDIFFRAST),
    Backend("rasterise", "warp", "warp", "Apache-2.0", install="pip install warp-lang", cuda_only_auto=True),
    Backend("rasterise", "numba", "numba", "BSD-2-Clause", install="pip install numba"),
    Backend("rasterise", "torch", "torch", "BSD-3-Clause", install="pip install torch"),
    # On CUDA only: on the CPU lookups are compiled. nvdiffrast's adds in no fixed order, so it has to be asked for.
    Backend("texture", "torch", "torch", "BSD-3-Clause", install="pip install torch"),
    Backend("texture", "nvdiffrast", "nvdiffrast.torch", _NON_COMMERCIAL, True, _NVDIFFRAST),
    Backend("antialias", "nvdiffrast", "nvdiffrast.torch", _NON_COMMERCIAL, True, _NVDIFFRAST),
    Backend("antialias", "numpy", "numpy", "BSD-3-Clause", install="pip install numpy"),
    Backend("grid", "tinycudann", "tinycudann", "BSD-3-Clause", True, _TINYCUDANN),
    Backend("grid", "numba", "numba", "BSD-2-Clause", install="pip install numba"),
    Backend("grid", "torch", "torch", "BSD-3-Clause", install="pip install torch"),
    # tiny-cuda-nn's is in half precision, so it has to be asked for.
    Backend("network", "torch", "torch", "BSD-3-Clause", install="pip install torch"),
    Backend("network", "tinycudann", "tinycudann", "BSD-3-Clause", True, _TINYCUDANN),
    Backend("tiling", "numba", "numba", "BSD-2-Clause", install="pip install numba"),
    Backend("tiling", "numpy", "numpy", "BSD-3-Clause", install="pip install numpy"),
    Backend("volume", "numba", "numba", "BSD-2-Clause", install="pip install numba"),
    Backend("volume", "torch", "torch", "BSD-3-Clause", install="pip install torch"),
)


@functools.cache
def cuda_problem() -> str:
    """Empty where torch sees a CUDA device, else one line why there is none."""
    try:
        import torch
    except Exception as error:
        return f"importing torch failed: {type(error).__name__}: {error}"
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"no CUDA device (torch {torch.__version__} is built without CUDA)"
    return f"no CUDA device (torch {torch.__version__} sees none; does nvidia-smi?)"


def missing_module_reason(module: str) -> str:
    """Empty where ``module``'s package can be found, else that it is not installed. Imports nothing."""
    package = module.split(".")[0]
    return "" if importlib.util.find_spec(package) is not None else f"{package} is not installed"


@functools.cache
def unavailable_reason(backend: Backend) -> str:
    """Empty when ``backend`` can be used here, else one line why not: every cause, and the install command."""
    missing = missing_module_reason(backend.module)
    causes = [cause for cause in (missing, cuda_problem() if backend.needs_cuda else "") if cause]
    if not causes:
        try:
            importlib.import_module("pipeline.core.jit" if backend.module == "numba" else backend.module)
        except Exception as error:
            causes = [f"importing {backend.module} failed: {type(error).__name__}: {error}"]
    if not causes:
        return ""
    hint = f" ({backend.install})" if backend.install and missing else ""
    return " and ".join(causes) + hint


def clear_cache() -> None:
    """Looks again at the next question: after an installation, or in tests that change what is there."""
    cuda_problem.cache_clear()
    unavailable_reason.cache_clear()


def select_backend(operation: str, name: str = "auto") -> Backend:
    """The backend for ``operation``: the first that works and suits the machine, or the one asked for by ``name``.

    ``LATENTKILN_<OPERATION>`` in the environment overrides ``auto``. Raises BackendError when the one asked
    for does not exist or cannot be loaded, with the reason.
    """
    requested = os.environ.get(f"LATENTKILN_{operation.upper()}", "auto") if name == "auto" else name
    candidates = [b for b in BACKENDS if b.operation == operation]
    if requested != "auto":
        candidates = [b for b in candidates if b.name == requested]
        if not candidates:
            known = ", ".join(b.name for b in BACKENDS if b.operation == operation)
            raise BackendError(f"{operation}: no backend is called {requested!r}; there are: {known}")
    reasons = []
    for backend in candidates:
        # Asked first, so that a library nobody will use is not imported.
        reason = cuda_problem() if requested == "auto" and backend.cuda_only_auto else ""
        reason = reason or unavailable_reason(backend)
        if not reason:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise BackendError(f"{operation}: no backend works here ({'; '.join(reasons)})")
