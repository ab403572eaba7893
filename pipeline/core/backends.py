"""Lists the computing backends, their licences, and which of them work on this machine.

``BACKENDS`` names each backend once. The package of an operation (``raster.rasterise``, ``fields.grid``) has one
module per backend, ``<name>_backend.py``; it selects a backend with ``select_backend`` and imports the module with
``load``. Native code is imported lazily. The reason why a backend cannot be used is cached; it lists every cause (the
library is missing; there is no CUDA device) and the command that installs it.

Whether there is a CUDA device is asked here only: ``cuda_problem``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from pipeline.core.errors import BackendError


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation.

    Attributes:
        operation: lower case; ``LATENTKILN_<OPERATION>`` selects a backend.
        name: its module in the operation's package is ``<name>_backend``.
        module: the library; importing it shows whether the backend works.
        needs_cuda: the backend works on a CUDA device only.
        cuda_only_auto: the backend works everywhere, but ``auto`` selects it only where there is a CUDA device,
            because another one is faster on the CPU.
        tensors: the type of device whose tensors the backend takes, or "" for any.
    """

    operation: str
    name: str
    module: str
    licence: str
    needs_cuda: bool = False
    install: str = ""
    cuda_only_auto: bool = False
    tensors: Literal["", "cpu", "cuda"] = ""


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
    # Lookups of CUDA tensors; those on the CPU are always compiled. nvdiffrast adds in no fixed order, so it is used
    # only on request.
    Backend("texture", "torch", "torch", "BSD-3-Clause", install="pip install torch"),
    Backend("texture", "nvdiffrast", "nvdiffrast.torch", _NON_COMMERCIAL, True, _NVDIFFRAST),
    Backend("antialias", "nvdiffrast", "nvdiffrast.torch", _NON_COMMERCIAL, True, _NVDIFFRAST),
    Backend("antialias", "numpy", "numpy", "BSD-3-Clause", install="pip install numpy"),
    Backend("grid", "tinycudann", "tinycudann", "BSD-3-Clause", True, _TINYCUDANN, tensors="cuda"),
    Backend("grid", "numba", "numba", "BSD-2-Clause", install="pip install numba", tensors="cpu"),
    Backend("grid", "torch", "torch", "BSD-3-Clause", install="pip install torch"),
    # tiny-cuda-nn computes in half precision, so it is used on request only.
    Backend("network", "torch", "torch", "BSD-3-Clause", install="pip install torch"),
    Backend("network", "tinycudann", "tinycudann", "BSD-3-Clause", True, _TINYCUDANN, tensors="cuda"),
    Backend("tiling", "numba", "numba", "BSD-2-Clause", install="pip install numba"),
    Backend("tiling", "numpy", "numpy", "BSD-3-Clause", install="pip install numpy"),
    Backend("uv", "numba", "numba", "BSD-2-Clause", install="pip install numba"),
    Backend("uv", "numpy", "numpy", "BSD-3-Clause", install="pip install numpy"),
    Backend("gutter", "numba", "numba", "BSD-2-Clause", install="pip install numba"),
    Backend("gutter", "numpy", "numpy", "BSD-3-Clause", install="pip install numpy"),
    Backend("volume", "numba", "numba", "BSD-2-Clause", install="pip install numba", tensors="cpu"),
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
    return f"no CUDA device (torch {torch.__version__} finds none; check with nvidia-smi)"


def missing_module_reason(module: str) -> str:
    """Empty where ``module``'s package can be found, else that it is not installed. Imports nothing."""
    package = module.split(".")[0]
    return "" if importlib.util.find_spec(package) is not None else f"{package} is not installed"


@functools.cache
def unavailable_reason(backend: Backend) -> str:
    """Empty where ``backend`` can be used, else one line with every cause and the install command."""
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
    """Forget what works on this machine: after an installation, or in tests that change it."""
    cuda_problem.cache_clear()
    unavailable_reason.cache_clear()


def select_backend(operation: str, name: str = "auto") -> Backend:
    """The backend for ``operation``: the one called ``name``, or for "auto" the first that works on this machine.

    ``LATENTKILN_<OPERATION>`` in the environment overrides "auto". Raises BackendError, with the reason, where the
    requested backend does not exist or cannot be used.
    """
    requested = os.environ.get(f"LATENTKILN_{operation.upper()}", "auto") if name == "auto" else name
    candidates = [b for b in BACKENDS if b.operation == operation]
    if requested != "auto":
        candidates = [b for b in candidates if b.name == requested]
        if not candidates:
            known = ", ".join(b.name for b in BACKENDS if b.operation == operation)
            raise BackendError(f"{operation}: unknown backend {requested!r}; allowed: {known}")
    reasons = []
    for backend in candidates:
        # Checked first, so that a library that will not be used is not imported.
        reason = cuda_problem() if requested == "auto" and backend.cuda_only_auto else ""
        reason = reason or unavailable_reason(backend)
        if not reason:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise BackendError(f"{operation}: no backend works here ({'; '.join(reasons)})")


def select_for_device(operation: str, device: str, name: str = "auto") -> Backend:
    """``select_backend`` for tensors on ``device`` ("cpu", "cuda").

    Where the selected backend does not take such tensors, "auto" falls back to the next of the operation that does.
    Raises BackendError where a backend requested by ``name`` does not take them, and where no backend does.
    """
    selected = select_backend(operation, name)
    if selected.tensors in ("", device):
        return selected
    if name != "auto":
        raise BackendError(
            f"{operation}: {selected.name} takes {selected.tensors} tensors only, these are on {device}; use torch"
        )
    for backend in BACKENDS:
        if backend.operation == operation and backend.tensors in ("", device) and not unavailable_reason(backend):
            return backend
    raise BackendError(f"{operation}: no backend works here on {device} tensors")


def load(package: str, name: str) -> ModuleType:
    """The module ``<name>_backend`` of ``package``, the package of an operation (its ``__name__``).

    All such modules of an operation define the same functions.
    """
    return importlib.import_module(f"{package}.{name}_backend")
