"""Options for a prior's computation: number formats, compilation and memory. Loads no torch.

An asset's record contains them; its fingerprint does not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class PriorOptions:
    """Choices for ``load_worker_prior``.

    ``precision``: of UNet and text encoders. ``auto`` is float16 on CUDA. On the CPU it is float32, or bfloat16 if the
        prior requests it (``cpu_precision`` in its ``latentkiln.json``, as the embedded one does) and the CPU has
        instructions for it. Score distillation itself is always float32. The decoder and encoder use the same format,
        except float32 in two cases: with bfloat16 (its 8 bits cause banding), and for an SDXL pipeline with
        ``force_upcast`` in the autoencoder's config (its activations overflow float16).
    ``tf32``: lets CUDA multiply float32 matrices with 10 bits of mantissa, on GPUs that support it.
    ``compile``: compiles the UNet with ``torch.compile``, on CUDA with CUDA graphs, since all shapes are fixed. The
        first step takes minutes; later runs reuse the compiled code. Rows with a LoRA use the uncompiled UNet. Without
        Triton, a C compiler or Python's headers, it uses CUDA graphs of the uncompiled UNet.
    ``offload``: keeps text encoders and autoencoder in main memory and moves them to the device for each call.
    ``vae_slicing``: encodes and decodes one image at a time. ``vae_tiling``: large images in overlapping tiles.
        Both save memory; tiling changes the image slightly.
    """

    precision: Precision = "auto"
    tf32: bool = True
    compile: bool = False
    offload: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False

    def non_default(self) -> dict[str, bool]:
        """Returns the options that differ from the defaults, for records, which also contain the number format."""
        usual = PriorOptions()
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if isinstance(value, bool) and value != getattr(usual, name)
        }


def low_memory(precision: Precision = "auto") -> PriorOptions:
    """Returns the options of ``--low-memory``: all that save memory at the cost of time."""
    return PriorOptions(precision=precision, offload=True, vae_slicing=True, vae_tiling=True)
