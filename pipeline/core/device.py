"""Bringing tensors from host memory to the device that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor``, which lies in host memory, on ``device``.

    To CUDA it goes from pinned memory and without waiting: an ordinary copy lets the host wait until the device has
    done all that it was given before, so that it stands idle while the host prepares the next step.
    """
    if device.type != "cuda" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
