"""What can go wrong in a step, told so that somebody can act on it: divergence by layer, memory by what would fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FirstBadStep:
    """The first step whose loss is not finite, kept on the device: asking for it is the only wait."""

    def __init__(self, device: torch.device) -> None:
        self._step = torch.full((), -1, dtype=torch.int64, device=device)

    def see(self, step: int, loss: Tensor) -> None:
        """Note the loss () of a step."""
        bad = ~loss.isfinite() & (self._step < 0)
        self._step = torch.where(bad, step, self._step)

    def __call__(self) -> int | None:
        """The step, None where all were finite."""
        step = int(self._step)
        return None if step < 0 else step


def first_bad_layer(network: nn.Module, compute: Callable[[], Tensor]) -> str | None:
    """The name of the first layer that makes a loss not finite, and whether its weights or its output is to blame.

    ``compute`` runs the forward pass and returns the loss.
    """
    for name, parameter in network.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the parameter {name} is not finite"
    found: list[str] = []
    handles = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(f"the output of {name} is not finite")

        return hook

    for name, module in network.named_modules():
        if name and not any(module.children()):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        loss = compute()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    return None if math.isfinite(float(loss)) else "the loss itself is not finite"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or Python, could not allocate."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
    )


def what_fits(batch_size: int, attempt: Callable[[int], None]) -> int | None:
    """The largest of batch_size/2, /4, ... for which ``attempt`` runs without running out of memory; None for none."""
    size = batch_size // 2
    while size >= 1:
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                return None
            size //= 2
        else:
            return size
    return None
