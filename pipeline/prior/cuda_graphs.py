"""CUDA graphs of an uncompiled UNet: calls of each shape are recorded once and replayed.

``--compile`` uses them on machines without Triton, a C compiler or Python's headers.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

# Each graph keeps the memory of a call: the usual batch, a smaller one for the last rows, one for ranking.
_MAX_GRAPHS = 3
# Calls before recording, in which libraries select kernels and allocate workspaces.
_WARM_UP = 3


class GraphedUNet:
    """Calls ``unet`` with tensors on CUDA and without gradients. The next call overwrites the result."""

    def __init__(self, unet: Any):
        self._unet = unet
        self._graphs: OrderedDict[tuple[Any, ...], tuple[Any, dict[str, Tensor], Tensor]] = OrderedDict()

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        *,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        tensors = {"x": x, "t": t, "text": encoder_hidden_states, **(added_cond_kwargs or {})}
        key = tuple((name, tuple(value.shape), value.dtype) for name, value in tensors.items())
        if key not in self._graphs:
            while len(self._graphs) >= _MAX_GRAPHS:
                self._graphs.popitem(last=False)
            try:
                self._graphs[key] = self._record(tensors)
            except RuntimeError:
                self.clear()
                raise
        self._graphs.move_to_end(key)
        graph, inputs, output = self._graphs[key]
        for name, value in tensors.items():
            inputs[name].copy_(value)
        graph.replay()
        return (output,)

    def clear(self) -> None:
        """Releases the memory of all graphs."""
        self._graphs.clear()

    def _record(self, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor], Tensor]:
        """Returns the graph of a call, its input tensors and its output tensor."""
        # Copies with their own memory and the same memory format; expanded tensors are materialised.
        inputs = {name: torch.empty_like(value).copy_(value) for name, value in tensors.items()}
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._call(inputs)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                output = self._call(inputs)
        except RuntimeError as error:
            # If ending the capture also fails, its stream stays current and hides the first error.
            torch.cuda.set_stream(current)
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        return graph, inputs, output

    def _call(self, inputs: dict[str, Tensor]) -> Tensor:
        added = {name: value for name, value in inputs.items() if name not in ("x", "t", "text")}
        output: Tensor = self._unet(
            inputs["x"],
            inputs["t"],
            encoder_hidden_states=inputs["text"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        return output
