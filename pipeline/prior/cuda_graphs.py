"""CUDA graphs of a UNet as it is: its calls of one shape are recorded once and replayed, without launching kernel by
kernel. For ``--compile`` on machines that lack what compiling takes (Triton, a C compiler, Python's headers)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

# Each holds the memory of a call for good: the width's own batch, a smaller one for the last rows, one for ranking.
_MAX_GRAPHS = 3
# Calls before recording, in which libraries choose their kernels and take their workspaces.
_WARM_UP = 3


class GraphedUNet:
    """``unet``, called with tensors on CUDA and without gradients. The result is overwritten by the next call."""

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
        """Gives the memory of all graphs back."""
        self._graphs.clear()

    def _record(self, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor], Tensor]:
        """The graph of a call, with the tensors it reads from and the one it writes to."""
        # Of their own memory, in the given order of axes; what is expanded is written out.
        inputs = {name: torch.empty_like(value).copy_(value) for name, value in tensors.items()}
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
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
            # Where ending the recording fails as well, its stream is still the current one, and the first error hidden.
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
