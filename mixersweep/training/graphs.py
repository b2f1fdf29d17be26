"""CUDA graphs: functions captured once on a GPU and replayed, with one launch instead of hundreds.

A graph runs the same kernels on the same memory each time, so whatever changes between replays must be read from
tensors that keep their addresses. On a CPU a function is simply called.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Captured:
    """The captured functions of one learner, by name; ``changing`` are the tensors that they modify in place."""

    def __init__(self, device: torch.device, changing: Sequence[Tensor]) -> None:
        self._device, self._changing = device, changing
        self._graphs: dict[str, Any] = {}
        self._pool: Any = None

    def run(self, name: str, program: Callable[..., None], *arguments: Any) -> None:
        """Run a function, captured on first use; a name must always go with the same function and arguments."""
        if self._device.type != "cuda":
            program(*arguments)
            return
        if name not in self._graphs:
            self._graphs[name] = self._capture(program, arguments)
        self._graphs[name].replay()

    def _capture(self, program: Callable[..., None], arguments: Sequence[Any]) -> Any:
        """Capture a function as a CUDA graph, after two ordinary calls.

        In those, libraries choose their routines and allocate memory, which a capture forbids; the tensors they change
        are restored. Garbage collection is off during the capture: freeing another graph's memory would break it.
        """
        before = [tensor.detach().clone() for tensor in self._changing]
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                program(*arguments)
                for tensor, value in zip(self._changing, before, strict=True):
                    tensor.detach().copy_(value)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                program(*arguments)
        finally:
            if collects:
                gc.enable()
        self._pool = self._pool or graph.pool()
        return graph
