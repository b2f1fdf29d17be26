"""The permuted-Kronecker map J2 (I_n1 x W) J1 (paper, section 5.1), tied or with a matrix for each block."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.layers.base import SparseMap
from mixersweep.layers.permutation import Commutation, Identity, Permutation, turned


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
        if not (isinstance(before, Commutation) and isinstance(after, Commutation)):
            return False
        return (before.rows, after.rows) == (self.in_size, self.blocks)

    @property
    def mixes_columns(self) -> bool:
        """Whether it is I x W, which multiplies the matrix of features by Wᵀ from the right."""
        return type(self.before) is Identity and type(self.after) is Identity

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """(batch, in_width) to (batch, out_width), or one table (rows, batch, columns) to another."""
        if features_first:
            return self._tables(x)
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

    def _tables(self, x_rbc: Tensor) -> Tensor:
        """(rows, batch, columns) to (out_size, batch, blocks) where rows are mixed, else to (blocks, batch, out_size).

        From either side it is one matrix product, and so is each gradient. Nothing is copied but what untied matrices
        multiply from the left, and what is permuted at random.
        """
        batch = x_rbc.shape[1]
        if self.mixes_rows:
            x_ibn = table(x_rbc, self.in_size)
            if self.tied:
                y = _product(self.weight, x_ibn.flatten(1), None if self.bias is None else self.bias[:, None])
                return y.view(self.out_size, batch, self.blocks)
            x_nib = turned(x_ibn.flatten(0, 1)).view(self.blocks, self.in_size, batch)
            y_nob = _product(self.weight, x_nib, None if self.bias is None else self.bias[..., None])
            return y_nob.flatten(1).t().view(self.out_size, batch, self.blocks)
        if self.mixes_columns:
            x_nbi = table(x_rbc, self.blocks)
            if self.tied:
                return F.linear(x_nbi, self.weight, self.bias)
            return _product(x_nbi, self.weight.mT, None if self.bias is None else self.bias[:, None])
        y_bm = self.forward(x_rbc.transpose(0, 1).flatten(1))
        return y_bm.view(batch, self.blocks, self.out_size).transpose(0, 1)


def table(x_rbc: Tensor, rows: int) -> Tensor:
    """The same features, stored row by row, in a table of so many rows: (rows, batch, columns)."""
    if x_rbc.shape[0] == rows:
        return x_rbc
    return x_rbc.transpose(0, 1).reshape(x_rbc.shape[1], rows, -1).transpose(0, 1)


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a b + bias, of matrices or of batches of them."""
    if bias is None:
        return a @ b
    return torch.addmm(bias, a, b) if a.dim() == 2 else torch.baddbmm(bias, a, b)
