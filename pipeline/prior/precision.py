"""Number formats, compilation and CUDA settings of a prior, from its options."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import PriorError
from pipeline.core.home import code_cache
from pipeline.prior.components import Components
from pipeline.prior.cuda_graphs import GraphedUNet
from pipeline.prior.defaults import cpu_precision
from pipeline.prior.options import PriorOptions

_FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def device_of(name: str) -> torch.device:
    """Parses a device name; ``auto`` is CUDA if available. Raises PriorError for a device that torch does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise PriorError(f"device {name}: torch {torch.__version__} sees no CUDA device")
    return torch.device(name)


def text_dtype(options: PriorOptions, device: torch.device, folder: Path) -> torch.dtype:
    """Returns the dtype of UNet and text encoders of the prior in ``folder``."""
    if options.precision != "auto":
        return _FORMATS[options.precision]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if has_bfloat16() and cpu_precision(folder) == "bfloat16" else torch.float32


def has_bfloat16() -> bool:
    """Tells whether this CPU has instructions for bfloat16 (AVX512-BF16 or AMX). Emulation is slower than float32."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(supported is not None and supported() for supported in probes)


def vae_dtype(unet_dtype: torch.dtype, components: Components) -> torch.dtype:
    """Returns the dtype of encoder and decoder: that of the UNet, or float32 if that would degrade images (see
    ``PriorOptions``)."""
    overflows = components.is_xl and bool(getattr(components.vae.config, "force_upcast", False))
    return torch.float32 if unet_dtype == torch.bfloat16 or (unet_dtype == torch.float16 and overflows) else unet_dtype


def prepare_cuda(device: torch.device, options: PriorOptions) -> None:
    """Sets TF32 on CUDA; does nothing on the CPU."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = options.tf32
        torch.backends.cudnn.allow_tf32 = options.tf32


def can_compile() -> bool:
    """Tells whether Triton is installed, with a C compiler and Python's headers for its launchers."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers)) and headers.is_file()


def compiled(unet: Any, device: torch.device) -> Any:
    """Compiles ``unet`` for fixed shapes, on CUDA with CUDA graphs. Keeps compiled code in this user's cache.

    If CUDA code cannot be compiled, returns CUDA graphs of the uncompiled network.
    """
    if device.type == "cuda" and not can_compile():
        return GraphedUNet(unet)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(code_cache("compiled")))
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(unet, mode=mode, dynamic=False)
