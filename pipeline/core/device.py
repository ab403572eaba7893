"""Copies of tensors from host memory to the compute device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies ``tensor`` from host memory to ``device``.

    Copies to CUDA are asynchronous, from pinned memory. A synchronous copy waits for all queued kernels, and the
    device then idles while the host prepares the next step.
    """
    if device.type != "cuda" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
