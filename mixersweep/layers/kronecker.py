"""The permuted-Kronecker map J2 (I_n1 x W) J1 (paper, section 5.1), tied or with a matrix for each block."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.layers.base import SparseMap
from mixersweep.layers.permutation import Commutation, Identity, Permutation


class PermutedKronecker(SparseMap):
    """``blocks`` blocks of in_size features each, mapped to out_size features, between two permutations.

    Tied: one W (out_size, in_size) and one bias (out_size,) serve all blocks. Untied: W (blocks, out_size, in_size),
    bias (blocks, out_size).
    """

    def __init__(
        self,
        blocks: int,
        in_size: int,
        out_size: int,
        *,
        tied: bool = True,
        bias: bool = True,
        before: Permutation | None = None,
        after: Permutation | None = None,
    ) -> None:
        super().__init__()
        self.blocks, self.in_size, self.out_size, self.tied = blocks, in_size, out_size, tied
        self.in_width, self.out_width = blocks * in_size, blocks * out_size
        self.before = before or Identity(self.in_width)
        self.after = after or Identity(self.out_width)
        assert (self.before.width, self.after.width) == (self.in_width, self.out_width)
        copies = () if tied else (blocks,)
        self.weight = nn.Parameter(torch.zeros(*copies, out_size, in_size))
        self.bias = nn.Parameter(torch.zeros(*copies, out_size)) if bias else None

    @property
    def connections(self) -> int:
        """blocks·out_size·in_size."""
        return self.blocks * self.out_size * self.in_size

    def to_dense(self) -> Tensor:
        """J2 (I x W) J1, written out from its definition."""
        blocks = self.weight.expand(self.blocks, self.out_size, self.in_size)
        middle: Tensor = torch.block_diag(*blocks)
        return self.after.to_dense().to(middle) @ middle @ self.before.to_dense().to(middle)

    def dense_bias(self) -> Tensor:
        """J2 applied to the biases of the blocks."""
        if self.bias is None:
            return self.weight.new_zeros(self.out_width)
        return self.bias.expand(self.blocks, self.out_size).reshape(-1)[self.after.indices().to(self.bias.device)]

    @property
    def mixes_rows(self) -> bool:
        """Whether it is J_cᵀ (I x W) J_c, which multiplies the matrix of features by W from the left."""
        before, after = self.before, self.after
        if not (self.tied and isinstance(before, Commutation) and isinstance(after, Commutation)):
            return False
        return (before.rows, after.rows) == (self.in_size, self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_width) to (batch, out_width)."""
        if self.mixes_rows:
            rows: Tensor = _LeftProduct.apply(self.weight, x.view(-1, self.in_size, self.blocks), self.bias)
            return rows.view(-1, self.out_width)
        x_bni = self.before(x).view(-1, self.blocks, self.in_size)
        if self.tied:
            y = F.linear(x_bni, self.weight, self.bias)
        else:
            y_nbo = torch.bmm(x_bni.transpose(0, 1), self.weight.transpose(1, 2))
            y = y_nbo.transpose(0, 1)
            if self.bias is not None:
                y = y + self.bias
        permuted: Tensor = self.after(y.reshape(-1, self.out_width))
        return permuted


class _LeftProduct(torch.autograd.Function):
    """W (out, in) times each X (in, blocks) of a batch, plus a bias (out,) on its rows: nothing is transposed.

    The gradient of W is one product over batch and blocks together; autograd's own would first write out one a batch
    item, or reduce over strided views.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, x)
        ctx.has_bias = bias is not None
        kind = x.device.type
        ctx.autocast = nullcontext()
        if torch.amp.is_autocast_available(kind):  # meta tensors have none
            ctx.autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
        batched = weight.expand(x.shape[0], *weight.shape)
        if bias is None:
            return torch.bmm(batched, x)
        return torch.baddbmm(bias[:, None], batched, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        with ctx.autocast:
            return _LeftProduct._gradients(ctx, *gradients)

    @staticmethod
    def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight, x = ctx.saved_tensors
        of_weight = of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            of_weight = g.transpose(0, 1).flatten(1) @ x.transpose(0, 1).flatten(1).t()
        if ctx.needs_input_grad[1]:
            of_x = torch.bmm(weight.t().expand(x.shape[0], *weight.t().shape), g)
        if ctx.has_bias:
            of_bias = g.sum((0, 2))
        return of_weight, of_x, of_bias
