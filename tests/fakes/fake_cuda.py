"""A make-believe CUDA device: tensors that compute on the CPU but say, and insist, that they are on ``cuda:0``.

Inside ``with FakeCuda():`` code written for CUDA runs unchanged where there is none: factories and ``.to`` accept
the device, a tensor there cannot become a numpy array before ``.cpu()``, and an operation on tensors of both
devices, or with a generator of the other one, fails as it would on a real one. Nothing else of CUDA is imitated.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils._pytree import tree_flatten, tree_map

from pipeline.core import backends
from pipeline.prior import load
from pipeline.prior.cache import CACHE_VARIABLE

CUDA = torch.device("cuda", 0)
# A tensor in host memory may index, or be written into, one on the device.
_MIXING_ALLOWED = {torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.copy_, torch.Tensor.to}
# In all others a number may be in host memory, but not in these.
_NOT_EVEN_NUMBERS = {torch.stack, torch.cat, torch.concat, torch.concatenate, torch.hstack, torch.vstack, torch.dstack}
_TO_NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist}


class CudaTensor(torch.Tensor):
    """A tensor on the make-believe device."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def on_cuda(value: Any) -> bool:
    return isinstance(value, CudaTensor)


def plain(value: Any) -> Any:
    """``value`` with its tensors brought to the host, sharing memory and gradients."""
    return tree_map(lambda x: x.as_subclass(torch.Tensor) if on_cuda(x) else x, value)


def marked(value: Any) -> Any:
    """``value`` with its tensors put on the device, sharing memory and gradients."""
    return tree_map(lambda x: x.as_subclass(CudaTensor) if isinstance(x, torch.Tensor) and not on_cuda(x) else x, value)


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu"))


def _check_indexing(tensor: torch.Tensor, index: Any, value: Any = None) -> None:
    """Indices may be in host memory, but not on the device where ``tensor`` is not; what is put at places that tensors
    name has to be where ``tensor`` is, unless it is a number."""
    places = [x for x in tree_flatten(index)[0] if isinstance(x, torch.Tensor)]
    if not on_cuda(tensor) and any(on_cuda(x) and x.dim() for x in places):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if places and isinstance(value, torch.Tensor) and value.dim() and on_cuda(value) != on_cuda(tensor):
        raise RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu in index_put_")


class FakeCuda(TorchFunctionMode):
    """See the module."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        there = any(on_cuda(x) for x in tensors)
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return CUDA if there else torch.device("cpu")
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return there
        if func is torch._has_compatible_shallow_copy_type:  # asked when a module moves
            return on_cuda(args[0]) == on_cuda(args[1]) and func(*plain(args))
        if func is torch.Tensor.get_device:
            return 0 if there else -1
        if func is torch.Tensor.cpu:
            return plain(args[0])
        if func is torch.Tensor.pin_memory and not there:
            return args[0]
        if func is torch.Tensor.cuda:
            return marked(args[0])
        if func in _TO_NUMPY and there:
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use .cpu() first")
        args, kwargs, device = self._on_the_cpu(func, args, kwargs)
        numbers_too = func in _NOT_EVEN_NUMBERS
        if there and func not in _MIXING_ALLOWED and any((x.dim() or numbers_too) and not on_cuda(x) for x in tensors):
            raise RuntimeError(f"{func}: tensors on cuda:0 and on the CPU in one operation")
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            _check_indexing(*args)
        if there or device == CUDA:
            for x in tree_flatten((args, kwargs))[0]:
                if isinstance(x, torch.Generator) and x.device.type != "cuda":
                    raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        result = func(*args, **kwargs)
        there = device.type == "cuda" if device is not None else there
        if there and not tensors and isinstance(result, torch.Tensor) and result.requires_grad:
            return marked(result.detach()).requires_grad_()  # made there, so a leaf there
        return marked(result) if there else plain(result)

    @staticmethod
    def _on_the_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
        """The arguments with the CPU for a device, which does the work, and the device that was asked for."""
        host = torch.device("cpu")
        if kwargs.get("device") is not None:
            return args, {**kwargs, "device": host}, torch.device(torch.device(kwargs["device"]).type, 0)
        if func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.Tensor):
            return args, kwargs, CUDA if on_cuda(args[1]) else host
        named = [x for x in args if _is_device(x)] if func is torch.Tensor.to else []
        if not named:
            return args, kwargs, None
        there = torch.device(named[0])
        return tuple(host if x is named[0] and there.type == "cuda" else x for x in args), kwargs, there


def _outside(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as it is without the device: for reading weights, which the libraries fill in ways of their own."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with _pop_mode_temporarily():
            return function(*arguments, **named)

    return call


@contextmanager
def fake_cuda() -> Iterator[None]:
    """The device, and everybody who asks for one being told that it is there."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch, FakeCuda():
        # They are read in host memory on any machine, and moved after.
        patch.setattr(load, "load_components", _outside(load.load_components))
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        for name in ("empty_cache", "synchronize", "reset_peak_memory_stats"):
            patch.setattr(torch.cuda, name, lambda device=None: None)
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: "make-believe")
        properties = SimpleNamespace(name="make-believe", total_memory=16 << 30, major=8, minor=0)
        patch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
        # Memory without end: nothing is counted.
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (16 << 30, 16 << 30))
        for name in ("memory_reserved", "max_memory_allocated"):
            patch.setattr(torch.cuda, name, lambda device=None: 0)
        if CACHE_VARIABLE not in os.environ:
            # What it is found to carry is no news for this user's cache.
            patch.setenv(CACHE_VARIABLE, stack.enter_context(tempfile.TemporaryDirectory()))
        backends.clear_cache()
        yield
    backends.clear_cache()
