"""The permuted-Kronecker map J2 (I ⊗ W) J1, tied or with a matrix for each block.

Hayase & Karakida 2024, section 5.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixersweep.layers.base import SharedParameter, SparseMap
from mixersweep.layers.batched import products
from mixersweep.layers.pack import for_all_runs, is_packed
from mixersweep.layers.permutation import Commutation, Identity, Permutation, RandomPermutation, transposed
from mixersweep.layers.product import column, linear, product


class PermutedKronecker(SparseMap):
    """Permute the features by J1, map each of ``blocks`` blocks of in_size features to out_size, and permute by J2.

    Tied, all blocks share one W (out_size, in_size) and one bias (out_size,). Untied, W is (blocks, out_size, in_size)
    and the bias (blocks, out_size).
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
        """Set the permutations J1 and J2."""
        assert (before.width, after.width) == (self.in_width, self.out_width)
        self.before, self.after = before, after
        # A tied W multiplies the blocks as columns (in_size, blocks): merge J1 and J2 with the transposes around it.
        self.to_columns = self.from_columns = None
        if self.tied and type(before) is not Identity:
            self.to_columns = before.then(Commutation(self.blocks, self.in_size))
        if self.tied and type(after) is not Identity:
            self.from_columns = Commutation(self.out_size, self.blocks).then(after)

    @property
    def connections(self) -> int:
        """The number of structural nonzeros, blocks·out_size·in_size."""
        return self.blocks * self.out_size * self.in_size

    def shared_parameters(self) -> list[SharedParameter]:
        """The weight and the bias of tied blocks; inputs that a random permutation gathers are as unlike as noise."""
        if not self.tied:
            return []
        likeness = 1 / self.in_size if isinstance(self.before, RandomPermutation) else 1.0
        bias = [] if self.bias is None else [SharedParameter(self.bias, self.blocks, 1.0)]
        return [SharedParameter(self.weight, self.blocks, likeness), *bias]

    def to_dense(self) -> Tensor:
        """Return J2 (I ⊗ W) J1 (out_width, in_width), written out from its definition."""
        blocks = self.weight.expand(self.blocks, self.out_size, self.in_size)
        middle: Tensor = torch.block_diag(*blocks)
        return self.after.to_dense().to(middle) @ middle @ self.before.to_dense().to(middle)

    def dense_bias(self) -> Tensor:
        """Return the biases of all blocks, permuted by J2: (out_width,)."""
        if self.bias is None:
            return self.weight.new_zeros(self.out_width)
        return self.bias.expand(self.blocks, self.out_size).reshape(-1)[self.after.indices().to(self.bias.device)]

    @property
    def mixes_rows(self) -> bool:
        """Whether the map is J_cᵀ (I ⊗ W) J_c: W times the (rows, columns) matrix of features."""
        before, after = self.before, self.after
        if not (isinstance(before, Commutation) and isinstance(after, Commutation)):
            return False
        return (before.rows, after.rows) == (self.in_size, self.blocks)

    @property
    def mixes_columns(self) -> bool:
        """Whether the map is I ⊗ W: the (rows, columns) matrix of features times Wᵀ."""
        return type(self.before) is Identity and type(self.after) is Identity

    @property
    def takes_rbc(self) -> bool:  # type: ignore[override]
        """Whether features-first calls map (rows, B, columns) to (rows, B, columns), as they need no permutation.

        Otherwise they map (in_width, B) to (out_width, B), and input and output may also be (rows, columns, B), stored
        in any order.
        """
        return self.mixes_rows or self.mixes_columns

    def forward(self, x: Tensor, *, features_first: bool = False) -> Tensor:
        """Map (B, in_width) to (B, out_width); with ``features_first`` the layouts are those of ``takes_rbc``."""
        if features_first:
            return self._map_rbc(x) if self.takes_rbc else self._map_features_first(x)
        x_bni = self.before(x).view(-1, self.blocks, self.in_size)
        if self.tied:
            y = linear(x_bni, self.weight, self.bias)
        else:
            y_nbo = torch.bmm(x_bni.transpose(0, 1), self.weight.transpose(1, 2))
            y = y_nbo.transpose(0, 1)
            if self.bias is not None:
                y = y + self.bias
        return self.after(y.reshape(-1, self.out_width))

    def _map_rbc(self, x_rbc: Tensor) -> Tensor:
        """Map (rows, B, columns) to (out_size, B, blocks) where rows are mixed, else to (blocks, B, out_size).

        Forward and each gradient are one matrix product. Only the input of untied matrices that multiply from the left
        is copied.
        """
        batch = x_rbc.shape[1]
        if self.mixes_rows:
            x_ibn = with_rows(x_rbc, self.in_size)
            if self.tied:
                y = product(self.weight, x_ibn.flatten(1), column(self.bias))
                return y.view(self.out_size, batch, self.blocks)
            x_nib = transposed(x_ibn.flatten(0, 1)).view(self.blocks, self.in_size, batch)
            y_nob = batched_products(self.weight, x_nib, column(self.bias))
            return y_nob.flatten(1).t().view(self.out_size, batch, self.blocks)
        x_nbi = with_rows(x_rbc, self.blocks)
        if self.tied:
            return linear(x_nbi, self.weight, self.bias)
        return batched_products(x_nbi, self.weight.mT, None if self.bias is None else self.bias[:, None])

    def _map_features_first(self, x: Tensor) -> Tensor:
        """Map (in_width, B) to (out_width, B); permutations move whole rows of B numbers."""
        batch = x.shape[-1]
        if not self.tied:
            x_nib = self.before(x, features_first=True).reshape(self.blocks, self.in_size, batch)
            y = batched_products(self.weight, x_nib, column(self.bias)).view(self.out_width, batch)
            return self.after(y, features_first=True)
        if self.to_columns is not None:
            x_im = self.to_columns(x, features_first=True)
        else:
            x_im = x.reshape(self.blocks, self.in_size, batch).transpose(0, 1)
        y_om = product(self.weight, x_im.reshape(self.in_size, self.blocks * batch), column(self.bias))
        if self.from_columns is not None:
            return self.from_columns(y_om.view(self.out_width, batch), features_first=True)
        return y_om.view(self.out_size, self.blocks, batch).transpose(0, 1)


def with_rows(x_rbc: Tensor, rows: int) -> Tensor:
    """Reshape the (rows, columns) matrix of each example to another number of rows: (rows, B, columns)."""
    if x_rbc.shape[0] == rows:
        return x_rbc
    return x_rbc.transpose(0, 1).reshape(x_rbc.shape[1], rows, -1).transpose(0, 1)


def batched_products(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return a b + bias of each block: a (blocks, n, k), b (blocks, k, m), bias (blocks, n, 1) or (blocks, 1, m)."""
    if is_packed():
        return for_all_runs(products, a, b, bias)
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)
