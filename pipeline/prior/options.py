"""How a prior computes: number formats, compilation and memory. Loads no torch.

None of it is part of an asset's fingerprint; all of it stands in the asset's record.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class PriorOptions:
    """Choices for ``load_worker_prior``.

    ``precision``: of UNet and text encoders; ``auto`` is float16 on CUDA and float32 on the CPU, or there bfloat16
        where the prior asks for it (``cpu_precision`` in its ``latentkiln.json``; the embedded one does) and the CPU
        has instructions for it. Score distillation itself is float32 whatever this says. The decoder and encoder
        follow, but stay float32 where half precision is known to spoil them: with bfloat16 (8 bits band the colours)
        and where the autoencoder's config says ``force_upcast`` for an SDXL pipeline (its activations overflow
        float16).
    ``tf32``: lets CUDA multiply float32 matrices with 10 bits of mantissa (on GPUs that can).
    ``compile``: compiles the UNet with ``torch.compile``; on CUDA as CUDA graphs, since all shapes are fixed. The
        first step takes minutes; compiled code is kept for later runs. Rows with a LoRA use the plain UNet. Without
        Triton, a C compiler or Python's headers, CUDA graphs of the UNet as it is.
    ``offload``: text encoders and autoencoder wait in main memory and come to the device when they are called.
    ``vae_slicing``: encodes and decodes one image at a time. ``vae_tiling``: large images in overlapping pieces.
        Both save memory; tiling changes the image a little.
    """

    precision: Precision = "auto"
    tf32: bool = True
    compile: bool = False
    offload: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False

    def non_default(self) -> dict[str, bool]:
        """For records: the switches that are not as usual. The number format in use stands there anyway."""
        usual = PriorOptions()
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if isinstance(value, bool) and value != getattr(usual, name)
        }


def low_memory(precision: Precision = "auto") -> PriorOptions:
    """What ``--low-memory`` stands for: everything that saves memory, at the price of time."""
    return PriorOptions(precision=precision, offload=True, vae_slicing=True, vae_tiling=True)
