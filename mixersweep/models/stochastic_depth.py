"""Stochastic depth (Huang et al. 2016): in training, an image skips each residual branch with some probability.

As in timm's ``DropPath``, each branch is dropped independently for each image, a kept output is divided by the
probability of keeping it, and the rate rises linearly from 0 in the first block to ``stochastic_depth`` in the last.
The two layers of an MLP that correspond to a Mixer block have the rate of that block. The choices are drawn from a seed
before a step, so that no global random state is read and a block that gradient checkpointing recomputes drops the same
images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixersweep.models.parts import Block, Mixing


class DropPath(nn.Module):
    """The last layer of a branch: multiplies an image's features by 1/keep or 0 in training, by 1 in evaluation."""

    kept: Tensor | None

    def __init__(self, rate: float, *, batch_dim: int) -> None:
        super().__init__()
        self.rate, self.batch_dim = rate, batch_dim
        self.kept = None  # (B,), 1/keep or 0; set by draw

    def forward(self, x: Tensor) -> Tensor:
        """Scale the features, whose batch axis is ``batch_dim``; the shape stays."""
        if not self.training:
            return x
        assert self.kept is not None, "stochastic_depth.draw comes before a forward pass in training"
        return x * self.kept.to(x.dtype).view(-1, *[1] * (x.dim() - 1 - self.batch_dim))


def attach(network: nn.Module, rate: float, depth: int) -> None:
    """Append a ``DropPath`` to the branches of all blocks but the first; the rate of the last is ``rate``."""
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    for index, block in enumerate(blocks):
        of_block = rate * (index * depth // len(blocks)) / (depth - 1)
        for _, branch in block.residual() if of_block else ():
            branch.append(DropPath(of_block, batch_dim=1 if isinstance(branch, Mixing) else 0))


def draw(network: nn.Module, seed: int, batch: int, device: torch.device, part: slice | Tensor = slice(None)) -> None:
    """Draw which branches the next forward pass drops for each image; without drop paths this does nothing.

    The choices are drawn on the CPU, without waiting for the device. ``batch`` is the size of the whole batch; a
    process with only a part of it (DDP) gives its ``part``, a slice or int64 (B,) of positions, and drops there what a
    single process would.
    """
    paths = [module for module in network.modules() if isinstance(module, DropPath)]
    if not paths:
        return
    rates = torch.tensor([path.rate for path in paths])[:, None]
    uniform = torch.rand(len(paths), batch, generator=torch.Generator().manual_seed(seed))
    kept = ((uniform >= rates) / (1 - rates))[:, part].to(device, non_blocking=True)
    for path, of_path in zip(paths, kept, strict=True):
        path.kept = of_path
