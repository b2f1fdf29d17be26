"""Gradient checkpointing: activations inside blocks are recomputed in the backward pass instead of stored.

Chen et al. 2016 (1604.06174), by torch's implementation. The arithmetic and its order are unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixersweep.models.parts import Block


def checkpointed(network: nn.Module, every: int = 1) -> nn.Module:
    """Change a network in place to store only the inputs of every ``every``-th block for the backward pass.

    The names of parameters do not change, nor does a network without blocks. Returns the network.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential) and len(child) and isinstance(child[0], Block):
            setattr(network, name, _Recomputed(child, every))
    return network


class _Recomputed(nn.Sequential):
    """Blocks in segments of ``every``, whose activations are recomputed in the backward pass."""

    def __init__(self, blocks: nn.Sequential, every: int) -> None:
        from torch.utils.checkpoint import checkpoint  # where torch is 2.6 this takes long, and few runs need it

        super().__init__(*blocks)
        self.every = every
        self._checkpoint = checkpoint

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks in order, as ``nn.Sequential`` does."""
        blocks = list(self)
        if not torch.is_grad_enabled():
            return _run_blocks(blocks, x)
        for first in range(0, len(blocks), self.every):
            segment = blocks[first : first + self.every]
            norms = [m for block in segment for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            again: dict[str, Any] = {"context_fn": partial(_make_contexts, norms)} if norms else {}
            x = self._checkpoint(_run_blocks, segment, x, use_reentrant=False, preserve_rng_state=False, **again)
        return x


def _run_blocks(blocks: list[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _make_contexts(norms: list[nn.modules.batchnorm._BatchNorm]) -> Any:
    """The contexts of the forward pass and of its recomputation."""
    return nullcontext(), _updating_copies(norms)


@contextmanager
def _updating_copies(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """A context in which BatchNorm updates copies of its running statistics, so no batch is counted twice."""
    before = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    for norm, statistics in zip(norms, before, strict=True):
        norm.running_mean, norm.running_var, norm.num_batches_tracked = (
            None if kept is None else kept.clone() for kept in statistics
        )
    try:
        yield
    finally:
        for norm, statistics in zip(norms, before, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = statistics
