"""The permuted-Kronecker map J2 (I_n1 x W) J1 (paper, section 5.1), tied or with a matrix for each block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixersweep.layers.base import SparseMap
from mixersweep.layers.batched import products
from mixersweep.layers.pack import is_packed, stacked
from mixersweep.layers.permutation import Commutation, Identity, Permutation, turned
from mixersweep.layers.product import column, linear, product


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
        self.permute(before or Identity(self.in_width), after or Identity(self.out_width))
        copies = () if tied else (blocks,)
        self.weight = nn.Parameter(torch.zeros(*copies, out_size, in_size))
        self.bias = nn.Parameter(torch.zeros(*copies, out_size)) if bias else None

    def permute(self, before: Permutation, after: Permutation) -> None:
        """Take these as J1 and J2."""
        assert (before.width, after.width) == (self.in_width, self.out_width)
        self.before, self.after = before, after
        # Where one W serves all blocks: from there to the blocks as columns, (in_size, blocks), and back.
        self.to_columns = self.from_columns = None
        if self.tied and type(before) is not Identity:
            self.to_columns = before.then(Commutation(self.blocks, self.in_size))
        if self.tied and type(after) is not Identity:
            self.from_columns = Commutation(self.out_size, self.blocks).then(after)

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

    @property
    def takes_tables(self) -> bool:  # type: ignore[override]
        """Whether tables are multiplied as they are. Else it is (in_width, batch) to (out_width, batch), and either
        may be (rows, columns, batch) instead, in any order in memory.
        """
        return self.mixes_rows or self.mixes_columns

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """(batch, in_width) to (batch, out_width), or what ``takes_tables`` says."""
        if features_first:
            return self._tables(x) if self.takes_tables else self._rows(x)
        x_bni = self.before(x).view(-1, self.blocks, self.in_size)
        if self.tied:
            y = linear(x_bni, self.weight, self.bias)
        else:
            y_nbo = torch.bmm(x_bni.transpose(0, 1), self.weight.transpose(1, 2))
            y = y_nbo.transpose(0, 1)
            if self.bias is not None:
                y = y + self.bias
        return self.after(y.reshape(-1, self.out_width))

    def _tables(self, x_rbc: Tensor) -> Tensor:
        """(rows, batch, columns) to (out_size, batch, blocks) where rows are mixed, else to (blocks, batch, out_size).

        From either side it is one matrix product, and so is each gradient. Nothing is copied but what untied matrices
        multiply from the left.
        """
        batch = x_rbc.shape[1]
        if self.mixes_rows:
            x_ibn = table(x_rbc, self.in_size)
            if self.tied:
                y = product(self.weight, x_ibn.flatten(1), column(self.bias))
                return y.view(self.out_size, batch, self.blocks)
            x_nib = turned(x_ibn.flatten(0, 1)).view(self.blocks, self.in_size, batch)
            y_nob = _products(self.weight, x_nib, column(self.bias))
            return y_nob.flatten(1).t().view(self.out_size, batch, self.blocks)
        x_nbi = table(x_rbc, self.blocks)
        if self.tied:
            return linear(x_nbi, self.weight, self.bias)
        return _products(x_nbi, self.weight.mT, None if self.bias is None else self.bias[:, None])

    def _rows(self, x: Tensor) -> Tensor:
        """Permuted by whole rows of the batch, in place of single numbers."""
        batch = x.shape[-1]
        if not self.tied:
            x_nib = self.before(x, features_first=True).reshape(self.blocks, self.in_size, batch)
            y = _products(self.weight, x_nib, column(self.bias)).view(self.out_width, batch)
            return self.after(y, features_first=True)
        if self.to_columns is not None:
            x_im = self.to_columns(x, features_first=True)
        else:
            x_im = x.reshape(self.blocks, self.in_size, batch).transpose(0, 1)
        y_om = product(self.weight, x_im.reshape(self.in_size, self.blocks * batch), column(self.bias))
        if self.from_columns is not None:
            return self.from_columns(y_om.view(self.out_width, batch), features_first=True)
        return y_om.view(self.out_size, self.blocks, batch).transpose(0, 1)


def table(x_rbc: Tensor, rows: int) -> Tensor:
    """The same features, stored row by row, in a table of so many rows: (rows, batch, columns)."""
    if x_rbc.shape[0] == rows:
        return x_rbc
    return x_rbc.transpose(0, 1).reshape(x_rbc.shape[1], rows, -1).transpose(0, 1)


def _products(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a b + bias of each block."""
    if is_packed():
        return stacked(products, a, b, bias)
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)
