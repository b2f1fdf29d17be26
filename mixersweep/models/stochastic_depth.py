"""Stochastic depth: in training, an image passes by a residual branch with some probability (Huang et al. 2016).

As timm's ``DropPath``: each branch of a block is dropped by itself and an image at a time, what is kept is divided by
the probability to be kept, and the rate rises linearly from 0 in the first block to ``stochastic_depth`` in the last.
The two layers of an MLP that stand for a Mixer's block have the rate of that block. What is dropped is drawn before a
step from a seed, not while it runs, so that no global random state is read and a block that is computed again in the
backward pass drops the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixersweep.models.parts import Block, Mixing


class DropPath(nn.Module):
    """The end of a branch: an image's features times 1/keep or 0 in training, as they are in evaluation."""

    kept: Tensor | None

    def __init__(self, rate: float, *, batch_dim: int) -> None:
        super().__init__()
        self.rate, self.batch_dim = rate, batch_dim
        self.kept = None  # (B,), 1/keep or 0; set by draw

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, which has the batch in ``batch_dim``."""
        if not self.training:
            return x
        assert self.kept is not None, "stochastic_depth.draw comes before a forward pass in training"
        return x * self.kept.to(x.dtype).view(-1, *[1] * (x.dim() - 1 - self.batch_dim))


def attach(network: nn.Module, rate: float, depth: int) -> None:
    """End the branches of all blocks but the first with a ``DropPath``; the last has ``rate``."""
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    for index, block in enumerate(blocks):
        of_block = rate * (index * depth // len(blocks)) / (depth - 1)
        for _, branch in block.residual() if of_block else ():
            branch.append(DropPath(of_block, batch_dim=1 if isinstance(branch, Mixing) else 0))


def draw(network: nn.Module, seed: int, batch: int, device: torch.device, part: slice | Tensor = slice(None)) -> None:
    """Draw what the next forward pass of ``batch`` images drops; nothing to do for a network without drop paths.

    Drawn on the CPU, whatever the device, which is not waited for. A process that computes a part of a batch with
    others (DDP) gives the size of the whole and its ``part``, a slice or places, and drops what one process would.
    """
    paths = [module for module in network.modules() if isinstance(module, DropPath)]
    if not paths:
        return
    rates = torch.tensor([path.rate for path in paths])[:, None]
    uniform = torch.rand(len(paths), batch, generator=torch.Generator().manual_seed(seed))
    kept = ((uniform >= rates) / (1 - rates))[:, part].to(device, non_blocking=True)
    for path, of_path in zip(paths, kept, strict=True):
        path.kept = of_path
